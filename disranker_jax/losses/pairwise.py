"""Pairwise losses: the better document of a pair gets the higher score.

They need an order only, so targets are labels or a teacher's scores.
"""

import jax

from disranker_jax.losses.common import differences, learns, masked_mean, preferred, ranking_loss


@learns('order')
@ranking_loss
def pairwise_hinge(scores_GN, targets_GN, mask_GN, *, margin=0.1):
  """max(0, T - (s_i - s_j)), mean over the pairs with y_i > y_j: DisRanker's rank loss.

  The paper prints Max(0, s_i - s_j, T), which has no gradient where the order is wrong.

  Args:
    targets_GN: labels, or any values that order a query's documents.
    margin: T, the score difference from which a pair costs nothing.

  Example:
    >>> scores_GN, labels_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[2.0, 0.0, 1.0]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = pairwise_hinge(scores_GN, labels_GN, mask_GN, margin=0.1)  # or loss='pairwise_hinge'

  Reference: DisRanker, section 3.2 (Ye et al., 2024, arXiv:2411.04539).
  """
  loss_GNN = jax.nn.relu(margin - differences(scores_GN))
  return masked_mean(loss_GNN, preferred(targets_GN, mask_GN), (1, 2))


@learns('order')
@ranking_loss
def ranknet(scores_GN, targets_GN, mask_GN):
  """log(1 + exp(-(s_i - s_j))), mean over the pairs with y_i > y_j; natural logarithm.

  Args:
    targets_GN: labels, or any values that order a query's documents, such as a teacher's scores or
      the negated ranks of an LLM's permutation.

  Example:
    >>> scores_GN, ranks_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[1.0, 3.0, 2.0]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = ranknet(scores_GN, -ranks_GN, mask_GN)  # or loss='ranknet'

  Reference: Burges et al., Learning to Rank using Gradient Descent, ICML 2005. For an LLM's
  permutations: RankGPT (Sun et al., 2023, arXiv:2304.09542).
  """
  loss_GNN = jax.nn.softplus(-differences(scores_GN))
  return masked_mean(loss_GNN, preferred(targets_GN, mask_GN), (1, 2))
