"""The ends of a sequence, what is cut first, and which tokens a language model predicts."""

import copy
import re

import numpy as np
import pytest
import small_tokenizers as small
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from disranker_jax.data import prompts, tokenising
from disranker_jax.data.prompts import PairPrompt, TextPrompt, document_text
from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.models import weights

PAPER = '{query} : {title} : {summary}'
QUERY_LAST = '{title}: {summary}\n\nSummary: {query}'
few_examples = settings(max_examples=60, deadline=None)

anything = st.text(max_size=60) | st.text(st.sampled_from('ab \n\t.:?'), max_size=400)
# Words that a tokenizer decodes unchanged: no spaces, control characters or combining marks.
word = st.text(
  st.characters(categories=['Lu', 'Ll', 'Lo', 'Nd', 'Po', 'So']), min_size=1, max_size=6
)
phrase = st.lists(word, min_size=1, max_size=6).map(' '.join)
lengths = st.integers(12, 64), st.integers(1, 32)


@pytest.fixture(scope='module')
def bert():
  return AutoTokenizer.from_pretrained(weights.find('tiny-encoder'))


@pytest.fixture(scope='module')
def mistral():
  return AutoTokenizer.from_pretrained(weights.find('tiny-decoder'))


def one(prompt, query, title, summary):
  [encoded] = prompt.encode(query, [Document('d', title, summary)])
  return encoded


# One token each with the space before it, in both tokenizers: for query, title and summary.
LETTERS = 'cts'


def counts(tokenizer, ids):
  """The counts of the letters in the text of the ids."""
  words = re.findall(r'\b\w\b', tokenizer.decode(ids, skip_special_tokens=True))
  return tuple(words.count(w) for w in LETTERS)


# Both kinds


@pytest.mark.parametrize('text', ['a [SEP] b', '[CLS]', '[PAD] [MASK] [UNK]', '</s> <s> a <unk>'])
def test_names_of_special_tokens_in_a_text_are_text(bert, mistral, text):
  special = set(bert.all_special_ids)
  encoded = one(PairPrompt(bert, 64, 32), text, 'title', text)
  assert [i for i in encoded.ids.tolist() if i in special] == [
    bert.cls_token_id, bert.sep_token_id, bert.sep_token_id
  ]  # fmt: skip
  assert bert.decode(encoded.ids, skip_special_tokens=True).count('[') == 2 * text.count('[')
  encoded = one(TextPrompt(mistral, 256, 64, PAPER), text, text, text)
  assert mistral.decode(encoded.ids) == f'<s>{text} : {text} : {text}</s>'
  assert set(encoded.ids[1:-1]).isdisjoint(mistral.all_special_ids)


@few_examples
@given(query=anything, title=anything, summary=anything, max_len=lengths[0], max_query=lengths[1])
def test_the_last_token_is_always_the_real_end_and_the_length_is_kept(
  bert, mistral, query, title, summary, max_len, max_query
):
  pair = one(PairPrompt(bert, max_len, max_query), query, title, summary)
  assert len(pair) <= max_len
  assert pair.ids[0] == bert.cls_token_id and pair.ids[-1] == bert.sep_token_id
  assert pair.anchor == 0 and np.count_nonzero(pair.ids == bert.sep_token_id) == 2
  for template in (PAPER, QUERY_LAST):
    for predict in ('document', 'query'):
      text = one(TextPrompt(mistral, max_len, max_query, template, predict), query, title, summary)
      assert len(text) <= max_len
      assert text.ids[0] == mistral.bos_token_id and text.ids[-1] == mistral.eos_token_id
      assert text.anchor == len(text) - 1
      start, stop = text.predict
      # A predicted token has a token before it.
      assert start == stop == 0 or 1 <= start < stop <= len(text)


@few_examples
@given(
  n=st.tuples(*[st.integers(1, 40)] * 3), max_len=lengths[0], max_query=lengths[1],
  template=st.sampled_from([PAPER, QUERY_LAST]),
)  # fmt: skip
def test_a_decoder_loses_the_summary_first_then_the_title_and_the_query_last(
  mistral, n, max_len, max_query, template
):
  query, title, summary = (' '.join([w] * k) for w, k in zip(LETTERS, n, strict=True))
  encoded = one(TextPrompt(mistral, max_len, max_query, template), query, title, summary)
  q, t, s = counts(mistral, encoded.ids)
  whole = min(n[0], max_query)
  assert 1 <= q <= whole
  if s < n[2]:
    assert len(encoded) == max_len, 'cut without need'
  if t < n[1]:
    assert s == 0
  if q < whole:
    assert s == t == 0


