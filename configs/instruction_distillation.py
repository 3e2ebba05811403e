"""Instruction distillation: the LLM compares pairs of pages, a pointwise student learns the result.

  disranker run --config configs/instruction_distillation.py --workdir runs/instruction_distillation

The pretrained LLM answers the prompts of every pair of a query's documents in both orders (PRP,
all pairs); no stage trains it, and labels are only used to test. The student is the encoder of
configs/quickstart.py; in the source it is the same LLM as a pointwise ranker. A 135M model is next
to chance at such prompts: take a chat model of 1B or more.

Sun et al. 2023, arXiv:2311.01555: a teacher with 20 documents, RankNet on its order.
"""

import pathlib
import runpy


def get_config():
  c = runpy.run_path(str(pathlib.Path(__file__).with_name('quickstart.py')))['get_config']()
  c.stages = ('prepare', 'score', 'distill', 'evaluate', 'export', 'report')
  c.score.update(method='prp_allpair_soft', group_size=5, judgements=False, max_tied_share=1.0)
  c.score.prompts.update(query_tokens=20, doc_tokens=48)
  c.distill.update(loss='ranknet', normalize_scores='', hard_label_weight=0.0, init_from='')
  c.evaluate.models = ('bm25', 'student')
  return c
