"""The built-in first stage, BM25: finds the candidates that a ranker re-ranks."""

import contextlib
import importlib
import itertools
import logging
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

QUERIES_AT_ONCE = 1000


LOADING = threading.Lock()


def library():
  """bm25s without jax: at its import it would compute with it, and so take the accelerator.

  A process that only reads data must leave the device to others, and several processes must join
  before any of them uses a device. The scores here need no jax.
  """
  with LOADING:  # while it loads, no other import of jax.lax succeeds
    if 'bm25s' not in sys.modules:
      with _hidden('jax.lax'):
        importlib.import_module('bm25s')
  bm25s = sys.modules['bm25s']
  logging.getLogger('bm25s').setLevel(logging.WARNING)
  return bm25s


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
  """Makes imports of a module fail, as if it were not installed."""
  held = importlib.import_module(module)
  sys.modules[module] = None
  try:
    yield
  finally:
    sys.modules[module] = held


class HasText(Protocol):
  """Anything with a title and a summary, such as Document and Click."""

  @property
  def title(self) -> str: ...

  @property
  def summary(self) -> str: ...


class BM25:
  """BM25 over titles and summaries (bm25s: variant of Lucene, k1 = 1.5, b = 0.75).

  English stop words are removed; there is no stemming.
  """

  def __init__(self, documents: Iterable[HasText]):
    tokens = _tokens([f'{doc.title} {doc.summary}' for doc in documents])
    self._size = len(tokens)
    # bm25s cannot index a collection without any word.
    self._index = None
    if any(tokens):
      self._index = library().BM25()
      self._index.index(tokens, show_progress=False)

  def top(self, queries: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
    """The best `k` documents that share a word with the query, as (index, score), per query.

    Equal scores stay in the documents' order, so the result is the same on every machine.
    """
    return [self._best(tokens, k) for tokens in _tokens(queries)]

  def each(self, queries: Iterable[str], k: int) -> Iterator[list[tuple[int, float]]]:
    """`top` for a stream of queries."""
    queries = iter(queries)
    while batch := list(itertools.islice(queries, QUERIES_AT_ONCE)):
      yield from self.top(batch, k)

  def _best(self, tokens: list[str], k: int) -> list[tuple[int, float]]:
    known = [token for token in tokens if self._index and token in self._index.vocab_dict]
    if not known or k < 1:
      return []
    scores_D = self._index.get_scores(known)
    hits = np.flatnonzero(scores_D > 0)
    if len(hits) > k:
      # Keeps all ties of the k-th score: argpartition alone picks an arbitrary one.
      hits = hits[scores_D[hits] >= np.partition(scores_D[hits], -k)[-k]]
    best = hits[np.argsort(-scores_D[hits], kind='stable')][:k]
    return [(int(i), float(scores_D[i])) for i in best]


def _tokens(texts: Sequence[str]) -> list[list[str]]:
  if not texts:
    return []
  return library().tokenize(list(texts), stopwords='en', return_ids=False, show_progress=False)
