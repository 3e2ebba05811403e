"""The paper's row TSRankGPT: two stages, each of which keeps the decoder a language model.

  disranker run --config configs/tsrankgpt.py --workdir runs/tsrankgpt

Stage 1 (cpt) writes queries from clicked pages. Stage 2 (sft) ranks by the likelihood of the query
and adds two terms: the next-token loss on relevant pages, and the divergence from stage 1. The data
and the student are those of configs/quickstart.py, so the rows of the tables can be compared.

RankingGPT: Zhang et al. 2023, arXiv:2311.16720. It has 47 negatives per query; here a query has the
documents of the quickstart. For a 7B model: --config.teacher.model=... and the sizes of
configs/disranker_mistral_7b.py.
"""

import pathlib
import runpy


def get_config():
  c = runpy.run_path(str(pathlib.Path(__file__).with_name('quickstart.py')))['get_config']()
  c.sft.update(loss='perplexity_nce', lm_weight=1.0, kl_weight=1.0)
  return c
