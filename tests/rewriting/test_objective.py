"""GRPO's objective: values by hand, invariances, and the same numbers as TRL's formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax.rewriting import objective

EPSILONS = {'epsilon': 0.2, 'epsilon_high': 0.2}


class TestWidest:
  @pytest.mark.parametrize('kind', ['normal', 'few values', 'one high'])
  @pytest.mark.parametrize('count', [1, 2, 3, 4, 7])
  def test_no_other_choice_has_a_larger_variance(self, kind, count):
    rng = np.random.default_rng(count)
    rewards_GS = {
      'normal': rng.normal(size=(5, 7)),
      'few values': rng.integers(0, 3, (5, 7)) / 10,
      'one high': 0.1 * np.eye(7)[:5],
    }[kind]
    places_GS = objective.widest(rewards_GS, count)
    assert places_GS.shape == (5, count) and np.all(np.diff(places_GS, axis=1) > 0)
    for rewards_S, places_S in zip(rewards_GS, places_GS, strict=True):
      most = max(np.var(rewards_S[list(p)]) for p in itertools.combinations(range(7), count))
      assert np.var(rewards_S[places_S]) == pytest.approx(most, abs=1e-12)
      extremes = {rewards_S.min(), rewards_S.max()}
      assert count == 1 or extremes <= set(rewards_S[places_S])

  def test_of_equal_variances_as_many_are_high_as_low(self):
    places_GS = objective.widest(np.array([[1, 0, 1, 0, 1, 0, 1, 0]]), 4)
    assert sorted(places_GS[0] % 2) == [0, 0, 1, 1]

  def test_all_are_kept_in_their_order(self):
    assert objective.widest(np.array([[3, 1, 2]]), 3).tolist() == [[0, 1, 2]]


class TestAdvantages:
  def test_values(self):
    # The deviation with n - 1 is 1.29099.
    expected = [[-1.1618, -0.3873, 0.3873, 1.1618]]
    np.testing.assert_allclose(objective.advantages([[1, 2, 3, 4]]), expected, atol=5e-5)

  @pytest.mark.parametrize('scale', objective.SCALES)
  def test_equal_rewards_give_exactly_zero(self, scale):
    rewards_GS = jnp.array([[0.1] * 7, [0.3] * 6 + [-1.0]])
    got = objective.advantages(rewards_GS, scale)
    assert not got[0].any()
    assert got[1, 6] < 0 < got[1, 0]
    assert objective.equal_groups(rewards_GS).tolist() == [True, False]

  @pytest.mark.parametrize('scale', objective.SCALES)
  def test_a_constant_of_a_query_changes_nothing(self, scale):
    rewards_GS = jax.random.normal(jax.random.key(0), (3, 8))
    # Of all queries, because 'batch' divides by the deviation of all rewards.
    got = objective.advantages(rewards_GS + 1000.0, scale)
    np.testing.assert_allclose(got, objective.advantages(rewards_GS, scale), atol=2e-3)

  def test_a_factor_of_a_query_changes_nothing(self):
    rewards_GS = 5 * jax.random.normal(jax.random.key(0), (3, 8))
    factors_G1 = jnp.array([[1.0], [10.0], [0.5]])
    got = objective.advantages(rewards_GS * factors_G1)
    np.testing.assert_allclose(got, objective.advantages(rewards_GS), atol=1e-4)

  def test_other_scales(self):
    rewards_GS = np.array([[1.0, 3.0], [10.0, 10.0]])
    np.testing.assert_allclose(objective.advantages(rewards_GS, 'none'), [[-1, 1], [0, 0]])
    a = 1 / (np.std([1, 3, 10, 10], ddof=1) + 1e-4)
    got = objective.advantages(rewards_GS, 'batch')
    np.testing.assert_allclose(got, [[-a, a], [0, 0]], rtol=1e-6)

  @pytest.mark.parametrize('scale', objective.SCALES)
  def test_padding_is_not_counted(self, scale):
    rewards_GS = jnp.array([[1.0, 2.0, 4.0], [3.0, 0.0, 1.0], [0.0, 5.0, 2.0]])
    padded = jnp.pad(rewards_GS, ((0, 1), (1, 1)), constant_values=jnp.nan)
    mask = jnp.pad(jnp.ones((3, 3), bool), ((0, 1), (1, 1)))
    got = objective.advantages(padded, scale, mask)
    alone = objective.advantages(rewards_GS, scale)
    np.testing.assert_allclose(got[:3, 1:4], alone, rtol=1e-5, atol=1e-6)
    assert not got[~mask].any()

  def test_one_sample_has_no_advantage(self):
    assert objective.advantages([[7.0]]).tolist() == [[0.0]]

  def test_an_unknown_scale(self):
    with pytest.raises(ValueError, match="scale 'both'"):
      objective.advantages([[1.0, 2.0]], 'both')


class TestSurrogate:
  @pytest.mark.parametrize(
    ('ratio', 'advantage', 'loss'),
    [(1.3, 1, -1.2), (0.7, 1, -0.7), (1.3, -1, 1.3), (0.7, -1, 0.8), (1.1, 2, -2.2)],
  )
  def test_values(self, ratio, advantage, loss):
    got = objective.surrogate(jnp.log(jnp.array([ratio])), jnp.zeros(1), jnp.array([advantage]))
    np.testing.assert_allclose(got, [loss], rtol=1e-6)

  def test_the_upper_bound_may_be_another(self):
    got = objective.surrogate(jnp.log(jnp.array([1.3])), jnp.zeros(1), jnp.ones(1), 0.2, 0.28)
    np.testing.assert_allclose(got, [-1.28], rtol=1e-6)

  def test_on_policy_the_gradient_is_that_of_reinforce(self):
    logprobs, advantages = jnp.array([-0.5, -2.0, -9.0]), jnp.array([1.5, -0.5, 0.0])
    loss = lambda x: objective.surrogate(x, None, advantages).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(logprobs), -advantages, rtol=1e-6)
    # The old values have no gradient of their own.
    same = lambda x: objective.surrogate(x, x, advantages).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(same)(logprobs), -advantages, rtol=1e-6)

  def test_a_clipped_token_has_no_gradient(self):
    loss = lambda x: objective.surrogate(x, jnp.zeros(2), jnp.array([1.0, -1.0])).sum()  # noqa: E731
    assert jax.grad(loss)(jnp.array([0.5, -0.5])).tolist() == [0.0, 0.0]

  @pytest.mark.parametrize('kind', objective.KLS)
  def test_distant_policies_stay_finite(self, kind):
    far, zero = jnp.array([-200.0]), jnp.zeros(1)
    for a, b in ((far, zero), (zero, far)):
      value = lambda x, b=b: (  # noqa: E731
        objective.surrogate(x, b, -jnp.ones(1)) + objective.kl(x, b, kind)
      ).sum()
      assert np.isfinite([value(a), *jax.grad(value)(a)]).all()


class TestSamplerRatio:
  def test_it_is_one_where_both_agree_and_has_no_gradient(self):
    logs = jnp.array([-0.5, -300.0])
    assert objective.sampler_ratio(logs, logs, 2.0).tolist() == [1, 1]
    slope = jax.grad(lambda x: objective.sampler_ratio(x, jnp.zeros(2), 2.0).sum())(logs)
    assert not slope.any()

  def test_it_is_cut_above_and_finite(self):
    got = objective.sampler_ratio(
      jnp.array([-1.0, -1.0, 0.0]), jnp.array([-3.0, -0.5, -500.0]), 2.0
    )
    np.testing.assert_allclose(got, [2, np.exp(-0.5), 2], rtol=1e-6)


class TestKL:
  def test_values(self):
    policy, reference = jnp.array([-1.0 - np.log(2)]), jnp.array([-1.0])
    got = {kind: float(objective.kl(policy, reference, kind)[0]) for kind in objective.KLS}
    expected = {'k1': -np.log(2), 'k2': np.log(2) ** 2 / 2, 'k3': 2 - np.log(2) - 1}
    assert got == pytest.approx(expected, abs=1e-6)
    assert expected['k3'] == pytest.approx(0.3069, abs=1e-4)

  def test_k3_is_zero_at_equality_and_above_elsewhere(self):
    difference = jnp.linspace(-3, 3, 61)
    got = objective.kl(-difference, jnp.zeros(61))
    assert got[30] == 0
    assert (jnp.delete(got, 30) > 0).all()

  @pytest.mark.parametrize('kind', objective.KLS)
  def test_the_mean_over_samples_is_the_divergence(self, kind):
    logits, other = jnp.array([1.0, 0.2, -1.0, 0.0]), jnp.array([0.7, 0.4, -0.8, 0.1])
    policy, reference = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    exact = jnp.sum(jnp.exp(policy) * (policy - reference))
    mean = jnp.sum(jnp.exp(policy) * objective.kl(policy, reference, kind))
    # k2 is biased, but close for close distributions.
    np.testing.assert_allclose(mean, exact, rtol=0.1 if kind == 'k2' else 1e-4)

  def test_the_gradient_pulls_to_the_reference(self):
    reference = jnp.array([-1.0, -3.0])
    pull = jax.grad(lambda x: objective.kl(x, reference).sum())
    assert jnp.sign(pull(jnp.array([-2.0, -1.0]))).tolist() == [-1.0, 1.0]

  def test_an_unknown_kind(self):
    with pytest.raises(ValueError, match="kl 'k4'"):
      objective.kl(jnp.zeros(1), jnp.zeros(1), 'k4')


LENGTHS = (3, 1, 5, 0, 4, 2)  # tokens of each sample; one is left out wholly
LONGEST = 6


def samples(seed=0):
  """Padded arrays [samples, LONGEST] as TRL has them: logprobs, old, reference; and a mask."""
  keys = jax.random.split(jax.random.key(seed), 3)
  shape = (len(LENGTHS), LONGEST)
  logprobs, old, reference = (np.asarray(-jax.random.exponential(key, shape)) for key in keys)
  mask = np.arange(LONGEST)[None] < np.array(LENGTHS)[:, None]
  return logprobs, old, reference, mask


def packed(values, mask, blocks=1, room=20):
  """Tokens of the samples behind each other in blocks of equally many samples, as in batches."""
  values_AP = np.full((blocks, room), np.nan, np.float32)
  owner_AP = np.full((blocks, room), -1, np.int32)
  per_block = len(values) // blocks
  for block in range(blocks):
    place = 0
    for x in range(per_block):
      tokens = values[block * per_block + x][mask[block * per_block + x]]
      values_AP[block, place : place + len(tokens)] = tokens
      owner_AP[block, place : place + len(tokens)] = x
      place += len(tokens)
  return values_AP, owner_AP


def of_trl(rewards, logprobs, old, reference, mask, beta, kind, sampled=None, cap=0.0):
  """TRL's loss, from its formulas, in float64: one micro-batch of padded completions."""
  logprobs, old, reference = (x.astype(np.float64) for x in (logprobs, old, reference))
  mean = rewards.mean(1, keepdims=True)
  advantage = ((rewards - mean) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)).reshape(-1, 1)
  coefficient_1 = np.exp(logprobs - old)
  coefficient_2 = np.clip(coefficient_1, 1 - 0.2, 1 + 0.2)
  per_token = -np.minimum(coefficient_1 * advantage, coefficient_2 * advantage)
  if cap:  # vllm_importance_sampling_correction, mode 'token_truncate'
    per_token *= np.minimum(np.exp(old - sampled.astype(np.float64)), cap)
  per_token += beta * (np.exp(reference - logprobs) - (reference - logprobs) - 1)
  if kind == 'sequence':  # loss_type 'grpo'
    return ((per_token * mask).sum(-1) / np.maximum(mask.sum(-1), 1.0)).mean()
  if kind == 'token':  # 'bnpo'; 'dapo' over all micro-batches
    return (per_token * mask).sum() / max(mask.sum(), 1.0)
  return (per_token * mask).sum() / (len(per_token) * LONGEST)  # 'dr_grpo'


