"""The objective of GRPO: rewards to advantages, the clipped surrogate, KL, sums over tokens.

Formulas as in TRL (huggingface/trl, trl/trainer/grpo_trainer.py); GRPO is arXiv:2402.03300, the
aggregation 'constant' is Dr. GRPO's (arXiv:2503.20783), 'token' is DAPO's (arXiv:2503.14476). PODS
(arXiv:2504.13818) chooses the samples that are learned from.

Shapes: G queries, S samples of each; in packed batches (data/batches.py) A blocks, P predicted
tokens in each, X samples in each.
"""

import jax
import jax.numpy as jnp
import numpy as np

SCALES = ('group', 'batch', 'none')
KLS = ('k1', 'k2', 'k3')
# In logs and for `stop_kl`: far from the start a single token can make the mean of k3 very large.
WATCHED = 'k1'
AGGREGATIONS = ('token', 'sequence', 'constant')
SMALL = 1e-4  # is added to a standard deviation, as in TRL
# Logarithms of ratios are cut here: exp of more is not finite in fp32, and its gradient is NaN.
LOG_RATIO = 20.0


def advantages(rewards_GS, scale: str = 'group', mask_GS=None) -> jax.Array:
  """How much better each sample is than the mean of its query's samples: [G, S] fp32.

  Equal rewards of a query give exactly 0, and so does a query with one sample.

  Args:
    scale: 'group' divides by the standard deviation (n - 1) of the query's rewards plus SMALL,
      'batch' by that of all rewards, 'none' by nothing.
    mask_GS: False where there is no sample; its reward may be anything and its advantage is 0.
  """
  rewards_GS = jnp.asarray(rewards_GS, jnp.float32)
  mask_GS = jnp.ones(rewards_GS.shape, bool) if mask_GS is None else jnp.asarray(mask_GS)
  above_GS = _above_first(rewards_GS, mask_GS, 1)
  centered_GS = jnp.where(mask_GS, above_GS - _mean(above_GS, mask_GS, 1), 0.0)
  if scale == 'none':
    return centered_GS
  if scale == 'group':
    return centered_GS / (_deviation(centered_GS, mask_GS, 1) + SMALL)
  if scale != 'batch':
    raise ValueError(f'scale {scale!r}: is none of {", ".join(SCALES)}')
  above_GS = _above_first(rewards_GS, mask_GS, None)
  every_GS = jnp.where(mask_GS, above_GS - _mean(above_GS, mask_GS, None), 0.0)
  return centered_GS / (_deviation(every_GS, mask_GS, None) + SMALL)


def widest(rewards_GS: np.ndarray, count: int) -> np.ndarray:
  """The places [G, count] of those samples of a query whose rewards have the largest variance.

  They are some with the highest and some with the lowest rewards, so the best and the worst sample
  are among them if count > 1. Of equal variances, the one counts that has as many of both.

  Source: Xu et al., Not All Rollouts are Useful, 2025, max-variance down-sampling.
  """
  rewards_GS = np.asarray(rewards_GS, np.float64)
  order_GS = np.argsort(rewards_GS, axis=1, kind='stable')
  sorted_GS = np.take_along_axis(rewards_GS, order_GS, axis=1)
  samples = rewards_GS.shape[1]
  highest = sorted(range(count + 1), key=lambda high: abs(2 * high - count))
  places_KS = np.array([[*range(count - h), *range(samples - h, samples)] for h in highest])
  best_G = np.argmax(np.var(sorted_GS[:, places_KS], axis=2), axis=1)
  return np.sort(np.take_along_axis(order_GS, places_KS[best_G], axis=1), axis=1)


def equal_groups(rewards_GS, mask_GS=None) -> jax.Array:
  """Whether all samples of a query have the same reward, so that it gives no gradient: [G]."""
  rewards_GS = jnp.asarray(rewards_GS)
  mask_GS = jnp.ones(rewards_GS.shape, bool) if mask_GS is None else jnp.asarray(mask_GS)
  return jnp.all(_above_first(rewards_GS, mask_GS, 1) == 0, 1)


def surrogate(logprobs, old, advantages, epsilon: float = 0.2, epsilon_high: float = 0.2):
  """-min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A) of each token.

  Args:
    logprobs: of the sampled tokens under the parameters that are trained.
    old: those under the parameters that sampled them, without gradient; None: the same parameters.
      The ratio is then 1, and the gradient that of REINFORCE.
    advantages: of each token's sample, see `of_samples`.
  """
  old = logprobs if old is None else old
  ratio = jnp.exp(_cut(logprobs - jax.lax.stop_gradient(old)))
  clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon_high)
  return -jnp.minimum(ratio * advantages, clipped * advantages)


