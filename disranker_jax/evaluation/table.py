"""Means with intervals and differences with p-values of rankings on the same queries.

Every command that compares rankings computes its table here. A cell is (row, metric): one ranking's
metric. Its data are sums_Q2, the (top, bottom) of a ratio per query (see significance.py). All
cells share the bootstrap draws, so every difference is paired.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from disranker_jax.evaluation import significance

Cell = tuple[str, str]  # row, metric
Key = TypeVar('Key', bound=Hashable)
Test = Callable[..., np.ndarray]  # (ours_QK2, theirs_QK2, samples, seed) -> p_K

TESTS: dict[str, Test] = {
  'randomisation': significance.randomisation_p,
  'bootstrap': significance.paired_bootstrap_p,
}


def sums(
  rows: Mapping[str, Mapping[str, float]], metric: str, queries: Sequence[str]
) -> np.ndarray:
  """Sums_Q2 of a metric from {query_id: {metric: value}}; a query that is missing counts as 0.

  PNR becomes the share of concordant pairs, which is always finite; `scale` turns it back.
  """
  empty: Mapping[str, float] = {}
  of_Q = [rows.get(query, empty) for query in queries]
  if metric == 'pnr':
    counts_Q2 = [(row.get('concordant', 0), row.get('discordant', 0)) for row in of_Q]
    return np.array([(c, c + d) for c, d in counts_Q2], np.float64)
  key = 'pnr' if metric == 'pnr_per_query' else metric
  return significance.mean_of([row.get(key, 0.0) for row in of_Q])


def statistic(metric: str, sums_2: np.ndarray) -> np.ndarray:
  """The metric that sums over queries give."""
  return scale(metric, significance.ratio(sums_2))


def scale(metric: str, share) -> np.ndarray:
  """The metric of a ratio of sums: PNR = share / (1 - share); all others are the ratio itself."""
  share = np.asarray(share, np.float64)
  if metric != 'pnr':
    return share
  with np.errstate(divide='ignore'):
    return share / (1 - share)


def minus(ours, theirs) -> np.ndarray:
  """ours - theirs, where two infinite PNRs do not differ."""
  with np.errstate(invalid='ignore'):
    return np.where(ours == theirs, 0.0, np.subtract(ours, theirs))


class Table:
  """The statistics of cells {(row, metric): sums_Q2}.

  clusters_Q  queries of one cluster are drawn and swapped together (significance.clustered)
  samples     number of bootstrap draws and of random swaps
  level       of the intervals
  """

  def __init__(
    self,
    cells: Mapping[Cell, np.ndarray],
    clusters_Q: Sequence[Hashable],
    samples: int = significance.SAMPLES,
    seed: int = 0,
    level: float = significance.LEVEL,
  ):
    self._samples, self._seed, self._level = samples, seed, level
    self._index = {cell: k for k, cell in enumerate(cells)}
    self._sums_CK2 = significance.clustered(np.stack(list(cells.values()), 1), clusters_Q)
    self._draws_SK = significance.bootstrap(self._sums_CK2, samples, seed)

  def __contains__(self, cell: Cell) -> bool:
    return cell in self._index

  def value(self, cell: Cell) -> float:
    """The metric on the queries as they are."""
    return float(statistic(cell[1], self._sums_CK2[:, self._index[cell]].sum(0)))

  def draws(self, cell: Cell) -> np.ndarray:
    """The metric in every bootstrap draw, [S]."""
    return scale(cell[1], self._draws_SK[:, self._index[cell]])

  def spread(self, value: float, draws_S: np.ndarray) -> dict[str, float]:
    """{value, low, high}: a value with the percentile interval of its draws."""
    low, high = significance.interval(draws_S, self._level)
    return {'value': float(value), 'low': low, 'high': high}

  def mean(self, cell: Cell) -> dict[str, float]:
    """{value, low, high} of a cell."""
    return self.spread(self.value(cell), self.draws(cell))

  def differences(
    self, pairs: Mapping[Key, tuple[Cell, Cell]], test: str = 'randomisation'
  ) -> dict[Key, dict[str, Any]]:
    """{value, low, high, p, p_holm} of ours - theirs for {key: (ours, theirs)}.

    Holm's correction is over all pairs of one call.
    """
    if not pairs:
      return {}
    ours_CK2, theirs_CK2 = (
      self._sums_CK2[:, [self._index[cell] for cell in side]]
      for side in zip(*pairs.values(), strict=True)
    )
    p_K = TESTS[test](ours_CK2, theirs_CK2, self._samples, self._seed)
    rows = {}
    for (key, (ours, theirs)), p, p_holm in zip(
      pairs.items(), p_K, significance.holm(p_K), strict=True
    ):
      value = minus(self.value(ours), self.value(theirs))
      draws_S = minus(self.draws(ours), self.draws(theirs))
      rows[key] = self.spread(value, draws_S) | {'p': float(p), 'p_holm': float(p_holm)}
    return rows
