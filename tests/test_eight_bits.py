"""Products of 8-bit numbers, and networks whose kernels are in 8 bits."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hf_reference as reference
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import eight_bits, families, generate, tree
from disranker_jax.models.eight_bits import FORMATS
from disranker_jax.models.network import Network

formats = pytest.mark.parametrize('name', FORMATS)


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def steps_of(x, axis, name):
  """(numbers in float64, scale) as the definition has them: the largest value is the last step."""
  x = np.asarray(x, np.float64)
  scale = np.maximum(np.abs(x).max(axis, keepdims=True), 1e-30) / FORMATS[name].largest
  if name == 'int8':
    return np.rint(x / scale), scale
  return (x / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64), scale


def kernel_of(w, name):
  """(numbers, scale) of one kernel [in, out], for `product`."""
  small, scale = eight_bits.kernels(jnp.asarray(w)[None], FORMATS[name])
  return small[0], scale[0]


# The arithmetic


@formats
@pytest.mark.parametrize('axis', [-1, -2])
def test_numbers_are_the_nearest_steps_of_the_largest_value(name, axis):
  x = random(3, 40, 24) * np.exp(random(3, 40, 24, seed=1))
  small, scale = eight_bits.rounded(jnp.asarray(x), FORMATS[name], axis)
  wanted, wanted_scale = steps_of(x, axis, name)
  assert small.dtype == FORMATS[name].dtype and scale.dtype == jnp.float32
  np.testing.assert_array_equal(np.asarray(small, np.float64), wanted)
  np.testing.assert_allclose(scale, wanted_scale, rtol=1e-6)
  assert np.abs(wanted).max(axis).min() == FORMATS[name].largest


@pytest.mark.parametrize('size, block', [(256, 128), (48, 16), (7, 1), (6, 2)])
def test_mixing_is_an_orthogonal_matrix_in_blocks_and_spreads_outliers(size, block):
  x, w = random(5, size), random(size, 3, seed=1)
  exact = jax.lax.Precision.HIGHEST
  left, right = eight_bits.mixed(jnp.asarray(x), -1, exact), eight_bits.mixed(w, -2, exact)
  np.testing.assert_allclose(left @ right, block * (x @ w), rtol=1e-3, atol=1e-3 * block)
  one = np.zeros((1, size), np.float32)
  one[0, -1] = 3.0  # in the last block only, all of it alike
  found = np.asarray(eight_bits.mixed(jnp.asarray(one), -1))[0]
  np.testing.assert_array_equal(np.abs(found), [0.0] * (size - block) + [3.0] * block)


@formats
@pytest.mark.parametrize('rows', [(6,), (2, 5)])
def test_a_product_is_that_of_the_steps_summed_exactly(name, rows):
  x, w = random(*rows, 320), random(320, 8, seed=1) * np.float32(0.02)
  kernel, scale = kernel_of(w, name)
  found = jax.jit(eight_bits.product, static_argnums=3)(x, kernel, scale, 'float32')
  if name == 'int8':
    mixed = eight_bits.mixed(jnp.asarray(x), -1)
    other = eight_bits.mixed(jnp.asarray(w), 0, jax.lax.Precision.HIGHEST) / 64
    (xs, of_token), (ws, of_channel) = steps_of(mixed, -1, name), steps_of(other, -2, name)
  else:
    (xs, of_token), (ws, of_channel) = steps_of(x, -1, name), steps_of(w, -2, name)
  wanted = (xs @ ws) * of_token * of_channel
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
  assert np.abs(found - x @ w).max() < 0.05 * np.abs(x @ w).max()


def test_an_outlier_costs_the_other_values_little():
  x, w = random(64, 256), random(256, 16, seed=1)
  x[:, 7] *= 200
  exact = x @ w
  found = eight_bits.product(jnp.asarray(x), *kernel_of(w, 'int8'), 'float32')
  plain = eight_bits.rounded(jnp.asarray(x), FORMATS['int8'], -1)
  alone = (np.asarray(plain[0], np.float32) * plain[1]) @ w  # the kernel in full precision
  assert np.abs(found - exact).mean() < 0.5 * np.abs(alone - exact).mean()


def test_integer_sums_do_not_overflow_or_round():
  x = jnp.ones((1, 40_000))
  ones, unit = jnp.ones((40_000, 1), jnp.int8), jnp.ones((1, 1))
  found = eight_bits.product(x, 127 * ones, unit / 127, 'float32')
  # The mixed ones are 64 in every 64th place: 625 of them, which are 127 steps each.
  assert found.item() == pytest.approx(64 * 625, rel=1e-6)


@formats
def test_a_channel_and_a_token_of_zeros_give_zeros_and_change_no_others(name):
  x, w = random(4, 16), random(16, 6, seed=1)
  empty_x, empty_w = x.copy(), w.copy()
  empty_x[2], empty_w[:, 3] = 0, 0

  def product(x, w):
    return np.asarray(eight_bits.product(jnp.asarray(x), *kernel_of(w, name), 'float32'))

  whole, found = product(x, w), product(empty_x, empty_w)
  assert not found[2].any() and not found[:, 3].any()
  others = np.ix_([0, 1, 3], [0, 1, 2, 4, 5])
  np.testing.assert_array_equal(found[others], whole[others])


@formats
def test_each_channel_and_each_token_has_a_scale_of_its_own(name):
  x, w = random(4, 64), random(64, 6, seed=1)
  kernel, scale = kernel_of(w, name)
  large_w, large_x = w.copy(), x.copy()
  large_w[:, 0] *= 1000
  large_x[0] *= 1000
  large, large_scale = kernel_of(large_w, name)
  np.testing.assert_array_equal(large[:, 1:], kernel[:, 1:])
  plain = eight_bits.product(jnp.asarray(x), kernel, scale, 'float32')
  found = eight_bits.product(jnp.asarray(large_x), large, large_scale, 'float32')
  np.testing.assert_array_equal(found[1:, 1:], plain[1:, 1:])


@formats
@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden(name, broken):
  x, w = random(4, 16), random(16, 6, seed=1)
  x[1, 5] = broken
  kernel, scale = kernel_of(w, name)
  found = np.asarray(eight_bits.product(jnp.asarray(x), kernel, scale, 'float32'))
  assert not np.isfinite(found[1]).any() and np.isfinite(found[[0, 2, 3]]).all()
  w[3, 2] = broken
  kernel, scale = kernel_of(w, name)
  found = np.asarray(eight_bits.product(jnp.asarray(random(4, 16)), kernel, scale, 'float32'))
  assert not np.isfinite(found[:, 2]).any() and np.isfinite(np.delete(found, 2, 1)).all()


# Networks


def network(kind, **options):
  """A random network and its variables, of which no kernel is small."""
  if kind != 'modernbert':
    return reference.network(kind, 6.0, **options)
  settings = {
    'model_type': kind, 'vocab_size': 61, 'hidden_size': 32, 'intermediate_size': 48,
    'num_hidden_layers': 3, 'num_attention_heads': 4, 'local_attention': 8,
  }  # fmt: skip
  import transformers

  config = transformers.AutoConfig.for_model(**settings).to_dict()
  model = Network(families.from_hf(config), **options)
  variables = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
  return model, jax.tree.map(lambda x: x * np.float32(6) if x.ndim > 1 else x, variables)


def batches():
  """The same texts in one row, and in a row each."""
  ids = reference.sequences((12, 5, 9))
  packed, starts = reference.packed(ids, 28)
  padded = reference.rows(ids)
  mask = {'mask_GN': np.ones((1, 3), bool)}
  at = lambda index: mask | {'index_AX': np.array([index])}  # noqa: E731
  return packed | at(starts), padded | at([0, 12, 24])


def scores(model, variables, batch):
  return np.asarray(jax.jit(model.scores)(variables, batch))[0]


# One of each type.
KINDS = [k for k in reference.DECODERS if k not in ('llama3', 'linear', 'local_global')]


@pytest.mark.parametrize('kind', [*KINDS, 'modernbert'])
def test_a_network_in_8_bits_scores_nearly_as_before_packed_or_alone_scanned_or_not(kind):
  model, variables = network(kind)
  packed, alone = batches()
  full = scores(model, variables, packed)
  small = eight_bits.quantised(variables, 'int8')
  found = scores(model, small, packed)
  spread = np.abs(full).max()
  assert 1e-6 * spread < np.abs(found - full).max() < 0.2 * spread
  # A sum in another order can round an activation to the next step.
  unrolled = scores(dataclasses.replace(model, scan=False), small, alone)
  np.testing.assert_allclose(unrolled, found, atol=0.02 * spread)


@formats
def test_only_the_kernels_of_the_layers_are_rounded_and_the_old_ones_are_deleted(name):
  _, variables = network('mistral', head='both', lora_rank=2)
  given = jax.tree.map(jnp.asarray, variables)
  shapes = eight_bits.quantised(jax.eval_shape(lambda: given), name)
  found = eight_bits.quantised(given, name)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
    lambda x: (x.shape, x.dtype), shapes
  )
  before, flat = tree.flatten(variables), tree.flatten(found)
  rounded = {path for path, x in flat.items() if x.dtype == FORMATS[name].dtype}
  assert rounded == {
    f'params/blocks/{k}/kernel' for k in ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
  }
  for path, old in before.items():
    assert tree.flatten(given)[path].is_deleted() == (path in rounded)
    if path in rounded:
      scale = flat[path.replace('params', 'scales').replace('kernel', 'scale')]
      assert scale.shape == (3, 1, old.shape[-1])
      near = np.asarray(flat[path], np.float32) * scale
      if name == 'int8':
        near = eight_bits.mixed(near, -2, jax.lax.Precision.HIGHEST)  # twice is the identity
      np.testing.assert_allclose(near, old, atol=np.abs(old).max() / 20)
    else:
      np.testing.assert_array_equal(flat[path], old)
  assert eight_bits.quantised(found, '') is found


def test_adapters_stay_beside_kernels_of_8_bits():
  model, variables = network('mistral', lora_rank=2)
  base = dataclasses.replace(model, lora_rank=0)
  packed, _ = batches()
  lora = jax.tree.map(lambda x: x + random(*x.shape) * np.float32(0.1), variables['lora'])
  small = eight_bits.quantised({'params': variables['params']}, 'int8')
  plain = scores(base, small, packed)
  tuned = scores(model, small | {'lora': lora}, packed)
  full = scores(model, variables | {'lora': lora}, packed)
  change = full - scores(base, {'params': variables['params']}, packed)
  assert np.abs(change).max() > 0.1
  np.testing.assert_allclose(tuned - plain, change, atol=0.2 * np.abs(change).max())


@formats
@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'bfloat16_dots'])
def test_activations_have_the_dtype_of_the_precision(name, precision):
  model, variables = network('mistral', precision=precision)
  packed, _ = batches()
  small = eight_bits.quantised(variables, name)
  hidden = jax.jit(model.hidden)(small, packed)
  assert hidden.dtype == (jnp.bfloat16 if precision == 'bfloat16' else jnp.float32)
  full = np.asarray(jax.jit(model.hidden)(variables, packed), np.float32)
  most = {'int8': 0.2, 'fp8': 0.5}[name]  # fp8 has 4 bits of each number, int8 up to 7
  assert np.abs(np.asarray(hidden, np.float32) - full).mean() < most * np.abs(full).mean()


def test_text_from_a_cache_is_that_of_the_full_forward_repeated():
  model, variables = reference.network('mistral', 6.0, head='lm')
  small = eight_bits.quantised(variables, 'int8')
  [prompt] = reference.sequences((5,))
  [found] = generate.generate(model, small, [prompt], max_new=6, eos_id=-1)
  ids, forward = list(prompt), jax.jit(model.hidden)
  for _ in range(6):
    hidden = forward(small, reference.rows([ids], length=20))[:, len(ids) - 1]
    ids.append(int(jnp.argmax(model.module.apply(small, hidden, method='logits'))))
  assert found == ids[5:]


# Several devices


def on_eight_devices(file: Path) -> None:
  """Scores on a mesh and on one device, and where the kernels lie; run in a subprocess."""
  model, variables = reference.network('mistral', 6.0)
  _, padded = batches()
  batch = jax.tree.map(lambda x: np.concatenate([x] * 4) if x.ndim == 2 else x, padded)
  batch |= {'index_AX': np.arange(12)[None] * 12, 'mask_GN': np.ones((1, 12), bool)}
  alone = scores(model, eight_bits.quantised(variables, 'int8'), batch)
  found = {'alone': alone.tolist(), 'scores': {}, 'specs': {}}
  for sizes in ((2, 2, 2), (1, 8, 1), (1, 1, 8), (8, 1, 1)):
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))
    placed = sharding.put(variables, mesh)
    before = {path: x.sharding for path, x in tree.flatten(placed).items()}
    small = eight_bits.quantised(placed, 'int8')
    wanted = tree.flatten(sharding.shardings(small, mesh))
    name = 'x'.join(map(str, sizes))
    found['specs'][name] = [
      path
      for path, x in tree.flatten(small).items()
      if not x.sharding.is_equivalent_to(wanted[path], x.ndim)
      or (path in before and not x.sharding.is_equivalent_to(before[path], x.ndim))
    ]
    with jax.set_mesh(mesh):
      found['scores'][name] = scores(model, small, batch).tolist()
  file.write_text(json.dumps(found))


def test_a_mesh_scores_as_one_device_and_shards_kernels_as_before(tmp_path):
  program = (
    'import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import conftest; '
    'import test_eight_bits; test_eight_bits.on_eight_devices(Path(sys.argv[2]))'
  )
  flags = {'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
  file = tmp_path / 'found.json'
  command = [sys.executable, '-c', program, str(Path(__file__).parent), str(file)]
  done = subprocess.run(
    command, env=os.environ | flags, capture_output=True, text=True, timeout=600
  )
  assert file.exists(), done.stderr[-1500:]
  found = json.loads(file.read_text())
  assert len(found['specs']) == 4 and not any(found['specs'].values())
  for scored in found['scores'].values():
    np.testing.assert_allclose(scored, found['alone'], atol=1e-4)


# Devices that cannot


def device(platform, kind, capability=None):
  return SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)


@pytest.mark.parametrize(
  'found, needs',
  [
    (device('gpu', 'NVIDIA A100', '8.0'), 'compute capability 8.9'),
    (device('gpu', 'AMD Instinct MI300X', 'gfx942'), 'compute capability 8.9'),
    (device('tpu', 'TPU v6 lite'), 'TPU v7'),
    (device('tpu', 'TPU v5p'), 'TPU v7'),
  ],
)
def test_a_device_without_fp8_is_refused_with_what_to_set(found, needs):
  check = functools.partial(eight_bits.check_device, 'config.score.quantize')
  with pytest.raises(UserError) as caught:
    check('fp8', found)
  message = str(caught.value)
  assert message.startswith("config.score.quantize='fp8': ") and found.device_kind in message
  assert needs in message and message.endswith("set it to 'int8'")
  check('int8', found)
  check('', found)


@pytest.mark.parametrize(
  'found',
  [
    device('cpu', 'cpu'),
    device('gpu', 'NVIDIA L4', '8.9'),
    device('gpu', 'NVIDIA H100', '9.0'),
    device('gpu', 'NVIDIA B200', '10.0'),
    device('tpu', 'TPU7x'),
  ],
)
def test_a_device_with_fp8_is_accepted(found):
  eight_bits.check_device('config.score.quantize', 'fp8', found)
