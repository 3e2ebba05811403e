"""Choosing tokens: the likeliest, and draws from a nucleus, against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax.models import sampling


def keys(count):
  return jax.random.split(jax.random.key(3), count)


def test_the_likeliest_is_the_argmax_and_of_equal_ones_the_first():
  logits = jax.random.normal(jax.random.key(0), (5, 61))
  np.testing.assert_array_equal(sampling.likeliest(logits), jnp.argmax(logits, -1))
  assert sampling.likeliest(jnp.array([[0.0, 2.0, 2.0, -jnp.inf]])).tolist() == [1]


@pytest.mark.parametrize(
  'top_p, nucleus',
  [
    (0.0, [1]),
    (0.49, [1]),
    (0.51, [1, 3]),
    (0.76, [1, 2, 3]),
    (0.91, [0, 1, 2, 3]),
    (1.0, range(4)),
  ],
)
def test_draws_are_distributed_as_the_nucleus(top_p, nucleus):
  probs = np.array([0.1, 0.5, 0.15, 0.25])
  rows = 20_000
  logits = jnp.broadcast_to(jnp.log(jnp.array(probs)), (rows, 4))
  drawn = jax.jit(sampling.drawn)(logits, keys(rows), 1.0, top_p)
  expected = np.where(np.isin(np.arange(4), nucleus), probs, 0)
  found = np.bincount(drawn, minlength=4) / rows
  np.testing.assert_allclose(found, expected / expected.sum(), atol=0.015)
  assert set(np.asarray(drawn).tolist()) == set(nucleus)


def test_the_temperature_is_applied_before_the_nucleus():
  logits = jnp.log(jnp.array([[0.2, 0.8]] * 20_000))
  drawn = sampling.drawn(logits, keys(20_000), 2.0, 1.0)
  np.testing.assert_allclose(np.mean(drawn), 2 / 3, atol=0.015)  # sqrt(.8) / (sqrt(.8) + sqrt(.2))


@pytest.mark.parametrize(
  ('top_k', 'top_p', 'allowed'),
  [(1, 1.0, [1]), (2, 1.0, [1, 3]), (3, 1.0, [1, 2, 3]), (9, 1.0, range(4)), (2, 0.6, [1]),
   (3, 0.6, [1, 3])],
)  # fmt: skip
def test_draws_are_distributed_as_the_k_likeliest(top_k, top_p, allowed):
  """The nucleus is one of what `top_k` leaves: of .5 and .25, .5 has two thirds of the mass."""
  probs, rows = np.array([0.1, 0.5, 0.15, 0.25]), 20_000
  logits = jnp.broadcast_to(jnp.log(jnp.array(probs)), (rows, 4))
  found = np.bincount(sampling.drawn(logits, keys(rows), 1.0, top_p, top_k), minlength=4) / rows
  expected = np.where(np.isin(np.arange(4), allowed), probs, 0)
  np.testing.assert_allclose(found, expected / expected.sum(), atol=0.015)
  assert set(np.flatnonzero(found)) == set(allowed)


def test_one_likeliest_is_greedy_and_all_tokens_are_as_without_a_limit():
  logits = 2 * jax.random.normal(jax.random.key(5), (300, 70))
  draw = functools.partial(sampling.drawn, logits, keys(300), 1.3, 0.9)
  np.testing.assert_array_equal(draw(1), sampling.likeliest(logits))
  np.testing.assert_array_equal(draw(70), draw())
  assert (np.asarray(draw(5)) != np.asarray(draw())).any()


def test_tokens_as_likely_as_the_last_one_are_in():
  logits = jnp.zeros((4_000, 7))
  assert len(set(sampling.drawn(logits, keys(4_000), 1.0, 0.3).tolist())) == 7
  assert len(set(sampling.drawn(logits, keys(4_000), 1.0, 1.0, 2).tolist())) == 7


def test_a_row_draws_alone_as_it_does_among_others():
  logits = 3 * jax.random.normal(jax.random.key(1), (6, 50))
  together = sampling.drawn(logits, keys(6), 1.0, 0.5)
  alone = [
    int(sampling.drawn(logits[i : i + 1], keys(6)[i : i + 1], 1.0, 0.5)[0]) for i in range(6)
  ]
  assert together.tolist() == alone


@pytest.mark.parametrize('vocabulary', [1, 2, 7, 50, 1000])
def test_inverse_is_the_place_in_the_cumulated_mass(vocabulary):
  rng = np.random.default_rng(vocabulary)
  mass = rng.random((40, vocabulary)) * (rng.random((40, vocabulary)) < 0.5)
  mass[:, rng.integers(vocabulary)] = 0.3
  point = rng.random(40)
  found = np.asarray(sampling.inverse(jnp.array(mass, jnp.float32), jnp.array(point, jnp.float32)))
  sums = np.cumsum(mass, -1)
  expected = (sums <= point[:, None] * sums[:, -1:]).sum(-1)
  assert (mass[np.arange(40), found] > 0).all()
  assert (found == expected).mean() > 0.9  # the others are within rounding of a bound
  for row in np.flatnonzero(found != expected):
    assert abs(sums[row, min(found[row], expected[row])] / sums[row, -1] - point[row]) < 1e-5


def test_the_ends_of_the_mass_are_reached_and_not_passed():
  mass = jnp.array([[0.0, 0.2, 0.0, 0.5, 0.0, 0.0]] * 2)
  assert sampling.inverse(mass, jnp.array([0.0, 1 - 1e-7])).tolist() == [1, 3]
