"""Distillation losses: targets are a teacher's scores, or the order that they give.

`listwise_kl`, `point_mse`, `ranknet` and `pairwise_hinge` distil too; they are filed by their kind.
"""

import jax
import jax.numpy as jnp

from disranker_jax.losses.common import (
  approximate_ranks,
  average_ranks,
  differences,
  learns,
  masked_mean,
  preferred,
  ranking_loss,
  tie_counts,
)
from disranker_jax.losses.pointwise import point_mse


@learns('distances')
@ranking_loss
def margin_mse(scores_GN, targets_GN, mask_GN):
  """((s_i - s_j) - (t_i - t_j))^2, mean over the pairs i < j of a query: MarginMSE.

  Args:
    targets_GN: a teacher's scores. Only their differences within a query matter.

  Example:
    >>> scores_GN, teacher_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[4.2, -1.0, 0.5]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = margin_mse(scores_GN, teacher_GN, mask_GN)  # or loss='margin_mse'

  Reference: Hofstätter et al., 2020, arXiv:2010.02666; DisRanker's L_margin (arXiv:2411.04539).
  """
  pairs_NN = jnp.triu(jnp.ones((scores_GN.shape[1],) * 2, bool), 1)
  mask_GNN = mask_GN[:, :, None] & mask_GN[:, None, :] & pairs_NN[None]
  loss_GNN = jnp.square(differences(scores_GN - targets_GN))
  return masked_mean(loss_GNN, mask_GNN, (1, 2))


@learns('values')
@ranking_loss
def hybrid(scores_GN, targets_GN, mask_GN, *, beta=0.4):
  """L_point + beta * L_margin (`point_mse`, `margin_mse`): DisRanker's distillation loss.

  Args:
    targets_GN: a teacher's scores.
    beta: the weight of MarginMSE.

  Example:
    >>> scores_GN, teacher_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[4.2, -1.0, 0.5]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = hybrid(scores_GN, teacher_GN, mask_GN, beta=0.4)  # or loss='hybrid'

  Reference: DisRanker, section 3.4 (Ye et al., 2024, arXiv:2411.04539).
  """
  point_G, valid_G = point_mse.per_group(scores_GN, targets_GN, mask_GN)
  margin_G, _ = margin_mse.per_group(scores_GN, targets_GN, mask_GN)
  return point_G + beta * margin_G, valid_G


@learns('order')
@ranking_loss
def adr_mse(scores_GN, targets_GN, mask_GN, *, temperature=1.0):
  """(r_i - rank_i)^2 / log2(r_i + 1), mean over documents: Rank-DistiLLM's ADR-MSE.

  r is the teacher's rank, rank_i the approximate rank of the scores. Tied teacher scores share
  their mean rank, so that equal student scores reach 0.

  Args:
    targets_GN: a teacher's scores, or negated ranks. Only their order matters.
    temperature: of the sigmoids that replace comparisons of scores.

  Example:
    >>> scores_GN, ranks_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[1.0, 3.0, 2.0]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = adr_mse(scores_GN, -ranks_GN, mask_GN)  # or loss='adr_mse'

  Reference: Rank-DistiLLM (Schlatt et al., 2024, arXiv:2405.07920).
  """
  rank_GN = average_ranks(targets_GN, mask_GN)
  error_GN = approximate_ranks(scores_GN, mask_GN, temperature) - rank_GN
  loss_G, _ = masked_mean(jnp.square(error_GN) / jnp.log2(rank_GN + 1), mask_GN, 1)
  return loss_G, jnp.sum(mask_GN, 1) > 1


@learns('order')
@ranking_loss
def distilled_ranknet(scores_GN, targets_GN, mask_GN, *, margin=0.3, step=0.1, first_weight=3.0):
  """w_i max(0, margin + (r_j - r_i - 1) step - (s_i - s_j)), mean over its non-zero t_i > t_j.

  The distilled RankNet of DGR as released: w is `first_weight` for the teacher's first document,
  else 1 / r_i.

  Args:
    targets_GN: a teacher's scores, or negated ranks. Only their order matters.
    margin, step: DGR has 300 and 100, for sums of n-gram weights; the defaults are a thousandth.
    first_weight: the weight of pairs with the teacher's first document.

  Example:
    >>> scores_GN, ranks_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[1.0, 3.0, 2.0]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = distilled_ranknet(scores_GN, -ranks_GN, mask_GN)  # or loss='distilled_ranknet'

  Reference: DGR (Li et al., 2024, arXiv:2402.10769).
  """
  higher_GN, _ = tie_counts(targets_GN, mask_GN)
  rank_GN = average_ranks(targets_GN, mask_GN)
  weight_GN = jnp.where(higher_GN == 0, first_weight, 1 / rank_GN)
  margin_GNN = margin - (differences(rank_GN) + 1) * step
  loss_GNN = weight_GN[:, :, None] * jax.nn.relu(margin_GNN - differences(scores_GN))
  ordered_GNN = preferred(targets_GN, mask_GN)
  loss_G, _ = masked_mean(loss_GNN, ordered_GNN & (loss_GNN > 0), (1, 2))
  return loss_G, jnp.any(ordered_GNN, (1, 2))
