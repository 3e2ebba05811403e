"""Product search: chorus-ecommerce, 135 queries judged 0 to 3, half of them for the test.

  disranker run --config configs/collections/chorus.py --config.data.fold=0

The judged documents are re-ranked. There are no clicks, so no continued pre-training. The teacher
scores what BM25 finds for the training queries.
"""

import pathlib
import runpy

from disranker_jax.config import trec_folder

FOLDER = '../shared/data/chorus-ecommerce'
SOURCE = 'https://github.com/o19s/chorus (products; katas/Broad_Query_Set_rated.csv)'


def get_config(address=''):
  address = address or trec_folder(FOLDER, SOURCE)
  quickstart = pathlib.Path(__file__).parents[1] / 'quickstart.py'
  c = runpy.run_path(str(quickstart))['get_config']()
  c.stages = tuple(s for s in c.stages if s != 'cpt')
  c.data.update(clicks='', judgements=address, candidates=address)
  c.data.test = f'{address}?pool=judged'
  c.data.update(depth=30, holdout=0.5)
  c.data.limit.update(candidates=0, test=0)
  for side in (c.teacher, c.student):
    side.update(max_len=64, row_len=128)
  c.sft.update(epochs=3.0, max_steps=0, batch_rows=16)
  c.score.update(group_size=20, batch_rows=32)
  c.student_sft.update(epochs=12.0, batch_rows=32)
  c.distill.update(epochs=15.0, batch_rows=32)
  c.evaluate.update(batch_rows=32, min_relevance=2)
  # Only where the stage generate is listed, as in configs/ablations/generated.py.
  c.generate.template = '{title}: {summary}\n\nPeople find this product by a search for {query}'
  c.generate.update(shots=0, ends='sentence', max_len=112, max_new=28, temperature=0.5)
  return c
