"""Queries with teacher scores of their documents: the training data of distillation.

Scores come from the stage `score`, from the data (`data.teachers`), or from a random generator in
benchmarks. Every query with scores is an example, also a judged one. Judged queries have scores of
the run's own teacher if `score.judgements`, and scores of `data.teachers` if
`distill.hard_label_weight` needs their labels.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from disranker_jax.data.records import Group
from disranker_jax.errors import UserError

Scored = tuple[Group, np.ndarray]  # a query with its documents, and scores_N


class ScoredGroups(Sequence[Scored]):
  """Scored queries of several kinds, one kind after the other, with random access.

  Args:
    parts: (count, read) per kind; `read(i)` gives the i-th of `count` queries with its scores.
    facts: 'mean', 'std' and 'within' of all scores, see rankers/score_statistics.py.
  """

  def __init__(self, parts: Sequence[tuple[int, Callable[[int], Scored]]], facts: dict):
    self._starts = [0, *itertools.accumulate(count for count, _ in parts)]
    self._reads = [read for _, read in parts]
    self.facts = facts

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, i: int) -> Scored:
    if not 0 <= i < len(self):
      raise IndexError(i)
    part = bisect.bisect_right(self._starts, i) - 1
    return self._reads[part](i - self._starts[part])


def joined(parts: Sequence[Sequence[Scored]], facts: dict) -> ScoredGroups:
  """The queries of several sources, one source after the other."""
  return ScoredGroups([(len(part), part.__getitem__) for part in parts], facts)


class Selected(Sequence[Scored]):
  """Some of the scored queries, with their scores changed by a function."""

  def __init__(self, source: Sequence[Scored], kept: Sequence[int] | range, change: Callable):
    self._source, self._kept, self._change = source, kept, change

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, i: int) -> Scored:
    group, scores_N = self._source[self._kept[i]]
    return group, self._change(scores_N)


def with_scores(group: Group) -> Scored:
  """The documents with a score of `data.teachers` in their record, and these scores."""
  docs = tuple(doc for doc in group.docs if not math.isnan(doc.teacher))
  scores_N = np.array([doc.teacher for doc in docs], np.float32)
  return Group(group.query_id, group.query, docs), scores_N


def from_records(
  candidates: Sequence[Group], judged: Sequence[Group] | None, facts: dict
) -> ScoredGroups:
  """Scores of `data.teachers`, from the records; leaves out judged queries without scores.

  Args:
    judged: prepared judgements; None to learn from the candidates only.

  Raises: UserError if none of the judged queries has a score.
  """
  parts = [(len(candidates), lambda i: with_scores(candidates[i]))]
  if judged is not None:
    kept = [i for i in range(len(judged)) if with_scores(judged[i])[0].docs]
    if not kept:
      raise UserError(
        'config.distill.hard_label_weight: no judged query has scores of config.data.teachers; '
        'score the judged pairs too, or set it to 0'
      )
    parts.append((len(kept), lambda i: with_scores(judged[kept[i]])))
  return ScoredGroups(parts, facts)
