"""The decoder against transformers, packed rows, causality, and configs it must refuse."""

import dataclasses

import hf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.models import families, hf, network, rope, weights

KINDS = ('mistral', 'llama', 'qwen2', 'qwen3', 'llama3', 'linear', 'gemma', 'gemma3')
KINDS += ('smollm3', 'ministral', 'ministral3', 'phi3')


def _tiny(kind='mistral', **options):
  # Larger than the usual start, so that attention is far from uniform and every path matters.
  return reference.network(kind, 6.0, head='lm', **options)


@pytest.mark.parametrize('kind', KINDS)
def test_hidden_states_and_logits_match_transformers(kind, tmp_path):
  torch = pytest.importorskip('torch')
  theirs = reference.model(kind, 'CausalLM')
  theirs.save_pretrained(tmp_path)
  model = network.from_hf(tmp_path, head='lm')
  variables = hf.load(tmp_path, model, jax.random.key(0))
  batch = reference.rows(reference.sequences((12, 7, 1)))
  real = batch['segments_BT'] > 0
  with torch.no_grad():
    inputs = reference.torch_inputs(batch)
    hidden = theirs.model(**inputs).last_hidden_state.numpy()[real]
    logits = theirs(**inputs).logits.numpy()[real]
  ours = jax.jit(model.hidden)(variables, batch)[real]
  reference.assert_close(ours, hidden)
  reference.assert_close(model.module.apply(variables, ours, method='logits'), logits)


def test_the_window_is_shorter_than_the_parity_sequences_and_matters():
  model, variables = _tiny()
  assert {kind.window for kind in model.config.kinds} == {4}
  batch = reference.rows(reference.sequences((12,)))
  full = dataclasses.replace(model, config=dataclasses.replace(model.config, kinds=()))
  ours, theirs = (jax.jit(m.hidden)(variables, batch) for m in (model, full))
  apart = np.abs(ours - theirs)[0].max(-1)
  assert apart[:4].max() < 1e-5 < 1e-2 < apart[4:].min()


def test_packed_rows_equal_separate_rows():
  model, variables = _tiny()
  ids = reference.sequences((9, 3, 6))
  packed, starts = reference.packed(ids, 24)
  forward = jax.jit(model.hidden)
  together = forward(variables, packed)[0]
  for tokens, start in zip(ids, starts, strict=True):
    alone = forward(variables, reference.rows([tokens], length=24))[0, : len(tokens)]
    np.testing.assert_allclose(together[start : start + len(tokens)], alone, atol=2e-5)


def test_a_token_reaches_later_positions_of_its_own_segment_only():
  model, variables = _tiny()
  packed, starts = reference.packed(reference.sequences((6, 6)), 14)
  table = variables['params']['embed']['embedding']
  # A row of the table for this token alone, so that its gradient is this position's.
  packed['tokens_BT'][0, starts[1] + 2] = 0

  def size(table):
    return jnp.abs(
      model.hidden({'params': {**variables['params'], 'embed': {'embedding': table}}}, packed)
    ).sum(axis=(0, 2))

  packed['tokens_BT'][0, 12:] = 1
  reached = np.abs(jax.jit(jax.jacobian(size))(table)[:, 0]).sum(-1) > 0
  assert reached.tolist() == [False] * 8 + [True] * 4 + [False] * 2


@pytest.mark.parametrize('kind', ['llama', 'gemma3'])
def test_remat_and_unrolled_layers_change_nothing_but_cost(kind):
  model, variables = _tiny(kind, lora_rank=2)
  batch = reference.rows(reference.sequences((8, 5)))

  def value_and_grad(**options):
    other = dataclasses.replace(model, **options)
    return jax.jit(jax.value_and_grad(lambda v: jnp.sum(other.hidden(v, batch)[:, -1])))(variables)

  expected = value_and_grad()
  for options in ({'remat': 'full'}, {'remat': 'full', 'scan': False}):
    jax.tree.map(reference.assert_close, value_and_grad(**options), expected)
  with pytest.raises(UserError, match="remat 'some'"):
    value_and_grad(remat='some')


@pytest.mark.parametrize('precision', ['bfloat16', 'bfloat16_dots'])
def test_low_precision_stays_near_fp32(precision):
  model, variables = _tiny()
  batch = reference.rows(reference.sequences((12, 7)))
  low = jax.jit(dataclasses.replace(model, precision=precision).hidden)(variables, batch)
  assert low.dtype == (jnp.bfloat16 if precision == 'bfloat16' else jnp.float32)
  full = jax.jit(model.hidden)(variables, batch)
  apart = jnp.linalg.norm(low.astype(jnp.float32) - full) / jnp.linalg.norm(full)
  assert 1e-5 < apart < 0.05


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'model_type': 'gpt2'}, "model_type 'gpt2'"),
    ({'hidden_act': 'gelu'}, "activation 'gelu' is not supported: decoders have one of silu, gelu"),
    ({'rope_parameters': {'rope_type': 'longrope', 'rope_theta': 1e4}}, "rope scaling 'longrope'"),
    ({'rope_scaling': {'type': 'linear'}}, "rope scaling 'linear': factor is None"),
    ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}}, 'low_freq_factor, .* is missing'),
    ({'mlp_bias': True}, 'mlp_bias'),
  ],
)
def test_configs_that_would_compute_something_else_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    families.from_hf(reference.config('llama').to_dict() | changes)


