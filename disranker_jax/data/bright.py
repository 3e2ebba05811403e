"""Reads the tables of a task of BRIGHT (arXiv:2407.12883) from a copy of its data set.

The folder is that of `xlangai/BRIGHT` at the Hugging Face hub: `examples/TASK-*.parquet` with
query, id, gold_ids, gold_ids_long and excluded_ids; `documents` and `long_documents` with id and
content; `NAME_reason`, ready-made rewrites in the place of the queries. Parquet and JSON lines are
read. White space in ids becomes an underscore, because it separates the columns of TREC files.

The excluded documents of a query answer it trivially, such as its own page; they are taken out of
its ranking before this is cut.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from disranker_jax.data import first_stage, lines, records, rows
from disranker_jax.data.collection import Line, Query, checked
from disranker_jax.data.records import BadRow, BadRows, Click, Document
from disranker_jax.data.source import DEPTH, DOCUMENTS
from disranker_jax.data.tables import Tables
from disranker_jax.errors import UserError

OPTIONS = ('task', 'long', 'queries')
NONE = 'N/A'  # in a list of ids: there are none


class Bright(Tables):
  """A task of a copy of BRIGHT."""

  scheme, example = 'bright', 'bright:data/BRIGHT?task=biology'
  ranked_by_bm25 = True

  def open(self, depth: int = DEPTH) -> 'Task':
    path, options = self.options(OPTIONS)
    if not path:
      raise UserError('bright: has no folder; write bright:DIR?task=biology')
    return Task(pathlib.Path(path).expanduser(), options, depth)

  def fingerprint(self) -> list:
    return self.of_files(self.open().files)

  def excluded(self) -> dict[str, frozenset[str]]:
    return self.open().excluded()


class Task:
  """The tables of a task.

  Options: `task`, such as biology; `long=yes` has the long documents, whole pages, and their
  judgements; `queries` names the folder of the queries, such as gpt4_reason.
  """

  parts = False
  is_judged = True

  def __init__(self, folder: pathlib.Path, options: dict[str, str], depth: int):
    if not folder.is_dir():
      raise UserError(f'{folder}: is not a folder; give the folder of a copy of xlangai/BRIGHT')
    if 'task' not in options:
      raise UserError(f'bright:{folder}: names no task; write bright:{folder}?task=biology')
    long = options.get('long', 'no')
    if long not in ('yes', 'no'):
      raise UserError(f'bright:{folder}: long={long}: write yes or no')
    self.name, self.options = f'bright:{folder}?task={options["task"]}', options
    self._task, self._depth = options['task'], depth
    self._gold = 'gold_ids_long' if long == 'yes' else 'gold_ids'
    self._examples = self._files(folder, options.get('queries', 'examples'))
    self._documents = self._files(folder, 'long_documents' if long == 'yes' else 'documents')

  @property
  def files(self) -> list[pathlib.Path]:
    """All files that are read."""
    return [*self._examples, *self._documents]

  def _files(self, folder: pathlib.Path, table: str) -> list[pathlib.Path]:
    """The files of the task in a folder: TASK-*.parquet, TASK.jsonl, or all of a folder TASK."""
    inside = sorted((folder / table).glob(f'{self._task}[-.]*'))
    inside += sorted((folder / table / self._task).glob('*'))
    if files := [f for f in inside if f.is_file() and not f.name.startswith('.')]:
      return files
    raise UserError(
      f'{folder / table}: has no file of the task {self._task!r}, such as '
      f'{self._task}-00000-of-00001.parquet; fetch xlangai/BRIGHT whole, or name another task'
    )

  def queries(self, bad_rows: BadRows) -> Iterator[Query]:
    yield from checked(rows.of_files(self._examples, rows.read), _query, bad_rows)

  def documents(self, bad_rows: BadRows) -> Iterator[tuple[str, int, Document]]:
    yield from checked(rows.of_files(self._documents, rows.read), _document, bad_rows)

  def qrels(self, bad_rows: BadRows) -> Iterator[Line]:
    judged = functools.partial(_judged, self._gold)
    yield from checked(rows.of_files(self._examples, rows.read), judged, bad_rows)

  def choice(self, name: str) -> Iterator[Line]:
    raise UserError(f'{self.name}: cannot choose queries by {name!r}')

  def run(self, bad_rows: BadRows, *, needed: bool) -> Iterator[Line] | None:
    """The best documents of BM25 (first_stage.py) that are not excluded."""
    ignored = BadRows.nowhere()  # `collection.read` reports bad rows of the same tables
    docs = {doc.doc_id: doc for _, _, doc in self.documents(ignored)}
    excluded, names = self.excluded(), list(docs)
    index = first_stage.BM25(docs.values())
    for query in self.queries(ignored):
      without = excluded[query.query_id]
      (top,) = index.top([query.text], self._depth + len(without))
      found = [(names[i], score) for i, score in top if names[i] not in without]
      for rank, (doc_id, score) in enumerate(found[: self._depth], 1):
        yield Line('bm25', rank, '', query.query_id, doc_id, rank=rank, score=score)

  def clicks(self, bad_rows: BadRows) -> Iterator[Click]:
    raise UserError(f'{self.name}: has no clicks; give another address for them')

  def check(self, kind: str) -> None:
    if kind == 'clicks':
      self.clicks(BadRows())  # which says that there are none
    if kind != DOCUMENTS:
      lines.check(self._examples)
    lines.check(self._documents)

  def excluded(self) -> dict[str, frozenset[str]]:
    """{query_id: ids of the documents that are taken out of its ranking} of all queries."""
    table = rows.of_files(self._examples, rows.read)
    return dict(checked(table, _excluded, BadRows.nowhere()))


def _query(file: str, number: int, raw: Any) -> list[Query]:
  row = records.mapping(rows.decode(raw))
  text = records.text(row, 'query', blank=False)
  # BRIGHT asserts it, and a query with such a document could not be answered.
  golden = {doc_id for field in ('gold_ids', 'gold_ids_long') for doc_id in _ids(row, field)}
  if both := golden & set(_ids(row, 'excluded_ids')):
    raise BadRow('excluded_ids', f'has the gold document {min(both)!r}', 'remove it from one list')
  return [Query(file, number, raw, _id(row), text)]


def _document(file: str, number: int, raw: Any) -> list[tuple[str, int, Document]]:
  row = records.mapping(rows.decode(raw))
  return [(file, number, Document(_id(row), '', records.text(row, 'content', blank=True)))]


def _judged(field: str, file: str, number: int, raw: Any) -> list[Line]:
  row = records.mapping(rows.decode(raw))
  return [Line(file, number, raw, _id(row), doc_id, 1) for doc_id in _ids(row, field)]


def _excluded(file: str, number: int, raw: Any) -> list[tuple[str, frozenset[str]]]:
  row = records.mapping(rows.decode(raw))
  return [(_id(row), frozenset(_ids(row, 'excluded_ids')))]


def _id(row) -> str:
  value = row.get('id')
  value = str(value) if isinstance(value, int) else records.text(row, 'id', blank=False)
  return '_'.join(value.split())


def _ids(row, field: str) -> list[str]:
  values = row.get(field)
  if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
    raise BadRow(field, 'is not a list of texts', 'write a list of ids of documents')
  return ['_'.join(value.split()) for value in values if value != NONE]