@few_examples
@given(n=st.tuples(*[st.integers(1, 40)] * 3), max_len=lengths[0], max_query=lengths[1])
def test_bert_loses_the_summary_before_the_title_and_the_start_of_the_query_never(
  bert, n, max_len, max_query
):
  query, title, summary = (' '.join([w] * k) for w, k in zip(LETTERS, n, strict=True))
  encoded = one(PairPrompt(bert, max_len, max_query), query, title, summary)
  q, t, s = counts(bert, encoded.ids)
  assert q == min(n[0], max_query, max_len - 4)  # [CLS], two [SEP] and a token of the document
  if s < n[2]:
    assert len(encoded) == max_len
  if t < n[1]:
    assert s == 0


@few_examples
@given(query=phrase, title=phrase, summary=phrase, max_query=st.integers(1, 10))
def test_the_first_tokens_of_the_query_are_never_cut(
  bert, mistral, query, title, summary, max_query
):
  for make, tokenizer in (
    (lambda: PairPrompt(bert, 14, max_query), bert),
    (lambda: TextPrompt(mistral, 14, max_query, PAPER), mistral),
  ):
    ids = tokenizer(query, add_special_tokens=False)['input_ids']
    kept = one(make(), query, title, summary).ids[1:].tolist()
    room = min(len(ids), max_query, 6)  # two ends and at most six tokens of the template
    assert kept[:room] == ids[:room]


def test_documents_are_encoded_in_order_and_independently(bert, mistral):
  docs = [Document(str(i), f'title {i}', 'word ' * 7 * i) for i in range(4)]
  for prompt in (PairPrompt(bert, 24, 8), TextPrompt(mistral, 24, 8, PAPER)):
    together = prompt.encode('a query', docs)
    assert len({len(e) for e in together}) > 1
    for doc, encoded in zip(docs, together, strict=True):
      [alone] = prompt.encode('a query', [doc])
      np.testing.assert_array_equal(encoded.ids, alone.ids)
      assert encoded.predict == alone.predict
    assert prompt.encode('a query', []) == []


# Long texts, of which only a part is tokenised

BLANKS = {
  'blanks': ' ', 'newlines': '\n', 'no-break spaces': '\xa0', 'zero-width spaces': '\u200b',
  'zero-width joiners': '\u200d', 'soft hyphens': '\xad', 'a byte-order mark': '\ufeff',
}  # fmt: skip
part = st.text(st.sampled_from('ab .\n\u200b\xa0\u0301文한'), min_size=1, max_size=12)
long_text = st.lists(st.tuples(part, st.integers(1, 120)), max_size=4).map(
  lambda parts: ''.join(text * count for text, count in parts)
)


@pytest.mark.parametrize('blank', BLANKS.values(), ids=BLANKS)
@pytest.mark.parametrize('where', ['text', 'query', 'middle'])
def test_text_after_thousands_of_blanks_is_read_as_transformers_reads_it(bert, blank, where):
  query, text = 'a query of names', 'open : Open file and return a stream. ' * 9
  before = {'query': 0, 'text': 0, 'middle': 38}[where]
  text = text[:before] + blank * 20_000 * (where != 'query') + text[before:]
  query = blank * 20_000 * (where == 'query') + query
  # A copy, because this call leaves its truncation in the tokenizer.
  theirs = copy.deepcopy(bert)(query, text, truncation='only_second', max_length=48)
  [ours] = PairPrompt(bert, 48, 30).encode_texts(query, [text])
  assert ours.ids.tolist() == theirs['input_ids'] and ours.cut
  assert len(ours) == 48


def test_blanks_alone_do_not_count_as_cut(bert):
  padded, plain = PairPrompt(bert, 48, 30).encode_texts('q', ['word' + ' ' * 9_000, 'word'])
  assert padded.ids.tolist() == plain.ids.tolist() and not padded.cut


@few_examples
@given(
  query=long_text, title=long_text, summary=long_text, max_len=lengths[0], max_query=lengths[1]
)
def test_tokenising_only_the_start_of_a_text_changes_no_token(
  bert, mistral, query, title, summary, max_len, max_query
):
  for prompt in (
    PairPrompt(bert, max_len, max_query),
    TextPrompt(mistral, max_len, max_query, PAPER),
    TextPrompt(mistral, max_len, max_query, '{title}{summary}\n\n{query}', 'query'),
  ):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(prompts, 'CHARS_PER_TOKEN', 1)
      patch.setattr(prompts, 'GROWTH', 2)
      part = one(prompt, query, title, summary)
      patch.setattr(prompts, 'CHARS_PER_TOKEN', 1 << 30)
      whole = one(prompt, query, title, summary)
    assert part.ids.tolist() == whole.ids.tolist()
    assert (part.predict, part.cut) == (whole.predict, whole.cut)


