"""Joins a collection's tables (queries, judgements, a first stage's run, documents) into records.

Every table may be larger than memory: rows are sorted on disk by what they are joined on.
`trec.py` reads the tables from files, `ir.py` from the ir_datasets library.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from absl import logging

from disranker_jax.data import first_stage, grouping
from disranker_jax.data.records import UNJUDGED, BadRow, BadRows, Click, Document, Group
from disranker_jax.data.spool import Spool
from disranker_jax.errors import UserError
from disranker_jax.progress import Count, say

POOLS = ('run', 'judged')
CHOICES = ('only', 'exclude', 'without')
# How deep BM25 looks where judged documents want their first-stage rank, wherever it is.
RANKS_OF_JUDGED = 1000


class Line(NamedTuple):
  """A row of judgements or of a run, with where it stands for errors that only show later."""

  file: str
  number: int
  raw: Any
  query_id: str
  doc_id: str
  label: int = UNJUDGED
  rank: int = 0  # 0: the file gives none; then a document may be scored more than once
  score: float = math.nan


class Query(NamedTuple):
  """A row of queries."""

  file: str
  number: int
  raw: Any
  query_id: str
  text: str


class Collection(Protocol):
  """Tables of checked rows, in the order of their files; each call reads them anew."""

  name: str
  options: dict[str, str]
  # Whether a run may hold queries that the collection has not: one of a whole collection is used
  # with a part of it. What it holds of them is left out, and told.
  parts: bool

  def queries(self, bad_rows: BadRows) -> Iterator[Query]: ...

  def documents(self, bad_rows: BadRows) -> Iterator[tuple[str, int, Document]]: ...

  def qrels(self, bad_rows: BadRows) -> Iterator[Line]: ...

  def choice(self, name: str) -> Iterator[Line]:
    """The judgements of another file, whose queries are to be held out or are the only ones."""

  def run(self, bad_rows: BadRows, *, needed: bool) -> Iterator[Line] | None:
    """The first stage's lines; None if there are none and none is needed, BM25 if asked for."""

  def clicks(self, bad_rows: BadRows) -> Iterator[Click]: ...


@dataclasses.dataclass(frozen=True)
class Reading:
  """What is wanted of a collection."""

  kind: str
  depth: int
  bad_rows: BadRows
  pool: str = ''  # as asked for; '' is each kind's own
  scratch: Path | None = None

  def spool(self, name: str) -> Spool:
    return Spool(None if self.scratch is None else self.scratch / name)

  @property
  def judged(self) -> bool:
    """Whether the pool is the judged documents."""
    return self.kind == 'judgements' or (self.kind == 'test' and self.pool == 'judged')

  @property
  def narrow(self) -> bool:
    """Whether judged documents count only where the first stage finds them too."""
    return self.kind not in ('test', 'candidates') and self.pool == 'run'


class Picked(NamedTuple):
  """A query that is wanted, with the lines of its documents and whether each is in its pool."""

  order: int  # its place among the groups
  query: Query
  lines: list[tuple[Line, bool]]
  left_out: int = 0  # judged documents that `pool=run` leaves out


def read(
  collection: Collection, kind: str, depth: int, bad_rows: BadRows, scratch: Path | None = None
) -> Iterator[Click | Group]:
  """The records of a collection.

  `judgements` are the judged documents of the queries in the qrels, with `pool=run` those of them
  that are in the run's top `depth`; `candidates` the run's top `depth` of all queries. `test` is
  the run's top `depth` to re-rank, with the other judged documents outside the pool; with
  `pool=judged` all judged documents are in it, and no other. `only` and
  `exclude` name qrels (comma-separated) whose queries alone are read, or are held out; for clicks
  the queries' texts are compared. `without` names qrels whose pairs are not there for anybody:
  neither judged nor in the run, and so never a negative.
  """
  pool = collection.options.get('pool', '')
  if pool and pool not in POOLS:
    raise UserError(f'{collection.name}: unknown pool {pool!r}; choose one of {", ".join(POOLS)}')
  if kind == 'clicks':
    yield from _clicks(collection, bad_rows)
    return
  want = Reading(kind, depth, bad_rows, pool, scratch)
  picks, heads = want.spool('documents'), want.spool('groups')
  for file, number, doc in collection.documents(bad_rows):
    picks.add(doc.doc_id, (file, number, grouping.to_tuple(doc)))
  without = left_out = 0
  for picked in _picked(collection, want):
    heads.add((picked.order, -1), (picked.query.query_id, picked.query.text))
    without += not picked.lines
    left_out += picked.left_out
    for position, (line, in_pool) in enumerate(picked.lines):
      picks.add(line.doc_id, (picked.order, position, line, in_pool))
  if left_out:
    say(f"{collection.name}: left out {left_out:,} judged pairs not in the run's top {depth}")
  if without:
    logging.warning('%s: %d queries have nothing in the run', collection.name, without)
  yield from _groups(picks, heads, collection.name, bad_rows)


