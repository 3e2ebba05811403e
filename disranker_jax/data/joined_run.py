"""Joins a TREC run with the texts of its queries and documents, so that a model can re-rank it.

Run and texts may be larger than memory: they are sorted on disk by query, by document, and back
into the order of the run.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from disranker_jax.data import collection, sources, trec
from disranker_jax.data.records import BadRows, Document, Group, listed
from disranker_jax.data.source import Text
from disranker_jax.data.spool import Spool
from disranker_jax.errors import UserError
from disranker_jax.progress import amount, say


@dataclasses.dataclass(frozen=True)
class Listed:
  """A query of the run: the documents to re-rank, and the ids of the others; both best first.

  The documents have the rank and the score of the run.
  """

  group: Group
  behind: tuple[str, ...]


@dataclasses.dataclass
class Lacking:
  """Counts what the run has and the source lacks."""

  count: int = 0
  first: str = ''  # its place in the run

  def add(self, place: str) -> None:
    self.count += 1
    self.first = self.first or place


class JoinedRun:
  """The queries of a run in the order of their first lines; can be read several times.

  `depth` is how many documents of a query are re-ranked, 0: all. `queries` and `pairs` count what
  is re-ranked; `no_query` and `no_text` what has no text in the source and stays behind.

  Raises: UserError for bad files and rows, and for a run that shares no query with the source.
  """

  def __init__(self, run: Path, source: str, depth: int, scratch: Path):
    self.queries = self.pairs = self.blank = self.other_queries = 0
    self.no_query, self.no_text = Lacking(), Lacking()
    self._run, self._depth = run, depth or math.inf
    self._by_query, self._by_doc, self._by_order = (
      Spool(scratch / name) for name in ('by_query', 'by_doc', 'by_order')
    )
    for row in sources.open(source).texts(scratch / 'source'):
      if isinstance(row, Text):
        self._by_doc.add(row.doc_id, ('text', *row))
      else:
        self._by_query.add(row[0], row[1])
    bad_rows = BadRows()
    for number, line in enumerate(trec.run_lines(run, bad_rows)):
      self._by_query.add(line.query_id, (number, line._replace(raw='')))
    self._pick(bad_rows)
    for note in listed(bad_rows.notes):
      say(f'{run}: {note}')
    if self.no_query.count == self.queries:
      raise UserError(
        f'{run}: none of its {amount(self.queries, "query", "queries")} is in {source} (first: '
        f'{self.no_query.first}); give the source of these queries'
      )
    self._look_up()

  def _pick(self, bad_rows: BadRows) -> None:
    """Decides which documents of each query are re-ranked."""
    for query_id, entries in itertools.groupby(self._by_query, key=lambda pair: pair[0]):
      query, lines = None, []
      for _, entry in entries:
        if isinstance(entry, str):
          query = self._only_one(query_id, query, entry)
        else:
          number, fields = entry
          lines.append((number, collection.Line(*fields)))
      if not lines:
        self.other_queries += 1
        continue
      self.queries += 1
      order = lines[0][0]
      self._by_order.add((order, -1), (query_id, query or ''))
      ranked = collection.ranked(collection.unrepeated(lines, bad_rows))
      if query is None:
        self.no_query.add(f'{lines[0][1].file}:{lines[0][1].number}, {query_id!r}')
      for position, line in enumerate(ranked.values()):
        if query is not None and position < self._depth:
          wanted = ('wanted', order, position, query_id, line.number, line.score)
          self._by_doc.add(line.doc_id, wanted)
        else:
          self._by_order.add((order, position), line.doc_id)

  def _only_one(self, query_id: str, query: str | None, again: str) -> str:
    if query not in (None, again):
      raise UserError(
        f'query_id {query_id!r} has two texts in the source; give each query its own id'
      )
    return again

  def _look_up(self) -> None:
    """Adds the texts of the documents that are re-ranked."""
    for doc_id, entries in itertools.groupby(self._by_doc, key=lambda pair: pair[0]):
      found = Texts(doc_id)
      for _, (kind, *fields) in entries:  # a spool gives plain tuples back
        if kind == 'text':
          found.add(Text(*fields))
          continue
        order, position, query_id, number, score = fields
        text = found.of(query_id)
        if text is None:
          self.no_text.add(f'{self._run}:{number}, {doc_id!r}')
          self._by_order.add((order, position), doc_id)
        else:
          self.pairs += 1
          self.blank += not ''.join(text).strip()
          self._by_order.add((order, position), (doc_id, *text, score))

  def __iter__(self) -> Iterator[Listed]:
    for _, entries in itertools.groupby(self._by_order, key=lambda pair: pair[0][0]):
      (_, (query_id, query)), *docs = entries
      with_text = tuple(
        Document(*doc[:3], rank=position + 1, score=doc[3])
        for (_, position), doc in docs
        if not isinstance(doc, str)
      )
      behind = tuple(doc for _, doc in docs if isinstance(doc, str))
      yield Listed(Group(query_id, query, with_text), behind)


class Texts:
  """The texts of one document, which may differ between queries."""

  def __init__(self, doc_id: str):
    self._doc_id = doc_id
    self._texts: dict[tuple[str, str], None] = {}
    self._of_query: dict[str, tuple[str, str]] = {}

  def add(self, text: Text) -> None:
    """Raises: UserError if a collection has two texts for the document."""
    value = text.title, text.summary
    self._texts[value] = None
    if self._of_query.setdefault(text.query_id, value) != value:
      raise UserError(
        f'doc_id {self._doc_id!r} has two texts in the source; give each document its own id'
      )

  def of(self, query_id: str) -> tuple[str, str] | None:
    """(title, summary) for a query; for one without rows of its own, the text if it is unique."""
    found = self._of_query.get(query_id) or self._of_query.get('')
    return found or (next(iter(self._texts)) if len(self._texts) == 1 else None)
