"""Bidirectional decoders (LLM2Vec): what they see, masked tokens, where they can be used."""

import functools
import json

import jax
import numpy as np
import pytest

from disranker_jax.data.encoded import Encoded
from disranker_jax.data.masking import Masking, masking
from disranker_jax.errors import UserError
from disranker_jax.models import families, flops, hf, load, network, tiny
from disranker_jax.models.generate import generate
from disranker_jax.models.settings import defaults as model_settings
from disranker_jax.stages import roles

SPECIAL = frozenset({1, 2})


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('base') / 'decoder'
  tiny.make('tiny-decoder', folder)
  return folder


def text(n, seed=0) -> Encoded:
  ids = np.r_[1, np.random.default_rng(seed).integers(8, 500, n - 2), 2].astype(np.int32)
  return Encoded(ids, np.zeros_like(ids), n - 1, (1, n))


def batch_of(*rows, length=24):
  made = {k: np.zeros((len(rows), length), np.int32) for k in ('tokens', 'segments', 'positions')}
  for b, segments in enumerate(rows):
    at = 0
    for s, ids in enumerate(segments):
      here = slice(at, at + len(ids))
      made['tokens'][b, here], made['segments'][b, here] = ids, s + 1
      made['positions'][b, here] = np.arange(len(ids))
      at += len(ids)
  return {f'{k}_BT': v for k, v in made.items()}


def hidden(net, variables, *rows):
  return np.asarray(net.hidden(variables, batch_of(*rows)))


# The network


@pytest.mark.parametrize('attention', ['xla', 'splash_interpret'])
@pytest.mark.parametrize('bidirectional', [False, True])
def test_the_first_token_sees_the_last_one_of_its_own_text_only(folder, attention, bidirectional):
  net = network.from_hf(folder, attention=attention, bidirectional=bidirectional)
  variables, ids = net.init(jax.random.key(0)), list(range(5, 14))
  one = hidden(net, variables, [ids, [20, 21]])
  last = hidden(net, variables, [[*ids[:-1], 99], [20, 21]])
  beside = hidden(net, variables, [ids, [20, 99]])
  assert (np.abs(one - last)[0, 0].max() > 1e-4) == bidirectional
  np.testing.assert_array_equal(one[0, : len(ids)], beside[0, : len(ids)])


def test_packing_and_padding_change_nothing(folder):
  net = network.from_hf(folder, bidirectional=True)
  variables, a, b = net.init(jax.random.key(0)), list(range(5, 14)), [30, 31, 32]
  together = hidden(net, variables, [a, b])
  np.testing.assert_allclose(together[0, :9], hidden(net, variables, [a])[0, :9], atol=1e-6)
  np.testing.assert_allclose(together[0, 9:12], hidden(net, variables, [b])[0, :3], atol=1e-6)


