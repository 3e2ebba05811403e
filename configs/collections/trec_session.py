"""Web search: TREC Session 2012, 187 queries judged 0 to 4; half of the topics are for the test.

python -m disranker_jax.main --config configs/collections/trec_session.py --config.data.fold=0

A topic's queries share their judgements, so they stay on one side. The judged documents are
re-ranked; the 259 clicks are too few to pre-train on. Two cores: about 25 minutes a fold.
"""

import pathlib
import runpy

DATA = 'trec:../shared/data/trec-session-2012'


def get_config():
  quickstart = pathlib.Path(__file__).parents[1] / 'quickstart.py'
  c = runpy.run_path(str(quickstart))['get_config']()
  c.name = 'trec_session'
  c.stages = tuple(s for s in c.stages if s != 'cpt')
  c.data.update(clicks='', judgements=DATA, candidates=DATA, test=f'{DATA}?pool=judged')
  c.data.update(depth=30, holdout=0.5, holdout_by='^[^-]+')
  c.data.limit.update(candidates=0, test=0)
  for side in (c.teacher, c.student):
    side.update(max_len=64, row_len=128)
  c.sft.update(epochs=1.0, max_steps=0, batch_rows=16)
  c.score.update(group_size=20, batch_rows=32, shard_queries=10)
  c.finetune.update(epochs=6.0, batch_rows=32)
  c.distill.update(epochs=8.0, batch_rows=32)
  c.evaluate.update(batch_rows=32, relevant=1)
  return c
