"""Which parameters are trained, how fast, and which decay."""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disranker_jax.errors import UserError
from disranker_jax.models import tree
from disranker_jax.training import optimizer
from disranker_jax.training.settings import defaults as training_settings


def variables():
  """Paths and ranks as in the networks: layers are stacked on a first axis of two."""
  return {
    'params': {
      'embed': {'embedding': jnp.ones((6, 4))},
      'embed_norm': {'scale': jnp.ones(4), 'bias': jnp.ones(4)},
      'blocks': {
        'q': {'kernel': jnp.ones((2, 4, 4)), 'bias': jnp.ones((2, 4))},
        'attn_norm': {'scale': jnp.ones((2, 4)), 'bias': jnp.ones((2, 4))},
      },
      'norm': {'scale': jnp.ones(4)},
      'score': {'kernel': jnp.ones((4, 1)), 'bias': jnp.ones(1)},
    },
    'lora': {'blocks': {'q': {'lora_a': jnp.ones((2, 4, 1)), 'lora_b': jnp.ones((2, 1, 4))}}},
  }


MATRICES = {
  'params/embed/embedding', 'params/blocks/q/kernel', 'params/score/kernel',
  'lora/blocks/q/lora_a', 'lora/blocks/q/lora_b',
}  # fmt: skip


# Which parameters are trained


@pytest.mark.parametrize(
  'pattern, trained',
  [
    ('lora/.*', {'lora/blocks/q/lora_a', 'lora/blocks/q/lora_b'}),
    ('^params/score', {'params/score/kernel', 'params/score/bias'}),
    ('kernel$|embedding', {'params/blocks/q/kernel', 'params/score/kernel',
                           'params/embed/embedding'}),
    ('^(?!params)', {'lora/blocks/q/lora_a', 'lora/blocks/q/lora_b'}),
  ],
)  # fmt: skip
def test_a_pattern_says_what_is_trained_and_the_rest_is_frozen(pattern, trained):
  flat = tree.flatten(variables())
  ours, frozen = optimizer.split(variables(), pattern)
  assert ours.keys() == trained
  assert frozen.keys() == flat.keys() - trained
  for path, value in flat.items():
    np.testing.assert_array_equal((ours | frozen)[path], value)


def test_the_default_pattern_trains_everything():
  ours, frozen = optimizer.split(variables(), training_settings().trainable)
  assert ours.keys() == tree.flatten(variables()).keys() and frozen == {}


def test_a_pattern_that_matches_nothing_is_refused_with_the_paths_there_are():
  with pytest.raises(UserError, match=r"trainable='adapter': matches no .*params/blocks/q/kernel"):
    optimizer.split(variables(), 'adapter')


def test_a_pattern_that_is_not_one_is_refused():
  with pytest.raises(UserError, match=re.escape("trainable='(lora': not a regular expression")):
    optimizer.split(variables(), '(lora')


# Schedules


def rates(steps, **changes) -> np.ndarray:
  """The rate of each step and of the one after the last, where a schedule to zero ends."""
  at = optimizer.schedule(training_settings(learning_rate=0.5, **changes), steps)
  return np.array([at(i) for i in range(steps + 1)])


schedules = pytest.mark.parametrize('schedule', ['constant', 'linear', 'cosine'])
few = settings(max_examples=12, deadline=None)


@schedules
@few
@given(steps=st.integers(2, 40), warmup=st.floats(0, 1))
def test_the_rate_rises_to_its_peak_in_the_warm_up_and_never_rises_again(schedule, steps, warmup):
  found = rates(steps, schedule=schedule, warmup_ratio=warmup)
  warm = max(1, round(warmup * steps))
  assert (found >= 0).all() and found.max() == pytest.approx(0.5)
  assert found[0] > 0, 'no step is wasted'
  assert found[warm] == pytest.approx(0.5)
  assert (np.diff(found[: warm + 1]) > -1e-6).all() and (np.diff(found[warm:]) < 1e-6).all()
  if warm > 1:
    # Straight: from 1 / warm of the peak, in equal parts.
    np.testing.assert_allclose(np.diff(found[:warm], 2), 0, atol=1e-6)
    assert found[0] == pytest.approx(0.5 / warm) and found[warm - 1] < 0.5


