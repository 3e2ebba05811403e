"""Ranking and distillation losses: pure functions of scores, targets and a mask.

Shapes: G queries (groups), N documents of a query. Every loss is first a value per query, then the
mean over the queries that have something to say, so that a query with many documents weighs no
more than one with few, and gradient accumulation can add (sum, weight) over micro-batches exactly.

A public loss is called `(scores_GN, targets_GN, mask_GN, **settings) -> scalar`; its `per_group`
attribute, called the same way, gives `(loss_G, valid_G)`. Ties, padding, single documents and
queries whose labels are all equal give finite values and gradients, and neither padding nor the
order of documents changes a value: where tied documents would have to be ranked they share their
mean rank. A query with nothing to say is not valid and counts nowhere.

In formulas s is a score, y a grade (its gain is 2^y - 1, as in metrics.py), t a teacher's score, r
a document's rank from 1. `ON_LABELS` and `ON_SCORES` name what learns from y and from t; a config
picks from them by `choose`.
"""

import difflib
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.errors import UserError


def mean_over_groups(per_group):
  """Turns a per-query loss into the mean over valid queries; keeps the former as `.per_group`."""

  @functools.wraps(per_group)
  def loss(*args, **settings):
    loss_G, valid_G = per_group(*args, **settings)
    return jnp.sum(loss_G) / jnp.maximum(jnp.sum(valid_G), 1)

  loss.per_group = per_group
  return loss


def ranking_loss(per_group):
  """`mean_over_groups` for losses of scores and targets, which see 0 wherever there is padding."""

  @functools.wraps(per_group)
  def padded(scores_GN, targets_GN, mask_GN, **settings):
    mask_GN = jnp.asarray(mask_GN)
    # What stands in padding may be anything, and 0 * inf in a backward pass is NaN.
    scores_GN, targets_GN = (jnp.where(mask_GN, x, 0.0) for x in (scores_GN, targets_GN))
    return per_group(scores_GN, targets_GN, mask_GN, **settings)

  return mean_over_groups(padded)


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


def log_softmax(values_GN, mask_GN):
  """Log-probabilities over a query's real documents; finite even where there is none."""
  return jax.nn.log_softmax(jnp.where(mask_GN, values_GN, -1e9), axis=1)


def tie_counts(values_GN, mask_GN):
  """How many of a query's documents have a higher value, and how many the same, itself included."""
  mine_GN1, others_G1N = values_GN[:, :, None], values_GN[:, None, :]
  higher_GN = jnp.sum((others_G1N > mine_GN1) & mask_GN[:, None, :], 2)
  equal_GN = jnp.sum((others_G1N == mine_GN1) & mask_GN[:, None, :], 2)
  return higher_GN, equal_GN


def average_ranks(values_GN, mask_GN):
  """Ranks from 1, highest value first; tied documents share the mean of the ranks they take."""
  higher_GN, equal_GN = tie_counts(values_GN, mask_GN)
  return higher_GN + (equal_GN + 1) / 2


def approximate_ranks(scores_GN, mask_GN, temperature):
  """1 + sum_{j != i} sigmoid((s_j - s_i) / temperature): ranks that have gradients (Qin, 2010)."""
  higher_GNN = jax.nn.sigmoid(-differences(scores_GN) / temperature)
  # The document itself is in the sum as 1/2.
  return jnp.sum(jnp.where(mask_GN[:, None, :], higher_GNN, 0.0), 2) + 0.5


# nDCG: gains, discounts, and what two documents' places are worth.


def discounts(ranks: int, k: int = 0) -> np.ndarray:
  """1 / log2(r + 1) of the ranks r = 1, 2, ..., 0 beyond rank k (k = 0: no cut-off)."""
  rank = np.arange(1, ranks + 1)
  return np.where((rank <= k) | (k == 0), 1 / np.log2(rank + 1), 0.0)


def normalised_gains(labels_GN, mask_GN, k: int = 0):
  """(2^y - 1) / ideal DCG@k; 0 for padding, negative grades and queries without a gain."""
  gain_GN = jnp.where(mask_GN, jnp.exp2(jnp.maximum(labels_GN, 0.0)) - 1, 0.0)
  discount_1N = jnp.asarray(discounts(labels_GN.shape[1], k)[None], gain_GN.dtype)
  ideal_G1 = jnp.sum(jnp.sort(gain_GN, 1, descending=True) * discount_1N, 1, keepdims=True)
  return gain_GN / jnp.where(ideal_G1 > 0, ideal_G1, 1.0)


