"""Fewer tokens: the corpus's texts score the same to the last bit, other words are still spelt."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from disranker_jax.data.prompts import PairPrompt
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.exporting import vocabulary
from disranker_jax.models import load, tiny

CORPUS = ['return the number of items', 'a list of names', 'read the file, line by line']


@pytest.fixture(scope='module')
def trimmed(student, tmp_path_factory):
  """(ranker, variables, tokenizer folder) with the tokens of CORPUS."""
  target = tmp_path_factory.mktemp('trim') / 'tokenizer'
  ids = vocabulary.used(student.base, CORPUS)
  return *vocabulary.trim(student.network, student.variables, student.base, target, ids), target


def prompt_of(folder):
  return PairPrompt(load.open_tokenizer(folder), 64, 16)


def test_texts_of_the_corpus_score_exactly_as_before(student, trimmed):
  network, variables, folder = trimmed
  assert network.config.vocab < student.network.config.vocab
  assert len(variables['params']['words']['embedding']) == network.config.vocab
  group = Group('q', CORPUS[0], tuple(Document(str(i), '', t) for i, t in enumerate(CORPUS)))
  import dataclasses

  small = dataclasses.replace(
    student, network=network, variables=variables, prompt=prompt_of(folder)
  )
  np.testing.assert_array_equal(small.scores(group), student.scores(group))


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.sampled_from(' '.join(CORPUS).split()), min_size=1, max_size=9))
def test_any_text_of_its_words_has_the_same_pieces(student, trimmed, words):
  before = AutoTokenizer.from_pretrained(student.base).tokenize(' '.join(words))
  assert AutoTokenizer.from_pretrained(trimmed[2]).tokenize(' '.join(words)) == before


def test_other_words_are_spelt_and_not_lost(student, trimmed):
  tokenizer = AutoTokenizer.from_pretrained(trimmed[2])
  pieces = tokenizer.tokenize('unbelievable zebra')
  assert tokenizer.unk_token not in pieces
  assert ''.join(p.removeprefix('##') for p in pieces) == 'unbelievablezebra'


def test_special_tokens_frame_a_pair_as_before(student, trimmed):
  old, new = (AutoTokenizer.from_pretrained(f) for f in (student.base, trimmed[2]))
  pair = CORPUS[0], CORPUS[1]
  tokens = [t.convert_ids_to_tokens(t(*pair)['input_ids']) for t in (old, new)]
  assert tokens[0] == tokens[1]
  assert new.pad_token == '[PAD]' and new.pad_token_id == trimmed[0].config.pad_id
  types = [t(*pair, return_token_type_ids=True)['token_type_ids'] for t in (old, new)]
  assert types[0] == types[1] and max(types[0]) == 1


def test_another_kind_of_tokenizer_is_refused(tmp_path):
  tiny.make('tiny-decoder', tmp_path / 'm')
  with pytest.raises(UserError, match=r'only a WordPiece vocabulary .* this is .BPE'):
    vocabulary.used(tmp_path / 'm', ['a'])


def test_the_two_separators_of_berts_own_processor_are_renumbered(student, tmp_path):
  raw = json.loads((student.base / 'tokenizer.json').read_text())
  vocab = raw['model']['vocab']
  raw['post_processor'] = {
    'type': 'BertProcessing', 'sep': ['[SEP]', vocab['[SEP]']], 'cls': ['[CLS]', vocab['[CLS]']],
  }  # fmt: skip
  new = {i: i + 7 for i in vocab.values()}
  (tmp_path / 'tokenizer_config.json').write_text('{}')
  vocabulary.write_tokenizer(tmp_path, raw, new)
  written = json.loads((tmp_path / 'tokenizer.json').read_text())
  assert written['post_processor']['sep'] == ['[SEP]', vocab['[SEP]'] + 7]
