"""Documentation of NumPy, SciPy, Matplotlib and JAX, which are installed with this package.

  disranker run --config configs/collections/scientific_python.py

The quickstart's pipeline and settings without limits: 651 clicks, 335 judged queries, 582 without
labels, 226 for the test with the versions in constraints.txt.
"""

import pathlib
import runpy

DATA = 'python_docs:?only=numpy,scipy,matplotlib,jax'


def get_config():
  quickstart = pathlib.Path(__file__).parents[1] / 'quickstart.py'
  c = runpy.run_path(str(quickstart))['get_config']()
  c.data.update(clicks=DATA, judgements=DATA, candidates=DATA, test=DATA)
  c.data.limit.update(clicks=0, judgements=0, candidates=0, test=0)
  return c