def tied_discounts(documents: int, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Expected discounts of a block of `m` tied documents below `a` others, at [a, m] of two tables.

  The first is the mean discount of the block's places, the second the mean difference between two
  of them. Float64 on the host: sums of many discounts that differ by little.
  """
  discount = discounts(documents, k)
  total = np.concatenate([[0.0], np.cumsum(discount)])
  moment = np.concatenate([[0.0], np.cumsum(discount * np.arange(1, documents + 1))])
  a, m = np.ogrid[: documents + 1, : documents + 1]
  end = np.minimum(a + m, documents)
  inside, moment_inside = total[end] - total[a], moment[end] - moment[a]
  apart = 2 * ((m + 1 + 2 * a) * inside - 2 * moment_inside)
  return inside / np.maximum(m, 1), apart / np.maximum(m * (m - 1), 1)


def discount_change(scores_GN, mask_GN, k: int):
  """|discount(r_i) - discount(r_j)| at the ranks of the scores: [G, N, N].

  Of tied documents, its mean over all orders that they could be in. With their mean ranks instead
  it would be 0, and documents that start with equal scores would never be told apart.
  """
  tables = [jnp.asarray(t, scores_GN.dtype) for t in tied_discounts(scores_GN.shape[1], k)]
  counts = tie_counts(scores_GN, mask_GN)
  mean_GN, apart_GN = (table[counts] for table in tables)
  tied_GNN = scores_GN[:, :, None] == scores_GN[:, None, :]
  return jnp.where(tied_GNN, apart_GN[:, :, None], jnp.abs(differences(mean_GN)))


# Losses on labels; the pairwise ones need an order only and take a teacher's as well.


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
def lambda_loss(scores_GN, targets_GN, mask_GN, *, k=0):
  """|change of nDCG@k if i and j swapped| * log(1 + exp(-(s_i - s_j))), sum over y_i > y_j.

  LambdaRank's weights (Burges, 2006) as a loss (Wang et al., 2018): the weights are constants to
  the gradient. A sum, because nDCG is normalised already; k = 0 is nDCG without a cut-off.
  """
  gain_GN = normalised_gains(targets_GN, mask_GN, k)
  better_GNN = preferred(gain_GN, mask_GN)
  weight_GNN = discount_change(scores_GN, mask_GN, k) * differences(gain_GN)
  loss_GNN = weight_GNN * jax.nn.softplus(-differences(scores_GN))
  return jnp.sum(jnp.where(better_GNN, loss_GNN, 0.0), (1, 2)), jnp.any(better_GNN, (1, 2))


@ranking_loss
def approx_ndcg(scores_GN, targets_GN, mask_GN, *, temperature=0.1):
  """1 - nDCG at approximate ranks (Qin, Liu, Li, 2010); nDCG itself as temperature goes to 0."""
  gain_GN = normalised_gains(targets_GN, mask_GN)
  rank_GN = approximate_ranks(scores_GN, mask_GN, temperature)
  loss_G = 1 - jnp.sum(gain_GN / jnp.log2(1 + rank_GN), 1)
  valid_G = jnp.any(preferred(gain_GN, mask_GN), (1, 2))
  return jnp.where(valid_G, loss_G, 0.0), valid_G


@ranking_loss
def info_nce(scores_GN, targets_GN, mask_GN):
  """-log softmax of the best-labelled documents, their mean (InfoNCE; negatives are the rest).

  With one positive of N it is RankLLaMA's loss (Ma et al., 2023) and Rank-DistiLLM's first stage.
  """
  best_G1 = jnp.max(jnp.where(mask_GN, targets_GN, -jnp.inf), 1, keepdims=True)
  positive_GN = mask_GN & (targets_GN == best_G1)
  loss_G, _ = masked_mean(-log_softmax(scores_GN, mask_GN), positive_GN, 1)
  valid_G = jnp.any(positive_GN, 1) & jnp.any(mask_GN & ~positive_GN, 1)
  return jnp.where(valid_G, loss_G, 0.0), valid_G


@ranking_loss
def softmax_ce(scores_GN, targets_GN, mask_GN):
  """-sum_i p_i log softmax(s)_i with p_i = y_i / sum_j y_j: RankT5's softmax, p made to sum to 1.

  Unlike info_nce it learns from every grade above 0; negative grades count as 0.
  """
  grade_GN = jnp.maximum(targets_GN, 0.0)
  p_GN = grade_GN / jnp.maximum(jnp.sum(grade_GN, 1, keepdims=True), 1e-9)
  loss_G = -jnp.sum(p_GN * log_softmax(scores_GN, mask_GN), 1)
  valid_G = jnp.any(preferred(grade_GN, mask_GN), (1, 2))
  return jnp.where(valid_G, loss_G, 0.0), valid_G


@ranking_loss
def pointwise_ce(scores_GN, targets_GN, mask_GN, *, top=1.0):
  """-p_i log sigmoid(s_i) - (1 - p_i) log sigmoid(-s_i), mean over documents; p = y / top in 0..1.

  top = 1 makes every grade from 1 on relevant (monoT5, BGE); the highest grade makes p graded.
  """
  p_GN = jnp.clip(targets_GN / top, 0.0, 1.0)
  return masked_mean(jax.nn.softplus(scores_GN) - p_GN * scores_GN, mask_GN, 1)


# Losses on a teacher's scores.


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


@ranking_loss
def listwise_kl(
  scores_GN, targets_GN, mask_GN, *, student_temperature=1.0, teacher_temperature=1.0
):
  """KL(softmax(t / T_t) || softmax(s / T_s)) * T_s^2 over a query's documents (Hinton, 2015).

  T_s^2 keeps gradients as large as at T_s = 1. On labels it is ListNet less a constant.
  """
  log_p_GN = log_softmax(targets_GN / teacher_temperature, mask_GN)
  log_q_GN = log_softmax(scores_GN / student_temperature, mask_GN)
  loss_G = jnp.sum(jnp.exp(log_p_GN) * (log_p_GN - log_q_GN), 1)
  # Of a single document it is 0 whatever the score.
  return loss_G * student_temperature**2, jnp.sum(mask_GN, 1) > 1


@ranking_loss
def adr_mse(scores_GN, targets_GN, mask_GN, *, temperature=1.0):
  """(r_i - rank_i)^2 / log2(r_i + 1), mean over documents: Rank-DistiLLM's ADR-MSE.

  r is the teacher's rank, average of ties (so that equal scores reach 0); rank_i that of scores.
  """
  rank_GN = average_ranks(targets_GN, mask_GN)
  error_GN = approximate_ranks(scores_GN, mask_GN, temperature) - rank_GN
  loss_G, _ = masked_mean(jnp.square(error_GN) / jnp.log2(rank_GN + 1), mask_GN, 1)
  return loss_G, jnp.sum(mask_GN, 1) > 1


@ranking_loss
def distilled_ranknet(scores_GN, targets_GN, mask_GN, *, margin=0.3, step=0.1, first_weight=3.0):
  """w_i max(0, margin + (r_j - r_i - 1) step - (s_i - s_j)), mean over its non-zero t_i > t_j.

  DGR's distilled RankNet as released: w is `first_weight` for the teacher's first document, else
  1 / r_i. Its margin 300 and step 100 are for sums of n-gram weights; here a thousandth of them.
  """
  higher_GN, _ = tie_counts(targets_GN, mask_GN)
  rank_GN = average_ranks(targets_GN, mask_GN)
  weight_GN = jnp.where(higher_GN == 0, first_weight, 1 / rank_GN)
  margin_GNN = margin - (differences(rank_GN) + 1) * step
  loss_GNN = weight_GN[:, :, None] * jax.nn.relu(margin_GNN - differences(scores_GN))
  ordered_GNN = preferred(targets_GN, mask_GN)
  loss_G, _ = masked_mean(loss_GNN, ordered_GNN & (loss_GNN > 0), (1, 2))
  return loss_G, jnp.any(ordered_GNN, (1, 2))


# Intermediate layers (TinyBERT: Jiao et al., 2020). Off by default: the uniform-architecture study
# finds that they may hurt. Here a group is whatever shares a mask: a row of tokens, or a query
# whose documents' [CLS] states are the T positions. L and D may differ between the two sides.


def layer_pairs(layer_map, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
  """(student's layer, teacher's) to compare, 0 the embeddings; None: every m with m * M / L."""
  if layer_map is None:
    layer_map = [(m, round(m * teacher / max(student, 1))) for m in range(student + 1)]
  if any(not (0 <= m <= student and 0 <= n <= teacher) for m, n in layer_map):
    there = f'the student has layers 0 to {student}, the teacher 0 to {teacher}'
    raise UserError(f'layer_map {layer_map}: {there}')
  return tuple(layer_map)


@mean_over_groups
def hidden_mse(student_LGTD, teacher_LGTD, mask_GT, *, layer_map=None, projection_DD=None):
  """MSE(H_m^S W, H_g(m)^T) over real positions and width, sum over the layer map's pairs.

  States of the embeddings first, then of each layer. `projection_DD`, [student's width, teacher's],
  is a learnt parameter of the caller's; without one both widths must be equal.
  """
  loss_G = jnp.zeros(mask_GT.shape[0])
  for m, n in layer_pairs(layer_map, len(student_LGTD) - 1, len(teacher_LGTD) - 1):
    ours_GTD, theirs_GTD = student_LGTD[m], teacher_LGTD[n]
    if projection_DD is not None:
      ours_GTD = jnp.where(mask_GT[:, :, None], ours_GTD, 0.0) @ projection_DD
    loss_G += _layer_mse(ours_GTD, theirs_GTD, mask_GT[:, :, None], 'widths; give a projection')
  return loss_G, jnp.any(mask_GT, 1)


@mean_over_groups
def attention_mse(student_LGHTS, teacher_LGHTS, mask_GTS, *, layer_map=None):
  """MSE(A_m^S, A_g(m)^T) over heads and real pairs of positions, sum over the layer map's pairs.

  A are attention scores before the softmax, which have no embeddings' layer: pairs with 0 are left
  out, and layer m is at m - 1. `mask_GTS` is True where a position may attend to another.
  """
  loss_G = jnp.zeros(mask_GTS.shape[0])
  for m, n in layer_pairs(layer_map, len(student_LGHTS), len(teacher_LGHTS)):
    if m and n:
      ours_GHTS, theirs_GHTS = student_LGHTS[m - 1], teacher_LGHTS[n - 1]
      loss_G += _layer_mse(ours_GHTS, theirs_GHTS, mask_GTS[:, None], 'numbers of heads')
  return loss_G, jnp.any(mask_GTS, (1, 2))


def _layer_mse(ours, theirs, mask, what: str):
  """Mean square of a layer's differences in each group, in fp32 over all axes but the first."""
  if ours.shape != theirs.shape:
    raise UserError(f'{ours.shape} of the student, {theirs.shape} of the teacher: unequal {what}')
  mask = jnp.broadcast_to(mask, ours.shape)
  ours, theirs = (jnp.where(mask, x.astype(jnp.float32), 0.0) for x in (ours, theirs))
  return masked_mean(jnp.square(ours - theirs), mask, tuple(range(1, ours.ndim)))[0]


# Settings that divide.
DIVISORS = ('temperature', 'student_temperature', 'teacher_temperature', 'top')
# What a config may name as the loss on labels, and as the loss on a teacher's scores.
ON_LABELS = {
  'pairwise_hinge': pairwise_hinge, 'ranknet': ranknet, 'lambda_loss': lambda_loss,
  'approx_ndcg': approx_ndcg, 'info_nce': info_nce, 'softmax_ce': softmax_ce,
  'listwise_kl': listwise_kl, 'pointwise_ce': pointwise_ce,
}  # fmt: skip
ON_SCORES = {
  'hybrid': hybrid, 'point_mse': point_mse, 'margin_mse': margin_mse, 'listwise_kl': listwise_kl,
  'adr_mse': adr_mse, 'ranknet': ranknet, 'pairwise_hinge': pairwise_hinge,
  'distilled_ranknet': distilled_ranknet,
}  # fmt: skip


def settings(loss) -> dict[str, float | int]:
  """The settings of a loss with their defaults."""
  parameters = inspect.signature(loss).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def choose(table: dict, spec: str, key: str = 'loss', **shared):
  """The `per_group` of the loss that a config names, with its settings filled in.

  spec    'name' or 'name?setting=value&setting=value', of `table` (ON_LABELS or ON_SCORES)
  key     the config key, for messages
  shared  settings with a key of their own (margin, beta): a loss that has them takes them

  Raises UserError for an unknown loss or setting, and for a value that cannot be.
  """
  where, (name, _, options) = f'config.{key}={spec!r}', spec.partition('?')
  known = settings(table[_one_of(table, name, where)])
  chosen = known | {k: v for k, v in shared.items() if k in known}
  for option in options.split('&') if options else ():
    setting, _, text = option.partition('=')
    kind = type(known[_one_of(known, setting, where)])
    try:
      chosen[setting] = kind(text)
    except ValueError:
      raise UserError(f'{where}: {setting} cannot be {text!r}') from None
  for setting, value in chosen.items():
    if not 0 <= value < math.inf or (value == 0 and setting in DIVISORS):
      low = 'above 0' if setting in DIVISORS else '0 or more'
      raise UserError(f'{where}: {setting}={value} must be {low}')
  return functools.partial(table[name].per_group, **chosen)


def _one_of(known: dict, word: str, where: str) -> str:
  if word in known:
    return word
  near = difflib.get_close_matches(word, known, 1)
  every = ', '.join(map(repr, known)) or 'none'
  hint = f'did you mean {near[0]!r}?' if near else f'there are {every}'
  raise UserError(f'{where}: {word!r} is unknown; {hint}')
