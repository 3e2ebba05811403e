"""Losses against explicit float64 loops; ties, padding and empty queries change nothing else."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import losses_reference as reference
import numpy as np
import pytest
from losses_reference import mean, pairs

from disranker_jax import losses
from disranker_jax.config import check, defaults
from disranker_jax.errors import UserError
from disranker_jax.stages.distill import distillation_loss
from disranker_jax.stages.sft import label_loss

G, N = 12, 5
# Every loss as it is, and with other settings.
SPECS = (
  *(losses.ON_LABELS | losses.ON_SCORES),
  'pairwise_hinge?margin=0.5',
  'lambda_loss?k=2',
  'approx_ndcg?temperature=1',
  'pointwise_ce?top=3',
  'hybrid?beta=2',
  'listwise_kl?student_temperature=2&teacher_temperature=0.5',
  'adr_mse?temperature=0.5',
  'distilled_ranknet?margin=0.5&step=0.25&first_weight=2',
)
every_loss = pytest.mark.parametrize('spec', SPECS)


def per_group(spec):
  return losses.choose(losses.ON_LABELS | losses.ON_SCORES, spec)


@functools.cache
def compiled(spec):
  """(value, gradient, loss_G, valid_G) of a case as NumPy, compiled once for [G, N]."""
  loss = losses.mean_over_groups(per_group(spec))
  jitted = jax.jit(lambda *case: (*jax.value_and_grad(loss)(*case), *loss.per_group(*case)))

  def call(*case):
    return jax.tree.map(np.asarray, jitted(*(padded(x) for x in case)))

  return call


def padded(x):
  """Smaller cases have padding up to [G, N]."""
  x = np.asarray(x)
  x = np.pad(x, [(0, max(0, size - n)) for size, n in zip((G, N), x.shape, strict=True)])
  return x if x.dtype == bool else x.astype(np.float32)


def naive(spec, scores_GN, targets_GN, mask_GN):
  """(loss_G, valid_G) in float64, one query after the other."""
  name, _, options = spec.partition('?')
  settings = dict(option.split('=') for option in options.split('&') if option)
  settings = {key: int(v) if key == 'k' else float(v) for key, v in settings.items()}
  values = []
  for scores, targets, mask in zip(scores_GN, targets_GN, mask_GN, strict=True):
    scores, targets = (np.asarray(x, np.float64)[np.asarray(mask)] for x in (scores, targets))
    values.append(getattr(reference, name)(scores, targets, **settings))
  return np.array([v or 0.0 for v in values]), np.array([v is not None for v in values])


def queries(seed=0):
  """Random queries with tied grades, padding, single documents, no documents and no gains."""
  rng = np.random.default_rng(seed)
  scores_GN = rng.normal(size=(G, N)).astype(np.float32)
  targets_GN = rng.integers(-1, 4, (G, N)).astype(np.float32)
  mask_GN = rng.random((G, N)) < 0.7
  mask_GN[0], targets_GN[1], mask_GN[2] = False, 2.0, np.arange(N) == 3
  mask_GN[1] = mask_GN[3] = mask_GN[4] = True
  targets_GN[3], targets_GN[4] = np.arange(N), (-1, 0, -1, 0, 0)
  return scores_GN, targets_GN, mask_GN


@every_loss
@pytest.mark.parametrize('seed', [0, 1])
def test_every_query_has_the_loss_that_loops_give(spec, seed):
  case = queries(seed)
  value, _, loss_G, valid_G = compiled(spec)(*case)
  expected_G, expected_valid_G = naive(spec, *case)
  np.testing.assert_allclose(loss_G, expected_G, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(valid_G, expected_valid_G)
  assert 0 < expected_valid_G.sum() < len(case[0])
  np.testing.assert_allclose(value, expected_G.sum() / expected_valid_G.sum(), rtol=1e-5)


@every_loss
def test_gradients_equal_finite_differences_of_the_loops(spec):
  scores_GN, targets_GN, mask_GN = queries(3)
  gradient = compiled(spec)(scores_GN, targets_GN, mask_GN)[1]
  step, expected = 1e-6, np.zeros(scores_GN.shape)
  for at in np.ndindex(scores_GN.shape):
    sides = []
    for sign in (1, -1):
      moved = scores_GN.astype(np.float64)
      moved[at] += sign * step
      loss_G, valid_G = naive(spec, moved, targets_GN, mask_GN)
      sides.append(loss_G.sum() / valid_G.sum())
    expected[at] = (sides[0] - sides[1]) / (2 * step)
  assert np.abs(expected).max() > 0.01
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def alone(spec, scores, targets):
  """The loss of one query."""
  case = (np.array([scores], np.float32), np.array([targets], np.float32))
  return float(per_group(spec)(*case, np.ones(case[0].shape, bool))[0][0])


def test_a_query_of_two_documents_gives_exactly_the_papers_sums():
  s_plus, s_minus, t_plus, t_minus = 0.5, -1.25, 2.0, 0.75
  case = [s_plus, s_minus], [t_plus, t_minus]
  point = (t_plus - s_plus) ** 2 + (t_minus - s_minus) ** 2
  margin = ((t_plus - t_minus) - (s_plus - s_minus)) ** 2
  # All values are sums of powers of two, so that there is nothing to round.
  assert alone('point_mse', *case) == point == 6.25
  assert alone('margin_mse', *case) == margin == 0.25
  assert alone('hybrid?beta=0.5', *case) == point + 0.5 * margin
  np.testing.assert_allclose(alone('hybrid', *case), point + 0.4 * margin, rtol=1e-7)


def test_the_hinge_is_the_margin_at_a_tie_and_0_beyond_the_margin():
  assert alone('pairwise_hinge', [0.0, 0.0], [1, 0]) == pytest.approx(0.1)
  assert alone('pairwise_hinge', [-0.5, 0.0], [1, 0]) == pytest.approx(0.6)
  assert alone('pairwise_hinge', [0.2, 0.0], [1, 0]) == 0.0
  assert alone('pairwise_hinge?margin=0.5', [0.2, 0.0], [1, 0]) == pytest.approx(0.3)


@pytest.mark.parametrize('k', [0, 2])
def test_of_tied_scores_lambda_loss_is_the_mean_over_the_orders_they_could_be_in(k):
  scores, labels = np.array([1.0, 0.5, 0.5, 0.5, 0.0]), np.array([0, 3, 1, 0, 2])
  orders = [(1, *middle, 5) for middle in itertools.permutations((2, 3, 4))]
  expected = mean(reference.lambda_loss(scores, labels, k, order) for order in orders)
  assert alone(f'lambda_loss?k={k}', scores, labels) == pytest.approx(expected, rel=1e-6)


def test_approx_ndcg_is_one_minus_ndcg_where_scores_are_far_apart():
  labels = [3, 0, 2, 1]
  perfect, worst = [30.0, 0.0, 20.0, 10.0], [0.0, 30.0, 10.0, 20.0]
  assert alone('approx_ndcg', perfect, labels) == pytest.approx(0, abs=1e-6)
  gains = reference.gains(labels)
  ndcg = reference.dcg(gains, [4, 1, 3, 2]) / reference.dcg(gains, [1, 4, 2, 3])
  assert alone('approx_ndcg', worst, labels) == pytest.approx(1 - ndcg, rel=1e-5)


def test_adr_mse_of_a_tied_teacher_is_0_at_equal_scores():
  assert alone('adr_mse', [0.5] * 4, [2.0] * 4) == pytest.approx(0, abs=1e-10)
  assert alone('adr_mse', [0.5, 0.5, 0.0, 0.5], [2.0] * 4) > 0.001


def test_kl_is_0_at_the_teachers_distribution():
  teacher = np.array([2.0, -1.0, 0.5])
  assert alone('listwise_kl', teacher + 7, teacher) == pytest.approx(0, abs=1e-6)
  spec = 'listwise_kl?student_temperature=2&teacher_temperature=4'
  assert alone(spec, teacher / 2, teacher) == pytest.approx(0, abs=1e-6)


def test_distilled_ranknet_is_0_and_not_nan_once_every_margin_is_kept():
  assert alone('distilled_ranknet', [9.0, 6.0, 3.0], [3.0, 2.0, 1.0]) == 0
  # One pair is left: r = 2, 3, so 1/2 max(0, 0.3 - 0.1).
  assert alone('distilled_ranknet', [9.0, 0.1, 0.0], [3.0, 2.0, 1.0]) == pytest.approx(0.1)
  # Two are left: 3 (0.3 + 0.1 - 0.35) of ranks 1 and 3, 1/2 (0.3 - 0) of ranks 2 and 3.
  assert alone('distilled_ranknet', [0.35, 0.0, 0.0], [3.0, 1.0, 2.0]) == pytest.approx(0.15)


@every_loss
def test_following_the_gradient_ranks_as_the_targets_do(spec):
  targets, mask = jnp.array([[1.0, 3.0, 0.0, 2.0]]), jnp.ones((1, 4), bool)
  loss = losses.mean_over_groups(per_group(spec))

  @jax.jit
  def descend(scores):
    gradient = jax.grad(loss)
    return jax.lax.fori_loop(0, 400, lambda _, s: s - 0.05 * gradient(s, targets, mask), scores)

  scores = np.asarray(descend(jnp.zeros((1, 4))))[0]
  grades = np.asarray(targets)[0]
  # What these losses see of grades 0 to 3.
  best = dict.fromkeys(('info_nce', 'perplexity_nce'), grades == 3)
  seen = (best | {'pointwise_ce': grades >= 1}).get(spec, grades)
  assert all(scores[i] > scores[j] + 0.01 for i, j in pairs(np.asarray(seen, float)))


@every_loss
def test_values_in_padding_change_neither_value_nor_gradient(spec):
  scores_GN, targets_GN, mask_GN = queries()
  value, gradient, *_ = compiled(spec)(scores_GN, targets_GN, mask_GN)
  for fill in (0.0, 1e4, -1e4, np.inf, np.nan):
    filled = (np.where(mask_GN, x, np.float32(fill)) for x in (scores_GN, targets_GN))
    other, other_gradient, *_ = compiled(spec)(*filled, mask_GN)
    np.testing.assert_array_equal(other, value)
    np.testing.assert_array_equal(other_gradient, gradient)
  assert (gradient[~mask_GN] == 0).all() and gradient.any()


@every_loss
def test_more_padding_changes_nothing(spec):
  case = queries()
  narrow = [x[:8, :3] for x in case]  # padded again before it is compiled
  ours = compiled(spec)(*narrow)[2:]
  for wide, unpadded in zip(ours, per_group(spec)(*narrow), strict=True):
    np.testing.assert_allclose(wide[:8], unpadded, rtol=1e-5, atol=1e-6)
    assert not wide[8:].any()


@every_loss
def test_the_order_of_documents_and_of_queries_does_not_matter(spec):
  rng = np.random.default_rng(5)
  scores_GN, *rest = queries()
  case = np.round(2 * scores_GN) / 2, *rest  # with ties, of which none may be the first
  order_GN = np.argsort(rng.random(scores_GN.shape), axis=1)
  order_G = rng.permutation(G)
  moved = [np.take_along_axis(x, order_GN, 1)[order_G] for x in case]
  _, gradient, loss_G, valid_G = compiled(spec)(*case)
  _, moved_gradient, moved_G, moved_valid_G = compiled(spec)(*moved)
  np.testing.assert_allclose(moved_G, loss_G[order_G], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(moved_valid_G, valid_G[order_G])
  expected = np.take_along_axis(gradient, order_GN, 1)[order_G]
  np.testing.assert_allclose(moved_gradient, expected, rtol=1e-4, atol=1e-6)


ABSOLUTE = ('point_mse', 'hybrid', 'pointwise_ce', 'perplexity_nce')


@pytest.mark.parametrize('spec', [s for s in SPECS if s.partition('?')[0] not in ABSOLUTE])
@pytest.mark.parametrize('shift', [-1024, 1024])
def test_losses_of_differences_do_not_see_a_shift_of_all_scores(spec, shift):
  scores_GN, targets_GN, mask_GN = queries()
  scores_GN = np.round(64 * scores_GN) / 64  # exact after the shift too
  shifted = compiled(spec)(scores_GN + shift, targets_GN, mask_GN)
  for ours, expected in zip(shifted, compiled(spec)(scores_GN, targets_GN, mask_GN), strict=True):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', losses.ON_SCORES)
def test_a_loss_learns_of_the_teachers_scores_what_it_says(name):
  """Scores that a loss cannot learn from are refused by this."""
  scores_GN, targets_GN, mask_GN = queries()
  changed = targets_GN, targets_GN + 5, targets_GN * 3
  loss_G, *others = (compiled(name)(scores_GN, targets, mask_GN)[2] for targets in changed)
  same = [np.allclose(other_G, loss_G, atol=1e-5) for other_G in others]
  # listwise_kl takes positions as it takes grades, and sees their distances.
  learns = 'distances' if name == 'listwise_kl' else losses.ON_SCORES[name].learns
  assert same == [learns != 'values', learns == 'order']


@every_loss
def test_micro_batches_add_up_to_the_whole(spec):
  case = queries()
  parts = [[x[part] for x in case] for part in (slice(0, 2), slice(2, 8), slice(8, 12))]
  parts = [compiled(spec)(*part) for part in parts]
  total = sum(loss_G.sum() for _, _, loss_G, _ in parts)
  weight = sum(valid_G.sum() for *_, valid_G in parts)
  np.testing.assert_allclose(total / weight, compiled(spec)(*case)[0], rtol=1e-6)
  means = [value for value, *_ in parts]
  assert abs(np.mean(means) - total / weight) > 1e-3, 'a mean of means would do as well'


DEGENERATE = {
  'all masked': ([[1.0, 2.0, 3.0]], [[0.0, 1.0, 2.0]], [[False] * 3]),
  'no query has documents': (np.ones((3, 2)), np.ones((3, 2)), np.zeros((3, 2), bool)),
  'one document': ([[5.0, 0.0, 0.0]], [[3.0, 0.0, 0.0]], [[True, False, False]]),
  'equal labels': ([[1.0, -2.0, 3.0]], [[2.0, 2.0, 2.0]], [[True] * 3]),
  'no gain': ([[1.0, -2.0, 3.0]], [[0.0, 0.0, -1.0]], [[True] * 3]),
}


@every_loss
@pytest.mark.parametrize('case', DEGENERATE)
def test_queries_without_anything_to_learn_have_no_weight_and_no_gradient(spec, case):
  value, gradient, loss_G, valid_G = compiled(spec)(*DEGENERATE[case])
  expected_G, expected_valid_G = naive(spec, *(np.asarray(x) for x in DEGENERATE[case]))
  np.testing.assert_allclose(loss_G[: len(expected_G)], expected_G, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(valid_G[: len(expected_G)], expected_valid_G)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  if not valid_G.any():
    assert value == 0 and not gradient.any() and not loss_G.any()


@every_loss
def test_tied_and_far_apart_scores_give_finite_values_and_gradients(spec):
  targets = np.array([[0.0, 1.0, 2.0]] * 3, np.float32)
  scores = np.array([[1.0, 1.0, 1.0], [1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]], np.float32)
  for labels in (targets, targets[:, ::-1], np.full((3, 3), 1.0), 1e4 * (targets - 1)):
    if np.abs(labels).max() > 100 and spec.partition('?')[0] not in losses.ON_SCORES:
      continue  # labels are grades
    value, gradient, *_ = compiled(spec)(scores, labels, np.ones((3, 3), bool))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize('spec', losses.ON_LABELS)
def test_the_gradient_raises_the_better_document_even_where_all_scores_are_equal(spec):
  case = np.zeros((1, 3)), np.array([[0.0, 3.0, 1.0]]), np.ones((1, 3), bool)
  gradient = compiled(spec)(*case)[1]
  assert gradient[0, 1] < 0 < gradient[0, 0]


# How a config picks a loss.


def test_settings_come_from_the_loss_then_the_shared_ones_then_the_name():
  case = np.array([[0.0, 0.3]]), np.array([[1.0, 0.0]]), np.ones((1, 2), bool)

  def value(spec, **shared):
    return float(losses.choose(losses.ON_LABELS, spec, **shared)(*case)[0][0])

  assert value('pairwise_hinge') == pytest.approx(0.1 + 0.3)
  assert value('pairwise_hinge', margin=0.5, beta=7.0) == pytest.approx(0.5 + 0.3)
  assert value('pairwise_hinge?margin=2', margin=0.5) == pytest.approx(2 + 0.3)
  assert value('ranknet', margin=0.5) == value('ranknet')


def test_the_settings_of_a_loss_come_with_their_defaults():
  assert losses.settings(losses.hybrid) == {'beta': 0.4}
  assert losses.settings(losses.pairwise_hinge) == {'margin': 0.1}
  assert losses.settings(losses.lambda_loss) == {'k': 0}
  assert losses.settings(losses.margin_mse) == {}


@pytest.mark.parametrize(
  'spec, message',
  [
    ('rank_net', "config.sft.loss='rank_net': 'rank_net' is unknown; did you mean 'ranknet'?"),
    ('hybrid', "'hybrid' is unknown; there are 'pairwise_hinge', 'ranknet', "),
    ('pairwise_hinge?magrin=1', "'magrin' is unknown; did you mean 'margin'?"),
    ('ranknet?margin=1', "'margin' is unknown; there are none"),
    ('pairwise_hinge?margin', "margin cannot be ''"),
    ('lambda_loss?k=2.5', "k cannot be '2.5'"),
    ('pairwise_hinge?margin=-1', 'margin=-1.0 must be 0 or more'),
    ('pairwise_hinge?margin=nan', 'margin=nan must be 0 or more'),
    ('approx_ndcg?temperature=0', 'temperature=0.0 must be above 0'),
  ],
)
def test_a_spec_that_cannot_be_chosen_is_named_with_its_key(spec, message):
  with pytest.raises(UserError, match=f'^config.sft.loss={re.escape(repr(spec))}: ') as error:
    losses.choose(losses.ON_LABELS, spec, 'sft.loss')
  assert message in str(error.value)


# The losses as stages use them.


def distilled(labels_GN, teacher_GN, scores_GN, **changes):
  settings = defaults().distill
  settings.update(changes)
  mask_GN = np.ones(scores_GN.shape, bool)
  batch = {'labels_GN': labels_GN, 'teacher_GN': teacher_GN, 'mask_GN': mask_GN}
  return distillation_loss(lambda variables, batch: (variables, 0.0), settings, scores_GN, batch)


SCORES_GN = np.array([[0.5, 1.0, -0.25], [2.0, -1.0, 0.125]], np.float32)
TEACHER_GN = np.array([[1.5, -1.0, 0.75], [0.25, 0.5, -2.0]], np.float32)
# Two documents of the first query are judged, so there is one pair; the other query has none.
LABELS_GN = np.array([[2.0, 0.0, -1.0], [-1.0, -1.0, -1.0]], np.float32)


@pytest.mark.parametrize(
  'hard_loss, hard',
  [('pairwise_hinge', 0.1 + 0.5), ('ranknet', np.log1p(np.exp(0.5))),
   ('pairwise_hinge?margin=2', 2 + 0.5)],
)  # fmt: skip
def test_distillation_adds_the_named_hard_loss_where_documents_are_judged_only(hard_loss, hard):
  soft = sum(reference.hybrid(s, t) for s, t in zip(SCORES_GN, TEACHER_GN, strict=True))
  for weight in (0.0, 2.0):
    settings = {'hard_label_weight': weight, 'hard_loss': hard_loss}
    total, queries_, metrics = distilled(LABELS_GN, TEACHER_GN, SCORES_GN, **settings)
    np.testing.assert_allclose(total, soft + weight * hard, rtol=1e-5)
    assert queries_ == 2 and metrics['examples'] == 6
    np.testing.assert_allclose([metrics['soft'], metrics['hard']], [soft / 2, hard / 2], rtol=1e-5)


def test_a_hard_loss_that_does_not_exist_is_refused_before_anything_runs():
  settings = defaults()
  settings.distill.hard_loss = 'pairwise_hing'
  with pytest.raises(UserError, match=r"distill\.hard_loss='pairwise_hing': .*did you mean"):
    check(settings)


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
  assert weight == 1 and metrics['examples'] == 3
