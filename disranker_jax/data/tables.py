"""Sources that are collections: tables of queries, documents and judgements, with a first stage."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disranker_jax.data import collection, collection_tables, lines
from disranker_jax.data.records import BadRows, Click, Document, Group
from disranker_jax.data.row_formats import Score
from disranker_jax.data.source import DEPTH, SCORES, Source, Text, Want


class Tables(Source):
  """A source of tables. Subclasses open them, and find the scores of other teachers in a run."""

  def open(self, depth: int = DEPTH) -> collection.Collection:
    """The tables, of which the first stage has `depth` documents per query. Raises: UserError."""
    raise NotImplementedError

  def scores(self, want: Want) -> Iterator[collection.Line]:
    """The lines of a run with SCORES. Raises: UserError if there is none."""
    raise self.no_scores()

  def read(self, want: Want) -> Iterator[Click | Group | Score]:
    if want.kind == SCORES:
      return ((line.query_id, line.doc_id, line.score) for line in self.scores(want))
    tables = self.open(want.depth)
    return collection.read(tables, want.kind, want.depth, want.bad_rows, want.scratch)

  def documents(self, bad_rows: BadRows) -> Iterator[tuple[Any, int, Document]]:
    yield from self.open().documents(bad_rows)

  def texts(self, scratch: Path) -> Iterator[tuple[str, str] | Text]:
    tables, bad_rows = self.open(), BadRows()
    yield from ((query.query_id, query.text) for query in tables.queries(bad_rows))
    yield from (Text.of(doc) for _, _, doc in tables.documents(bad_rows))

  def check(self, kind: str) -> None:
    tables = self.open()
    collection_tables.check_words(tables.name, tables.options)
    tables.check(kind)

  def excluded(self) -> dict[str, frozenset[str]]:
    tables = self.open()
    if tables.options.get('own') != 'exclude':
      return {}
    queries = tables.queries(BadRows.nowhere())
    return {query.query_id: frozenset({query.query_id}) for query in queries}

  @property
  def ranked_by_bm25(self) -> bool:
    return 'run=bm25' in self._options()

  def named(self) -> list[Path]:
    """The existing files that options name, in this folder or in others."""
    folder = Path(self.rest.partition('?')[0]).expanduser()
    pairs = (option.partition('=') for option in self._options())
    values = (value for option, _, value in pairs if option not in collection_tables.NO_FILES)
    names = (name for value in values for name in value.split(','))
    return [file for name in names for file in lines.named(folder, name)]

  def _options(self) -> list[str]:
    """The options as they are written, of which `open` says what is wrong with them."""
    return list(filter(None, self.rest.partition('?')[2].split('&')))
