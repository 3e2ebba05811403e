"""Pointwise losses: each document by itself."""

import jax
import jax.numpy as jnp

from disranker_jax.losses.common import learns, masked_mean, ranking_loss


@ranking_loss
def pointwise_ce(scores_GN, targets_GN, mask_GN, *, top=1.0):
  """-p_i log sigmoid(s_i) - (1 - p_i) log sigmoid(-s_i), mean over documents; p = y / top in 0..1.

  Binary cross-entropy as in monoT5 and the BGE rerankers.

  Args:
    targets_GN: labels.
    top: the grade of p = 1. With 1 every grade from 1 on is relevant; with the highest grade p is
      graded.

  Example:
    >>> scores_GN, labels_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[1.0, 0.0, 0.0]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = pointwise_ce(scores_GN, labels_GN, mask_GN)  # or loss='pointwise_ce'

  Reference: Nogueira et al., 2020, arXiv:2003.06713.
  """
  p_GN = jnp.clip(targets_GN / top, 0.0, 1.0)
  return masked_mean(jax.nn.softplus(scores_GN) - p_GN * scores_GN, mask_GN, 1)


@learns('values')
@ranking_loss
def point_mse(scores_GN, targets_GN, mask_GN):
  """2 * mean_i (s_i - t_i)^2: DisRanker's L_point, which sums the two documents of a pair.

  Args:
    targets_GN: a teacher's scores.

  Example:
    >>> scores_GN, teacher_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[4.2, -1.0, 0.5]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = point_mse(scores_GN, teacher_GN, mask_GN)  # or loss='point_mse'

  Reference: DisRanker, section 3.4 (Ye et al., 2024, arXiv:2411.04539).
  """
  loss_G, valid_G = masked_mean(jnp.square(scores_GN - targets_GN), mask_GN, 1)
  return 2 * loss_G, valid_G
