"""Gemma 1 and 3: configs of all versions, scaled embeddings, norms, and what they must refuse."""

import dataclasses
import json

import hf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from disranker_jax.errors import UserError
from disranker_jax.models import families, hf, kinds, layers, load, network, rope, tiny


def _gemma3(**changes):
  return reference.config('gemma3').to_dict() | changes


def test_gemma3_reads_the_kinds_of_its_layers_from_files_of_all_versions():
  local, full = kinds.Kind(9, rope.Rope(300.0)), kinds.Kind(None, rope.Rope(5000.0, 'linear', 8.0))
  expected = (local,) * 5 + (full, local)
  assert families.from_hf(_gemma3()).kinds == expected
  old = _gemma3(
    rope_theta=5000.0,
    rope_local_base_freq=300.0,
    rope_scaling={'rope_type': 'linear', 'factor': 8.0},
    sliding_window_pattern=6,
  )
  del old['layer_types'], old['rope_parameters']
  assert families.from_hf(old).kinds == expected
  assert [k.window for k in families.from_hf(old | {'sliding_window_pattern': 3}).kinds] == [
    *(9, 9, None) * 2,
    9,
  ]
  # The defaults of Gemma 3: a rotation of each kind's own.
  for name in ('rope_theta', 'rope_local_base_freq', 'rope_scaling'):
    del old[name]
  thetas = [kind.rope.theta for kind in families.from_hf(old).kinds]
  assert thetas == [1e4] * 5 + [1e6, 1e4]


def test_a_student_of_gemma3_keeps_windows_and_rotations_of_its_layers():
  family = families.find('gemma3_text')
  config = families.from_hf(_gemma3())
  for keep in ([5, 0], [5], [0, 6]):
    kept = family.take(config, keep)
    assert kept.kinds == tuple(config.kinds[i] for i in keep)
    assert family.from_hf(family.to_hf(kept)) == kept


@pytest.mark.parametrize(
  'kind, changes, message',
  [
    ('gemma3', {'final_logit_softcapping': 30.0}, 'final_logit_softcapping 30.0 is not supported'),
    ('gemma3', {'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping 50.0 is not supported'),
    ('gemma3', {'use_bidirectional_attention': True}, 'use_bidirectional_attention true'),
    ('gemma', {'use_bidirectional_attention': True}, 'use_bidirectional_attention true'),
    ('gemma', {'is_causal': False}, 'is_causal false is not supported for Gemma'),
    ('gemma3', {'is_causal': False}, 'is_causal false is not supported for Gemma3'),
    ('gemma3', {'hidden_activation': 'gelu'}, "activation 'gelu' is not supported"),
    ('gemma3', {'sliding_window': None}, 'sliding_window is None'),
    ('gemma', {'hidden_act': 'relu'}, "activation 'relu' is not supported"),
  ],
)
def test_gemmas_that_would_compute_something_else_are_refused(kind, changes, message):
  with pytest.raises(UserError, match=message):
    families.from_hf(reference.config(kind).to_dict() | changes)


def test_gemmas_gelu_is_the_tanh_form_whatever_its_first_files_say():
  config = reference.config('gemma').to_dict() | {'hidden_act': 'gelu'}
  assert families.from_hf(config).activation == 'gelu_pytorch_tanh'
  # Of Gemma 3 only the other key counts.
  assert families.from_hf(_gemma3(hidden_act='silu')).activation == 'gelu_pytorch_tanh'


@pytest.mark.parametrize('precision, factor', [('bfloat16', 25.25), ('float32', 640**0.5)])
def test_embeddings_are_scaled_in_the_type_of_activations(precision, factor):
  config = dataclasses.replace(families.from_hf(_gemma3()), width=640, embed_scale=640**0.5)
  model = network.Network(config, precision=precision, head='lm')
  variables = jax.jit(model.init)(jax.random.key(0))
  tokens = jnp.array([[3, 60]])
  ours = model.module.apply(variables, tokens, method='embedded')
  table = variables['params']['embed']['embedding'].astype(ours.dtype)
  np.testing.assert_array_equal(ours[0], table[tokens[0]] * jnp.asarray(factor, ours.dtype))


def test_a_gemma_in_bfloat16_keeps_what_its_norms_hold():
  """In bf16 1 + 2^-10 is 1, so that the sum must not be rounded."""
  x = jnp.array([[1.0, -1.0]])
  scale = jnp.full(2, 2**-10, jnp.bfloat16)
  out = layers.RMSNorm(0.0, 1.0).apply({'params': {'scale': scale}}, x)
  np.testing.assert_array_equal(out, x * (1 + 2**-10))


def test_the_text_model_of_one_that_reads_images_is_loaded(tmp_path):
  theirs = reference.config('gemma3').to_dict()
  text = {k: v for k, v in theirs.items() if k not in ('eos_token_id', 'model_type')}
  images = {'model_type': 'siglip_vision_model', 'num_hidden_layers': 27}
  whole = {'model_type': 'gemma3', 'text_config': text, 'vision_config': images}
  whole |= {'eos_token_id': [1, 106], 'architectures': ['Gemma3ForConditionalGeneration']}
  model, variables = reference.network('gemma3', head='lm')
  hf.save(tmp_path, model, variables)
  tensors = load_file(tmp_path / 'model.safetensors')
  images = {
    'vision_tower.vision_model.head.weight',
    'multi_modal_projector.mm_soft_emb_norm.weight',
  }
  save_file(tensors | dict.fromkeys(images, np.zeros(3)), tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text(json.dumps(whole))
  read = network.from_hf(tmp_path, head='lm')
  assert (read.config.model_type, read.config.eos_id) == ('gemma3_text', (1, 106))
  assert read.config.kinds == model.config.kinds
  found = hf.load(tmp_path, read, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, found, variables)
  assert families.from_hf(whole) == read.config
  whole['text_config']['num_hidden_layers'] = 10**9
  (tmp_path / 'config.json').write_text(json.dumps(whole))
  with pytest.raises(UserError, match='num_hidden_layers is 1000000000, more than'):
    network.from_hf(tmp_path)


def test_gemma_needs_a_token_for_the_start(tmp_path):
  tiny.write_tokenizer(tmp_path, bert=False)
  tokenizer = load.open_tokenizer(tmp_path)
  family = families.find('gemma3_text')
  prompt = family.prompt(tokenizer, 20, 8, template='{query} {title} {summary}')
  assert prompt.encode_texts('a', ['b'])[0].ids[0] == tokenizer.bos_token_id
  settings = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  del settings['bos_token']
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  with pytest.raises(UserError, match='tokenizer: has no bos_token'):
    family.prompt(load.open_tokenizer(tmp_path), 20, 8, template='{query} {title} {summary}')
