"""Losses against explicit float64 loops; what ties, padding and empty queries may not do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax import losses
from disranker_jax.stages.distill import distillation_loss
from disranker_jax.stages.sft import label_loss

LOSSES = {
  'pairwise_hinge': losses.pairwise_hinge,
  'ranknet': losses.ranknet,
  'info_nce': losses.info_nce,
  'point_mse': losses.point_mse,
  'margin_mse': losses.margin_mse,
  'hybrid': losses.hybrid,
}
G, N = 12, 5
PAIRWISE = ('pairwise_hinge', 'ranknet')


def compiled(function):
  """Compiled once for [G, N], which smaller cases are padded to; results as NumPy."""
  jitted = jax.jit(function)

  def call(*case):
    return jax.tree.map(np.asarray, jitted(*(padded(x) for x in case)))

  return call


def padded(x):
  x = np.asarray(x)
  x = np.pad(x, [(0, max(0, size - n)) for size, n in zip((G, N), x.shape, strict=True)])
  return x if x.dtype == bool else x.astype(np.float32)


GRADIENT = {name: compiled(jax.value_and_grad(loss)) for name, loss in LOSSES.items()}
PER_GROUP = {name: compiled(loss.per_group) for name, loss in LOSSES.items()}
every_loss = pytest.mark.parametrize('name', LOSSES)


# The losses of one query, whose documents are all real, by loops; None where it has nothing to say.


def over_pairs(loss):
  def mean(scores, targets):
    n = range(len(scores))
    values = [loss(scores[i] - scores[j]) for i in n for j in n if targets[i] > targets[j]]
    return sum(values) / len(values) if values else None

  return mean


def naive_info_nce(scores, targets):
  if len(set(targets)) < 2:
    return None
  total = sum(np.exp(s) for s in scores)
  best = [s for s, t in zip(scores, targets, strict=True) if t == max(targets)]
  return sum(-np.log(np.exp(s) / total) for s in best) / len(best)


def naive_point(scores, targets):
  if not len(scores):
    return None
  return 2 * sum((s - t) ** 2 for s, t in zip(scores, targets, strict=True)) / len(scores)


def naive_margin(scores, targets):
  values = []
  for i in range(len(scores)):
    for j in range(i):
      values.append(((scores[i] - scores[j]) - (targets[i] - targets[j])) ** 2)
  return sum(values) / len(values) if values else None


def naive_hybrid(scores, targets, beta=0.4):
  point = naive_point(scores, targets)
  return None if point is None else point + beta * (naive_margin(scores, targets) or 0.0)


NAIVE = {
  'pairwise_hinge': over_pairs(lambda d: max(0.0, 0.1 - d)),
  'ranknet': over_pairs(lambda d: np.log(1 + np.exp(-d))),
  'info_nce': naive_info_nce,
  'point_mse': naive_point,
  'margin_mse': naive_margin,
  'hybrid': naive_hybrid,
}


def naive(name, scores_GN, targets_GN, mask_GN):
  """(loss_G, valid_G) in float64, one query after the other."""
  values = []
  for scores, targets, mask in zip(scores_GN, targets_GN, mask_GN, strict=True):
    kept = np.flatnonzero(mask)
    values.append(NAIVE[name](scores.astype(np.float64)[kept], targets.astype(np.float64)[kept]))
  return np.array([v or 0.0 for v in values]), np.array([v is not None for v in values])


def queries(seed=0):
  """Random queries with tied labels, padding, single documents and nothing at all."""
  rng = np.random.default_rng(seed)
  scores_GN = rng.normal(size=(G, N)).astype(np.float32)
  targets_GN = rng.integers(0, 4, (G, N)).astype(np.float32)
  mask_GN = rng.random((G, N)) < 0.7
  mask_GN[0], targets_GN[1], mask_GN[2] = False, 2.0, np.arange(N) == 3
  mask_GN[1] = mask_GN[3] = True
  targets_GN[3] = np.arange(N)
  return scores_GN, targets_GN, mask_GN


@every_loss
@pytest.mark.parametrize('seed', [0, 1])
def test_every_query_has_the_loss_that_loops_give(name, seed):
  case = queries(seed)
  loss_G, valid_G = PER_GROUP[name](*case)
  expected_G, expected_valid_G = naive(name, *case)
  np.testing.assert_allclose(loss_G, expected_G, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(valid_G, expected_valid_G)
  assert 0 < expected_valid_G.sum() < len(case[0])


@every_loss
def test_the_loss_is_the_mean_over_queries_that_have_something_to_say(name):
  case = queries()
  expected_G, valid_G = naive(name, *case)
  value, _ = GRADIENT[name](*case)
  np.testing.assert_allclose(value, expected_G.sum() / valid_G.sum(), rtol=1e-5)


@every_loss
def test_gradients_equal_finite_differences_of_the_loops(name):
  scores_GN, targets_GN, mask_GN = queries(3)
  _, gradient = GRADIENT[name](scores_GN, targets_GN, mask_GN)
  step, expected = 1e-6, np.zeros(scores_GN.shape)
  for at in np.ndindex(scores_GN.shape):
    sides = []
    for sign in (1, -1):
      moved = scores_GN.astype(np.float64)
      moved[at] += sign * step
      loss_G, valid_G = naive(name, moved, targets_GN, mask_GN)
      sides.append(loss_G.sum() / valid_G.sum())
    expected[at] = (sides[0] - sides[1]) / (2 * step)
  assert np.abs(expected).max() > 0.01
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_a_query_of_two_documents_gives_exactly_the_papers_sums():
  s_plus, s_minus, t_plus, t_minus = 0.5, -1.25, 2.0, 0.75
  case = np.array([[s_plus, s_minus]]), np.array([[t_plus, t_minus]]), np.ones((1, 2), bool)
  point = (t_plus - s_plus) ** 2 + (t_minus - s_minus) ** 2
  margin = ((t_plus - t_minus) - (s_plus - s_minus)) ** 2
  # All values are sums of powers of two, so that there is nothing to round.
  assert GRADIENT['point_mse'](*case)[0] == point == 6.25
  assert GRADIENT['margin_mse'](*case)[0] == margin == 0.25
  assert float(losses.hybrid(*case, beta=0.5)) == point + 0.5 * margin
  np.testing.assert_allclose(GRADIENT['hybrid'](*case)[0], point + 0.4 * margin, rtol=1e-7)


def test_the_hinge_is_the_margin_at_a_tie_and_0_beyond_the_margin():
  labels, mask = np.array([[1.0, 0.0]]), np.ones((1, 2), bool)

  def at(difference, **settings):
    return float(losses.pairwise_hinge(np.array([[difference, 0.0]]), labels, mask, **settings))

  assert at(0.0) == pytest.approx(0.1)
  assert at(-0.5) == pytest.approx(0.6)
  assert at(0.2) == 0.0
  assert at(0.2, margin=0.5) == pytest.approx(0.3)


@every_loss
def test_what_stands_in_padding_changes_neither_value_nor_gradient(name):
  scores_GN, targets_GN, mask_GN = queries()
  value, gradient = GRADIENT[name](scores_GN, targets_GN, mask_GN)
  for fill in (0.0, 1e4, -1e4):
    filled = (np.where(mask_GN, x, np.float32(fill)) for x in (scores_GN, targets_GN))
    other, other_gradient = GRADIENT[name](*filled, mask_GN)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    np.testing.assert_allclose(other_gradient, gradient, atol=1e-7)
  assert (np.asarray(gradient)[~mask_GN] == 0).all() and np.any(gradient)


@every_loss
def test_more_padding_changes_nothing(name):
  case = queries()
  narrow = [x[:8, :3] for x in case]  # padded again before it is compiled
  wide = LOSSES[name].per_group(*narrow)
  for ours, theirs in zip(PER_GROUP[name](*narrow), wide, strict=True):
    np.testing.assert_allclose(ours[:8], theirs, rtol=1e-6)
    assert not ours[8:].any()


@every_loss
def test_the_order_of_documents_and_of_queries_does_not_matter(name):
  rng = np.random.default_rng(5)
  case = queries()
  order_GN = np.argsort(rng.random(case[0].shape), axis=1)
  order_G = rng.permutation(len(case[0]))
  moved = [np.take_along_axis(x, order_GN, 1)[order_G] for x in case]
  loss_G, valid_G = PER_GROUP[name](*case)
  moved_G, moved_valid_G = PER_GROUP[name](*moved)
  np.testing.assert_allclose(moved_G, loss_G[order_G], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(moved_valid_G, valid_G[order_G])


@every_loss
def test_micro_batches_add_up_to_the_whole(name):
  case = queries()
  parts = [[x[part] for x in case] for part in (slice(0, 2), slice(2, 8), slice(8, 12))]
  sums, weights = 0.0, 0
  for part in parts:
    loss_G, valid_G = PER_GROUP[name](*part)
    sums, weights = sums + loss_G.sum(), weights + valid_G.sum()
  np.testing.assert_allclose(sums / weights, GRADIENT[name](*case)[0], rtol=1e-6)
  means = [GRADIENT[name](*part)[0] for part in parts]
  assert abs(np.mean(means) - float(sums / weights)) > 1e-3, 'a mean of means would do as well'


EMPTY = {
  'all masked': ([[1.0, 2.0, 3.0]], [[0.0, 1.0, 2.0]], [[False] * 3]),
  'no query has documents': (np.ones((3, 2)), np.ones((3, 2)), np.zeros((3, 2), bool)),
}
NO_PAIRS = {
  'one document': ([[5.0, 0.0, 0.0]], [[3.0, 0.0, 0.0]], [[True, False, False]]),
  'equal labels': ([[1.0, -2.0, 3.0]], [[2.0, 2.0, 2.0]], [[True] * 3]),
}


@every_loss
@pytest.mark.parametrize('case', EMPTY | NO_PAIRS)
def test_queries_with_nothing_to_say_give_zero_weight_and_finite_gradients(name, case):
  value, gradient = GRADIENT[name](*(EMPTY | NO_PAIRS)[case])
  loss_G, valid_G = PER_GROUP[name](*(EMPTY | NO_PAIRS)[case])
  assert np.isfinite(value) and np.isfinite(loss_G).all() and np.isfinite(gradient).all()
  if case in EMPTY or name in (*PAIRWISE, 'info_nce'):
    assert float(value) == 0 and not np.any(valid_G) and not np.any(gradient)


@every_loss
def test_tied_and_far_apart_scores_give_finite_values_and_gradients(name):
  targets = np.array([[0.0, 1.0, 2.0]] * 3, np.float32)
  scores = np.array([[1.0, 1.0, 1.0], [1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]], np.float32)
  value, gradient = GRADIENT[name](scores, targets, np.ones((3, 3), bool))
  assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize('name', [*PAIRWISE, 'info_nce'])
def test_the_gradient_raises_the_better_document(name):
  labels, mask = np.array([[0.0, 3.0, 1.0]]), np.ones((1, 3), bool)
  _, gradient = GRADIENT[name](np.zeros((1, 3)), labels, mask)
  assert gradient[0, 1] < 0 < gradient[0, 0]


# The losses as stages use them.


def distilled(hard, labels_GN, teacher_GN, scores_GN):
  class Settings:
    beta, margin = 0.4, 0.1

  Settings.hard = hard
  mask_GN = np.ones(scores_GN.shape, bool)
  batch = {'labels_GN': labels_GN, 'teacher_GN': teacher_GN, 'mask_GN': mask_GN}
  return distillation_loss(lambda variables, batch: variables, Settings, scores_GN, batch)


def test_distillation_adds_the_hard_term_where_documents_are_judged_only():
  scores_GN = np.array([[0.5, 1.0, -0.25], [2.0, -1.0, 0.125]], np.float32)
  teacher_GN = np.array([[1.5, -1.0, 0.75], [0.25, 0.5, -2.0]], np.float32)
  labels_GN = np.array([[2.0, 0.0, -1.0], [-1.0, -1.0, -1.0]], np.float32)
  soft = sum(naive_hybrid(s, t) for s, t in zip(scores_GN, teacher_GN, strict=True))
  # Of the first query two documents are judged, so there is one pair; the third is in none.
  hard = 0.1 - (0.5 - 1.0)
  for weight in (0.0, 2.0):
    total, queries_, metrics = distilled(weight, labels_GN, teacher_GN, scores_GN)
    np.testing.assert_allclose(total, soft + weight * hard, rtol=1e-5)
    assert queries_ == 2
    np.testing.assert_allclose([metrics['soft'], metrics['hard']], [soft / 2, hard / 2], rtol=1e-5)


def test_pair_accuracy_counts_the_pairs_in_the_right_order():
  per_group = functools.partial(losses.pairwise_hinge.per_group, margin=0.1)
  scores_GN = jnp.array([[3.0, 2.0, 2.5, 9.0]])
  batch = {
    'labels_GN': jnp.array([[2.0, 1.0, 0.0, 0.0]]),
    'mask_GN': jnp.array([[True, True, True, False]]),
  }
  _, weight, metrics = label_loss(lambda v, b: v, per_group, scores_GN, batch)
  # Right: 3 > 2 and 3 > 2.5; wrong: 2 < 2.5; the padded document is in no pair.
  np.testing.assert_allclose(metrics['pair_accuracy'], 2 / 3, rtol=1e-6)
  assert weight == 1
