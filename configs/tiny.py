"""Every stage with random weights of a few thousand values, on any machine; for tests.

  disranker run --config configs/tiny.py --workdir runs/tiny

Expect a table in under two minutes on two cores, most of it compilation. Rankings of random weights
mean nothing.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults()
  for side, model in ((c.teacher, 'tiny-decoder'), (c.student, 'tiny-encoder')):
    side.update(model=model, precision='float32', layers=(), remat='none', scan_layers=True)
    side.update(max_len=48, max_query_len=16, row_len=64)
  c.data.limit.update(clicks=64, judgements=32, candidates=32, test=12)
  for stage in (c.cpt, c.sft, c.student_sft, c.distill):
    stage.update(batch_rows=8, max_steps=6, learning_rate=1e-3, save_every=2)
  for stage in (c.sft, c.student_sft, c.distill):
    stage.group_size = 4
  c.cpt.samples = 1
  c.score.update(batch_rows=8, group_size=4, unit_queries=8)
  c.distill.update(normalize_scores='all', hard_label_weight=1.0)
  c.evaluate.update(batch_rows=8, min_relevance=4)
  # Scores of random weights hardly differ, so 8 bits may reverse the order of one of these queries.
  c.export.update(models=('student', 'teacher'), tolerance_factor=20.0)
  return c
