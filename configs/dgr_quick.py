"""`dgr.py` with titles and pseudo-queries alone, to take about half the time; not run yet.

  disranker run --config configs/dgr_quick.py --workdir runs/dgr_quick

N-grams of the body take most tokens of training and search.
"""

import pathlib
import runpy


def get_config():
  c = runpy.run_path(str(pathlib.Path(__file__).with_name('dgr.py')))['get_config']()
  c.retriever.views = ('title', 'query')
  c.retrieve.update(queries=200)
  return c
