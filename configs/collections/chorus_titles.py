"""Product search as in chorus.py, with queries made of titles, because there is no query log.

  python experiments/title_queries.py ../shared/data/chorus-ecommerce runs/titles.tsv
  disranker run --config configs/collections/chorus_titles.py

The teacher scores 8 of BM25's top 100, from all depths, for half of these queries (561 and 608 in
the two folds), and the judged documents of its training queries. The student learns both.
"""

import pathlib
import runpy


def get_config(address='', titles='runs/titles.tsv'):
  chorus = pathlib.Path(__file__).with_name('chorus.py')
  c = runpy.run_path(str(chorus))['get_config'](address)
  c.data.candidates = f'{c.data.judgements}?queries={titles}&run=bm25'
  c.data.depth = 100
  c.score.group_size = 8
  c.distill.update(epochs=6.0, group_size=8)
  return c