def test_config_survives_the_trip_and_old_keys_are_read():
  for kind in KINDS:
    config = families.from_hf(reference.config(kind).to_dict())
    family = families.find(config.model_type)
    assert family.from_hf(family.to_hf(config)) == config
    assert hash(config) == hash(dataclasses.replace(config))
  old = reference.config('mistral').to_dict() | {'rope_theta': 7.0, 'rope_scaling': None}
  del old['rope_parameters'], old['head_dim']
  assert families.from_hf(old).kinds[0].rope.theta == 7.0
  assert families.from_hf(old).head_dim == 8


@pytest.mark.parametrize(
  'scaling',
  [
    {'rope_type': 'default'},
    {'rope_type': 'linear', 'factor': 8.0},
    {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32768},
    {
      'rope_type': 'yarn', 'factor': 16.0, 'original_max_position_embeddings': 16384,
      'mscale': 1.0, 'mscale_all_dim': 0.7, 'beta_fast': 20.0, 'beta_slow': 2.0,
    },
    # Llama 3.1 and 3.2, on 64 frequencies.
    *({
      'rope_type': 'llama3', 'factor': factor, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
      'original_max_position_embeddings': 8192,
    } for factor in (8.0, 32.0)),
  ],
)  # fmt: skip
def test_frequencies_are_those_of_transformers(scaling):
  pytest.importorskip('torch')
  import transformers
  from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

  keys = scaling | {'rope_theta': 500000.0}
  theirs = transformers.LlamaConfig(head_dim=128, rope_parameters=keys)
  ours = rope.from_hf(theirs.to_dict()).frequencies(128)
  module = LlamaRotaryEmbedding(theirs)
  expected = module.inv_freq.numpy()
  assert rope.from_hf(theirs.to_dict()).amplitude == pytest.approx(module.attention_scaling)
  # At most the last bit: 500 positions later it is 3e-5 radians.
  np.testing.assert_allclose(ours, expected, rtol=1.2e-7)
  # Files of before transformers 5 have theta at the top and the rest in rope_scaling.
  old = {'rope_theta': 500000.0, 'rope_scaling': scaling}
  assert rope.from_hf(old) == rope.from_hf(theirs.to_dict())


def test_qwen3_has_heads_of_128_unless_told():
  config = reference.config('qwen3').to_dict()
  assert families.from_hf(config).head_dim == 12
  assert families.from_hf(config | {'head_dim': None}).head_dim == 128


def test_ministral3_reads_no_texts_behind_its_original_context():
  """Its queries grow there."""
  config = reference.config('ministral3').to_dict()
  assert families.from_hf(config).max_positions == 400
  whole = {'model_type': 'mistral3', 'text_config': config}
  assert families.from_hf(whole) == families.from_hf(config)


def test_every_fourth_layer_of_smollm3_has_no_rotary_positions():
  config = reference.config('smollm3').to_dict() | {'use_sliding_window': False}
  del config['no_rope_layers'], config['layer_types']
  rotates = [kind.rope is not None for kind in families.from_hf(config).kinds]
  assert rotates == [True, True, True, False, True]
  student = families.find('smollm3').take(families.from_hf(config), [3])
  assert families.from_hf(families.find('smollm3').to_hf(student)) == student


def test_qwen2_uses_its_window_only_where_told():
  config = reference.config('qwen2').to_dict()
  old = config | {'layer_types': None}  # before transformers 5

  def windows(**changes):
    return [kind.window for kind in families.from_hf(old | changes).kinds]

  assert [kind.window for kind in families.from_hf(config).kinds] == [5, 5, 5]
  assert windows() == [5, 5, 5]
  assert windows(use_sliding_window=False) == [None] * 3
  assert windows(max_window_layers=3) == [None] * 3
  assert windows(max_window_layers=1) == [None, 5, 5]
  with pytest.raises(UserError, match='layer_types has chunked_attention: only full_attention'):
    families.from_hf(config | {'layer_types': ['chunked_attention'] * 3})


def test_a_student_keeps_the_kinds_of_its_layers():
  config = families.from_hf(reference.config('local_global').to_dict())
  kept = families.find('qwen2').take(config, [2, 0])
  assert [kind.window for kind in kept.kinds] == [5, None]
  assert families.find('qwen2').to_hf(kept)['layer_types'] == [
    'sliding_attention',
    'full_attention',
  ]


def test_smollm2_matches_transformers():
  torch = pytest.importorskip('torch')
  try:
    folder = weights.find('smollm2-135m')
  except UserError as error:
    pytest.skip(str(error))
  import transformers

  keep = [0, 1, 28, 29]  # Real weights, a tenth of the time.
  model = network.from_hf(folder, head='lm', layers=keep)
  variables = hf.load(folder, model, jax.random.key(0), layers=keep)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  theirs.model.layers = torch.nn.ModuleList(theirs.model.layers[i] for i in keep)
  theirs.config.num_hidden_layers = len(keep)
  batch = reference.rows(reference.sequences((30, 11), vocab=49152))
  real = batch['segments_BT'] > 0
  with torch.no_grad():
    logits = theirs(**reference.torch_inputs(batch), use_cache=False).logits.numpy()[real]
  hidden = jax.jit(model.hidden)(variables, batch)[real]
  reference.assert_close(model.module.apply(variables, hidden, method='logits'), logits)