@pytest.mark.parametrize('length', [10_000, 1_000_000])
def test_the_work_for_a_long_text_of_words_does_not_grow_with_it(
  bert, mistral, length, monkeypatch
):
  seen = []

  class Counting:
    def __init__(self, backend):
      self.backend = backend

    def __getattr__(self, name):
      return getattr(self.backend, name)

    def encode_batch(self, texts, **options):
      seen.append(sum(map(len, texts)))
      return self.backend.encode_batch(texts, **options)

    encode_batch_fast = encode_batch

  def counting(backend):
    return plain(backend)._replace(backend=Counting(plain(backend).backend))

  plain = tokenising.plain
  both = PairPrompt(bert, 64, 16), TextPrompt(mistral, 64, 16, PAPER)
  monkeypatch.setattr(tokenising, 'plain', counting)
  for prompt in both:
    one(prompt, 'q', 't', 'some words and names ' * (length // 21))
  assert len(seen) == 2 and max(seen) < 2_000


# BERT


@few_examples
@given(query=phrase, title=phrase, summary=phrase | st.just(''))
def test_bert_reads_what_a_cross_encoder_client_gives_for_title_and_summary(
  bert, query, title, summary
):
  encoded = one(PairPrompt(bert, 512, 256), query, title, summary)
  theirs = bert(query, f'{title} : {summary}', return_token_type_ids=True)
  assert encoded.ids.tolist() == theirs['input_ids']
  assert encoded.types.tolist() == theirs['token_type_ids']


def test_the_second_segment_starts_after_the_first_sep(bert):
  encoded = one(PairPrompt(bert, 32, 8), 'what is it', 'a title', 'and more')
  first = encoded.ids.tolist().index(bert.sep_token_id)
  assert encoded.types.tolist() == [0] * (first + 1) + [1] * (len(encoded) - first - 1)


def test_the_text_of_a_document_is_title_colon_summary():
  assert document_text(Document('d', 'a b', 'c.')) == 'a b : c.'


# Decoders


def spelt(tokenizer, encoded):
  return tokenizer.decode(encoded.ids[slice(*encoded.predict)])


@few_examples
@given(query=phrase, title=phrase, summary=phrase)
def test_what_is_predicted_decodes_to_the_title_and_summary_with_the_end(
  mistral, query, title, summary
):
  encoded = one(TextPrompt(mistral, 512, 256, PAPER), query, title, summary)
  assert mistral.decode(encoded.ids) == f'<s>{query} : {title} : {summary}</s>'
  assert spelt(mistral, encoded).strip() == f'{title} : {summary}</s>'


@few_examples
@given(query=phrase, title=phrase, summary=phrase)
def test_what_is_predicted_decodes_to_the_query_without_the_end(mistral, query, title, summary):
  encoded = one(TextPrompt(mistral, 512, 256, QUERY_LAST, 'query'), query, title, summary)
  assert spelt(mistral, encoded).strip() == query


def test_what_is_predicted_is_only_what_was_kept(mistral):
  summary = 's ' * 40
  encoded = one(TextPrompt(mistral, 24, 8, PAPER), 'c c', 't t', summary)
  assert len(encoded) == 24 and encoded.predict[1] == 24
  _, _, left = counts(mistral, encoded.ids)
  assert 0 < left < 40
  assert counts(mistral, encoded.ids[slice(*encoded.predict)]) == (0, 2, left)
  long = one(TextPrompt(mistral, 48, 8, QUERY_LAST, 'query'), 'c ' * 30, 't t', summary)
  assert counts(mistral, long.ids[slice(*long.predict)]) == (8, 0, 0)


def test_a_tokenizer_without_an_end_is_refused():
  tokenizer = small.opened(small.byte_bpe())
  with pytest.raises(UserError, match=r'no end-of-sequence token.*eos_token'):
    TextPrompt(tokenizer, 64, 16, PAPER)


def test_without_a_start_token_the_first_token_is_not_predicted():
  # As Qwen2's, which pads with its end.
  end = '<|endoftext|>'
  tokenizer = small.opened(small.byte_bpe(), eos_token=end, pad_token=end)
  encoded = one(TextPrompt(tokenizer, 64, 16, '{title} : {summary} : {query}'), 'q', 'a b', 'c')
  assert tokenizer.decode(encoded.ids) == f'a b : c : q{end}'
  assert encoded.predict[0] == 1  # no token before it could predict it
  assert spelt(tokenizer, encoded) == ' b : c'


@pytest.mark.parametrize(
  'make, special, frame, expected',
  [
    (small.unigram, {'eos_token': '</s>'}, '<s> $A', '<s> {} </s>'),
    (small.unigram, {}, '<s> $A </s>', '<s> {} </s>'),
    (small.unigram, {'bos_token': '<s>', 'eos_token': '</s>'}, '', '<s> {} </s>'),
    (small.byte_bpe, {'bos_token': '<|im_start|>', 'eos_token': '<|im_end|>'}, '', None),
    (small.byte_bpe, {'eos_token': '<|im_end|>'}, '', '{} <|im_end|>'),
    (small.byte_bpe, {'eos_token': '<|im_end|>'}, '$A', '{} <|im_end|>'),
    (small.byte_bpe, {'eos_token': '<|im_end|>'}, '<|im_start|> <|im_start|> $A', None),
    (small.byte_bpe, {}, '$A <|im_end|> <|endoftext|>', '{} <|im_end|> <|endoftext|>'),
    (small.wordpiece, {'unk_token': '[UNK]'}, '[CLS] $A [SEP]', '[CLS] {} [SEP]'),
  ],
)
@pytest.mark.parametrize('summary', ['the string', 'string ' * 90])
def test_both_ends_of_a_decoders_text_are_those_of_its_tokenizer(
  make, special, frame, expected, summary
):
  inner = small.framed(make(), frame, f'{frame} $B') if frame else make()
  tokenizer = small.opened(inner, **special)
  if expected is None:
    starts = frame.removesuffix(' $A') or special['bos_token']
    expected = f'{starts} {{}} {special["eos_token"]}'
  prompt = TextPrompt(tokenizer, 64, 16, '{query} {title} {summary}')
  encoded = one(prompt, 'return a', 'the', summary)
  tokens = tokenizer.convert_ids_to_tokens(encoded.ids.tolist())
  before, after = (part.split() for part in expected.split('{}'))
  assert tokens[: len(before)] == before and tokens[len(tokens) - len(after) :] == after
  assert encoded.anchor == len(encoded) - 1 <= 63
  known = {*before, *after}
  assert not known & set(tokens[len(before) : len(tokens) - len(after)])
  # The document's last token and the first one of the end are predicted.
  assert encoded.predict[1] == len(encoded) - len(after) + 1
  assert tokens[encoded.predict[1] - 1] == after[0]
  assert prompt.lengths('return a', [Document('d', 'the', 'a')])[0]['input'] == len(
    one(prompt, 'return a', 'the', 'a')
  )


def test_without_an_end_the_templates_last_token_is_scored_and_never_cut():
  template = '<|im_start|>{query}\n{title} {summary}<|im_end|>\n<|im_start|>x'
  tokenizer = small.opened(small.byte_bpe())
  prompt = TextPrompt(tokenizer, 48, 16, template, with_end=False)
  texts = 'return a', 'the', 'string ' * 90
  for short in (True, False):
    encoded = one(prompt, *(text[:6] if short else text for text in texts))
    shown = tokenizer.decode(encoded.ids)
    assert shown.startswith('<|im_start|>return') and shown.endswith('<|im_end|>\n<|im_start|>x')
    assert encoded.anchor == len(encoded) - 1 and (len(encoded) == 48) == (not short)
    assert 'end' not in tokenizer.decode(encoded.ids[slice(*encoded.predict)])


@pytest.mark.parametrize(
  'make, pair, segments',
  [
    (small.unigram, '<s> $A </s> </s> $B </s>', {0}),
    (small.byte_bpe, '<|im_start|> $A <|im_end|> $B <|im_end|>', {0}),
    (small.wordpiece, '[CLS] $A [SEP] $B:1 [SEP]:1', {0, 1}),
    (small.wordpiece, '[CLS] $A $B', {0}),
  ],
)
def test_a_pair_has_the_frame_of_its_tokenizer(make, pair, segments):
  tokenizer = small.opened(small.framed(make(), pair.partition(' $B')[0], pair))
  encoded = one(PairPrompt(tokenizer, 64, 16), 'return a', 'the', 'string')
  theirs = tokenizer('return a', 'the : string', return_token_type_ids=True)
  assert encoded.ids.tolist() == theirs['input_ids']
  assert encoded.types.tolist() == theirs['token_type_ids'] and set(encoded.types) == segments


@pytest.mark.parametrize('make', [small.unigram, small.byte_bpe, small.wordpiece])
def test_an_encoders_tokenizer_without_a_frame_is_refused_before_the_first_text(make):
  tokenizer = small.opened(make(), unk_token=None)
  with pytest.raises(UserError, match='needs a post_processor'):
    PairPrompt(tokenizer, 64, 16)
