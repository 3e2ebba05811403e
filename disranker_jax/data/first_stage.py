"""The built-in first stage, BM25: finds the candidates that a ranker re-ranks."""

import contextlib
import importlib
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from disranker_jax.data import words

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


def tokens(texts: Sequence[str]) -> list[list[str]]:
  """The words of each text in lower case, without English stop words; no stemming.

  Those of ASCII are the tokens of bm25s.
  """
  stop = frozenset(library().stopwords.STOPWORDS_EN)
  once: dict[str, str] = {}  # each word is one object, however often it occurs
  return [
    [once.setdefault(word, word) for word in words.long(text.lower()) if word not in stop]
    for text in texts
  ]


class BM25:
  """BM25 over titles and summaries (bm25s: variant of Lucene), by default k1 = 1.5, b = 0.75.

  `analyse` turns texts into words, see `tokens`.
  """

  def __init__(
    self,
    documents: Iterable[HasText],
    analyse: Callable[[Sequence[str]], list[list[str]]] = tokens,
    k1: float = 1.5,
    b: float = 0.75,
  ):
    self.analyse, self.k1, self.b = analyse, k1, b
    rows = analyse([f'{doc.title} {doc.summary}' for doc in documents])
    self.size = len(rows)
    self.average = sum(map(len, rows)) / max(len(rows), 1)  # words of a document
    # bm25s cannot index a collection without any word.
    self._index = None
    if any(rows):
      self._index = library().BM25(k1=k1, b=b)
      self._index.index(rows, show_progress=False)

  def top(self, queries: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
    """The best `k` documents that share a word with the query, as (index, score), per query.

    Equal scores stay in the documents' order, so the result is the same on every machine.
    """
    return [self._best(words, k) for words in self.analyse(queries)]

  def each(self, queries: Iterable[str], k: int) -> Iterator[list[tuple[int, float]]]:
    """`top` for a stream of queries."""
    queries = iter(queries)
    while batch := list(itertools.islice(queries, QUERIES_AT_ONCE)):
      yield from self.top(batch, k)

  def top_weighted(
    self, queries: Sequence[Mapping[str, float]], k: int
  ) -> list[list[tuple[int, float]]]:
    """`top` of queries as {word: weight}, words as `analyse` gives them: a text has counts."""
    found = []
    for weights in queries:
      known = {word: weight for word, weight in weights.items() if self.knows(word)}
      scores_D = np.zeros(self.size if known else 0, np.float32)
      for word, weight in known.items():
        scores_D += np.float32(weight) * self.scores(word)
      found.append(_ordered(scores_D, k))
    return found

  def knows(self, word: str) -> bool:
    """Whether a document has the word."""
    return self._index is not None and word in self._index.vocab_dict

  def scores(self, word: str) -> np.ndarray:
    """What a known word adds to the score of each document: [D] fp32, 0 where it is not."""
    return self._index.get_scores([word])

  def _best(self, words: list[str], k: int) -> list[tuple[int, float]]:
    known = [word for word in words if self.knows(word)]
    return _ordered(self._index.get_scores(known), k) if known else []


def _ordered(scores_D: np.ndarray, k: int) -> list[tuple[int, float]]:
  """The best `k` documents with a score above 0, as (index, score)."""
  if k < 1:
    return []
  hits = np.flatnonzero(scores_D > 0)
  if len(hits) > k:
    # Keeps all ties of the k-th score: argpartition alone picks an arbitrary one.
    hits = hits[scores_D[hits] >= np.partition(scores_D[hits], -k)[-k]]
  best = hits[np.argsort(-scores_D[hits], kind='stable')][:k]
  return [(int(i), float(scores_D[i])) for i in best]
