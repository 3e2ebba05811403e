"""The loss of GRPO on packed samples, and the log-probabilities that it compares.

Batches are those of rewriting/rollouts.py. 'Policy' is what RL calls the model that is trained.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from disranker_jax.models.network import Network
from disranker_jax.rewriting import objective
from disranker_jax.training import optimizer


def log_probabilities(network: Network, temperature: float, variables: dict, batch: dict):
  """Log-probabilities [A, P] of a batch's predicted tokens; 0 where there is none."""
  predicted = batch['index_AP'], batch['targets_AP'], batch['owner_AP'] >= 0
  hidden_BTD = network.hidden(variables, batch)
  return network.logprobs(variables, hidden_BTD, *predicted, temperature)


@dataclasses.dataclass(frozen=True, eq=False)  # the settings have no hash
class PolicyLoss:
  """(variables, batch) -> (sum, weight, metrics), see train.Task.

  Args:
    c: the section `rewrite` of the config.
    facts: the names of what batches know of a query's samples.
  """

  network: Network
  c: Any
  facts: tuple[str, ...]

  def __call__(self, variables: dict, batch: dict) -> tuple[jax.Array, jax.Array, dict]:
    c, owner_AP = self.c, batch['owner_AP']
    blocks = owner_AP.shape[0]
    logprobs_AP = log_probabilities(self.network, c.temperature, optimizer.own(variables), batch)
    old_AP = batch.get('old_AP', jax.lax.stop_gradient(logprobs_AP))
    advantages_AP = objective.of_samples(batch['advantages_GN'].reshape(blocks, -1), owner_AP)
    loss_AP = objective.surrogate(logprobs_AP, old_AP, advantages_AP, c.epsilon, c.epsilon_high)
    if c.sampler_correction:
      sampled_AP = batch['sampled_AP']
      loss_AP *= objective.sampler_ratio(old_AP, sampled_AP, c.sampler_correction)
    if c.beta:
      loss_AP += c.beta * objective.kl(logprobs_AP, batch['reference_AP'], c.kl)
    mask_AX, counted_AP = batch['mask_GN'].reshape(blocks, -1), owner_AP
    if c.mask_truncated:
      cut_AX = batch['truncated_GN'].reshape(blocks, -1)
      counted_AP = jnp.where(objective.of_samples(cut_AX, owner_AP) > 0, -1, owner_AP)
    total, weight = objective.aggregate(loss_AP, counted_AP, mask_AX, c.aggregate, c.max_new)
    return total, weight, self._metrics(batch, jax.lax.stop_gradient(logprobs_AP), old_AP)

  def _metrics(self, batch: dict, logprobs_AP, old_AP) -> dict:
    """The facts, and means over the tokens or samples that are learned from.

    `entropy` is of the tokens as they were sampled.
    """
    real_AP, mask_GN = batch['owner_AP'] >= 0, batch['mask_GN']
    tokens, samples = jnp.maximum(jnp.sum(real_AP), 1), jnp.maximum(jnp.sum(mask_GN), 1)

    def over_tokens(values_AP):
      return jnp.sum(jnp.where(real_AP, values_AP, 0.0))

    ratio_AP = jnp.exp(logprobs_AP - old_AP)
    outside_AP = (ratio_AP < 1 - self.c.epsilon) | (ratio_AP > 1 + self.c.epsilon_high)
    found = {
      'entropy': over_tokens(-batch['sampled_AP']) / tokens,
      'sampler_difference': over_tokens(jnp.abs(old_AP - batch['sampled_AP'])) / tokens,
      'outside_clip': over_tokens(outside_AP.astype(jnp.float32)) / tokens,
      'examples': jnp.sum(mask_GN),
    }
    if 'reference_AP' in batch:
      kl_AP = objective.kl(logprobs_AP, batch['reference_AP'], objective.WATCHED)
      found['kl'] = over_tokens(kl_AP) / samples
    for name in self.facts:
      found[name] = jnp.sum(jnp.where(mask_GN, batch[f'{name}_GN'], 0.0)) / samples
    return found
