"""Rank-DistiLLM's two stages on the quickstart's data: contrastive, then a teacher's ranking.

disranker run --config configs/rank_distillm.py --workdir runs/rank_distillm

First InfoNCE over each query's documents, the best-labelled against the others, then from there
RankNet on the order in which the teacher puts some documents of every depth of the first stage
(--config.distill.loss=adr_mse for the paper's other choice). Teacher scores only give an order, so
they are not standardised; no hard-label term. Sizes are the quickstart's, beside whose recipe
configs/ablations/two_stages.py puts it.
"""

import pathlib
import runpy


def get_config():
  c = runpy.run_path(str(pathlib.Path(__file__).with_name('quickstart.py')))['get_config']()
  c.name = 'rank_distillm'
  c.student_sft.loss = 'info_nce'
  c.distill.update(
    init_from='student_sft', loss='ranknet', normalize_scores='', hard_label_weight=0.0
  )
  c.score.judgements = False
  return c