def test_constant_stays_and_linear_and_cosine_end_at_zero():
  constant, linear, cosine = (
    rates(20, schedule=s, warmup_ratio=0.2) for s in ('constant', 'linear', 'cosine')
  )
  rest = np.arange(17) / 16
  np.testing.assert_allclose(constant[4:], 0.5)
  np.testing.assert_allclose(linear[4:], 0.5 * (1 - rest), atol=1e-6)
  np.testing.assert_allclose(cosine[4:], 0.25 * (1 + np.cos(np.pi * rest)), atol=1e-6)


@schedules
def test_one_step_is_enough_for_a_schedule(schedule):
  assert rates(1, schedule=schedule, warmup_ratio=0.5)[0] == pytest.approx(0.5)


# Decay and clipping


def test_matrices_decay_and_norms_and_biases_do_not_also_where_they_are_stacked():
  found = optimizer.decays(tree.flatten(variables()))
  assert {path for path, yes in found.items() if yes} == MATRICES
  assert optimizer.decays({'gain': jnp.ones(3), 'table': jnp.ones((3, 3))}) == {
    'gain': False, 'table': True,
  }  # fmt: skip


def update(grads, **changes) -> dict:
  """The first AdamW update of ones, at a constant rate of 0.1."""
  settings = training_settings(schedule='constant', learning_rate=0.1, warmup_ratio=0.0, **changes)
  tx = optimizer.make(settings, 10)
  flat = tree.flatten(variables())
  updates, _ = tx.update({k: jnp.full_like(v, grads) for k, v in flat.items()}, tx.init(flat), flat)
  return updates


def test_without_a_gradient_only_what_decays_moves():
  for path, values in update(0.0, weight_decay=0.5).items():
    np.testing.assert_allclose(values, -0.1 * 0.5 if path in MATRICES else 0, atol=1e-7)
  for values in update(0.0).values():
    np.testing.assert_array_equal(values, 0)


def seen_norm(norm, clip) -> float:
  """The norm of the gradients that reach Adam, by its first moment after one step."""
  settings = training_settings(max_grad_norm=clip)
  tx = optimizer.make(settings, 10)
  params = {'a': jnp.zeros((2, 2)), 'b': jnp.zeros(5)}
  grads = {'a': jnp.full((2, 2), 3.0), 'b': jnp.full(5, -4.0)}
  scale = norm / float(optax.tree.norm(grads))
  grads = {k: v * scale for k, v in grads.items()}
  _, state = tx.update(grads, tx.init(params), params)
  mu = optax.tree.get(state, 'mu')
  np.testing.assert_allclose(mu['a'][0, 0] / mu['b'][0], -0.75, rtol=1e-5)  # the direction stays
  return float(optax.tree.norm(mu)) / 0.1


@pytest.mark.parametrize(
  'norm, clip, seen', [(8.0, 2.0, 2.0), (1.5, 2.0, 1.5), (8.0, 0.0, 8.0), (8.0, 1.0, 1.0)]
)
def test_gradients_are_clipped_to_a_global_norm_and_zero_means_not(norm, clip, seen):
  assert seen_norm(norm, clip) == pytest.approx(seen, rel=1e-5)


def test_the_second_decay_is_the_settings():
  params = {'a': jnp.zeros(3)}
  for b2 in (0.95, 0.999):
    tx = optimizer.make(training_settings(adam_b2=b2, max_grad_norm=0.0), 10)
    _, state = tx.update({'a': jnp.full(3, 2.0)}, tx.init(params), params)
    np.testing.assert_allclose(optax.tree.get(state, 'nu')['a'], (1 - b2) * 4, rtol=1e-4)