def test_attention_computes_all_pairs(folder):
  causal, both = (network.from_hf(folder, bidirectional=b) for b in (False, True))
  batch = batch_of([[5] * 24]) | {'index_AX': np.zeros((1, 1), np.int32)}
  c = causal.config
  more = 2 * 2 * c.heads * c.head_dim * c.layers * (24 * 24 - 24 * 25 // 2)
  assert flops.count(both, batch).model - flops.count(causal, batch).model == more


def test_the_folder_says_so_and_is_read_back(folder, tmp_path):
  net = network.from_hf(folder, bidirectional=True, pooling='mean')
  hf.save(tmp_path / 'out', net, net.init(jax.random.key(0)), tokenizer_folder=folder)
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['is_causal'] is False
  again = network.from_hf(tmp_path / 'out')
  assert not again.causal and again.family.pooling(again.config) == 'mean'
  assert network.from_hf(folder).causal
  assert 'is_causal' not in again.family.to_hf(network.from_hf(folder).config)
  # The classes of transformers compute its attention, but no mean.
  token = network.from_hf(folder, bidirectional=True)
  assert token.family.readers_of(token.config) == ('transformers-tokens',)
  assert 'is_causal' in token.family.usage_of(token.config)
  assert again.family.readers_of(again.config) == ('disranker_jax.load-documents',)
  # Folders that were exported before have this key only.
  older = {'is_causal': True, 'use_bidirectional_attention': True}
  with pytest.raises(
    UserError, match='is_causal true contradicts use_bidirectional_attention true'
  ):
    families.from_hf(config | older)
  assert families.from_hf({k: v for k, v in config.items() if k != 'is_causal'}) == again.config


def test_a_mean_is_that_of_the_texts_own_tokens(folder):
  net = network.from_hf(folder, bidirectional=True, pooling='mean')
  variables, a, b = net.init(jax.random.key(0)), list(range(5, 14)), [30, 31, 32]
  batch = batch_of([a, b]) | {
    'index_AX': np.array([[8, 11]], np.int32), 'mask_GN': np.ones((2, 1), bool),
  }  # fmt: skip
  states = hidden(net, variables, [a, b])[0]
  means = np.stack([states[:9].mean(0), states[9:12].mean(0)])
  expected = net.module.apply(variables, means, method='score')
  np.testing.assert_allclose(net.scores(variables, batch)[:, 0], expected, atol=1e-5)


# Hidden tokens


def mask(rule='all', share=0.2):
  return Masking(7, 500, SPECIAL, share, rule)


def test_hidden_tokens_are_predicted_and_special_ones_stay():
  one = text(52)
  hidden = mask()(one, np.random.default_rng(0))
  positions, targets = hidden.predicted
  assert len(positions) == hidden.predictions == 10  # a fifth of 50
  assert (hidden.ids[positions] == 7).all() and (targets == one.ids[positions]).all()
  assert positions.min() > 0 and not np.isin(targets, list(SPECIAL)).any()
  rest = np.setdiff1d(np.arange(52), positions)
  np.testing.assert_array_equal(hidden.ids[rest], one.ids[rest])
  np.testing.assert_array_equal(one.ids, text(52).ids)  # untouched


def test_berts_rule_hides_four_fifths():
  rng, kinds = np.random.default_rng(0), np.zeros(3)
  for seed in range(60):
    one = text(102, seed)
    hidden = mask('bert', 0.5)(one, rng)
    now, before = hidden.ids[hidden.targets[0]], hidden.targets[1]
    kinds += [(now == 7).sum(), (now == before).sum(), ((now != 7) & (now != before)).sum()]
  assert kinds.sum() == 60 * 50
  np.testing.assert_allclose(kinds / kinds.sum(), [0.8, 0.1, 0.1], atol=0.02)


def test_one_token_is_hidden_at_least_and_none_where_there_is_none():
  assert mask()(text(4), np.random.default_rng(0)).predictions == 1
  assert mask()(text(2), np.random.default_rng(0)).predictions == 0


def test_another_seed_hides_others():
  a, b, c = (mask()(text(52), np.random.default_rng(seed)).targets for seed in (0, 1, 0))
  assert not np.array_equal(a, b) and np.array_equal(a, c)


def test_a_hidden_token_is_predicted_from_the_position_before_it(folder):
  from disranker_jax.data.batches import EncodedGroup, Packer, Shape

  hidden = [mask()(text(n, n), np.random.default_rng(n)) for n in (12, 20)]
  packer = Packer(Shape(1, 40, 1, 20))
  assert all(packer.add(EncodedGroup.alone(one)) for one in hidden)
  batch = packer.batch()
  real = batch['owner_AP'][0] >= 0
  places = batch['index_AP'][0][real] + 1
  assert (batch['tokens_BT'].reshape(-1)[places] == 7).all()
  expected = np.concatenate([one.targets[1] for one in hidden])
  np.testing.assert_array_equal(batch['targets_AP'][0][real], expected)


def test_a_mask_of_several_tokens_is_an_error(folder):
  tokenizer = load.open_tokenizer(folder)
  with pytest.raises(UserError, match=r"mask_token='qqqq zz': is .* tokens of this tokenizer"):
    masking(tokenizer, 600, 'qqqq zz', 0.2, 'all')


# Where it can be used


def test_it_writes_no_text(folder):
  net = network.from_hf(folder, head='lm', bidirectional=True)
  with pytest.raises(UserError, match='bidirectional model writes no text'):
    generate(net, net.init(jax.random.key(0)), [[1, 5]])


def test_an_encoder_is_bidirectional_already():
  made = model_settings(model='tiny-encoder', max_len=40, row_len=40, bidirectional=True)
  with pytest.raises(UserError, match='are for decoders, and it is a bert model'):
    load.open_model(made)


MASKED = {'teacher.bidirectional': True, 'cpt.objective': 'masked'}
QUERY_LAST = '{title} : {summary} : {query}'


def tiny_config(**changes):
  from disranker_jax.commands.common import load_config

  return load_config('configs/tiny.py', [f'--config.{k}={v}' for k, v in changes.items()])


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'teacher.bidirectional': True}, "cpt.objective='next_token' does not fit"),
    ({'cpt.objective': 'masked'}, "cpt.objective='masked' does not fit"),
    (
      {**MASKED, 'teacher.scorer': 'query_likelihood', 'teacher.template': QUERY_LAST},
      'a bidirectional model sees the query',
    ),
    ({**MASKED, 'stages': "('prepare','generate','score')"}, 'writes no text'),
    ({**MASKED, 'stages': "('prepare','cpt','score')", 'score.method': 'yes_no'}, 'take cpt out'),
  ],
)
def test_what_does_not_fit_is_refused(changes, message):
  with pytest.raises(UserError, match=message):
    tiny_config(**changes)


