"""Rankers: whatever puts scores on the documents of queries.

Every ranker is a function of groups, see `Ranker`: `pointwise.PointwiseRanker` and
`llm.ranker.LLMRanker`.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from disranker_jax.data.records import Group
from disranker_jax.models.network import Network
from disranker_jax.rankers.work import Work


class Ranker(Protocol):
  """Scores the documents of queries in batches.

  least_unit  queries that should share batches, at least
  work        what its devices have done so far
  """

  network: Network
  work: Work

  def __call__(self, groups: Iterable[Group]) -> Iterator[tuple[Group, np.ndarray]]:
    """Each group with scores_N of its documents, in the given order; higher is better."""

  def parts(self, parts: Iterable[tuple[object, Iterable[Group]]]) -> Iterator[tuple]:
    """(part, group, scores_N, ...) for the groups of several parts, in order.

    A part shares no batches with others, so its scores do not depend on them to the last bit. More
    values are of the group: the counts of what an LLM was asked.
    """

  def tokens_of(self, group: Group) -> float:
    """Tokens that scoring a query takes, about."""

  @property
  def positions(self) -> int:
    """Tokens that a batch of this process holds, padding included."""

  @property
  def least_unit(self) -> int: ...
