"""BM25 on both sides is the formula, and words are those that Lucene's analyzer gives."""

import collections
import math

import numpy as np

from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document
from disranker_jax.rewriting.query_bm25 import QueryBM25, analyse

WORDS = [f'word{i}' for i in range(40)]


def texts(count, longest, seed=0):
  rng = np.random.default_rng(seed)
  return [' '.join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


def reference(documents, query, k1=0.9, b=0.4):
  """Scores of all documents by the formula, in float64."""
  split = [text.split() for text in documents]
  average = sum(map(len, split)) / len(split)
  having = collections.Counter(word for words in split for word in set(words))

  def weights(words):
    counts = collections.Counter(word for word in words if word in having)
    damping = k1 * (1 - b + b * sum(counts.values()) / average)
    return {
      word: math.log((len(split) + 1) / (having[word] + 0.5)) * n / (n + damping)
      for word, n in counts.items()
    }

  of_query = weights(query.split())
  return [sum(w * of_query.get(t, 0.0) for t, w in weights(words).items()) for words in split]


def test_scores_are_those_of_the_formula():
  documents, queries = texts(60, 30), texts(8, 60, seed=1)
  index = QueryBM25([Document(str(i), '', text) for i, text in enumerate(documents)])
  for query, top in zip(queries, index.top([f'{q} unknown' for q in queries], 100), strict=True):
    expected = reference(documents, query)
    assert len(top) == sum(score > 0 for score in expected)
    np.testing.assert_allclose([s for _, s in top], [expected[i] for i, _ in top], rtol=1e-5)
    assert [s for _, s in top] == sorted((s for _, s in top), reverse=True)


def test_a_long_query_is_damped():
  index = QueryBM25([Document('a', 'red', 'fox dog cat'), Document('b', 'blue', 'bird')])
  once, often = (index.weights(['red'] * n)['red'] for n in (1, 50))
  assert once < often < 2.5 * once
  assert index.weights(['red', *['blue'] * 50])['red'] < once
  assert index.weights(['unknown']) == {} and index.top(['unknown', ''], 5) == [[], []]


def test_an_empty_collection_finds_nothing():
  assert QueryBM25([]).top(['red'], 3) == [[]]


def test_words_are_those_of_lucene():
  # By Lucene's StandardTokenizer, possessive, lower-case, stop and Porter filters.
  text = "The runner's Running-shoes weren't in U.S.A. 3.14 foo_bar; numpy.linalg us is café ___"
  assert analyse([text, '']) == [
    ['runner', 'run', 'shoe', "weren't", 'u.s.a', '3.14', 'foo_bar', 'numpy.linalg', 'us', 'café'],
    [],
  ]


def test_weights_of_words_are_counts_of_a_text():
  index = BM25([Document(str(i), '', text) for i, text in enumerate(texts(60, 30))])
  for text in texts(5, 20, seed=2):
    (expected,), (got,) = (
      index.top([text], 100),
      index.top_weighted([collections.Counter(index.analyse([text])[0])], 100),
    )
    assert [i for i, _ in got] == [i for i, _ in expected]
    np.testing.assert_allclose([s for _, s in got], [s for _, s in expected], rtol=1e-5)


def test_weights_scale_what_a_word_adds():
  index = BM25([Document('a', 'red', ''), Document('b', 'blue', '')])
  assert index.top_weighted([{'red': 1.0, 'blue': 0.5}], 5)[0][0][0] == 0
  assert index.top_weighted([{'red': 0.5, 'blue': 1.0}], 5)[0][0][0] == 1
  assert index.top_weighted([{}, {'green': 1.0}], 5) == [[], []]
