"""Ranking and distillation losses: pure functions of scores, targets and a mask.

Shapes: G queries (groups), N documents of a query. Every loss is first a value per query, then the
mean over the queries that have something to say, so that a query with many documents weighs no
more than one with few, and gradient accumulation can add (sum, weight) over micro-batches exactly.

A public loss is called `(scores_GN, targets_GN, mask_GN, **settings) -> scalar`; its `per_group`
attribute, called the same way, gives `(loss_G, valid_G)`. Ties, padding, single documents and
queries whose labels are all equal give finite values and gradients: such a query is not valid and
counts nowhere.
"""

import functools

import jax
import jax.numpy as jnp


def ranking_loss(per_group):
  """Turns a per-query loss into the mean over valid queries; keeps the former as `.per_group`."""

  @functools.wraps(per_group)
  def loss(scores_GN, targets_GN, mask_GN, **settings):
    loss_G, valid_G = per_group(scores_GN, targets_GN, mask_GN, **settings)
    return jnp.sum(loss_G) / jnp.maximum(jnp.sum(valid_G), 1)

  loss.per_group = per_group
  return loss


def masked_mean(values, mask, axis):
  """Mean over `axis` where `mask`, and whether there was anything; empty means are 0, never NaN."""
  count = jnp.sum(mask, axis)
  mean = jnp.sum(jnp.where(mask, values, 0.0), axis) / jnp.maximum(count, 1)
  return mean, count > 0


def differences(values_GN):
  """values_i - values_j for every ordered pair of a query's documents: [G, N, N]."""
  return values_GN[:, :, None] - values_GN[:, None, :]


def preferred(targets_GN, mask_GN):
  """True at (i, j) where both documents are real and i has the higher target: [G, N, N]."""
  return (differences(targets_GN) > 0) & mask_GN[:, :, None] & mask_GN[:, None, :]


@ranking_loss
def pairwise_hinge(scores_GN, targets_GN, mask_GN, *, margin=0.1):
  """max(0, T - (s_i - s_j)), mean over pairs with y_i > y_j (DisRanker's rank loss, as mended)."""
  loss_GNN = jax.nn.relu(margin - differences(scores_GN))
  return masked_mean(loss_GNN, preferred(targets_GN, mask_GN), (1, 2))


@ranking_loss
def ranknet(scores_GN, targets_GN, mask_GN):
  """log(1 + exp(-(s_i - s_j))), mean over pairs with y_i > y_j (RankNet, natural logarithm)."""
  loss_GNN = jax.nn.softplus(-differences(scores_GN))
  return masked_mean(loss_GNN, preferred(targets_GN, mask_GN), (1, 2))


@ranking_loss
def info_nce(scores_GN, targets_GN, mask_GN):
  """-log softmax of the best-labelled documents, their mean (InfoNCE; negatives are the rest)."""
  best_G1 = jnp.max(jnp.where(mask_GN, targets_GN, -jnp.inf), 1, keepdims=True)
  positive_GN = mask_GN & (targets_GN == best_G1)
  log_p_GN = jax.nn.log_softmax(jnp.where(mask_GN, scores_GN, -1e9), axis=1)
  loss_G, _ = masked_mean(-log_p_GN, positive_GN, 1)
  valid_G = jnp.any(positive_GN, 1) & jnp.any(mask_GN & ~positive_GN, 1)
  return jnp.where(valid_G, loss_G, 0.0), valid_G


@ranking_loss
def point_mse(scores_GN, targets_GN, mask_GN):
  """2 * mean_i (s_i - t_i)^2; for a query of two documents the paper's L_point, which sums both."""
  loss_G, valid_G = masked_mean(jnp.square(scores_GN - targets_GN), mask_GN, 1)
  return 2 * loss_G, valid_G


@ranking_loss
def margin_mse(scores_GN, targets_GN, mask_GN):
  """((s_i - s_j) - (t_i - t_j))^2, mean over the pairs i < j of a query (the paper's L_margin)."""
  pairs_NN = jnp.triu(jnp.ones((scores_GN.shape[1],) * 2, bool), 1)
  mask_GNN = mask_GN[:, :, None] & mask_GN[:, None, :] & pairs_NN[None]
  loss_GNN = jnp.square(differences(scores_GN - targets_GN))
  return masked_mean(loss_GNN, mask_GNN, (1, 2))


@ranking_loss
def hybrid(scores_GN, targets_GN, mask_GN, *, beta=0.4):
  """L_point + beta * L_margin: DisRanker's distillation loss (section 3.4), beta = 0.4."""
  point_G, valid_G = point_mse.per_group(scores_GN, targets_GN, mask_GN)
  margin_G, _ = margin_mse.per_group(scores_GN, targets_GN, mask_GN)
  return point_G + beta * margin_G, valid_G


# What a config may name as the loss on labels.
ON_LABELS = {'pairwise_hinge': pairwise_hinge, 'ranknet': ranknet, 'info_nce': info_nce}
