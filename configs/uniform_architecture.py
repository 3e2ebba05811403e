"""Soft and hard labels together, nothing from inside the teacher: the uniform-architecture recipe.

python -m disranker_jax.main --config configs/uniform_architecture.py --workdir runs/uniform

The student learns the teacher's scores (Point-MSE + beta * Margin-MSE) and, with the same weight,
pairs of hard labels where a query has them, which the study finds critical. There are no terms on
hidden states or attention, which it finds may hurt. Sizes are the quickstart's; not run yet.
"""

import pathlib
import runpy


def get_config():
  c = runpy.run_path(str(pathlib.Path(__file__).with_name('quickstart.py')))['get_config']()
  c.name = 'uniform_architecture'
  c.distill.update(start='', loss='hybrid', hard=1.0, margin=0.5, standardise='all')
  return c
