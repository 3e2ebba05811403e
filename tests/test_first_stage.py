"""BM25: finds by words, ranks ties the same everywhere, prints nothing."""

import bm25s
import numpy as np
import pytest

from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document


def docs(*texts):
  return [Document(str(i), *text.split(' / ')) for i, text in enumerate(texts)]


def test_title_and_summary_are_searched_and_documents_without_a_common_word_not_found():
  bm25 = BM25(docs('red fox / runs', 'blue dog / sleeps', 'green cat / eats'))
  assert [[i for i, _ in top] for top in bm25.top(['fox', 'SLEEPS', 'zebra', ''], 5)] == [
    [0], [1], [], [],
  ]  # fmt: skip


def test_words_with_vowel_signs_and_words_of_one_letter_are_found():
  bm25 = BM25(docs('पेड़ / कब काटें', 'फल / कब खाएँ', '猫 / 动物'))
  assert [[i for i, _ in top] for top in bm25.top(['काटें', 'खाएँ', '猫', 'क'], 5)] == [
    [0], [1], [2], [],
  ]  # fmt: skip


def test_ties_keep_the_order_of_the_documents():
  bm25 = BM25(docs(*['red fox / runs'] * 30, 'other words / here'))
  assert [i for i, _ in bm25.top(['fox'], 7)[0]] == list(range(7))


def test_scores_are_those_of_bm25s_best_first():
  rng = np.random.default_rng(0)
  words = [f'w{i}' for i in range(50)]
  texts = [' '.join(rng.choice(words, 12)) for _ in range(200)]
  reference = bm25s.BM25()
  reference.index([text.split() for text in texts], show_progress=False)
  got = BM25(docs(*[f'{text} / ' for text in texts])).top(['w1 w2 w3'], 10)[0]
  scores = reference.get_scores(['w1', 'w2', 'w3'])
  order = np.lexsort((np.arange(200), -scores))[:10]
  assert [i for i, _ in got] == order.tolist()
  np.testing.assert_allclose([score for _, score in got], scores[order], rtol=1e-6)


@pytest.mark.parametrize('texts', [(), ('the / a',)])
def test_a_collection_without_words_finds_nothing(texts):
  assert BM25(docs(*texts)).top(['red fox'], 3) == [[]]


def test_nothing_is_printed(capfd):
  BM25(docs('red fox / runs')).top(['fox', 'nobody'], 3)
  assert capfd.readouterr() == ('', '')
