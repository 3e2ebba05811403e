"""Rankers: whatever puts scores on the documents of queries.

Every ranker is a function of groups, see `Ranker`. `pointwise.PointwiseRanker` is one; pairwise or
listwise rankers, a first stage, or scores read from a file can be others.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from disranker_jax.data.records import Group


class Ranker(Protocol):
  """Scores the documents of queries."""

  def __call__(self, groups: Iterable[Group]) -> Iterator[tuple[Group, np.ndarray]]:
    """Each group with scores_N of its documents, in the given order; higher is better."""
