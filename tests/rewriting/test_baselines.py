"""RM3, the words of similar training queries, the best of several samples."""

import numpy as np
import pytest

from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document
from disranker_jax.rewriting import baselines
from disranker_jax.rewriting.queries import Query

DOCS = [
  Document('a', 'red fox', 'jumps jumps'),
  Document('b', 'red', 'bird sings'),
  Document('c', 'blue', 'whale'),
]


def asked(*texts: str, excluded: tuple[str, ...] = ()) -> list[Query]:
  return [Query(text, text, (), excluded=frozenset(excluded)) for text in texts]


class TestRM3:
  def test_weights_are_those_of_the_formula(self):
    index = BM25(DOCS)
    (first, a), (second, b) = index.top(['red'], 2)[0]
    assert {first, second} == {0, 1}
    scores = {first: a, second: b}
    share = {
      'red': scores[0] / 4 + scores[1] / 3, 'fox': scores[0] / 4, 'jumps': scores[0] / 2,
      'bird': scores[1] / 3, 'sings': scores[1] / 3,
    }  # fmt: skip
    best = sorted(share, key=lambda word: -share[word])[:2]
    assert set(best) == {'red', 'jumps'}
    total = share['red'] + share['jumps']
    (got,) = baselines.rm3(asked('red'), index, DOCS, terms=2, weight=0.3)
    expected = {'red': 0.7 + 0.3 * share['red'] / total, 'jumps': 0.3 * share['jumps'] / total}
    assert got == pytest.approx(expected, rel=1e-5)

  def test_weights_sum_to_one_and_zero_weight_is_the_query(self):
    index = BM25(DOCS)
    for weights in baselines.rm3(asked('red bird', 'whale whale blue'), index, DOCS):
      assert sum(weights.values()) == pytest.approx(1)
    (got,) = baselines.rm3(asked('red bird bird'), index, DOCS, weight=0.0)
    known = {word: value for word, value in got.items() if value}
    assert known == pytest.approx({'red': 1 / 3, 'bird': 2 / 3})

  def test_a_query_that_finds_nothing_is_itself(self):
    assert baselines.rm3(asked('green', ''), BM25(DOCS), DOCS) == [{'green': 1.0}, {}]

  def test_no_words_are_of_excluded_documents(self):
    index = BM25(DOCS)
    assert index.top(['red'], 1)[0][0][0] == 1  # 'b', the shortest
    (got,) = baselines.rm3(asked('red', excluded=('b',)), index, DOCS, feedback=1)
    assert {'jumps', 'fox'} < got.keys() and not {'bird', 'sings'} & got.keys()
    (none,) = baselines.rm3(asked('whale', excluded=('c',)), index, DOCS)
    assert none == {'whale': 1.0}


class TestNearest:
  training = (
    Query('1', 'animal that jumps', (DOCS[0],)),
    Query('2', 'animal that sings', (DOCS[1], DOCS[0])),
  )

  def test_words_are_those_of_the_most_similar_query(self):
    asked = ['which one sings', 'what jumps', 'nothing common']
    assert baselines.nearest(asked, self.training) == ['red fox', 'red fox', '']
    first = baselines.nearest(asked[:1], self.training, terms=1)
    assert first == ['red']  # in both of its documents

  def test_other_words_and_more_queries(self):
    got = baselines.nearest(
      ['animal sings'], self.training, words=lambda doc: doc.summary, near=2, terms=2
    )
    assert got == ['jumps bird']  # of two documents, and the first of one


def test_words_of_python_are_those_of_the_module():
  page = Document('jinja2.bccache.Bucket.reset', 'jinja2 bccache Bucket reset', '')
  assert baselines.words_at('python_docs:?only=jinja2')(page) == 'jinja2 bccache'
  assert baselines.words_at('trec:anywhere')(page) == page.title


def test_best_of_is_the_first_of_the_best():
  assert baselines.best_of(np.array([[0.1, 0.3, 0.3], [2, 1, 0]])).tolist() == [1, 0]
