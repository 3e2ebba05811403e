"""BM25 on both sides: the words of a query are weighted as those of a document are.

score = sum over words of idf^2 sat(tf in the query) sat(tf in the document), with
sat(tf) = tf / (tf + k1 (1 - b + b length / average)) and idf = ln((N + 1) / (df + 1/2)). The
average is that of the documents, and only words of the collection count in a query's length. So a
long query, such as a rewrite of 300 words, is damped, and rare words count more. BRIGHT's published
figures of BM25 are computed so; Anserini calls it query-side BM25 (arXiv:2509.02558).
"""

import collections
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import regex
import Stemmer

from disranker_jax.data.first_stage import BM25, HasText

STOP_WORDS = frozenset({
  'a', 'an', 'and', 'are', 'as', 'at', 'be', 'but', 'by', 'for', 'if', 'in', 'into', 'is', 'it',
  'no', 'not', 'of', 'on', 'or', 'such', 'that', 'the', 'their', 'then', 'there', 'these', 'they',
  'this', 'to', 'was', 'will', 'with',
})  # fmt: skip
WORD = regex.compile(r'(?w)\b\w.*?\b')  # (?w): the word boundaries of Unicode, UAX 29
POSSESSIVE = regex.compile("['\u2019\uff07][sS]$")


def analyse(texts: Sequence[str]) -> list[list[str]]:
  """The words of each text, about as Lucene's EnglishAnalyzer gives them.

  Words of UAX 29, without 's, in lower case, without Lucene's 33 stop words, stemmed by Porter's
  rules. Lucene's stemmer has two more rules (-bli, -logi), so it joins possible and possibly.
  """
  return [[word for match in WORD.findall(text) if (word := _stemmed(match))] for text in texts]


@functools.lru_cache(maxsize=1 << 18)
def _stemmed(word: str) -> str:
  """The stem of a word; '' for a stop word and where there is no letter or digit."""
  word = POSSESSIVE.sub('', word).lower()
  if word in STOP_WORDS or not any(map(str.isalnum, word)):
    return ''
  return word if len(word) < 3 else Stemmer.Stemmer('porter').stemWord(word)


class QueryBM25:
  """`BM25` with weighted queries, by default as BRIGHT has it: k1 = 0.9, b = 0.4."""

  def __init__(self, documents: Iterable[HasText], k1: float = 0.9, b: float = 0.4):
    self._index = BM25(documents, analyse, k1, b)
    self._idf: dict[str, float] = {}

  def top(self, queries: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
    """As BM25.top."""
    return self._index.top_weighted([self.weights(words) for words in analyse(queries)], k)

  def weights(self, words: Iterable[str]) -> dict[str, float]:
    """idf sat(tf) of the words of a query that a document has."""
    counts = collections.Counter(word for word in words if self._index.knows(word))
    k1, b = self._index.k1, self._index.b
    damping = k1 * (1 - b + b * counts.total() / self._index.average) if counts else 0.0
    return {word: self._idf_of(word) * n / (n + damping) for word, n in counts.items()}

  def _idf_of(self, word: str) -> float:
    if word not in self._idf:
      having = int(np.count_nonzero(self._index.scores(word)))
      self._idf[word] = math.log((self._index.size + 1) / (having + 0.5))
    return self._idf[word]
