"""Means with intervals and differences with p-values of rankings on the same queries.

Every command that compares rankings computes its table here. A cell is (row, metric): one ranking's
metric. Its data are sums_Q2, the (top, bottom) of a ratio per query (see significance.py). All
cells share the bootstrap draws, so every difference is paired.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics, power, significance

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

  PNR becomes the share of concordant pairs, which is always finite; `scale` turns it back. Queries
  where a metric is nan do not count: PNR without a pair, tau without an order of the teacher. They
  are the same for all rows of a table. Raises: UserError if a query's row lacks the metric.
  """
  keys = ('concordant', 'discordant') if metric.startswith('pnr') else (metric,)
  of_Q = [rows.get(query, dict.fromkeys(keys, 0.0)) for query in queries]
  if any(key not in row for row in of_Q for key in keys):
    raise UserError(
      f'metric {metric!r}: is not in the table of metrics per query; make the table again'
    )
  if metric == 'pnr':
    counts_Q2 = [(row['concordant'], row['discordant']) for row in of_Q]
    return np.array([(c, c + d) for c, d in counts_Q2], np.float64).reshape(-1, 2)
  if metric == 'pnr_per_query':
    return significance.mean_of([metrics.share(row) for row in of_Q])
  return significance.mean_of([row[metric] for row in of_Q])


def statistic(metric: str, sums_2: np.ndarray) -> np.ndarray:
  """The metric that sums over queries give."""
  return scale(metric, significance.ratio(sums_2))


def scale(metric: str, share) -> np.ndarray:
  """The metric of a ratio of sums: PNR = share / (1 - share); all others are the ratio itself."""
  share = np.asarray(share, np.float64)
  return metrics.odds(share) if metric.startswith('pnr') else share


def minus(ours, theirs) -> np.ndarray:
  """ours - theirs, where two infinite PNRs do not differ."""
  with np.errstate(invalid='ignore'):
    return np.where(ours == theirs, 0.0, np.subtract(ours, theirs))


def sides(
  sums_CK2: np.ndarray, index: Mapping[Cell, int], pairs: Mapping[Key, tuple[Cell, Cell]]
) -> tuple[np.ndarray, np.ndarray]:
  """(ours_CP2, theirs_CP2): the sums of both sides of every pair, for the tests.

  `index` is the place of each cell in K.
  """
  ours, theirs = zip(*pairs.values(), strict=True)
  return sums_CK2[:, [index[c] for c in ours]], sums_CK2[:, [index[c] for c in theirs]]


def spread(value: float, draws_S: np.ndarray, level: float) -> dict[str, float]:
  """{value, low, high}: a value with the percentile interval of its draws."""
  low, high = significance.interval(draws_S, level)
  return {'value': float(value), 'low': low, 'high': high}


def compared(
  pairs: Mapping[Key, tuple[Cell, Cell]],
  value: Callable[[Cell], float],
  draws: Callable[[Cell], np.ndarray],
  p_P: np.ndarray,
  level: float,
) -> dict[Key, dict[str, Any]]:
  """{value, low, high, p, p_holm} of ours - theirs for {key: (ours, theirs)}.

  Args:
    value, draws: a cell's metric, and the metric in every bootstrap draw [S].
    p_P: that of each pair. Holm's correction is over all of them.
    level: of the intervals.
  """
  rows = {}
  for (key, (ours, theirs)), p, p_holm in zip(
    pairs.items(), p_P, significance.holm(p_P), strict=True
  ):
    apart, apart_S = minus(value(ours), value(theirs)), minus(draws(ours), draws(theirs))
    rows[key] = spread(apart, apart_S, level) | {'p': float(p), 'p_holm': float(p_holm)}
  return rows


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
    return spread(value, draws_S, self._level)

  def mean(self, cell: Cell) -> dict[str, float]:
    """{value, low, high} of a cell."""
    return self.spread(self.value(cell), self.draws(cell))

  def counted(self, cell: Cell) -> float:
    """What the ratio is of: the queries that count for a mean, the ordered pairs for PNR."""
    return float(self._sums_CK2[:, self._index[cell], 1].sum())

  def differences(
    self, pairs: Mapping[Key, tuple[Cell, Cell]], test: str = 'randomisation'
  ) -> dict[Key, dict[str, Any]]:
    """{value, low, high, p, p_holm, detectable, needed} of ours - theirs for {key: (ours, theirs)}.

    Holm's correction is over all pairs of one call. `detectable` is the difference that these
    queries show, and `needed` the number of queries (or clusters) that show this difference, with a
    power of power.POWER in one test at 1 - level.
    """
    if not pairs:
      return {}
    ours_CP2, theirs_CP2 = sides(self._sums_CK2, self._index, pairs)
    p_P = TESTS[test](ours_CP2, theirs_CP2, self._samples, self._seed)
    rows = compared(pairs, self.value, self.draws, p_P, self._level)
    errors_P = power.standard_errors(ours_CP2, theirs_CP2)
    for (key, (ours, theirs)), error in zip(pairs.items(), errors_P, strict=True):
      rows[key] |= self._power(ours, theirs, float(error))
    return rows

  def _power(self, ours: Cell, theirs: Cell, error: float) -> dict[str, float]:
    """`detectable` and `needed`, from the standard error of the difference of the ratios."""
    n, alpha = len(self._sums_CK2), 1 - self._level
    shares = [significance.ratio(self._sums_CK2[:, self._index[c]].sum(0)) for c in (ours, theirs)]
    apart = float(shares[0] - shares[1])
    reached = power.detectable(error, n, alpha)
    if ours[1].startswith('pnr'):  # the step from theirs, in the direction of ours
      share = np.clip(shares[1] + math.copysign(reached, apart), 0, 1)
      reached = abs(float(scale(ours[1], share)) - float(scale(ours[1], shares[1])))
    return {'detectable': reached, 'needed': power.needed(apart, error, n, alpha)}
