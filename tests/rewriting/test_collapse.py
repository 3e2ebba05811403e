"""A training by GRPO that has gone wrong ends, and says what to do."""

import numpy as np
import policies
import pytest

from disranker_jax.errors import UserError
from disranker_jax.models import tree
from disranker_jax.rewriting.collapse import FAILED_ROLLOUTS, Collapse
from disranker_jax.rewriting.rewards import RewardResult
from disranker_jax.rewriting.stages import rewrite


@pytest.fixture(scope='module')
def start():
  return policies.start()


def failing(queries, rewrites):
  shape = len(rewrites), len(rewrites[0])
  return RewardResult(
    np.full(shape, -1, np.float32), {'embedding': np.zeros(shape)}, np.ones(shape, bool)
  )


def test_only_failures_end_the_training_with_what_to_do(start, tmp_path):
  message = r'stays at config.rewrite.failure=-1\. .*learning_rate.* lower failure.*\. With another'
  with pytest.raises(UserError, match=message):
    policies.fit(start, policies.section(), tmp_path, 20, reward=failing)
  rows = policies.logged(tmp_path)
  assert len(rows) < FAILED_ROLLOUTS and {row['equal_groups'] for row in rows} == {1}
  assert {row['grad_norm'] for row in rows} == {0}


def test_rewards_below_that_of_a_failure_are_said_once(capsys):
  collapse = Collapse(policies.section(failure=-1.0))
  failed = np.array([[True, False, False]])
  collapse.order(np.array([[-1.0, -1.0, 0.5]]), failed, 1)
  assert not capsys.readouterr().err
  for step in (2, 3):
    collapse.order(np.array([[-1.0, -1.5, 0.5]]), failed, step)
  (said,) = capsys.readouterr().err.splitlines()
  assert (
    'step 2: 1 of 3 rewrites has a reward below config.rewrite.failure=-1 (down to -1.5)' in said
  )
  assert said.endswith('lower failure')


def test_a_policy_that_is_too_far_from_its_start_ends_the_training(start, tmp_path):
  with pytest.raises(UserError, match=r'nats .* more than config.rewrite.stop_kl=2; lower'):
    policies.fit(start, policies.section(stop_kl=2.0, learning_rate=0.05), tmp_path, 40)
  kl = [row['kl'] for row in policies.logged(tmp_path)]
  assert kl[0] < 1e-5 and 1 < len(kl) < 30


@pytest.mark.parametrize(('beta', 'larger'), [(0.1, 1e9), (0.0, 0.0)])
def test_with_a_larger_bound_it_goes_on_and_ends_as_if_there_was_none(
  start, tmp_path, beta, larger
):
  c = policies.section(stop_kl=1.0, learning_rate=0.05, beta=beta, save_every=2)
  with pytest.raises(UserError, match='larger stop_kl it goes on from its last checkpoint'):
    policies.fit(start, c, tmp_path / 'stopped', 40)
  before = policies.logged(tmp_path / 'stopped')
  steps, c.stop_kl = len(before) + 2, larger
  resumed = policies.fit(start, c, tmp_path / 'stopped', steps)
  whole = policies.fit(start, c, tmp_path / 'whole', steps)
  for path, value in tree.flatten(whole['params']).items():
    np.testing.assert_array_equal(value, tree.flatten(resumed['params'])[path], err_msg=path)
  assert len(before) >= 2 and not rewrite.SETTINGS['stop_kl'].affects_results


@pytest.mark.parametrize('iterations', [1, 3])
def test_what_ends_a_divergence_names_the_last_step_that_was_below(iterations):
  collapse = Collapse(policies.section(stop_kl=2.0, iterations=iterations))
  first = 1 + 4 * iterations  # of the fifth rollout
  for step in range(1, first, iterations):
    collapse.divergence(2.0, step)
  message = (
    rf'max_steps={3 * iterations}, where it was nearer\. With another value the stage begins again'
  )
  with pytest.raises(UserError, match=message):
    collapse.divergence(2.1, first)
  with pytest.raises(UserError, match=r'or raise beta\. With another value'):
    collapse.divergence(float('nan'), 1)
