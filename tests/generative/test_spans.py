"""N-grams that are drawn of a page: where they start, and which are likely."""

import dataclasses
import json

import numpy as np
import pytest
import small_tokenizers
from test_pages import DOCS, built, opened, text
from tokenizers import Tokenizer

from disranker_jax.data.records import Document
from disranker_jax.generative import pages as collection
from disranker_jax.generative.lessons import Lessons, Teaching
from disranker_jax.generative.spans import parts, start_weights

JAPANESE = (
  '関数は引数の個数を数えて返します。対象が文字列の場合は部分文字列の出現回数を返します。'
  '範囲を指定することもできます。'
)
IROHA = 'いろはにほへとちりぬるをわかよたれそつねならむうゐのおくやまけふこえて'  # each letter once
ADDRESS = 'https://example.org/of/parts/' + '/'.join('abcdefghijklmnopqrstuvwxyz')
BYTES = [f'<0x{byte:02X}>' for byte in range(256)]


def spelled_in_bytes():
  """As Llama 2's: characters that it does not know are spelled as `<0xE3>`."""
  raw = json.loads(small_tokenizers.llama_bpe(('<unk>', '<s>', '</s>', *BYTES)).to_str())
  raw['model']['byte_fallback'] = True
  raw['added_tokens'] = raw['added_tokens'][:3]
  raw['decoder']['decoders'].insert(1, {'type': 'ByteFallback'})
  names = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  return small_tokenizers.opened(Tokenizer.from_str(json.dumps(raw)), **names)


def test_spans_prefer_words_of_the_query_and_no_stop_words():
  text = 'the order of a sorted list is then returned to the caller'
  words = text.split()
  weights = start_weights(['sorted', 'list', 'is'], words)
  assert weights.argmax() == words.index('sorted') and np.isclose(weights.sum(), 1)
  assert weights[words.index('the')] == 0 and weights[words.index('of')] == 0
  assert not len(start_weights(['a'], []))
  assert np.allclose(start_weights(['x'], ['the', 'of']), 0.5)  # nothing but stop words


def test_a_span_is_an_n_gram_of_the_body_that_starts_a_word():
  prompts, pages, _ = built(length=8)
  teaching, rng = Teaching.of(pages, prompts), np.random.default_rng(0)
  body = pages[1].body.tolist()
  for _ in range(20):
    span = teaching.spans.draw('ascending order', pages[1].body, rng).tolist()
    assert len(span) == 8 and any(body[i : i + 8] == span for i in range(len(body)))
    assert text(prompts, span).startswith(' ')


@pytest.mark.parametrize('tokenizer', [None, spelled_in_bytes], ids=['bytes', 'sentencepiece'])
@pytest.mark.parametrize('words', [JAPANESE, ADDRESS])
def test_without_blanks_an_n_gram_starts_with_any_character(tokenizer, words):
  prompts = opened(length=8)
  if tokenizer:
    prompts = dataclasses.replace(
      prompts, model=dataclasses.replace(prompts.model, tokenizer=tokenizer())
    )
  pages, _ = collection.build([Document('a', '', words)], {}, prompts)
  body, spans = pages[0].body, Teaching.of(pages, prompts).spans
  whole = text(prompts, body)
  found = {spans.place(body, np.random.default_rng(seed)) for seed in range(400)}
  for start in found:  # whole characters before it and after it
    assert '\ufffd' not in text(prompts, body[:start]) + text(prompts, body[start:])
    assert len(spans.at(body, start)) == 8
  assert whole.strip() == words and len(found) > len(words) / 3
  drawn = {
    spans.draw('出現回数', body, np.random.default_rng(seed)).tobytes() for seed in range(400)
  }
  assert len(drawn) > len(words) / 3


def test_n_grams_prefer_letters_of_the_query_where_words_have_no_blanks():
  assert parts('how  often 出現') == ['how', ' often', ' 出', '現']
  weights = start_weights(parts('出現回数'), parts(JAPANESE))
  assert JAPANESE[weights.argmax() :].startswith(('出現回', '現回数'))


@pytest.mark.parametrize('words', [IROHA, DOCS[0].summary])
def test_a_page_never_learns_the_n_gram_that_it_shows(words):
  prompts = opened(length=6, views=('body',))
  pages, _ = collection.build([Document('a', '', words)], {}, prompts)
  teaching, decode = Teaching.of(pages, prompts), prompts.model.tokenizer.decode
  body = pages[0].body
  places = {
    decode(teaching.spans.at(body, int(i)).tolist()).strip(): i for i in range(len(body) - 5)
  }
  for seed in range(100):
    drawn = teaching.draw(Lessons(1, [], {}, 1)[0], np.random.default_rng(seed))
    at = places[decode(drawn.target.tolist()).strip()]
    assert abs(at - places[drawn.query]) >= len(drawn.target) == 6


def test_a_page_of_one_n_gram_learns_it():
  """There is nothing else to put it into the model."""
  prompts = opened(length=8, views=('body',))
  pages, _ = collection.build([Document('a', 'a title', 'sort')], {}, prompts)
  teaching = Teaching.of(pages, prompts)
  drawn = teaching.draw(Lessons(1, [], {}, 1)[0], np.random.default_rng(0))
  assert (drawn.query, drawn.target.tolist()) == ('sort', pages[0].body.tolist())
