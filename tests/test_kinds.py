"""Layers of different kinds: windows, rotary positions, and how many pairs they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax.models import attention, kinds
from disranker_jax.models.kinds import Kind
from disranker_jax.models.rope import Rope
from disranker_jax.models.rope import rotate as rotate_by

LOCAL, GLOBAL, NONE = Kind(5, Rope(10.0)), Kind(None, Rope(1000.0)), Kind(None, None)
MIXED = (LOCAL, LOCAL, GLOBAL, NONE, LOCAL)


@pytest.mark.parametrize('window', [None, 1, 4, 11, 12, 30])
@pytest.mark.parametrize('causal', [True, False])
def test_pairs_are_those_of_the_mask(window, causal):
  ones = jnp.ones((1, 12), jnp.int32)
  mask = attention.attention_mask(ones, ones, causal=causal, window=window)
  assert Kind(window).pairs(12, causal) == mask.sum()


def test_a_layer_gets_the_angles_of_its_kind():
  positions = jnp.array([[0, 3, 7]])
  angles = kinds.angles(MIXED, positions, 8)
  x = jax.random.normal(jax.random.key(0), (1, 3, 2, 8))
  for number, kind in zip(kinds.numbers(MIXED), MIXED, strict=True):
    turned = rotate_by(x, kinds.of_layer(number, angles))
    expected = rotate_by(x, kind.rope.angles(positions, 8)) if kind.rope else x
    np.testing.assert_array_equal(turned, expected)


def test_layers_that_never_rotate_have_angles_too():
  cos, sin = kinds.of_layer(0, kinds.angles((NONE,), jnp.arange(3)[None], 8))
  assert cos.shape == (1, 3, 4) and (cos == 1).all() and (sin == 0).all()


def test_the_window_of_a_layer_is_static_and_chosen_by_its_number():
  def attend(x, window):
    assert window is None or isinstance(window, int)
    return x * (window or -1)

  run = jax.jit(lambda number: kinds.by_window(MIXED, number, attend, jnp.float32(1)))
  assert [float(run(i)) for i in kinds.numbers(MIXED)] == [5, 5, -1, -1, 5]
