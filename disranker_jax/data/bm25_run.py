"""The first stage of a collection that has no run: BM25 over its documents."""

from collections.abc import Callable, Iterator
from typing import Any

from disranker_jax.data import first_stage
from disranker_jax.data.collection_tables import Line
from disranker_jax.data.records import BadRows, Document

RANKS_OF_JUDGED = 1000  # depth if it only gives judged documents their rank


class BM25Run:
  """The lines of BM25, computed when they are read; the documents are then indexed in memory.

  Args:
    tables: a collection.
    depth: documents of a query that are wanted.
    needed: whether the best documents are wanted; otherwise the ranks of the judged ones are.
  """

  def __init__(self, tables: Any, depth: int, *, needed: bool):
    self._tables = tables
    self._depth = depth if needed else max(depth, RANKS_OF_JUDGED)

  def __iter__(self) -> Iterator[Line]:
    return self.of(lambda query_id: True)

  def of(self, is_wanted: Callable[[str], bool], more: int = 0) -> Iterator[Line]:
    """The lines of some queries, which are chosen by their ids.

    Args:
      more: documents of a query that the caller takes out.
    """
    ignored = BadRows.nowhere()  # `collection.read` reports bad rows of the same tables
    ids: dict[str, None] = {}

    def documents() -> Iterator[Document]:
      for _, _, doc in self._tables.documents(ignored):
        if doc.doc_id not in ids:
          ids[doc.doc_id] = None
          yield doc

    index = first_stage.BM25(documents())
    names = list(ids)
    queries = {
      query.query_id: query.text
      for query in self._tables.queries(ignored)
      if is_wanted(query.query_id)
    }
    number = 0
    found = index.each(queries.values(), self._depth + more)
    for query_id, top in zip(queries, found, strict=True):
      for rank, (i, score) in enumerate(top, 1):
        number += 1
        yield Line('bm25', number, '', query_id, names[i], rank=rank, score=score)