def ours(rewards, arrays, kind, beta, blocks=1, sampled=None, cap=0.0):
  """(sum, weight) of the same from packed blocks."""
  logprobs, old, reference, mask = arrays
  (logprobs_AP, owner_AP), (old_AP, _), (reference_AP, _) = (
    packed(x, mask, blocks) for x in (logprobs, old, reference)
  )
  advantage_AX = objective.advantages(rewards).reshape(blocks, -1)
  advantage_AP = objective.of_samples(advantage_AX, owner_AP)
  loss_AP = objective.surrogate(logprobs_AP, old_AP, advantage_AP, **EPSILONS)
  if cap:
    loss_AP *= objective.sampler_ratio(old_AP, packed(sampled, mask, blocks)[0], cap)
  loss_AP += beta * objective.kl(logprobs_AP, reference_AP)
  return objective.aggregate(loss_AP, owner_AP, jnp.ones(advantage_AX.shape, bool), kind, LONGEST)


class TestAggregate:
  rewards = np.array([[0.3, -1.0, 0.9], [0.2, 0.25, 0.1]])

  @pytest.mark.parametrize('kind', objective.AGGREGATIONS)
  @pytest.mark.parametrize('beta', [0.0, 0.04])
  @pytest.mark.parametrize('blocks', [1, 2])
  def test_the_loss_is_that_of_trl(self, kind, beta, blocks):
    arrays = samples()
    total, weight = ours(self.rewards, arrays, kind, beta, blocks)
    expected = of_trl(self.rewards, *arrays, beta, kind)
    np.testing.assert_allclose(total / weight, expected, rtol=1e-6, atol=1e-6)

  @pytest.mark.parametrize('kind', objective.AGGREGATIONS)
  def test_the_correction_for_the_sampler_is_that_of_trl(self, kind):
    arrays, cap = samples(), 1.5
    sampled = arrays[1] + np.asarray(jax.random.normal(jax.random.key(9), arrays[1].shape))
    ratios = np.exp(arrays[1] - sampled)[arrays[3]]
    assert (ratios > cap).any() and (ratios < 1).any()
    more = {'sampled': sampled, 'cap': cap}
    total, weight = ours(self.rewards, arrays, kind, 0.04, **more)
    expected = of_trl(self.rewards, *arrays, 0.04, kind, **more)
    np.testing.assert_allclose(total / weight, expected, rtol=1e-6, atol=1e-6)
    assert abs(expected - of_trl(self.rewards, *arrays, 0.04, kind)) > 1e-3

  @pytest.mark.parametrize('kind', objective.AGGREGATIONS)
  def test_micro_batches_add_up(self, kind):
    arrays = samples()
    whole = ours(self.rewards, arrays, kind, 0.04)
    halves = [
      ours(self.rewards[i : i + 1], [x[3 * i : 3 * i + 3] for x in arrays], kind, 0.04)
      for i in range(2)
    ]
    np.testing.assert_allclose(np.sum(halves, 0), whole, rtol=1e-6)

  @pytest.mark.parametrize('kind', objective.AGGREGATIONS)
  def test_the_order_of_tokens_and_samples_changes_nothing(self, kind):
    loss_AP = jnp.array([[1.0, 2.0, 4.0, jnp.nan]])
    owner_AP, mask_AX = jnp.array([[0, 0, 2, -1]]), jnp.array([[True, False, True]])
    first = objective.aggregate(loss_AP, owner_AP, mask_AX, kind, 4)
    order = jnp.array([3, 2, 0, 1])
    again = objective.aggregate(
      loss_AP[:, order], jnp.array([[-1, 1, 0, 0]]), jnp.array([[True, True, False]]), kind, 4
    )
    expected = {'token': (7, 3), 'sequence': (1.5 + 4, 2), 'constant': (7 / 4, 2)}[kind]
    np.testing.assert_allclose(first, expected)
    np.testing.assert_allclose(again, expected)

  @pytest.mark.parametrize('kind', objective.AGGREGATIONS)
  def test_nothing_is_left_finite(self, kind):
    nothing = jnp.full((1, 4), jnp.nan), jnp.full((1, 4), -1)
    assert objective.aggregate(*nothing, jnp.zeros((1, 2), bool), kind, 4) == (0, 0)

  def test_mistakes(self):
    some = jnp.zeros((1, 1)), jnp.zeros((1, 1), int), jnp.ones((1, 1), bool)
    with pytest.raises(ValueError, match='max_new=0'):
      objective.aggregate(*some, 'constant')
    with pytest.raises(ValueError, match="aggregate 'dapo'"):
      objective.aggregate(*some, 'dapo')
