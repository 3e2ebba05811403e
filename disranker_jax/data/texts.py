"""Looks up the texts of queries and documents at any address, whatever first stage it has.

A collection (trec:, ir_datasets:, python_docs:) has one text per document. In rows of files a
document may have another text for each query, such as a snippet.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from disranker_jax.data import python_docs, sources
from disranker_jax.data.records import BadRows, Document, Group


class Text(NamedTuple):
  """The text of a document; `query_id` is '' if it is the same for all queries."""

  query_id: str
  doc_id: str
  title: str
  summary: str


def queries_and_documents(address: str, scratch: Path) -> Iterator[tuple[str, str] | Text]:
  """(query_id, query) of every query and the Text of every document, in any order.

  Rows are those of test sets: with or without a label. Raises: UserError.
  """
  scheme, rest = sources.split(address)
  if tables := sources.open_collection(address):
    bad_rows = BadRows()
    yield from ((query.query_id, query.text) for query in tables.queries(bad_rows))
    yield from (_text(doc) for _, _, doc in tables.documents(bad_rows))
  elif scheme == 'python_docs':
    packages = sources.packages(rest)
    yield from python_docs.queries(packages)
    yield from map(_text, python_docs.documents(packages))
  else:
    for group in sources.read(address, 'test', scratch=scratch):
      yield group.query_id, group.query
      yield from (_text(doc, group) for doc in group.docs)


def _text(doc: Document, group: Group | None = None) -> Text:
  return Text(group.query_id if group else '', doc.doc_id, doc.title, doc.summary)
