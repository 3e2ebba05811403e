"""Means over test sets, each of which counts alike, however many queries it has.

BEIR (arXiv:2104.08663) and BRIGHT (arXiv:2407.12883) report a metric as such a mean over their
tasks. Queries are drawn and swapped within their test set.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from disranker_jax.evaluation import significance
from disranker_jax.evaluation.table import Cell, Key, Table, compared, sides, spread


class Average:
  """The statistics of cells of several test sets, {(row, metric): sums_Q2} of each.

  A metric must be a mean over the queries, so PNR, a ratio of pairs, has none here.

  clusters  the cluster of each query of each test set, as in Table
  """

  def __init__(
    self,
    cells: Sequence[Mapping[Cell, np.ndarray]],
    clusters: Sequence[Sequence[Hashable]],
    samples: int = significance.SAMPLES,
    seed: int = 0,
    level: float = significance.LEVEL,
  ):
    self._samples, self._seed, self._level = samples, seed, level
    # A seed each: with one seed, test sets of the same size would draw the same places.
    self._tables = [
      Table(of_set, of_Q, samples, seed + i, level)
      for i, (of_set, of_Q) in enumerate(zip(cells, clusters, strict=True))
    ]
    self._index = {cell: k for k, cell in enumerate(cells[0])}
    # Divided by its number of queries, a set has the weight 1 in the ratio of sums over all sets,
    # which then is the mean of their means.
    weighted = [np.stack([of_set[c] / of_set[c][:, 1].sum() for c in cells[0]], 1)
                for of_set in cells]  # fmt: skip
    apart = [(i, cluster) for i, of_Q in enumerate(clusters) for cluster in of_Q]
    self._sums_CK2 = significance.clustered(np.concatenate(weighted), apart)

  def values(self, cell: Cell) -> list[float]:
    """The metric of each test set."""
    return [table.value(cell) for table in self._tables]

  def draws(self, cell: Cell) -> np.ndarray:
    """The mean over the test sets in every bootstrap draw, [S]."""
    return np.mean([table.draws(cell) for table in self._tables], 0)

  def mean(self, cell: Cell) -> dict[str, float]:
    """{value, low, high} of the mean over the test sets."""
    return spread(self._value(cell), self.draws(cell), self._level)

  def differences(self, pairs: Mapping[Key, tuple[Cell, Cell]]) -> dict[Key, dict[str, Any]]:
    """{value, low, high, p, p_holm} of ours - theirs for {key: (ours, theirs)}.

    p is that of paired randomisation, and Holm's correction is over all pairs of one call.
    """
    if not pairs:
      return {}
    p_P = significance.randomisation_p(
      *sides(self._sums_CK2, self._index, pairs), self._samples, self._seed
    )
    return compared(pairs, self._value, self.draws, p_P, self._level)

  def _value(self, cell: Cell) -> float:
    """The mean over the test sets."""
    return float(np.mean(self.values(cell)))
