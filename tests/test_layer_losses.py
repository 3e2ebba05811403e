"""Intermediate-layer losses against loops over layers, groups and positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax import losses
from disranker_jax.errors import UserError

G, T = 3, 4


def states(seed=0, width=5):
  """A student's 2 layers of width 3 under a teacher's 4, embeddings first, and a padding mask."""
  rng = np.random.default_rng(seed)
  mask_GT = np.arange(T) < np.array([[4], [2], [0]])
  student = rng.normal(size=(3, G, T, 3)).astype(np.float32)
  teacher = rng.normal(size=(5, G, T, width)).astype(np.float32)
  return student, teacher, mask_GT, rng.normal(size=(3, width)).astype(np.float32)


def naive_hidden(student, teacher, mask, projection, pairs):
  values = []
  for g in range(G):
    real = np.flatnonzero(mask[g])
    projected = [[student[m, g, t] @ projection for t in real] for m, _ in pairs]
    wanted = [[teacher[n, g, t] for t in real] for _, n in pairs]
    squares = np.square(np.array(projected, np.float64) - np.array(wanted, np.float64))
    values.append(squares.reshape(len(pairs), -1).mean(1).sum() if len(real) else 0.0)
  return np.array(values)


def test_hidden_mse_of_tinyberts_map_compares_every_second_layer():
  student, teacher, mask, projection = states()
  loss_G, valid_G = losses.hidden_mse.per_group(student, teacher, mask, projection_DD=projection)
  expected = naive_hidden(student, teacher, mask, projection, [(0, 0), (1, 2), (2, 4)])
  np.testing.assert_allclose(loss_G, expected, rtol=1e-5)
  np.testing.assert_array_equal(valid_G, [True, True, False])
  value = losses.hidden_mse(student, teacher, mask, projection_DD=projection)
  np.testing.assert_allclose(value, expected.sum() / 2, rtol=1e-5)


def test_hidden_mse_compares_the_layers_of_its_map():
  student, teacher, mask, _ = states(1, width=3)
  pairs = [(2, 1), (1, 3)]
  loss_G, _ = losses.hidden_mse.per_group(student, teacher, mask, layer_map=pairs)
  np.testing.assert_allclose(
    loss_G, naive_hidden(student, teacher, mask, np.eye(3), pairs), rtol=1e-5
  )


def test_layers_of_a_published_tinybert():
  expected = tuple(zip(range(7), range(0, 13, 2), strict=True))
  assert losses.layer_pairs(None, 6, 12) == expected
  assert losses.layer_pairs(None, 4, 12)[-1] == (4, 12)


@pytest.mark.parametrize('fill', [1e4, np.inf, np.nan])
def test_padding_changes_neither_values_nor_gradients(fill):
  student, teacher, mask, projection = states(2)

  def hidden(student, teacher, projection):
    return losses.hidden_mse(student, teacher, mask, projection_DD=projection)

  both = jax.value_and_grad(hidden, (0, 2))
  filled = (np.where(mask[None, :, :, None], x, np.float32(fill)) for x in (student, teacher))
  expected, ours = both(student, teacher, projection), both(*filled, projection)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  assert not np.asarray(ours[1][0])[:, ~mask].any() and np.asarray(ours[1][0]).any()


def test_gradients_equal_finite_differences():
  student, teacher, mask, projection = states(3)
  pairs = [(0, 0), (1, 2), (2, 4)]
  gradient = jax.grad(
    lambda s, w: losses.hidden_mse(s, teacher, mask, projection_DD=w), argnums=(0, 1)
  )(student, projection)
  rng = np.random.default_rng(0)
  for which, place in ((0, 0), (1, 1)):
    direction = rng.normal(size=(student, projection)[which].shape)
    sides = []
    for sign in (1, -1):
      moved = [np.float64(student), np.float64(projection)]
      moved[which] = moved[which] + sign * 1e-6 * direction
      sides.append(naive_hidden(moved[0], teacher, mask, moved[1], pairs).sum() / 2)
    expected = (sides[0] - sides[1]) / 2e-6
    np.testing.assert_allclose(np.sum(gradient[place] * direction), expected, rtol=1e-4)


def test_half_precision_states_are_compared_in_single():
  mask = np.ones((1, 1), bool)
  student, teacher = jnp.full((2, 1, 1, 1, 64), 1 + 2**-7, jnp.bfloat16).at[1].set(0)
  value = losses.hidden_mse(student, teacher, mask, layer_map=[(0, 0)])
  # The square takes 14 bits behind the point, bfloat16 has 7.
  assert value.dtype == jnp.float32 and value == (1 + 2**-7) ** 2


def test_what_cannot_be_compared_is_an_error():
  student, teacher, mask, _ = states()
  with pytest.raises(UserError, match=r'\(3, 4, 3\) .* \(3, 4, 5\) .* widths; give a projection'):
    losses.hidden_mse(student, teacher, mask)
  with pytest.raises(UserError, match=r'layer_map .*: the student has layers 0 to 2, the teacher'):
    losses.hidden_mse(student, teacher, mask, layer_map=[(3, 4)])
