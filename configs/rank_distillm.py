"""Rank-DistiLLM's two stages on the quickstart's data: contrastive, then a teacher's ranking.

  disranker run --config configs/rank_distillm.py --workdir runs/rank_distillm

First InfoNCE on labels: each query's best-labelled documents against the others. Then RankNet on
the teacher's order of documents from all depths of the first stage
(--config.distill.loss=adr_mse for the paper's other choice). Only the order counts, so scores are
not normalised; no hard-label term. Sizes are the quickstart's. configs/ablations/two_stages.py
compares both recipes. configs/rank_distillm_msmarco.py has the sizes of the paper.
"""

import pathlib
import runpy


def get_config():
  c = runpy.run_path(str(pathlib.Path(__file__).with_name('quickstart.py')))['get_config']()
  c.student_sft.loss = 'info_nce'
  c.distill.update(
    init_from='student_sft', loss='ranknet', normalize_scores='', hard_label_weight=0.0
  )
  c.score.judgements = False
  return c
