"""The collection that is searched and its index, kept in memory for the next row of the table.

There is one collection and one index at a time: another address, other contents or another engine
take their place. The stage that fills the table frees both at its end.
"""

from collections.abc import Callable
from typing import Any

from disranker_jax.data import sources
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document
from disranker_jax.rewriting import engines, queries
from disranker_jax.rewriting.query_bm25 import QueryBM25


class Latest:
  """Keeps what was made last until something else is asked for."""

  def __init__(self):
    self._key: Any = None
    self._value: Any = None

  def __call__(self, key: Any, make: Callable[[], Any]) -> Any:
    if self._key != key:
      self._key = self._value = None  # before the next one takes memory too
      self._value = make()
      self._key = key
    return self._value


_collection, _index = Latest(), Latest()


def collection(config) -> list[Document]:
  """`queries.collection`, read once. Callers must not change the list."""
  return _collection(_made_of(config), lambda: queries.collection(config))


def index(config, engine: str) -> BM25 | QueryBM25:
  """The index of the collection by an engine of engines.ENGINES."""
  docs = collection(config)
  return _index([engine, _made_of(config)], lambda: engines.ENGINES[engine](docs))


def forget() -> None:
  """Frees both."""
  for latest in (_collection, _index):
    latest(None, lambda: None)


def _made_of(config) -> list:
  return sources.fingerprint(queries.address(config))
