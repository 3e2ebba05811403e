"""Rewards of rewrites: values by hand, what is computed once, and rewrites that must not crash."""

import numpy as np
import pytest

from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.rewriting import queries, rewards
from disranker_jax.rewriting.queries import Query
from disranker_jax.rewriting.rewards import Embedding, Ranking, Reward

DOCS = [
  Document('split', 'str split', 'Divide text at each separator.'),
  Document('join', 'str join', 'Concatenate words.'),
  Document('run', 'subprocess run', 'Start a command and wait for its end.'),
  *(Document(f'd{i}', 'command', 'text words end each') for i in range(3)),
]


def query(text='cut text', *positives, query_id='q', **fields):
  docs = tuple(doc for doc in DOCS if doc.doc_id in (positives or ('split',)))
  return Query(query_id, text, docs, **fields)


class Directions:
  """An embedder by hand: a text's vector is that of its words, and it counts what it was asked."""

  words = ('cut', 'str', 'split', 'join', 'command')

  def __init__(self):
    self.asked: list[str] = []

  def __call__(self, texts):
    self.asked += texts
    rows = np.array([[text.lower().count(word) for word in self.words] for text in texts], float)
    rows[:, 0] += 1e-3  # no text is without direction
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class TestEmbedding:
  def test_it_is_ten_times_the_mean_gain_in_cosine(self):
    embed = Directions()
    asked = query('cut', 'split', 'join')
    got = Embedding(embed, 'replace')([asked], [['str split', 'cut', 'str join split']])
    documents = embed(['str split', 'str join'])
    similar = lambda text: (embed([text]) @ documents.T).mean()  # noqa: E731
    texts = ('str split', 'cut', 'str join split')
    expected = [10 * (similar(text) - similar('cut')) for text in texts]
    np.testing.assert_allclose(got, [expected], atol=1e-5)
    assert got[0, 1] == pytest.approx(0, abs=1e-5) and got[0, 2] > got[0, 0] > 0

  def test_appended_rewrites_are_embedded_behind_the_query(self):
    embed = Directions()
    Embedding(embed, 'append')([query('cut')], [['split']])
    assert 'cut split' in embed.asked and 'split' not in embed.asked

  def test_queries_and_documents_are_embedded_once(self):
    embed = Directions()
    reward = Reward({'embedding': (1.0, Embedding(embed, 'replace'))})
    both = [query('cut', 'split'), query('divide', 'split', 'run', query_id='other')]
    for _ in range(3):
      reward(both, [['str split', 'a b', 'join'], ['str', 'c', 'command']])
    fixed = ['cut', 'divide', *(rewards.document_text(doc) for doc in (DOCS[0], DOCS[2]))]
    assert [embed.asked.count(text) for text in fixed] == [1, 1, 1, 1]


class TestRanking:
  def ranking(self, mode='append', repeat=2):
    return Ranking(BM25(DOCS), DOCS, mode, repeat)

  def test_it_is_the_gain_in_the_reciprocal_logarithm_of_the_rank(self):
    asked = query('command', 'run')  # behind the three short pages
    rank = [i for i, _ in BM25(DOCS).top(['command'], 10)[0]].index(2) + 1
    assert rank == 4
    got = self.ranking('replace')([asked], [['subprocess', 'command', 'join', 'nothing known']])
    own = 1 / np.log2(1 + rank)
    np.testing.assert_allclose(got, [[1 - own, 0, -own, -own]], atol=1e-6)

  def test_the_query_is_searched_too_where_rewrites_are_appended(self):
    asked = query('command', 'run')
    got = self.ranking()([asked], [['nothing known', 'subprocess']])
    assert got[0, 0] == 0 and got[0, 1] > 0

  def test_several_positive_documents_are_an_ndcg_with_their_grades(self):
    docs = [Document('a', 'one', ''), Document('b', 'two', ''), Document('c', 'three', '')]
    positives = (Document('a', 'one', '', label=1), Document('b', 'two', '', label=2))
    got = Ranking(BM25(docs), docs, 'replace')(
      [Query('q', 'three', positives)], [['one', 'two', 'two two one']]
    )
    ideal = 3 + 1 / np.log2(3)
    np.testing.assert_allclose(got, [[1 / ideal, 3 / ideal, 1]], rtol=1e-6)

  def test_documents_with_equal_scores_are_ordered_as_in_the_table(self):
    """By id, the greater one first, and not by their places in the collection."""
    docs = [Document(name, 'red fox', '') for name in 'abc']
    asked = [Query(doc.doc_id, 'blue', (doc,)) for doc in docs]
    ranking = Ranking(BM25(docs), docs, 'replace')
    got = ranking(asked, [['red']] * 3)[:, 0]
    np.testing.assert_allclose(got, 1 / np.log2([4, 3, 2]))
    found = queries.found(BM25(docs).top, 'abc', asked, ['red'] * 3, rewards.DEPTH)
    of_table = metrics.per_query(
      {query.query_id: each for query, each in zip(asked, found, strict=True)},
      {query.query_id: query.relevant for query in asked}, 1, (f'ndcg@{rewards.DEPTH}',),
    )  # fmt: skip
    assert got.tolist() == [row[f'ndcg@{rewards.DEPTH}'] for row in of_table.values()]

  def test_excluded_documents_have_no_rank(self):
    asked = query('command', 'run', excluded=frozenset({'d0', 'd1', 'd2'}))
    assert self.ranking()([asked], [['subprocess']]).tolist() == [[0.0]]  # first without it, too

  def test_a_query_is_searched_once_for_all_its_samples(self):
    index = BM25(DOCS)
    asked, top = [], index.top
    index.top = lambda texts, k: asked.extend(texts) or top(texts, k)
    ranking = Ranking(index, DOCS, 'replace')
    for _ in range(2):
      ranking([query('cut text')], [['split', 'split', 'join']])
    assert asked == ['cut text', 'split', 'join', 'split', 'join']


