"""The documents that a comparison of runs counts, and how many of them each run holds.

Runs of one table may hold different documents, such as the top 100 of two search engines. A metric
must mean the same in every row, so all rows are computed on the same documents (RULES).
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import NamedTuple

from disranker_jax.evaluation.metrics import Qrels, Run

Pool = Mapping[str, Collection[str]]  # the documents of each query

# What each rule does, as the tables say it.
RULES = {
  'all': 'in PNR, a judged document that a run lacks and another run holds ranks last',
  'common': 'the documents that all runs hold; all others, and their judgements, do not count',
  'judged': 'documents without a judgement are removed from every run; the rest is as with all',
}


class Held(NamedTuple):
  """What a run holds for the judged queries; `documents` are (query, document) pairs.

  `lacks` counts the documents that another run holds, `lacks_judged` those with a judgement.
  """

  queries: int
  documents: int
  judged: int
  lacks: int
  lacks_judged: int


@dataclasses.dataclass(frozen=True)
class Counted:
  """Runs and judgements as they are compared.

  runs   {name: run}, reduced to the documents that count
  qrels  the judgements that count
  pool   the judged documents whose pairs PNR counts, of every query of `qrels`
  held   what each run holds, before anything is removed
  queries  the number of judged queries, before any is left out
  union  (documents, judged documents) that at least one run holds
  empty  queries that are left out because the runs have no common document
  kept   the documents that are not removed; None: all
  """

  rule: str
  runs: Mapping[str, Run]
  qrels: Qrels
  pool: Pool
  held: Mapping[str, Held]
  queries: int
  union: tuple[int, int]
  empty: tuple[str, ...] = ()
  kept: Pool | None = None

  def reduced(self, run: Run) -> Run:
    """Another run, such as the teacher's, with the documents that count."""
    return run if self.kept is None else only(run, self.kept)

  @property
  def differ(self) -> bool:
    """Whether a run lacks a document that another run holds."""
    return any(held.lacks for held in self.held.values())


def counted(runs: Mapping[str, Run], qrels: Qrels, rule: str = 'all') -> Counted:
  """The runs, reduced by one of RULES to the documents that count.

  `judged` gives condensed lists (Sakai, 2007, Alternatives to Bpref). `common` also removes the
  judgements of other documents, so the best possible ranking is one of the common documents.
  """
  pool, every, judged = {}, 0, 0
  for query, grades in qrels.items():
    union = set().union(*(run.get(query, ()) for run in runs.values()))
    pool[query] = union & grades.keys()
    every, judged = every + len(union), judged + len(pool[query])
  held = {name: _held(run, qrels, every, judged) for name, run in runs.items()}
  found = Counted(rule, runs, qrels, pool, held, len(qrels), (every, judged))
  if rule == 'all':
    return found
  if rule == 'judged':
    return dataclasses.replace(found, runs={n: only(r, qrels) for n, r in runs.items()}, kept=qrels)
  shared = {
    query: set.intersection(*(set(run.get(query, ())) for run in runs.values())) for query in qrels
  }
  common = {query: docs for query, docs in shared.items() if docs}
  return dataclasses.replace(
    found,
    runs={name: only(run, common) for name, run in runs.items()},
    qrels=only(qrels, common),
    pool=common,
    empty=tuple(query for query, docs in shared.items() if not docs),
    kept=common,
  )


def only(table: Mapping, pool: Pool) -> dict:
  """A run or qrels without the documents that are not in the pool.

  A query of the pool stays, even without a document; other queries are removed.
  """
  return {
    query: {doc: value for doc, value in docs.items() if doc in pool[query]}
    for query, docs in table.items()
    if query in pool
  }


def _held(run: Run, qrels: Qrels, every: int, every_judged: int) -> Held:
  of_query = {query: run[query] for query in qrels if query in run}
  documents = sum(map(len, of_query.values()))
  judged = sum(len(docs.keys() & qrels[query].keys()) for query, docs in of_query.items())
  return Held(len(of_query), documents, judged, every - documents, every_judged - judged)
