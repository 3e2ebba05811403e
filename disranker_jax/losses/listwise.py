"""Listwise losses: all documents of a query together."""

import jax
import jax.numpy as jnp

from disranker_jax.losses.common import (
  approximate_ranks,
  differences,
  learns,
  log_softmax,
  masked_mean,
  preferred,
  ranking_loss,
)
from disranker_jax.losses.ndcg import discount_change, normalised_gains


@ranking_loss
def info_nce(scores_GN, targets_GN, mask_GN):
  """-log softmax of the best-labelled documents, their mean; the other documents are negatives.

  Also known as localized contrastive estimation (LCE), and as RankLLaMA's loss.

  Args:
    targets_GN: labels; all documents with a query's highest label are positives.

  Example:
    >>> scores_GN, labels_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[1.0, 0.0, 0.0]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = info_nce(scores_GN, labels_GN, mask_GN)  # or loss='info_nce'

  Reference: van den Oord et al., 2018, arXiv:1807.03748; for rerankers Gao et al., 2021,
  arXiv:2101.08751, and RankLLaMA (Ma et al., 2023, arXiv:2310.08319).
  """
  best_G1 = jnp.max(jnp.where(mask_GN, targets_GN, -jnp.inf), 1, keepdims=True)
  positive_GN = mask_GN & (targets_GN == best_G1)
  loss_G, _ = masked_mean(-log_softmax(scores_GN, mask_GN), positive_GN, 1)
  valid_G = jnp.any(positive_GN, 1) & jnp.any(mask_GN & ~positive_GN, 1)
  return jnp.where(valid_G, loss_G, 0.0), valid_G


@ranking_loss
def perplexity_nce(scores_GN, targets_GN, mask_GN, *, temperature=0.001):
  """`info_nce` of the inverse perplexities exp(s) / temperature: TSRankGPT's contrastive term.

  Args:
    scores_GN: mean log-probabilities, such as the scorer 'query_likelihood' gives; a score above 0
      counts as 0.
    targets_GN: labels; all documents with a query's highest label are positives.

  Example:
    >>> scores_GN, labels_GN = jnp.array([[-2.3, -1.9, -3.1]]), jnp.array([[1.0, 0.0, 0.0]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = perplexity_nce(scores_GN, labels_GN, mask_GN)  # or loss='perplexity_nce'

  Reference: RankingGPT (Zhang et al., 2023, arXiv:2311.16720).
  """
  inverse_GN = jnp.exp(jnp.minimum(scores_GN, 0.0)) / temperature
  return info_nce.per_group(inverse_GN, targets_GN, mask_GN)


@ranking_loss
def softmax_ce(scores_GN, targets_GN, mask_GN):
  """-sum_i p_i log softmax(s)_i with p_i = y_i / sum_j y_j: RankT5's softmax loss.

  Unlike `info_nce` it learns from every grade above 0. RankT5 does not normalise p.

  Args:
    targets_GN: labels; negative grades count as 0.

  Example:
    >>> scores_GN, labels_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[3.0, 0.0, 1.0]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = softmax_ce(scores_GN, labels_GN, mask_GN)  # or loss='softmax_ce'

  Reference: RankT5 (Zhuang et al., 2022, arXiv:2210.10634).
  """
  grade_GN = jnp.maximum(targets_GN, 0.0)
  p_GN = grade_GN / jnp.maximum(jnp.sum(grade_GN, 1, keepdims=True), 1e-9)
  loss_G = -jnp.sum(p_GN * log_softmax(scores_GN, mask_GN), 1)
  valid_G = jnp.any(preferred(grade_GN, mask_GN), (1, 2))
  return jnp.where(valid_G, loss_G, 0.0), valid_G


# As ListNet takes grades, it takes positions.
@learns('order')
@ranking_loss
def listwise_kl(
  scores_GN, targets_GN, mask_GN, *, student_temperature=1.0, teacher_temperature=1.0
):
  """KL(softmax(t / T_t) || softmax(s / T_s)) * T_s^2 over a query's documents.

  The factor T_s^2 keeps gradients as large as at T_s = 1. On labels it is ListNet minus a constant.

  Args:
    targets_GN: a teacher's scores, or labels.
    student_temperature: T_s.
    teacher_temperature: T_t.

  Example:
    >>> scores_GN, teacher_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[4.2, -1.0, 0.5]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = listwise_kl(scores_GN, teacher_GN, mask_GN)  # or loss='listwise_kl'

  Reference: Hinton et al., 2015, arXiv:1503.02531; ListNet (Cao et al., ICML 2007).
  """
  log_p_GN = log_softmax(targets_GN / teacher_temperature, mask_GN)
  log_q_GN = log_softmax(scores_GN / student_temperature, mask_GN)
  loss_G = jnp.sum(jnp.exp(log_p_GN) * (log_p_GN - log_q_GN), 1)
  # A single document gives 0 whatever its score.
  return loss_G * student_temperature**2, jnp.sum(mask_GN, 1) > 1


@ranking_loss
def lambda_loss(scores_GN, targets_GN, mask_GN, *, k=0):
  """|change of nDCG@k if i and j swap| * log(1 + exp(-(s_i - s_j))), sum over y_i > y_j.

  LambdaRank's weights as a loss; the gradient takes them as constants. A sum and not a mean,
  because nDCG is normalised already.

  Args:
    targets_GN: labels; the gain of grade y is 2^y - 1, of a negative grade 0.
    k: the cut-off of nDCG; 0: none.

  Example:
    >>> scores_GN, labels_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[2.0, 0.0, 1.0]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = lambda_loss(scores_GN, labels_GN, mask_GN, k=5)  # or loss='lambda_loss?k=5'

  Reference: LambdaLoss (Wang et al., CIKM 2018); LambdaRank (Burges et al., NIPS 2006).
  """
  gain_GN = normalised_gains(targets_GN, mask_GN, k)
  better_GNN = preferred(gain_GN, mask_GN)
  weight_GNN = discount_change(scores_GN, mask_GN, k) * differences(gain_GN)
  loss_GNN = weight_GNN * jax.nn.softplus(-differences(scores_GN))
  return jnp.sum(jnp.where(better_GNN, loss_GNN, 0.0), (1, 2)), jnp.any(better_GNN, (1, 2))


@ranking_loss
def approx_ndcg(scores_GN, targets_GN, mask_GN, *, temperature=0.1):
  """1 - nDCG at approximate ranks; the limit for temperature to 0 is nDCG itself.

  Args:
    targets_GN: labels; the gain of grade y is 2^y - 1, of a negative grade 0.
    temperature: of the sigmoids that replace comparisons of scores.

  Example:
    >>> scores_GN, labels_GN = jnp.array([[0.3, 0.9, 0.1]]), jnp.array([[2.0, 0.0, 1.0]])
    >>> mask_GN = jnp.ones((1, 3), bool)
    >>> loss = approx_ndcg(scores_GN, labels_GN, mask_GN)  # or loss='approx_ndcg'

  Reference: Qin, Liu and Li, Information Retrieval 13, 2010.
  """
  gain_GN = normalised_gains(targets_GN, mask_GN)
  rank_GN = approximate_ranks(scores_GN, mask_GN, temperature)
  loss_G = 1 - jnp.sum(gain_GN / jnp.log2(1 + rank_GN), 1)
  valid_G = jnp.any(preferred(gain_GN, mask_GN), (1, 2))
  return jnp.where(valid_G, loss_G, 0.0), valid_G
