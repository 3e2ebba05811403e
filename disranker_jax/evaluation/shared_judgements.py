"""Finds queries that share their judgements, such as the queries of one topic or session.

They are not independent: a system that ranks the documents of the topic well is right for all of
them. Drawn one by one they make intervals too narrow and p-values too small.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from disranker_jax.data.holdout import ID_PATTERNS, clusters, patterns
from disranker_jax.evaluation.metrics import Qrels

FEWEST = 3  # judged documents of a query; one or two in common may be chance
SHARE = 0.8  # of two queries' judgements that must be the same
FIT = 0.9  # of the queries that a pattern puts together, those that share judgements
# Related queries: pairs that are enough to tell, how often they share a relevant document, and how
# many times more often than other queries.
MANY, OFTEN, LIFT = 10, 0.25, 5

Judgements = frozenset[tuple[str, int]]  # (document, grade)


class Shared(NamedTuple):
  """Groups of two or more queries that share judgements.

  pattern  a regular expression on query ids that gives the groups; '' if no usual one does
  """

  groups: tuple[tuple[str, ...], ...]
  pattern: str

  def clusters(self, queries: Iterable[str]) -> list[str]:
    """The cluster of each query: the first query of its group, or itself."""
    first = {query: group[0] for group in self.groups for query in group}
    return [first.get(query, query) for query in queries]

  def split_by(self, clusters_Q: Sequence[str], queries: Sequence[str]) -> int:
    """How many of the groups have their queries in more than one of these clusters."""
    at = dict(zip(queries, clusters_Q, strict=True))
    return sum(len({at[query] for query in group if query in at}) > 1 for group in self.groups)


def find(qrels: Qrels) -> Shared:
  """The groups of queries that share judgements.

  Two queries share judgements if they judge the same documents with the same grades, or if at least
  SHARE of all and of the relevant documents that one of them judges have the same grade in both
  (Jaccard similarity). Groups are transitive. Queries with fewer than FEWEST judged documents are
  in no group: what they have in common may be chance.
  """
  alike: dict[Judgements, list[str]] = {}
  for query, grades in qrels.items():
    if len(grades) >= FEWEST:
      alike.setdefault(frozenset(grades.items()), []).append(query)
  sets = list(alike)
  parent = list(range(len(sets)))

  def root(i: int) -> int:
    while parent[i] != i:
      parent[i] = i = parent[parent[i]]
    return i

  for i, j in _similar(sets):
    parent[root(i)] = root(j)
  joined: dict[int, list[str]] = {}
  for i, each in enumerate(sets):
    joined.setdefault(root(i), []).extend(alike[each])
  place = {query: i for i, query in enumerate(qrels)}
  groups = tuple(
    tuple(sorted(group, key=place.__getitem__)) for group in joined.values() if len(group) > 1
  )
  return Shared(groups, suggested(list(qrels), groups) if groups else '')


def suggested(queries: Sequence[str], groups: Sequence[Sequence[str]]) -> str:
  """The usual pattern on query ids that gives these groups; '' if none does.

  A pattern may add a few queries, 1 - FIT of its own, whose judgements differ from their group's.
  """
  for pattern in patterns(groups, queries):
    sizes = [size for size in Counter(clusters(queries, pattern)).values() if size > 1]
    if len(sizes) == len(groups) and sum(map(len, groups)) >= FIT * sum(sizes):
      return pattern
  return ''


class Related(NamedTuple):
  """A pattern on query ids whose clusters often judge the same document as relevant.

  inside, outside  how often two queries of one cluster, and of different ones, do
  """

  pattern: str
  inside: float
  outside: float


def related(qrels: Qrels) -> Related | None:
  """The usual pattern on query ids that finds related queries, if there is one.

  It also finds the queries of one topic if each has judgements of the documents that it retrieved
  only, which `find` does not. Two queries are compared with their neighbours in the order of
  `qrels`, and with queries half the table away.
  """
  queries = list(qrels)
  relevant = [{doc for doc in qrels[query].items() if doc[1] > 0} for query in queries]
  half = len(queries) // 2
  for pattern in ID_PATTERNS:
    of_Q = clusters(queries, pattern)
    at: dict[str, int] = {}
    inside, outside = [], []
    for i, cluster in enumerate(of_Q):
      if cluster in at:
        inside.append(not relevant[i].isdisjoint(relevant[at[cluster]]))
      at[cluster] = i
      if of_Q[i - half] != cluster:
        outside.append(not relevant[i].isdisjoint(relevant[i - half]))
    if len(inside) >= MANY <= len(outside):
      rates = sum(inside) / len(inside), sum(outside) / len(outside)
      if rates[0] >= max(OFTEN, LIFT * rates[1]):
        return Related(pattern, *rates)
  return None


def _similar(sets: Sequence[Judgements]) -> Iterator[tuple[int, int]]:
  """Pairs (i, j), j < i, of sets that are similar, and whose relevant parts are (`find`).

  Two such sets share one of the rarest elements of each: only the sets that do are compared
  (prefix filtering; Bayardo et al., 2007, Scaling Up All Pairs Similarity Search).
  """
  frequency = Counter(element for each in sets for element in each)
  with_element: dict[tuple[str, int], list[int]] = defaultdict(list)
  for i, mine in enumerate(sets):
    by_rarity = sorted(mine, key=lambda element: (frequency[element], element))
    prefix = by_rarity[: len(mine) - math.ceil(SHARE * len(mine)) + 1]
    for j in {j for element in prefix for j in with_element[element]}:
      if _jaccard(mine, sets[j]) >= SHARE <= _jaccard(_relevant(mine), _relevant(sets[j])):
        yield i, j
    for element in prefix:
      with_element[element].append(i)


def _relevant(each: Judgements) -> Judgements:
  return frozenset(element for element in each if element[1] > 0)


def _jaccard(a: Judgements, b: Judgements) -> float:
  return len(a & b) / max(len(a | b), 1)
