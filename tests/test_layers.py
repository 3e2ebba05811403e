"""Dots under each precision, LoRA, norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.models import layers


def _random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('precision', ['bfloat16', 'bfloat16_dots'])
def test_low_precision_dots_sum_in_fp32_in_both_directions(precision):
  # 4096 and 100 ones are exact in bf16, their sum 4196 is not, and 4096 + 1 is lost each time.
  column = jnp.array([4096.0] + [1.0] * 100)
  x = jnp.stack([column, column])
  out = layers.contract('bi,io->bo', x, jnp.ones((101, 1)), precision, jnp.float32)
  assert out.dtype == jnp.float32
  np.testing.assert_array_equal(out, 4196.0)
  rows = column[:, None]
  grad = jax.grad(
    lambda w: jnp.sum(layers.contract('bi,io->bo', rows, w, precision).astype(jnp.float32))
  )(jnp.ones((1, 1)))
  np.testing.assert_array_equal(grad, 4196.0)


@pytest.mark.parametrize(
  'eqn, x, y',
  [
    ('bti,io->bto', (2, 5, 8), (8, 6)),
    ('bti,io->bto', (2, 5, 64), (64, 2)),
    ('pd,vd->pv', (4, 8), (11, 8)),
    ('btkge,bske->bkgts', (2, 3, 2, 2, 8), (2, 5, 2, 8)),
    ('bkgts,bske->btkge', (2, 2, 2, 3, 5), (2, 5, 2, 8)),
  ],
)
def test_own_gradients_of_dots_are_close_to_fp32(eqn, x, y):
  x, y = _random(*x), _random(*y, seed=1)

  def grads(precision):
    def loss(x, y):
      return jnp.sum(jnp.sin(layers.contract(eqn, x, y, precision)))

    return jax.grad(loss, argnums=(0, 1))(x, y)

  for low, full in zip(grads('bfloat16_dots'), grads('float32'), strict=True):
    assert low.dtype == jnp.float32 and low.shape == full.shape
    assert jnp.linalg.norm(low - full) < 0.02 * jnp.linalg.norm(full)


def test_precision_sets_the_activation_dtype_and_unknown_words_are_refused():
  x, y = _random(2, 8), _random(8, 3)
  dtypes = {p: layers.contract('bi,io->bo', x, y, p).dtype.name for p in layers.ACTIVATIONS}
  assert dtypes == {'float32': 'float32', 'bfloat16': 'bfloat16', 'bfloat16_dots': 'float32'}
  with pytest.raises(UserError, match="'fp8' is unknown"):
    layers.activation_dtype('fp8')


def test_lora_starts_as_the_base_and_lives_in_its_own_collection():
  x, key = _random(4, 8), jax.random.key(0)
  base, lora = layers.Linear(6), layers.Linear(6, lora_rank=2, lora_alpha=8.0)
  variables = lora.init(key, x)
  assert jax.tree.structure(base.init(key, x)['params']) == jax.tree.structure(variables['params'])
  np.testing.assert_array_equal(
    base.apply({'params': variables['params']}, x), lora.apply(variables, x)
  )
  a, b = variables['lora']['lora_a'], _random(2, 6, seed=3)
  assert np.any(a) and a.shape == (8, 2)
  out = lora.apply({'params': variables['params'], 'lora': {'lora_a': a, 'lora_b': b}}, x)
  expected = x @ (variables['params']['kernel'] + 4.0 * a @ b)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_an_id_outside_the_table_gives_nan():
  embed = layers.Embed(5, 3)
  variables = embed.init(jax.random.key(0), jnp.array([0]))
  out = embed.apply(variables, jnp.array([4, 5]))
  assert np.isfinite(out[0]).all() and np.isnan(out[1]).all()


@pytest.mark.parametrize('norm', [layers.RMSNorm, layers.LayerNorm])
def test_norms_compute_in_fp32_whatever_the_input(norm):
  x = (_random(3, 64) + 30.0).astype(jnp.bfloat16)
  module = norm(1e-6)
  out = module.apply(module.init(jax.random.key(0), x), x)
  wide = np.asarray(x, np.float64)
  wide = wide - wide.mean(-1, keepdims=True) if norm is layers.LayerNorm else wide
  expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-8)


def test_constrain_needs_a_mesh_to_do_anything():
  x = _random(4, 2)
  assert 'sharding_constraint' not in str(jax.make_jaxpr(layers.constrain)(x))
  auto = (jax.sharding.AxisType.Auto,) * 3
  with jax.set_mesh(jax.make_mesh((1, 1, 1), ('data', 'fsdp', 'model'), axis_types=auto)):
    text = str(jax.make_jaxpr(layers.constrain)(x))
  assert 'sharding_constraint' in text and "('data', 'fsdp')" in text
