"""Groups rows of one document each into queries with their documents, in bounded memory.

The rows of a query may be anywhere in the files. They are sorted by query on disk, then back into
the order in which the queries first appear.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from disranker_jax.data.records import (
  DOCUMENT_FIELDS,
  REPEATED,
  UNJUDGED,
  BadRow,
  BadRows,
  Document,
  Group,
  Row,
  differing,
)
from disranker_jax.data.spool import MEMORY, Spool
from disranker_jax.errors import UserError
from disranker_jax.progress import Count, amount

# Consecutive rows of one query: number of the first row, text of the query, (file, line, fields) of
# each document. These are plain tuples because millions of them go through a file.
Part = tuple[int, str, Sequence[tuple[str, int, tuple]]]
NO_LATER = 'rows read; documents that these queries have in later rows are not counted'
UNRANKED = 'documents without a first-stage rank left out by depth'


def parts(rows: Iterable[tuple[Any, int, Row]], start: int = 0) -> Iterator[tuple[str, Part]]:
  """(query_id, part) of rows (file, line, (query_id, query, document)).

  Consecutive rows of a query are one part. `start` is the number of the first row.
  """
  numbered = enumerate(rows, start)
  for (query_id, query), same in itertools.groupby(numbered, key=lambda row: row[1][2][:2]):
    docs, first = [], None
    for number, (file, line, (_, _, doc)) in same:
      first = number if first is None else first
      docs.append((str(file), line, to_tuple(doc)))
    yield query_id, (first, query, docs)


def first(
  rows: Iterable[tuple[Any, int, Row]], count: int, bad_rows: BadRows
) -> Iterator[tuple[Any, int, Row]]:
  """Rows as `parts` takes them, before the first one of query number `count` + 1; notes that."""
  found: set[str] = set()
  for row in rows:
    query_id = row[2][0]
    if query_id not in found and len(found) == count:
      bad_rows.note(NO_LATER, bad_rows.rows_in)
      return
    found.add(query_id)
    yield row


def groups(
  by_query: Iterable[tuple[str, Part]],
  bad_rows: BadRows,
  folder: Path | None = None,
  memory: int = MEMORY,
) -> Iterator[Group]:
  """Groups in the order of their first rows, from parts sorted by query_id and number.

  A document that repeats an earlier one of its query is dropped and counted. If it differs, or if a
  query_id has a second text, the row is bad and the first one stays.
  """
  by_number = Spool(None if folder is None else folder / 'by_number', memory)
  with Count('gathered', 'queries') as progress:
    for query_id, same in itertools.groupby(by_query, key=lambda pair: pair[0]):
      first, query, docs = merge(query_id, (part for _, part in same), bad_rows)
      by_number.add(first, (query_id, query, docs))
      progress.add(1)
  for _, (query_id, query, docs) in by_number:
    yield Group(query_id, query, tuple(Document(*fields) for fields in docs))


def merge(query_id: str, parts: Iterable[Part], bad_rows: BadRows) -> tuple[int, str, list[tuple]]:
  """(number, query, fields of each document) of a query, from its parts in order."""
  first, query, docs = None, None, {}
  for number, text, rows in parts:
    if first is None:
      first, query = number, text
    for file, line, fields in rows:
      try:
        _check(query_id, query, text, docs, fields)
      except BadRow as bad:
        values = dict(zip(DOCUMENT_FIELDS, fields, strict=True))
        raw = {'query_id': query_id, 'query': text, **values}
        bad_rows.reject(file, line, raw, bad)
      else:
        if fields[0] in docs:
          bad_rows.note(REPEATED)
        else:
          docs[fields[0]] = fields
  return first, query, list(docs.values())


def _check(query_id: str, query: str, text: str, docs: dict[str, tuple], fields: tuple) -> None:
  if text != query:
    what = f'query_id {query_id!r} was {query!r} before and is now {text!r}'
    raise BadRow('query', what, 'give each query text its own query_id')
  if fields[0] not in docs:
    return
  before, now = Document(*docs[fields[0]]), Document(*fields)
  if other := differing(before, now):
    what = f'{fields[0]!r} appears twice for query_id {query_id!r}, with '
    same_label = before.label == now.label
    what += f'a different {other}' if same_label else f'label {before.label} and now {now.label}'
    raise BadRow('doc_id', what, 'keep one of the rows')


def of_rows(
  rows: Iterable[tuple[Any, int, Row]],
  bad_rows: BadRows,
  folder: Path | None = None,
  memory: int = MEMORY,
) -> Iterator[Group]:
  """The groups of rows; sorts in `folder` (default: a temporary one) above `memory` bytes."""
  by_query = Spool(None if folder is None else folder / 'by_query', memory)
  for query_id, part in parts(rows):
    by_query.add(query_id, part)
  yield from groups(by_query, bad_rows, folder, memory)


def cuts(
  groups: Iterable[Group], kind: str, depth: int, bad_rows: BadRows, address: str
) -> Iterator[Group]:
  """`cut` of each group of an address; those without a document are left out and counted.

  Raises: as `cut`, and UserError if no query has a document to rank.
  """
  last, ranks = None, False
  for last in groups:
    if found := counted_cut(last, kind, depth, bad_rows, address):
      ranks |= kind != 'test' or any(doc.in_pool for doc in found.docs)
      yield found
  if depth and last is not None and not ranks:
    raise UserError(
      f'{address}: depth={depth}: no query has a document of first-stage rank 1 to {depth}, such '
      f'as query_id {last.query_id!r}; ranks count from 1'
    )


def counted_cut(
  group: Group, kind: str, depth: int, bad_rows: BadRows, address: str
) -> Group | None:
  """`cut`, or None if no document is left.

  Notes that, that a test has none to rank, and documents that are left out without a rank: those
  below `depth` are what it is for, but a missing rank may be a fault of the data.
  """
  try:
    found = cut(group, kind, depth)
  except UserError as error:
    raise UserError(f'{address}: {error}') from None
  bad_rows.note(UNRANKED, _unranked(group) - _unranked(found))
  none = f'queries without a document of first-stage rank 1 to {depth}'
  if not found.docs:
    bad_rows.note(f'{none} left out')
    return None
  if found is not group and kind == 'test' and not any(doc.in_pool for doc in found.docs):
    bad_rows.note(f'test {none}, which count as 0')
  return found


def _unranked(group: Group) -> int:
  return sum(not doc.rank for doc in group.docs)


def cut(group: Group, kind: str, depth: int) -> Group:
  """The query with the documents of first-stage rank 1 to `depth`; all of them for depth 0.

  As in collections, judgements keep all documents, and other judged documents of a test leave the
  pool only. Of labeled candidates see `of_labeled`. A query without any rank keeps its documents.
  Raises: UserError if these are more than `depth`, as there is nothing to choose by.
  """
  if not depth or kind == 'judgements':
    return group
  if kind == 'candidates' and any(doc.label > 0 for doc in group.docs):
    return of_labeled(group, depth)
  if not any(doc.rank for doc in group.docs):
    if len(group.docs) <= depth:
      return group
    raise UserError(
      f'depth={depth}: query_id {group.query_id!r} has {amount(len(group.docs), "document")}, and '
      'none has a first-stage rank; add the field "rank" to its rows, or use depth=0, which keeps '
      'all'
    )
  docs = []
  for doc in group.docs:
    in_pool = doc.in_pool and 1 <= doc.rank <= depth
    if in_pool or (doc.label != UNJUDGED and kind != 'candidates'):
      docs.append(doc if in_pool == doc.in_pool else dataclasses.replace(doc, in_pool=in_pool))
  return Group(group.query_id, group.query, tuple(docs))


def of_labeled(group: Group, depth: int) -> Group:
  """`depth` documents of labeled candidates, chosen as the stage generate chooses them.

  Documents with a label above 0 stay whatever their rank: without them the query teaches nothing.
  The others are those of first-stage rank 1 to `depth`, then those without a rank.
  """
  relevant = [doc for doc in group.docs if doc.label > 0]
  others = [doc for doc in group.docs if doc.label <= 0 and doc.rank <= depth]
  best = sorted(others, key=lambda doc: doc.rank or depth + 1)
  chosen = {doc.doc_id for doc in [*relevant, *best[: max(depth - len(relevant), 0)]]}
  if len(chosen) == len(group.docs):
    return group
  return Group(group.query_id, group.query, tuple(d for d in group.docs if d.doc_id in chosen))


def to_tuple(doc: Document) -> tuple:
  """The fields of a document in the order of DOCUMENT_FIELDS."""
  return tuple([getattr(doc, name) for name in DOCUMENT_FIELDS])
