"""What a rewriter gains while it learns, on queries that it does not learn from."""

from collections.abc import Mapping

import numpy as np

from disranker_jax.evaluation import significance
from disranker_jax.evaluation.table import Table
from disranker_jax.training.validation import title


def gained(
  before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
  """The change of each value over the same queries, tested by swapping the sides query by query.

  Args:
    before: {name: values_Q}, such as each query's reward; after: the same names and queries.

  Returns: {name: {'value', 'low', 'high', 'p', 'queries'}}, the mean difference with its interval;
  empty for fewer than two queries.
  """
  cells = {
    (when, name): significance.mean_of(values_Q)
    for when, side in (('after', after), ('before', before))
    for name, values_Q in side.items()
  }
  count = len(next(iter(before.values()), ()))
  if count < 2:
    return {}
  table = Table(cells, range(count))
  found = table.differences({name: (('after', name), ('before', name)) for name in before})
  return {
    name: {key: cell[key] for key in ('value', 'low', 'high', 'p')} | {'queries': count}
    for name, cell in found.items()
  }


def described(gains: Mapping[str, Mapping[str, float]]) -> str:
  """'reward +0.021 (95 % interval +0.010 to +0.032, p 0.0003)' for each value."""
  return '; '.join(
    f'{title(name)} {cell["value"]:+.3f} (95 % interval {cell["low"]:+.3f} to {cell["high"]:+.3f}, '
    f'p {cell["p"]:.2g})'
    for name, cell in gains.items()
  )
