"""Reads the tables of a public collection by its id, with the ir_datasets library."""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from disranker_jax.data import collection_tables, lines, records, run_order, trec
from disranker_jax.data.bm25_run import BM25Run
from disranker_jax.data.collection import Line, Query, checked
from disranker_jax.data.records import BadRow, BadRows, Click, Document
from disranker_jax.data.source import DEPTH, Want
from disranker_jax.data.tables import Tables
from disranker_jax.errors import UserError, reason

OPTIONS = ('run', *collection_tables.NO_FILES, *collection_tables.CHOICES)
QUERY_TEXTS = ('text', 'query', 'title')  # fields of a topic; the first one present counts
# Fields that may contain the text of a document, beside its title; the first one present counts.
TEXTS = ('text', 'body', 'abstract', 'contents', 'passage', 'summary', 'description', 'detail')


class IrDatasets(Tables):
  """A collection of the ir_datasets library."""

  scheme, example = 'ir_datasets', 'ir_datasets:beir/nfcorpus/train'

  def open(self, depth: int = DEPTH) -> 'Dataset':
    name, options = self.options(OPTIONS)
    if not name:
      raise UserError('ir_datasets: has no dataset id; write ir_datasets:ID, see ir-datasets.com')
    return Dataset(name, options, depth)

  def scores(self, want: Want) -> Iterator[Line]:
    return iter(self.open(want.depth).run(want.bad_rows, needed=True))

  def fingerprint(self) -> list:
    return self.of_files(self.named())  # what an id stands for never changes


class Dataset:
  """The tables of an ir_datasets collection.

  The option `run` is a file, 'scoreddocs' (the first stage of the dataset) or 'bm25'; the default
  is 'scoreddocs' if the dataset has them, else 'bm25', and none where only judged documents are
  read. `only`, `exclude` and `without` are ids of datasets.
  """

  parts = True

  def __init__(self, name: str, options: dict[str, str], depth: int):
    self.name, self.options = f'ir_datasets:{name}', options
    self._depth = depth
    self._data = load(name)

  @property
  def is_judged(self) -> bool:
    return self._data.has_qrels()

  def queries(self, bad_rows: BadRows) -> Iterator[Query]:
    self._check_field()
    field, count, texts = self.options.get('field', ''), 0, {}
    for query in checked(self._rows('queries'), functools.partial(_query, field), bad_rows):
      yield query
      count += 1
      texts |= {name: same and texts.get(name, True) for name, same in _texts(query).items()}
    if not field and not all(texts.values()):
      used, others = (_named(texts, same) for same in (True, False))
      what = f'queries are {used or "the text that the library makes"} of topics that also have'
      bad_rows.note(f'{what} {others}; ?field=NAME reads another one', count)

  def _check_field(self) -> None:
    """Raises: UserError if the topics have no field of the option."""
    field = self.options.get('field')
    if not field or not self._data.has_queries():  # which another check says
      return
    names = [name for name in self._data.queries_cls()._fields if name != 'query_id']
    if field not in names:
      raise UserError(
        f'{self.name}: field={field}: its topics have no such field; choose one of '
        f'{", ".join(names)}'
      )

  def documents(self, bad_rows: BadRows) -> Iterator[tuple[str, int, Document]]:
    yield from checked(self._rows('docs'), _document, bad_rows)

  def qrels(self, bad_rows: BadRows) -> Iterator[Line]:
    yield from checked(self._rows('qrels'), _judged, bad_rows)

  def choice(self, name: str) -> Iterator[Line]:
    other = f'ir_datasets:{name}'
    yield from checked(_table(load(name), other, 'qrels'), _judged, BadRows())

  def run(self, bad_rows: BadRows, *, needed: bool) -> Iterable[Line] | None:
    name = self.options.get('run')
    if not name:
      if not needed:
        return None  # it may be hours of reading, for the ranks of judged documents
      name = 'scoreddocs' if self._data.has_scoreddocs() else 'bm25'
    if name == 'scoreddocs':
      return run_order.ordered(checked(self._rows('scoreddocs'), _scored, bad_rows))
    if name == 'bm25':
      return BM25Run(self, self._depth, needed=needed)
    return run_order.ordered(trec.run_lines(pathlib.Path(name).expanduser(), bad_rows))

  def clicks(self, bad_rows: BadRows) -> Iterator[Click]:
    raise UserError(f'{self.name}: has no clicks; give another address for them')

  def check(self, kind: str) -> None:
    if kind == 'clicks':
      self.clicks(BadRows())  # which says that there are none
    self._check_field()
    for table in collection_tables.tables_of(kind, self.options):
      _check_table(self._data, self.name, table)
    for name in collection_tables.choices_of(kind, self.options):
      _check_table(load(name), f'ir_datasets:{name}', 'qrels')
    name = self.options.get('run', 'bm25')
    if not collection_tables.reads_run(kind) or name == 'bm25':
      return
    if name == 'scoreddocs':
      _check_table(self._data, self.name, name)
    else:
      lines.check([pathlib.Path(name).expanduser()])

  def _rows(self, table: str) -> Iterator[tuple[str, int, Any]]:
    return _table(self._data, self.name, table)