class TestReward:
  def reward(self, text='embedding', failure=-1.0, max_words=0):
    terms = {
      'embedding': Embedding(Directions(), 'replace'),
      'bm25': Ranking(BM25(DOCS), DOCS, 'replace'),
      'repetition': rewards.repetition,
    }
    chosen = {name: (weight, terms[name]) for name, weight in rewards.parse(text).items()}
    return Reward(chosen, failure, max_words)

  def test_terms_are_added_by_weight(self):
    asked, texts = [query('cut')], [['str split', 'join join']]
    got = self.reward('embedding+0.5*bm25 + 2*repetition')(asked, texts)
    p = got.parts
    assert p['repetition'].tolist() == [[0.0, -0.5]]
    expected = p['embedding'] + 0.5 * p['bm25'] + 2 * p['repetition']
    np.testing.assert_allclose(got.rewards_GS, expected, rtol=1e-6)
    for name, part_GS in p.items():
      np.testing.assert_array_equal(self.reward(name)(asked, texts).rewards_GS, part_GS)

  def test_rewrites_that_break_a_rule_have_the_failure_value(self):
    texts = ['split', '', '  \n', '--- ?!', 'one two three', '\ud800 half']
    got = self.reward('embedding+bm25', failure=-2.5, max_words=2)([query()], [texts])
    assert got.failed_GS.tolist() == [[False, True, True, True, True, True]]
    assert got.rewards_GS[0, 1:].tolist() == [-2.5] * 5
    assert np.isfinite(got.rewards_GS).all() and got.rewards_GS.dtype == np.float32
    assert not any(part_GS[got.failed_GS].any() for part_GS in got.parts.values())

  def test_a_term_that_is_not_finite_fails_alone(self):
    broken = lambda queries, texts: np.array([[np.nan, 1.0, np.inf]])  # noqa: E731
    got = Reward({'broken': (1.0, broken)})([query()], [['a', 'b', 'c']])
    assert got.rewards_GS.tolist() == [[-1.0, 1.0, -1.0]]

  def test_samples_do_not_depend_on_each_other(self):
    reward = self.reward('embedding+bm25')
    both = [query('cut'), query('end', 'run', query_id='other')]
    together = reward(both, [['split', 'x y'], ['command', '']]).rewards_GS
    assert reward(both[1:], [['', 'command']]).rewards_GS[0, ::-1] == pytest.approx(together[1])

  def test_groups_of_several_sizes_are_a_mistake(self):
    with pytest.raises(ValueError, match=r'\[1, 2\]'):
      self.reward()([query(), query()], [['a'], ['b', 'c']])


class TestParse:
  def test_weights(self):
    assert rewards.parse('embedding + .5*bm25') == {'embedding': 1.0, 'bm25': 0.5}
    assert rewards.parse('2 * bm25') == {'bm25': 2.0}

  @pytest.mark.parametrize(
    'text', ['', 'bm25+', 'dense', 'bm25+bm25', '-1*bm25', 'bm25*2', 'x*bm25']
  )
  def test_mistakes_name_the_key_and_the_terms(self, text):
    with pytest.raises(UserError, match=r'config\.rewrite\.reward=.*embedding, bm25, repetition'):
      rewards.parse(text)
