"""BERT's tokenizer on long texts: the same tokens as of the whole text, from little of it."""

import random

import pytest

from disranker_jax.data import tokenising, wordpiece
from disranker_jax.models.load import open_tokenizer

# What BERT splits at, joins, drops, and finds before it splits.
PIECES = (
  'a', 'list', 'names', 'qzx', ' ', '  ', '\n', '.', ',', '$', '[SEP]', '[', 'SEP', ']', '[MASK] ',
  'é', 'e\u0301', '\u0301', '\u200b', '\xad', '\x1c', '\x85', '\u2028', '中', '文', '。', '؟', '한',
  'ß', 'İ', 'Σ', 'ﬁ', '₁', '\U0001f9ff', 'x' * 120,
)  # fmt: skip


@pytest.fixture(scope='module')
def tokenizer(model):
  return open_tokenizer(model)


def whole(tokenizer, text: str) -> list[int]:
  return tokenising.text_ids(tokenizer, [text])[0]


@pytest.mark.parametrize('chars', [1, 7, 50])
def test_the_first_tokens_are_those_of_the_whole_text(tokenizer, chars):
  rng = random.Random(chars)
  texts = [''.join(rng.choices(PIECES, k=rng.randrange(120))) for _ in range(300)]
  for text, ids in zip(texts, wordpiece.first_ids(tokenizer, texts, 20, chars), strict=True):
    expected = whole(tokenizer, text)
    assert ids == expected[: len(ids)] and len(ids) >= min(20, len(expected)), repr(text)


@pytest.mark.parametrize('before', ['', '\u200b' * 300_000, ' ' * 300_000])
@pytest.mark.parametrize('between', [' ', ',', '؟', '中', '$'])
def test_long_texts_are_read_as_far_as_needed(tokenizer, monkeypatch, before, between):
  read = []

  def text_ids(tokenizer, texts):
    read.extend(texts)
    return unpatched(tokenizer, texts)

  unpatched = tokenising.text_ids
  text = before + between.join(['qzxjv' * 20] * 3000)
  expected = whole(tokenizer, text[: len(before) + 5000])
  monkeypatch.setattr(tokenising, 'text_ids', text_ids)
  [ids] = wordpiece.first_ids(tokenizer, [text], 48, 400)
  assert ids == expected[: len(ids)] and len(ids) >= 48
  assert sum(len(piece.strip('\u200b ')) for piece in read) < 6000


def test_other_tokenizers_are_not_read_this_way(tokenizer):
  class Other:
    class backend_tokenizer:
      model, pre_tokenizer, normalizer = (
        tokenizer.backend_tokenizer.model, None, tokenizer.backend_tokenizer.normalizer
      )  # fmt: skip

  assert wordpiece.reads(tokenizer) and not wordpiece.reads(Other)