def test_a_folder_that_is_bidirectional_gives_no_likelihood(folder, tmp_path):
  net = network.from_hf(folder, head='both', bidirectional=True)
  hf.save(tmp_path / 'out', net, net.init(jax.random.key(0)), tokenizer_folder=folder)
  made = model_settings(model=str(tmp_path / 'out'), max_len=40, row_len=40)
  made.update({'scorer': 'query_likelihood', 'template': QUERY_LAST})
  with pytest.raises(UserError, match='is bidirectional, so it sees the query'):
    load.open_model(made)
  made.scorer = 'score_head'
  assert not load.open_model(made).network.causal


def test_gemma_is_refused_before_anything_is_trained(tmp_path):
  import transformers

  sizes = {'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2}
  made = transformers.GemmaConfig(**sizes, num_attention_heads=4, num_key_value_heads=1, head_dim=8)
  (tmp_path / 'config.json').write_text(json.dumps(made.to_dict()))
  assert network.from_hf(tmp_path).causal
  with pytest.raises(UserError, match='bidirectional is not supported for gemma'):
    network.from_hf(tmp_path, bidirectional=True)


@pytest.mark.parametrize('trainable, fits', [('lora', False), ('lora|score', True), ('.*', True)])
def test_a_head_that_would_stay_random_is_an_error(folder, trainable, fits):
  config = tiny_config(**{'teacher.lora_rank': 2, 'sft.trainable': trainable})
  config.teacher.model = str(folder)
  check = functools.partial(roles.check_head, config, 'sft', 'teacher')
  if fits:
    check(load.open_model(config.teacher))
  else:
    with pytest.raises(UserError, match=r"sft.trainable='lora': leaves .*; write 'lora\|score'"):
      check(load.open_model(config.teacher))


def test_a_decoder_is_no_student(folder):
  with pytest.raises(UserError, match='is a decoder, and a student is an encoder'):
    roles.check_student(load.open_model(model_settings(model=str(folder), max_len=40, row_len=40)))


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'teacher.ready': True, 'teacher.pooling': 'mean'}, 'would change a ready reranker'),
    (
      {
        'teacher.scorer': 'query_likelihood',
        'teacher.template': QUERY_LAST,
        'teacher.pooling': 'mean',
      },
      'is for a score head',
    ),
    ({**MASKED, 'cpt.mask_share': 0.9}, 'cpt.mask_share'),
  ],
)
def test_settings_without_effect_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    tiny_config(**changes)
