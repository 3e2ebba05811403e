"""Joins the tables of a collection (queries, documents, qrels, a first-stage run) into records.

Tables may be larger than memory: rows are sorted on disk by the key of the join. `trec.py` reads
the tables from files, `irds.py` from the ir_datasets library.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from absl import logging

from disranker_jax.data import grouping
from disranker_jax.data.bm25_run import BM25Run
from disranker_jax.data.collection_tables import (
  CHOICES,
  LABEL,
  Line,
  Query,
  check_words,
)
from disranker_jax.data.holdout import normalized
from disranker_jax.data.records import (
  NEGATIVE,
  REPEATED,
  UNJUDGED,
  BadRow,
  BadRows,
  Click,
  Document,
  Group,
  differing,
)
from disranker_jax.data.spool import Spool
from disranker_jax.progress import Count, amount, say

# What is noted, of queries that are documents of the collection.
OWN = 'queries that rank the document with their id and text; ?own=exclude takes it out'


class Collection(Protocol):
  """Tables of checked rows in file order; each call reads the table again."""

  name: str
  options: dict[str, str]
  # Whether the run may have queries that are not in the collection, because the run is of a larger
  # collection. Their lines are left out and counted in a message.
  parts: bool

  @property
  def is_judged(self) -> bool:
    """Whether there are qrels."""

  def queries(self, bad_rows: BadRows) -> Iterator[Query]: ...

  def documents(self, bad_rows: BadRows) -> Iterator[tuple[str, int, Document]]: ...

  def qrels(self, bad_rows: BadRows) -> Iterator[Line]: ...

  def choice(self, name: str) -> Iterator[Line]:
    """The qrels that an option of CHOICES names."""

  def run(self, bad_rows: BadRows, *, needed: bool) -> Iterable[Line] | None:
    """The lines of the first stage; None if no option names one and it is not needed."""

  def clicks(self, bad_rows: BadRows) -> Iterator[Click]: ...

  def check(self, kind: str) -> None:
    """Raises: UserError if a file that this kind of records needs is missing or empty."""


@dataclasses.dataclass(frozen=True)
class Reading:
  """What the caller wants from a collection."""

  kind: str
  depth: int
  bad_rows: BadRows
  pool: str = ''  # the option; '' is the default of the kind
  scratch: Path | None = None
  without_own: bool = False  # whether the document with the id of a query is taken out

  def spool(self, name: str) -> Spool:
    return Spool(None if self.scratch is None else self.scratch / name)

  @property
  def judged(self) -> bool:
    """Whether the pool is the judged documents."""
    return self.kind == 'judgements' or (self.kind == 'test' and self.pool == 'judged')

  @property
  def needs_run(self) -> bool:
    """Whether there is nothing to read without a run."""
    return self.narrow or not self.judged

  @property
  def narrow(self) -> bool:
    """Whether judged documents outside the top of the run are left out."""
    return self.kind not in ('test', 'candidates') and self.pool == 'run'


class Picked(NamedTuple):
  """A query with the lines of its documents."""

  order: int  # position among the groups
  query: Query
  lines: list[tuple[Line, bool]]  # (line, whether the document is in the pool)
  left_out: int = 0  # judged documents that `pool=run` leaves out
  is_judged: bool = True  # False: it has no judgement, and the kind needs some


def read(
  collection: Collection, kind: str, depth: int, bad_rows: BadRows, scratch: Path | None = None
) -> Iterator[Click | Group]:
  """The records of a collection.

  Kinds: `judgements` are the judged documents of the queries in the qrels; with `pool=run`, only
  those in the top `depth` of the run. `candidates` are the top `depth` of all queries. `test` is
  the top `depth` to re-rank, and the other judged documents outside the pool; with `pool=judged`
  the pool is exactly the judged documents.

  Options (comma-separated names of qrels): `only` reads the queries of these qrels only, `exclude`
  leaves them out; clicks are compared by the text of the query. `without` removes the pairs of
  these qrels from qrels and run, so that they are never negatives either; `own=exclude` those of a
  query and the document with the same id, as BEIR's evaluation does.
  """
  options = collection.options
  check_words(collection.name, options)
  if kind == 'clicks':
    yield from _clicks(collection, bad_rows)
    return
  own = options.get('own') == 'exclude'
  want = Reading(kind, depth, bad_rows, options.get('pool', ''), scratch, own)
  run = collection.run(bad_rows, needed=want.needs_run)  # which says first if it cannot be used
  by_doc, by_order = want.spool('documents'), want.spool('groups')
  for file, number, doc in collection.documents(bad_rows):
    by_doc.add(doc.doc_id, (file, number, grouping.to_tuple(doc)))
  without = left_out = 0
  for picked in _picked(collection, want, run):
    by_order.add((picked.order, -1), (picked.query.query_id, picked.query.text))
    without += not picked.lines
    left_out += picked.left_out
    for position, (line, in_pool) in enumerate(picked.lines):
      by_doc.add(line.doc_id, (picked.order, position, line, in_pool))
  if left_out:
    pairs = amount(left_out, 'judged pair')
    say(f"{collection.name}: left out {pairs} not in the run's top {depth}")
  if without:
    logging.warning('%s: %d queries have no documents in the run', collection.name, without)
  yield from _groups(by_doc, by_order, collection.name, bad_rows)


def _spooled(collection: Collection, want: Reading, run: Iterable[Line] | None) -> Spool:
  """The rows of all tables, as (table, number, row), by their query."""
  by_query = want.spool('queries')
  tables: list[tuple[str, Iterable]] = [('query', collection.queries(want.bad_rows))]
  for option in CHOICES:
    for name in filter(None, collection.options.get(option, '').split(',')):
      tables.append((option, collection.choice(name)))
  if want.kind != 'candidates':
    tables.append(('qrel', _graded(collection.qrels(want.bad_rows), want.bad_rows)))
  counts: dict[str, Counter[str]] = {table: Counter() for table, _ in tables}
  for table, rows in tables:
    for number, row in enumerate(rows):
      by_query.add(row.query_id, (table, number, row))
      if isinstance(run, BM25Run):  # which alone asks for the counts
        counts[table][row.query_id] += 1
  if isinstance(run, BM25Run):
    taken_out = max(counts.get('without', Counter()).values(), default=0) + want.without_own
    run = run.of(lambda query_id: _is_read(query_id, counts), taken_out)
  for number, row in enumerate(run or ()):
    by_query.add(row.query_id, ('run', number, row))
  return by_query


def _is_read(query_id: str, named: Mapping[str, Counter[str]]) -> bool:
  """Whether options and judgements leave a query in, by the ids that each table names."""
  kept = all(query_id in named[table] for table in ('only', 'qrel') if table in named)
  return kept and query_id not in named.get('exclude', ())


def _picked(collection: Collection, want: Reading, run: Iterable[Line] | None) -> Iterator[Picked]:
  """The wanted queries, with their documents."""
  by_query = _spooled(collection, want, run)
  unknown = unjudged = 0
  for _, entries in itertools.groupby(by_query, key=lambda pair: pair[0]):
    rows_of: dict[str, list] = {table: [] for table in ('query', *CHOICES, 'qrel', 'run')}
    for _, (table, number, fields) in entries:
      rows_of[table].append((number, (Query if table == 'query' else Line)(*fields)))
    if collection.parts and not rows_of['query']:
      unknown += len(rows_of['run'])
      rows_of['run'] = []
    picked = _of_query(rows_of, want, 'only' in collection.options)
    if picked and picked.is_judged:
      yield picked
    unjudged += bool(picked and not picked.is_judged)
  if unjudged:
    say(f'{collection.name}: left out {amount(unjudged, "query", "queries")} without judgements')
  if unknown:
    say(f'{collection.name}: left out {amount(unknown, "line")} of the run, of queries it lacks')


def _graded(qrels: Iterable[Line], bad_rows: BadRows) -> Iterator[Line]:
  """Qrels with 0 for negative grades, which are counted: some collections mark spam by them."""
  for line in qrels:
    if line.label < 0:
      bad_rows.note(NEGATIVE)
      line = line._replace(label=0)
    yield line


def _of_query(
  rows_of: dict[str, list[tuple[int, Any]]], want: Reading, has_only: bool
) -> Picked | None:
  """Joins all rows of one query; None if the query is unknown or an option leaves it out."""
  if not rows_of['query']:
    _reject_unknown(rows_of, want.bad_rows)
    return None
  (order, query), *repeats = rows_of['query']
  for _, row in repeats:
    if row.text == query.text:
      want.bad_rows.note(REPEATED)
      continue
    bad = BadRow('query_id', f'{row.query_id!r} appears twice', 'give each query its own id')
    want.bad_rows.reject(row.file, row.number, row.raw, bad)
  without = {pair.doc_id for _, pair in rows_of['without']}
  if want.without_own:
    without.add(query.query_id)
  qrels, run = (unrepeated(rows_of[table], want.bad_rows) for table in ('qrel', 'run'))
  judged = {line.doc_id: line for line in qrels if line.doc_id not in without}
  in_run = ranked([line for line in run if line.doc_id not in without])
  if rows_of['exclude'] or (has_only and not rows_of['only']):
    return None
  if want.kind != 'candidates':
    if not judged:
      return Picked(order, query, [], is_judged=False)
    order = rows_of['qrel'][0][0]
  lines, left_out = _lines(judged, in_run, want)
  return Picked(order, query, lines, left_out)


def _reject_unknown(rows_of: dict[str, list[tuple[int, Any]]], bad_rows: BadRows) -> None:
  """Rejects the rows of a query that is not among the queries."""
  for table in (*CHOICES, 'qrel', 'run'):
    # The files of options are not data: an error in them stops the run in any mode of `bad_rows`.
    reject = BadRows().reject if table in CHOICES else bad_rows.reject
    for _, line in rows_of[table]:
      fix = 'add the query or remove the row'
      bad = BadRow('query_id', f'{line.query_id!r} is not among the queries', fix)
      reject(line.file, line.number, line.raw, bad)


def _lines(
  judged: dict[str, Line], ranked: dict[str, Line], want: Reading
) -> tuple[list[tuple[Line, bool]], int]:
  """The `lines` and `left_out` of a Picked query."""
  top = dict(itertools.islice(ranked.items(), want.depth))
  kept = {doc_id: judged[doc_id] for doc_id in judged if not want.narrow or doc_id in top}
  left_out = len(judged) - len(kept)
  if left_out and not kept:
    return [], left_out
  pool = kept if want.judged else top
  lines = [(_joined(doc_id, ranked, kept), doc_id in pool) for doc_id in {**pool, **kept}]
  return lines, left_out


def unrepeated(lines: list[tuple[int, Line]], bad_rows: BadRows) -> list[Line]:
  """One line per document. Repeated scores without ranks are averaged: margin files have them.

  Other lines that repeat an earlier one are dropped and counted; if they differ, they are bad rows.
  """
  by_doc: dict[str, list[Line]] = {}
  for _, line in lines:
    same = by_doc.setdefault(line.doc_id, [])
    if not same or not (line.rank or line.label != UNJUDGED):
      same.append(line)
    elif repr(line[LABEL:]) == repr(same[0][LABEL:]):  # as text, because of NaN
      bad_rows.note(REPEATED)
    else:
      what = f'{line.doc_id!r} appears twice for query_id {line.query_id!r}'
      if same[0].label != line.label:
        what += f', with label {same[0].label} and now {line.label}'
      bad_rows.reject(line.file, line.number, line.raw, BadRow('doc_id', what, 'keep one of them'))
  return [
    same[0]._replace(score=math.fsum(line.score for line in same) / len(same))
    for same in by_doc.values()
  ]


def ranked(lines: list[Line]) -> dict[str, Line]:
  """The documents of the run, best first, ranked from 1.

  The score decides, because some tools count ranks from 0 and some from 1. Of equal scores the rank
  in the file decides, then the order of its rows; trec_eval would order them by document id.
  """
  best = sorted(lines, key=lambda line: (-line.score, line.rank))
  return {line.doc_id: line._replace(rank=i) for i, line in enumerate(best, 1)}


def _joined(doc_id: str, top: dict[str, Line], judgements: dict[str, Line]) -> Line:
  """The line of a document with its label from the qrels and its rank and score from the run."""
  if doc_id not in judgements:
    return top[doc_id]
  line = judgements[doc_id]
  if doc_id in top:
    line = line._replace(rank=top[doc_id].rank, score=top[doc_id].score)
  return line


def _groups(by_doc: Spool, by_order: Spool, name: str, bad_rows: BadRows) -> Iterator[Group]:
  """Joins the picked lines with their documents, then sorts them into groups."""
  used = blank = 0
  for doc_id, entries in itertools.groupby(by_doc, key=lambda pair: pair[0]):
    doc = None
    for _, entry in entries:
      if len(entry) == 3:
        doc = _only_one(doc, entry, bad_rows)
        continue
      order, position, fields, in_pool = entry
      line = Line(*fields)
      if doc is None:
        bad = BadRow('doc_id', f'{doc_id!r} is not in {name}', 'add the document or remove the row')
        bad_rows.reject(line.file, line.number, line.raw, bad)
        continue
      known = {'label': line.label, 'rank': line.rank, 'score': line.score, 'in_pool': in_pool}
      by_order.add((order, position), grouping.to_tuple(dataclasses.replace(doc, **known)))
      used, blank = used + 1, blank + (not (doc.title.strip() or doc.summary.strip()))
  if blank:
    logging.warning('%s: %d of %d documents of the queries have no text', name, blank, used)
  for _, entries in itertools.groupby(by_order, key=lambda pair: pair[0][0]):
    (_, (query_id, text)), *docs = entries
    if docs:
      group = Group(query_id, text, tuple(Document(*fields) for _, fields in docs))
      bad_rows.note(OWN, _has_own(group))
      yield group


def _has_own(group: Group) -> bool:
  """Whether the run has the document that a query is; the same id alone may be a coincidence."""
  query, ids = normalized(group.query), (group.query_id, UNJUDGED)
  own = (doc for doc in group.docs if (doc.doc_id, doc.label) == ids)
  return any(query in normalized(f'{doc.title} {doc.summary}') for doc in own)


def _only_one(doc: Document | None, entry: tuple, bad_rows: BadRows) -> Document:
  """The document of an entry; an entry that repeats its id is dropped or rejected."""
  file, number, fields = entry
  again = Document(*fields)
  if doc is None:
    return again
  if not differing(doc, again):
    bad_rows.note(REPEATED)
    return doc
  raw = dict(zip(('doc_id', 'title', 'summary'), fields, strict=False))
  bad = BadRow('doc_id', f'{doc.doc_id!r} appears twice', 'give each document its own id')
  bad_rows.reject(file, number, raw, bad)
  return doc


def _clicks(collection: Collection, bad_rows: BadRows) -> Iterator[Click]:
  only, exclude = (_texts(collection, option, bad_rows) for option in ('only', 'exclude'))
  for click in collection.clicks(bad_rows):
    query = normalized(click.query)
    if (only is None or query in only) and (exclude is None or query not in exclude):
      yield click


def _texts(collection: Collection, option: str, bad_rows: BadRows) -> set[str] | None:
  """The texts of the queries in the qrels of an option; None without the option."""
  if option not in collection.options:
    return None
  lines = (collection.choice(name) for name in collection.options[option].split(','))
  ids = {line.query_id for line in itertools.chain.from_iterable(lines)}
  return {normalized(q.text) for q in collection.queries(bad_rows) if q.query_id in ids}


def checked(
  rows: Iterable[tuple[Any, int, Any]], make: Callable[[Any, int, Any], list], bad_rows: BadRows
) -> Iterator[Any]:
  """The results of `make(file, number, raw)` for each row, one or more; counts bad rows."""
  with Count('read', 'rows') as progress:
    for file, number, raw in rows:
      progress.label = f'read {file}'
      progress.add(1)
      yield from bad_rows.parse_all(
        file, number, raw, lambda raw, at=(str(file), number): make(*at, raw)
      )
