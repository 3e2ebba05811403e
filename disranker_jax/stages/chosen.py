"""Which documents of a query the teacher scores."""

from collections.abc import Sequence

import numpy as np

from disranker_jax.data.records import Group


def chosen(group: Group, c) -> Group:
  """The query with c.group_size of its documents; all if group_size is 0.

  Documents are in the first stage's order, best-labelled ones first. `c.ranks = 'top'` takes the
  first of them, 'spread' some of every depth.
  """
  if not c.group_size or len(group.docs) <= c.group_size:
    return group
  best = max(d.label for d in group.docs)
  last = len(group.docs) + 1
  docs = sorted(group.docs, key=lambda d: (d.label != best, d.rank or last))
  places = spread(len(docs), c.group_size) if c.ranks == 'spread' else range(c.group_size)
  return Group(group.query_id, group.query, tuple(docs[i] for i in places))


def spread(count: int, size: int) -> list[int]:
  """`size` of `count` places, geometrically spaced from the first to the last.

  The best documents of a first stage teach good from better, the deep ones good from bad.
  """
  places = []
  for place in np.geomspace(1, count, size):
    places.append(max(round(place), places[-1] + 1) if places else 1)
  return [place - 1 for place in places]


class Chosen(Sequence[Group]):
  """Prepared queries with the documents that are scored; audit and distillation read the same."""

  def __init__(self, groups: Sequence[Group], c):
    self._groups, self._config = groups, c

  def __len__(self) -> int:
    return len(self._groups)

  def __getitem__(self, i: int) -> Group:
    return chosen(self._groups[i], self._config)
