"""Holds out queries for the test when training and test data have the same source."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence

from disranker_jax.data import words
from disranker_jax.data.records import Click, Group
from disranker_jax.errors import UserError

# How query ids usually name their topic: the part before the first separator (SESSION-3, TOPIC_3,
# 12:3, 12/3, 12.3) or before the last one, and the digits or letters at the beginning (12a, cat1).
ID_PATTERNS = (
  *(p.format(s) for s in '-_:/' for p in ('^[^{}]+', '^.*(?={})')),
  '^[^.]+', r'^.*(?=\.)', r'^\d+', r'^\D+',
)  # fmt: skip


def normalized(query: str) -> str:
  """What makes two queries the same: their text without case, white space and Unicode form."""
  return ' '.join(words.folded(query).split())


def place(key: str) -> float:
  """Where a key is between 0 and 1, by its hash."""
  return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64


@dataclasses.dataclass(frozen=True)
class Holdout:
  """Selects the queries of one side (training or test) by a hash of the query.

  share  fraction of the queries that are held out for the test
  fold   0, 1, ...: selects another fraction of the same size
  by     a regular expression: queries whose ids have the same match are on the same side; '': each
         query is hashed by its text, which clicks have too
  test   whether to keep the side of the test
  """

  share: float
  fold: int
  by: str
  test: bool

  def __call__(self, record: Click | Group) -> bool:
    key = cluster(record.query_id, self.by) if self.by else normalized(record.query)
    return ((place(key) + self.fold * self.share) % 1 < self.share) == self.test


class OutsideTest:
  """Selects clicks on queries that are not in the test: clicks have no ids, only texts.

  Its repr changes with the queries, so that other test queries are another preparation.
  """

  def __init__(self, tests: Iterable[Group]):
    self._queries = frozenset(normalized(group.query) for group in tests)

  def __call__(self, click: Click) -> bool:
    return normalized(click.query) not in self._queries

  def __repr__(self) -> str:
    digest = hashlib.sha256('\n'.join(sorted(self._queries)).encode()).hexdigest()
    return f'OutsideTest({digest})'


def check_by(name: str, by: str) -> None:
  """Raises: UserError that names the setting or flag if `by` is not a regular expression."""
  try:
    re.compile(by)
  except re.error as e:
    raise UserError(f'{name}={by}: is not a regular expression: {e}') from None


def cluster(query_id: str, by: str) -> str:
  """The part of a query id that `by` matches, such as the id of a session.

  If `by` is '' or does not match, the query is a cluster of its own.
  """
  match = re.search(by, query_id) if by else None
  return match[0] if match else query_id


def clusters(query_ids: Iterable[str], by: str) -> list[str]:
  """The cluster of each query."""
  return [cluster(query_id, by) for query_id in query_ids]


def relevant(group: Group) -> frozenset[tuple[str, str, int]] | None:
  """(doc_id, title, label) of the query's relevant documents: the same set means the same topic.

  Ids alone are not enough where each query numbers its documents.

  None for fewer than two: unrelated queries may have one relevant document in common.
  """
  found = frozenset((d.doc_id, d.title, d.label) for d in group.docs if d.label > 0)
  return found if len(found) > 1 else None


def topics(tests: Iterable[Group], judged: Iterable[Group]) -> list[tuple[list[str], list[str]]]:
  """Topics with queries on both sides: (ids of test queries, ids of judged queries) of each.

  Holds the test in memory, not the judged queries.
  """
  sides: dict[frozenset, tuple[list[str], list[str]]] = {}
  for group in tests:
    if key := relevant(group):
      sides.setdefault(key, ([], []))[0].append(group.query_id)
  for group in judged:
    if (key := relevant(group)) in sides:
      sides[key][1].append(group.query_id)
  return [side for side in sides.values() if side[1]]


def patterns(groups: Sequence[Iterable[str]], queries: Iterable[str]) -> list[str]:
  """The ID_PATTERNS that keep each group of query ids together and different groups apart.

  The one that makes the most clusters of `queries` is first. A pattern that puts all of them into
  one cluster is left out.
  """
  found: dict[str, int] = {}
  queries = list(queries)
  for by in ID_PATTERNS:
    names = [set(clusters(ids, by)) for ids in groups]
    are_apart = len(set().union(*names)) == len(names)
    count = len(set(clusters(queries, by)))
    if are_apart and all(len(each) == 1 for each in names) and (count > 1 or len(queries) < 2):
      found[by] = count
  return sorted(found, key=lambda by: -found[by])