def _picked(collection: Collection, want: Reading) -> Iterator[Picked]:
  """Each query that is wanted."""
  by_query = want.spool('queries')
  tables: list[tuple[str, Iterable]] = [('query', collection.queries(want.bad_rows))]
  for option in CHOICES:
    for name in filter(None, collection.options.get(option, '').split(',')):
      tables.append((option, collection.choice(name)))
  if want.kind != 'candidates':
    tables.append(('qrel', collection.qrels(want.bad_rows)))
  run = collection.run(want.bad_rows, needed=want.narrow or not want.judged)
  tables.append(('run', run or ()))
  for table, rows in tables:
    for number, row in enumerate(rows):
      by_query.add(row.query_id, (table, number, row))
  strangers = 0
  for _, entries in itertools.groupby(by_query, key=lambda pair: pair[0]):
    found: dict[str, list] = {table: [] for table in ('query', *CHOICES, 'qrel', 'run')}
    for _, (table, number, row) in entries:
      found[table].append((number, row))
    if collection.parts and not found['query']:
      strangers += len(found.pop('run'))
      found['run'] = []
    if picked := _of_query(found, want, 'only' in collection.options):
      yield picked
  if strangers:
    say(f'{collection.name}: left out {strangers:,} lines of the run for queries it does not have')


def _of_query(
  found: dict[str, list[tuple[int, Any]]], want: Reading, has_only: bool
) -> Picked | None:
  """One query's rows of all tables joined; None if the query is unknown or not wanted."""
  reject = want.bad_rows.reject
  if not found['query']:
    for table in (*CHOICES, 'qrel', 'run'):
      # A choice is not data: a mistake in it stops the run whatever becomes of bad rows.
      turn_down = BadRows().reject if table in CHOICES else reject
      for _, line in found[table]:
        fix = 'add the query or remove the row'
        bad = BadRow('query_id', f'{line.query_id!r} is not among the queries', fix)
        turn_down(line.file, line.number, line.raw, bad)
    return None
  (order, query), *again = found['query']
  for _, row in again:
    bad = BadRow('query_id', f'{row.query_id!r} is there twice', 'give each query its own')
    reject(row.file, row.number, row.raw, bad)
  judged = {line.doc_id: line for line in _unrepeated(found['qrel'], want.bad_rows)}
  ranked = _ranked(_unrepeated(found['run'], want.bad_rows))
  for _, pair in found['without']:
    judged.pop(pair.doc_id, None)
    ranked.pop(pair.doc_id, None)
  if found['exclude'] or (has_only and not found['only']):
    return None
  if want.kind != 'candidates':
    if not judged:
      return None
    order = found['qrel'][0][0]
  top, left_out = dict(itertools.islice(ranked.items(), want.depth)), 0
  if want.narrow:
    found_too = {doc_id: line for doc_id, line in judged.items() if doc_id in top}
    judged, left_out = found_too, len(judged) - len(found_too)
    if not judged:
      return Picked(order, query, [], left_out)
  in_pool = judged if want.judged else top
  both = {doc_id: _joined(doc_id, ranked, judged) for doc_id in {**in_pool, **judged}}
  lines = [(line, doc_id in in_pool) for doc_id, line in both.items()]
  return Picked(order, query, lines, left_out)


def _unrepeated(lines: list[tuple[int, Line]], bad_rows: BadRows) -> list[Line]:
  """One line for a document. Scores without ranks may repeat and are averaged: margin files do."""
  by_doc: dict[str, list[Line]] = {}
  for _, line in lines:
    same = by_doc.setdefault(line.doc_id, [])
    if same and (line.rank or line.label != UNJUDGED):
      what = f'{line.doc_id!r} is there twice for query_id {line.query_id!r}'
      if same[0].label != line.label:
        what += f', with label {same[0].label} and now {line.label}'
      bad_rows.reject(line.file, line.number, line.raw, BadRow('doc_id', what, 'keep one of them'))
    else:
      same.append(line)
  return [
    same[0]._replace(score=math.fsum(line.score for line in same) / len(same))
    for same in by_doc.values()
  ]