def sampler_ratio(old, sampled, cap: float):
  """How much likelier a token was for the trainer than for the sampler that drew it, up to `cap`.

  The factor of a token's surrogate by which samples of another distribution count as those of the
  policy (truncated importance weights; TRL's vllm_importance_sampling_correction by tokens).

  Args:
    old: log-probabilities under the parameters that sampled, as the trainer computes them.
    sampled: as the sampler computed them.
  """
  return jnp.minimum(jnp.exp(_cut(jax.lax.stop_gradient(old) - sampled)), cap)


def kl(logprobs, reference, kind: str = 'k3'):
  """An estimate of KL(policy || reference) from each sampled token.

  With d = log reference - log policy: 'k1' is -d, 'k2' d^2 / 2, 'k3' exp(d) - d - 1, never below 0.
  The gradient goes through `logprobs`. That of k1 is 0 on average, so k1 is only for logs.

  Source: John Schulman, Approximating KL Divergence, 2020.
  """
  if kind not in KLS:
    raise ValueError(f'kl {kind!r}: is none of {", ".join(KLS)}')
  difference = jax.lax.stop_gradient(reference) - logprobs
  if kind == 'k1':
    return -difference
  if kind == 'k2':
    return jnp.square(difference) / 2
  difference = _cut(difference)
  return jnp.expm1(difference) - difference


def of_samples(values_AX, owner_AP) -> jax.Array:
  """The value of each token's sample [A, P]; 0 where owner_AP is below 0."""
  spread_AP = jnp.take_along_axis(values_AX, jnp.maximum(owner_AP, 0), axis=1)
  return jnp.where(owner_AP >= 0, spread_AP, 0.0)


def aggregate(
  loss_AP, owner_AP, mask_AX, kind: str = 'token', max_new: int = 0
) -> tuple[jax.Array, jax.Array]:
  """(sum, weight) of the tokens' losses; sums and weights of micro-batches add up exactly.

  Args:
    owner_AP: each token's sample in its block; below 0 where the token does not count.
    mask_AX: which samples there are. One without a counted token is a sample too, as in TRL.
    kind: 'token' is the mean of all tokens, 'sequence' that of the samples' means, 'constant' the
      sum of the tokens divided by `max_new` and the number of samples.
    max_new: the most tokens of a sample, for 'constant'.
  """
  counts_AP = owner_AP >= 0
  loss_AP = jnp.where(counts_AP, loss_AP, 0.0)
  if kind == 'token':
    return jnp.sum(loss_AP), jnp.sum(counts_AP).astype(jnp.float32)
  samples = jnp.sum(mask_AX).astype(jnp.float32)
  if kind == 'constant':
    if max_new < 1:
      raise ValueError(f'max_new={max_new}: constant divides by the most tokens of a sample')
    return jnp.sum(loss_AP) / max_new, samples
  if kind != 'sequence':
    raise ValueError(f'aggregate {kind!r}: is none of {", ".join(AGGREGATIONS)}')
  lengths_AX = _per_sample(counts_AP.astype(jnp.float32), owner_AP, mask_AX.shape[1])
  lengths_AP = of_samples(jnp.maximum(lengths_AX, 1.0), owner_AP)
  return jnp.sum(loss_AP / jnp.maximum(lengths_AP, 1.0)), samples


def _per_sample(values_AP, owner_AP, samples: int) -> jax.Array:
  """Sums over each sample's tokens, [A, X]."""
  add = jax.vmap(lambda v_P, i_P: jax.ops.segment_sum(v_P, i_P, samples + 1)[:samples])
  return add(values_AP, jnp.where(owner_AP >= 0, owner_AP, samples))


def _above_first(rewards_GS, mask_GS, axis: int | None) -> jax.Array:
  """Rewards minus the first real one; 0 where there is none.

  Without this, a rounded mean would differ from equal rewards, and a constant would cost digits.
  """
  values, real = (
    (rewards_GS, mask_GS) if axis else (rewards_GS.reshape(1, -1), mask_GS.reshape(1, -1))
  )
  first = jnp.take_along_axis(values, jnp.argmax(real, 1)[:, None], axis=1)
  return jnp.where(real, values - first, 0.0).reshape(rewards_GS.shape)


def _mean(values_GS, mask_GS, axis: int | None) -> jax.Array:
  count = jnp.sum(mask_GS, axis, keepdims=True)
  return jnp.sum(values_GS, axis, keepdims=True) / jnp.maximum(count, 1)


def _deviation(centered_GS, mask_GS, axis: int | None) -> jax.Array:
  """The standard deviation with n - 1; 0 of fewer than two samples."""
  count = jnp.sum(mask_GS, axis, keepdims=True)
  return jnp.sqrt(jnp.sum(jnp.square(centered_GS), axis, keepdims=True) / jnp.maximum(count - 1, 1))


def _cut(log_ratio):
  return jnp.clip(log_ratio, -LOG_RATIO, LOG_RATIO)