def load(name: str) -> Any:
  """The dataset of an id. Raises: UserError if the library or the dataset is missing."""
  with _one_line(f'ir_datasets:{name}'):  # it creates its folder in the home directory
    try:
      import ir_datasets
    except ImportError:
      raise UserError(
        f'ir_datasets:{name}: the library is not installed; '
        "pip install -e '.[data]' in the checkout"
      ) from None
  logging.getLogger('ir_datasets').setLevel(logging.WARNING)
  ir_datasets.log.easy().logger().setLevel(logging.WARNING)
  with _one_line(f'ir_datasets:{name}'):
    try:
      return ir_datasets.load(name)
    except KeyError:
      raise UserError(
        f'ir_datasets:{name}: is not a known dataset; see https://ir-datasets.com for ids'
      ) from None


def _table(data: Any, name: str, table: str) -> Iterator[tuple[str, int, Any]]:
  """(where, number from 1, row) of a table: docs, queries, qrels or scoreddocs."""
  with _one_line(name):
    _check_table(data, name, table)
    rows = iter(getattr(data, f'{table}_iter')())
  number = 0
  while True:
    with _one_line(name):
      try:
        row = next(rows)
      except StopIteration:
        return
    number += 1
    yield f'{name}/{table}', number, row


def _check_table(data: Any, name: str, table: str) -> None:
  """Raises: UserError if a dataset has no such table; nothing of it is fetched or read."""
  if not getattr(data, f'has_{table}')():
    raise UserError(f'{name}: has no {table}; choose another dataset id')


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
  """Turns any error of the library into a UserError: it downloads and parses during iteration."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    what = f'cannot be read ({reason(error)})'
    raise UserError(
      f'{name}: {what}; it may need a download or files in $IR_DATASETS_HOME'
    ) from error


def _query(field: str, file: str, number: int, row: Any) -> list[Query]:
  query_id = _identifier(row, 'query_id')
  text = _first_text(row, (field,) if field else QUERY_TEXTS)
  if not field and not text:
    text = _default_text(row)
  if not text.strip():
    raise BadRow('query', 'is blank', 'leave the query out')
  return [Query(file, number, row, query_id, ' '.join(text.split()))]


def _texts(query: Query) -> dict[str, bool]:
  """{field: whether it is the query} of the topic's texts: of several words, so no id or date."""
  fields = ((name, getattr(query.raw, name)) for name in query.raw._fields)
  words = {name: value.split() for name, value in fields if isinstance(value, str)}
  used = query.text.split()
  return {name: each == used for name, each in words.items() if each == used or len(each) > 1}


def _named(texts: dict[str, bool], is_query: bool) -> str:
  return ', '.join(repr(name) for name, same in texts.items() if same == is_query)


def _document(file: str, number: int, row: Any) -> list[tuple[str, int, Document]]:
  title, summary = _first_text(row, ('title',)), _first_text(row, TEXTS)
  if not summary and not title:
    summary = _default_text(row)
  fields = {'doc_id': row.doc_id, 'title': title, 'summary': summary}
  return [(file, number, records.document(fields))]


def _judged(file: str, number: int, row: Any) -> list[Line]:
  query_id, doc_id = _identifier(row, 'query_id'), _identifier(row, 'doc_id')
  label = records.grade({'label': row.relevance}, low=-records.LARGEST_LABEL, default=0)
  return [Line(file, number, row, query_id, doc_id, label)]


def _scored(file: str, number: int, row: Any) -> list[Line]:
  query_id, doc_id = _identifier(row, 'query_id'), _identifier(row, 'doc_id')
  score = records.score({'score': row.score})
  return [Line(file, number, row, query_id, doc_id, score=score)]


def _identifier(row: Any, field: str) -> str:
  return records.identifier({field: getattr(row, field)}, field)


def _first_text(row: Any, names: Iterable[str]) -> str:
  values = (getattr(row, name, None) for name in names)
  return next((value for value in values if isinstance(value, str) and value.strip()), '')


def _default_text(row: Any) -> str:
  make: Callable[[], str] | None = getattr(row, 'default_text', None)
  return make() if make else ''
