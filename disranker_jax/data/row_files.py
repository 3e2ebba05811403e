"""Sources whose rows are independent of each other: JSON lines (`jsonl:`), Parquet (`parquet:`)."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from disranker_jax.data import field_names, grouping, lines, row_formats, rows
from disranker_jax.data.records import BadRows, Click, Document, Group
from disranker_jax.data.row_formats import Score
from disranker_jax.data.source import SCORES, Source, Text, Want
from disranker_jax.errors import UserError


def made(kind: str) -> Callable[[Any], list]:
  """The function that turns a row into records of a kind, for `BadRows.parse_all`."""
  return functools.partial(_made, kind)


def _made(kind: str, raw: Any) -> list:
  return row_formats.records_of(rows.decode(raw), kind)


class Rows(Source):
  """A source of independent rows; those of a query are grouped."""

  default_depth = 0

  def places(self, start: int = 0) -> Iterator[rows.Place]:
    """(file, number, row) of all rows except the first `start`."""
    raise NotImplementedError

  def read(self, want: Want) -> Iterator[Click | Group | Score]:
    return self.read_as(want.kind, want)

  def read_as(self, kind: str, want: Want) -> Iterator[Click | Group | Score]:
    """The wanted records, made of rows that are read as another kind."""
    places, make = self.places(), made(kind)
    if want.limit:
      places = itertools.takewhile(lambda _: want.bad_rows.quarantined < want.limit, places)
    parsed = (
      (file, number, record)
      for file, number, raw in places
      for record in want.bad_rows.parse_all(file, number, raw, make)
    )
    if want.kind in ('clicks', SCORES):
      return (record for _, _, record in parsed)
    if want.limit:
      parsed = grouping.first(parsed, want.limit, want.bad_rows)
    groups = filter(want.keep or bool, grouping.of_rows(parsed, want.bad_rows, want.scratch))
    return grouping.cuts(groups, want.kind, want.depth, want.bad_rows, self.address)

  def documents(self, bad_rows: BadRows) -> Iterator[tuple[Any, int, Document]]:
    make = functools.partial(_documents, bad_rows.note)
    for file, number, raw in self.places():
      for doc in bad_rows.parse_all(file, number, raw, make):
        yield file, number, doc

  def texts(self, scratch: Path) -> Iterator[tuple[str, str] | Text]:
    # Rows are those of test sets: with or without a label.
    for group in self.read(Want('test', self.default_depth, BadRows(), scratch)):
      yield group.query_id, group.query
      yield from (Text.of(doc, group.query_id) for doc in group.docs)


def _documents(note: Callable[[str], None], raw: Any) -> list[Document]:
  return row_formats.documents_of(rows.decode(raw), note)


class RowFiles(Rows):
  """Rows of files, so that reading can start at any row, and several machines can share them.

  There are no options: a question mark is part of a glob pattern. `reader` gives (number, row) of
  a file.
  """

  reader: ClassVar[Callable[[Path], Iterator[tuple[int, Any]]]]

  @functools.cached_property
  def files(self) -> list[Path]:
    """The files that match. Raises: UserError if there are none."""
    if not self.rest:
      scheme = self.scheme
      raise UserError(f'{scheme}: has no path; write {scheme}:PATH, such as {self.example}')
    return lines.matching(self.rest)

  def places(self, start: int = 0) -> Iterator[rows.Place]:
    return rows.of_files(self.files, self.reader, start)

  def fingerprint(self) -> list:
    return self.of_files(sorted(lines.found(self.rest)))

  def check(self, kind: str) -> None:
    lines.check(self.files, self.reader)


class Jsonl(RowFiles):
  """JSON lines, plain or gzip."""

  scheme, example = 'jsonl', 'jsonl:data/*.jsonl.gz'
  reader = staticmethod(lines.read)


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
  names: list[str] = []
  if file.is_file():
    with contextlib.suppress(OSError, ValueError, pa.ArrowException):  # `rows` reports them
      names = pq.read_schema(file).names
  return rows.parquet(file, field_names.columns(names, row_formats.COLUMNS))


class Parquet(RowFiles):
  """Parquet, of which only the columns that records have are read."""

  scheme, example = 'parquet', 'parquet:data/*.parquet'
  reader = staticmethod(_parquet)


class AnyFiles(Rows):
  """Files of a path without a scheme: Parquet by their name, else JSON lines."""

  def places(self, start: int = 0) -> Iterator[rows.Place]:
    return rows.of_files(lines.matching(self.address), rows.read, start)
