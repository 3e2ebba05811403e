"""What the losses share: means over queries, pairs of documents, ranks.

Shapes: G queries (groups), N documents per query.
"""

import functools

import jax
import jax.numpy as jnp


def mean_over_groups(per_group):
  """Turns a per-query loss into the mean over valid queries; keeps the former as `.per_group`."""

  @functools.wraps(per_group)
  def loss(*args, **settings):
    loss_G, valid_G = per_group(*args, **settings)
    return jnp.sum(loss_G) / jnp.maximum(jnp.sum(valid_G), 1)

  loss.per_group = per_group
  return loss


def ranking_loss(per_group):
  """`mean_over_groups` for losses of scores and targets; both are 0 wherever there is padding."""

  @functools.wraps(per_group)
  def padded(scores_GN, targets_GN, mask_GN, **settings):
    mask_GN = jnp.asarray(mask_GN)
    # Padding may hold any value, and 0 * inf in a backward pass is NaN.
    scores_GN, targets_GN = (jnp.where(mask_GN, x, 0.0) for x in (scores_GN, targets_GN))
    return per_group(scores_GN, targets_GN, mask_GN, **settings)

  return mean_over_groups(padded)


def learns(what: str):
  """States what a loss on a teacher's scores learns of them, as its attribute `learns`.

  Args:
    what: 'values', which must mean the same in every query; 'distances', the differences within a
      query; 'order', for which any targets will do that order the documents of a query.
  """

  def stated(loss):
    loss.learns = what
    return loss

  return stated


def masked_mean(values, mask, axis):
  """(mean over `axis` where `mask`, whether the mask has any entry); an empty mean is 0."""
  count = jnp.sum(mask, axis)
  mean = jnp.sum(jnp.where(mask, values, 0.0), axis) / jnp.maximum(count, 1)
  return mean, count > 0


def differences(values_GN):
  """values_i - values_j for every ordered pair of a query's documents: [G, N, N]."""
  return values_GN[:, :, None] - values_GN[:, None, :]


def preferred(targets_GN, mask_GN):
  """True at (i, j) where both documents are real and i has the higher target: [G, N, N]."""
  return (differences(targets_GN) > 0) & mask_GN[:, :, None] & mask_GN[:, None, :]


def log_softmax(values_GN, mask_GN):
  """Log-probabilities over a query's real documents; finite for a query without documents."""
  return jax.nn.log_softmax(jnp.where(mask_GN, values_GN, -1e9), axis=1)


def tie_counts(values_GN, mask_GN):
  """(documents of the query with a higher value, with the same value including itself): [G, N]."""
  mine_GN1, others_G1N = values_GN[:, :, None], values_GN[:, None, :]
  higher_GN = jnp.sum((others_G1N > mine_GN1) & mask_GN[:, None, :], 2)
  equal_GN = jnp.sum((others_G1N == mine_GN1) & mask_GN[:, None, :], 2)
  return higher_GN, equal_GN


def average_ranks(values_GN, mask_GN):
  """Ranks from 1, highest value first; tied documents share the mean of the ranks they take."""
  higher_GN, equal_GN = tie_counts(values_GN, mask_GN)
  return higher_GN + (equal_GN + 1) / 2


def approximate_ranks(scores_GN, mask_GN, temperature):
  """1 + sum_{j != i} sigmoid((s_j - s_i) / temperature): smooth ranks (Qin et al., 2010)."""
  higher_GNN = jax.nn.sigmoid(-differences(scores_GN) / temperature)
  # The sum includes the document itself with 1/2.
  return jnp.sum(jnp.where(mask_GN[:, None, :], higher_GNN, 0.0), 2) + 0.5