def _ranked(lines: list[Line]) -> dict[str, Line]:
  """The run's documents, best first, ranked from 1.

  As in trec_eval the score decides; the rank given only breaks ties, for tools count from 0 or 1.
  """
  best = sorted(lines, key=lambda line: (-line.score, line.rank))
  return {line.doc_id: line._replace(rank=i) for i, line in enumerate(best, 1)}


def _joined(doc_id: str, top: dict[str, Line], judgements: dict[str, Line]) -> Line:
  """What run and qrels know about a document together."""
  if doc_id not in judgements:
    return top[doc_id]
  line = judgements[doc_id]
  if doc_id in top:
    line = line._replace(rank=top[doc_id].rank, score=top[doc_id].score)
  return line


def _groups(picks: Spool, heads: Spool, name: str, bad_rows: BadRows) -> Iterator[Group]:
  used = blank = 0
  for doc_id, entries in itertools.groupby(picks, key=lambda pair: pair[0]):
    doc = None
    for _, entry in entries:
      if len(entry) == 3:
        doc = _only_one(doc, entry, bad_rows)
        continue
      order, position, line, in_pool = entry
      if doc is None:
        bad = BadRow('doc_id', f'{doc_id!r} is not in {name}', 'add the document or remove the row')
        bad_rows.reject(line.file, line.number, line.raw, bad)
        continue
      known = {'label': line.label, 'rank': line.rank, 'score': line.score, 'in_pool': in_pool}
      heads.add((order, position), grouping.to_tuple(dataclasses.replace(doc, **known)))
      used, blank = used + 1, blank + (not (doc.title.strip() or doc.summary.strip()))
  if blank:
    logging.warning('%s: %d of %d documents of the queries have no text', name, blank, used)
  for _, entries in itertools.groupby(heads, key=lambda pair: pair[0][0]):
    (_, (query_id, text)), *docs = entries
    if docs:
      yield Group(query_id, text, tuple(Document(*fields) for _, fields in docs))


def _only_one(doc: Document | None, entry: tuple, bad_rows: BadRows) -> Document:
  """The document of an entry, unless there is one with its id already."""
  file, number, fields = entry
  if doc is None:
    return Document(*fields)
  raw = dict(zip(('doc_id', 'title', 'summary'), fields, strict=False))
  bad = BadRow('doc_id', f'{doc.doc_id!r} is there twice', 'give each document its own')
  bad_rows.reject(file, number, raw, bad)
  return doc


def _clicks(collection: Collection, bad_rows: BadRows) -> Iterator[Click]:
  only, exclude = (_texts(collection, option, bad_rows) for option in ('only', 'exclude'))
  for click in collection.clicks(bad_rows):
    if (only is None or click.query in only) and (exclude is None or click.query not in exclude):
      yield click


def _texts(collection: Collection, option: str, bad_rows: BadRows) -> set[str] | None:
  """The texts of the queries that an option names; None without the option."""
  if option not in collection.options:
    return None
  lines = (collection.choice(name) for name in collection.options[option].split(','))
  ids = {line.query_id for line in itertools.chain.from_iterable(lines)}
  return {query.text for query in collection.queries(bad_rows) if query.query_id in ids}


def bm25(collection: Collection, depth: int) -> Iterator[Line]:
  """A run by BM25 over the collection's own documents; they are indexed in memory."""
  aside = BadRows.nowhere()  # Bad rows of these tables are told by whoever reads them for itself.
  ids: dict[str, None] = {}

  def documents() -> Iterator[Document]:
    for _, _, doc in collection.documents(aside):
      if doc.doc_id not in ids:
        ids[doc.doc_id] = None
        yield doc

  index = first_stage.BM25(documents())
  names = list(ids)
  queries = {query.query_id: query.text for query in collection.queries(aside)}
  found = index.each(queries.values(), depth)
  number = 0
  for query_id, top in zip(queries, found, strict=True):
    for rank, (i, score) in enumerate(top, 1):
      number += 1
      yield Line('bm25', number, '', query_id, names[i], rank=rank, score=score)


def checked(
  rows: Iterable[tuple[Any, int, Any]], make: Callable[[Any, int, Any], list], bad_rows: BadRows
) -> Iterator[Any]:
  """What `make(file, number, raw)` makes of each row, one or more; bad rows are counted."""
  with Count('read', 'rows') as progress:
    for file, number, raw in rows:
      progress.label = f'read {file}'
      progress.add(1)
      yield from bad_rows.parse_all(
        file, number, raw, lambda raw, at=(str(file), number): make(*at, raw)
      )
