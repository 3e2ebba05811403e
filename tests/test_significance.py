"""Known cases, exactness by enumeration, scipy, coverage, and false positives without an effect."""

import functools
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from disranker_jax.evaluation import significance

values = st.integers(-4, 4).map(lambda i: i / 4)
few = st.lists(st.tuples(values, values), min_size=1, max_size=8)


def means(values_Q):
  return significance.mean_of(values_Q)[:, None]


def bootstrap(ours, theirs, **settings):
  return float(significance.paired_bootstrap_p(means(ours), means(theirs), **settings)[0])


def randomisation(ours, theirs, **settings):
  return float(significance.randomisation_p(means(ours), means(theirs), **settings)[0])


# Randomisation


@settings(max_examples=60, deadline=None)
@given(few)
def test_few_queries_are_exact_over_all_ways_to_flip_signs(points):
  differences = np.array([a - b for a, b in points])
  observed = abs(differences.sum())
  ways = list(itertools.product([1, -1], repeat=len(points)))
  extreme = sum(abs(np.dot(way, differences)) >= observed - 1e-12 for way in ways)
  ours, theirs = zip(*points, strict=True)
  assert randomisation(ours, theirs) == pytest.approx(extreme / len(ways), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 5)] * 4), min_size=1, max_size=7))
def test_a_pooled_ratio_is_exact_too(queries):
  ours, theirs = [(a, a + b) for a, b, _, _ in queries], [(c, c + d) for _, _, c, d in queries]

  def share(rows):
    top, bottom = map(sum, zip(*rows, strict=True))
    return top / bottom if bottom else math.nan

  observed, extreme, ways = abs(share(ours) - share(theirs)), 0, 0
  for swap in itertools.product([False, True], repeat=len(queries)):
    sides = [(b, a) if s else (a, b) for a, b, s in zip(ours, theirs, swap, strict=True)]
    difference = abs(share([a for a, _ in sides]) - share([b for _, b in sides]))
    extreme += not difference < observed - 1e-12  # nan is extreme
    ways += 1
  p = significance.randomisation_p(np.array(ours)[:, None], np.array(theirs)[:, None])
  assert p[0] == pytest.approx(extreme / ways, abs=1e-12)


def test_randomisation_agrees_with_scipy_for_many_queries():
  rng = np.random.default_rng(0)
  ours, theirs = rng.random(60) + 0.06, rng.random(60)
  reference = scipy.stats.permutation_test(
    (ours, theirs), lambda a, b, axis: np.mean(a - b, axis), permutation_type='samples',
    vectorized=True, n_resamples=20_000, rng=1,
  ).pvalue  # fmt: skip
  p = randomisation(ours, theirs, samples=20_000)
  assert 0.02 < reference < 0.9
  assert p == pytest.approx(reference, abs=5 * math.sqrt(2 * reference * (1 - reference) / 20_000))


def test_queries_that_do_not_differ_change_nothing_and_a_few_others_stay_exact():
  ours = np.r_[[1.0, 1.0, 1.0, 1.0, 1.0], np.ones(500)]
  theirs = np.r_[np.zeros(5), np.ones(500)]
  assert randomisation(ours, theirs) == 2 / 2**5


def test_no_difference_at_all_is_p_1():
  assert randomisation(np.ones(50), np.ones(50)) == 1
  a = np.tile([0.2, 0.8], 30)
  assert randomisation(a, 1 - a) == 1  # equal means, different queries


def test_a_clear_difference_over_many_queries_has_the_smallest_p_that_samples_allow():
  assert randomisation(np.ones(40), np.zeros(40), samples=999) == 1 / 1000


def test_statistics_are_tested_independently_of_each_other_in_one_call():
  rng = np.random.default_rng(3)
  ours, theirs = rng.random((2, 9, 4))
  together = significance.randomisation_p(
    significance.mean_of(ours), significance.mean_of(theirs), samples=1000
  )
  alone = [randomisation(ours[:, k], theirs[:, k], samples=1000) for k in range(4)]
  assert together == pytest.approx(alone, abs=1e-12)


def false_positives(test, trials=400, queries=40, alpha=0.05):
  """How often two systems of equal worth differ significantly; skewed values with many zeros."""
  rng = np.random.default_rng(11)
  found = 0
  for _ in range(trials):
    hard = rng.beta(0.5, 1, queries)
    ours, theirs = (np.where(rng.random(queries) < hard, hard, 0) for _ in range(2))
    found += test(ours, theirs) <= alpha
  return found


@pytest.mark.parametrize('test', [randomisation, bootstrap])
def test_the_false_positive_rate_is_nominal(test):
  found = false_positives(functools.partial(test, samples=500))
  low, high = scipy.stats.binom.ppf([0.0005, 0.9995], 400, 0.05)
  assert low <= found <= high


def test_queries_of_one_topic_taken_as_independent_are_too_often_significant():
  """30 topics of 6 queries that a system answers alike, two systems of equal worth, 200 times."""
  rng, topics = np.random.default_rng(4), np.repeat(np.arange(30), 6)
  found = {'queries': 0, 'topics': 0}
  for _ in range(200):
    ours, theirs = (means(rng.random(30)[topics] + 0.1 * rng.random(len(topics))) for _ in range(2))
    sides = {'queries': (ours, theirs)}
    sides['topics'] = tuple(significance.clustered(side, topics) for side in (ours, theirs))
    for name, pair in sides.items():
      found[name] += significance.randomisation_p(*pair, samples=400)[0] <= 0.05
  low, high = scipy.stats.binom.ppf([0.0005, 0.9995], 200, 0.05)
  assert low <= found['topics'] <= high < found['queries']


def test_clusters_keep_their_order_and_their_sums():
  sums_Q12 = np.arange(8.0).reshape(4, 1, 2)
  found = significance.clustered(sums_Q12, ['b', 'a', 'b', 'c'])
  assert found[:, 0].tolist() == [[0 + 4, 1 + 5], [2, 3], [6, 7]]
  assert (significance.clustered(sums_Q12, 'dcba') == sums_Q12).all()


def test_a_real_effect_is_found():
  rng = np.random.default_rng(5)
  theirs = rng.random(200)
  ours = theirs + 0.05 + rng.normal(0, 0.2, 200)  # 3.5 standard errors
  for test in (randomisation, bootstrap):
    assert test(ours, theirs) < 0.01
    assert test(theirs, ours) < 0.01  # two-sided


# Bootstrap


def test_the_interval_is_scipys_percentile_bootstrap():
  values_Q = np.random.default_rng(7).exponential(size=80)
  reference = scipy.stats.bootstrap(
    (values_Q,), np.mean, method='percentile', n_resamples=20_000, rng=1
  ).confidence_interval
  draws = significance.bootstrap(means(values_Q), 20_000)[:, 0]
  width = reference.high - reference.low
  assert significance.interval(draws) == pytest.approx(tuple(reference), abs=0.03 * width)
  assert draws.std() == pytest.approx(values_Q.std() / math.sqrt(80), rel=0.03)


def test_the_interval_of_a_pooled_ratio_is_scipys_of_the_same_function():
  rng = np.random.default_rng(8)
  top = rng.integers(0, 30, 60)
  bottom = top + rng.integers(0, 12, 60)
  reference = scipy.stats.bootstrap(
    (top, bottom), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, vectorized=True,
    method='percentile', n_resamples=20_000, rng=1,
  ).confidence_interval  # fmt: skip
  draws = significance.bootstrap(np.stack([top, bottom], -1)[:, None], 20_000)[:, 0]
  width = reference.high - reference.low
  assert significance.interval(draws) == pytest.approx(tuple(reference), abs=0.03 * width)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
  rng = np.random.default_rng(9)
  covered = 0
  for _ in range(300):
    low, high = significance.interval(
      significance.bootstrap(means(rng.normal(0.4, 0.3, 60)), 500)[:, 0], 0.9
    )
    covered += low <= 0.4 <= high
  low, high = scipy.stats.binom.ppf([0.0005, 0.9995], 300, 0.9)
  assert low <= covered <= high


def test_all_columns_see_the_same_draws_so_equal_systems_never_differ():
  column = means(np.random.default_rng(1).random(30))
  draws = significance.bootstrap(np.concatenate([column, column], 1), 200)
  assert np.array_equal(draws[:, 0], draws[:, 1])
  assert len(np.unique(draws[:, 0])) > 100


def test_results_depend_on_the_seed_only():
  ours, theirs = np.random.default_rng(2).random((2, 50))
  for test in (randomisation, bootstrap):
    one, again, other = (test(ours, theirs, seed=seed) for seed in (4, 4, 5))
    assert one == again != other
  one, again, other = (significance.bootstrap(means(ours), seed=seed) for seed in (4, 4, 5))
  assert (one == again).all() and (one != other).any()


def test_the_pieces_in_which_draws_are_made_do_not_lose_or_repeat_any(monkeypatch):
  monkeypatch.setattr(significance, 'CHUNK', 70)  # 7 rows of 10 queries
  draws = significance.bootstrap(means(np.random.default_rng(1).random(10)), 100)
  assert draws.shape == (100, 1) and len(np.unique(draws)) > 95
  ours, theirs = np.random.default_rng(3).integers(0, 4, (2, 10))
  extreme = sum(
    abs(np.dot(way, ours - theirs)) >= abs((ours - theirs).sum())
    for way in itertools.product([1, -1], repeat=10)
  )
  assert randomisation(ours, theirs) == pytest.approx(extreme / 2**10)


def test_values_that_are_not_finite_do_not_count():
  assert significance.mean_of([1.0, math.nan, math.inf, 3.0]).sum(0).tolist() == [4, 2]


def test_an_interval_may_end_in_infinity_and_ignores_draws_without_a_value():
  draws = np.r_[np.full(50, math.inf), np.arange(50.0), np.full(20, math.nan)]
  assert significance.interval(draws) == (2, math.inf)
  assert all(math.isnan(end) for end in significance.interval([math.nan]))


def test_the_ends_are_the_percentiles_of_the_level():
  low, high = significance.interval(np.arange(1, 1001), 0.8)
  assert (low, high) == (100, 900)


def test_the_bootstraps_p_value_counts_draws_farther_from_the_difference_than_it_is_from_0():
  draws = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.5])  # from 2: 2, 1, 0, 1, 2, 3.5
  assert significance.bootstrap_p(draws, 2.0) == (1 + 3) / (1 + 6)
  assert significance.bootstrap_p(draws, 0.0) == 1


# Holm


def closed_testing(p_values):
  """A hypothesis falls if Bonferroni rejects every set of hypotheses that holds it."""
  indices = range(len(p_values))
  sets = [s for n in indices for s in itertools.combinations(indices, n + 1)]
  return [
    max(min(1, len(s) * min(p_values[j] for j in s)) for s in sets if i in s) for i in indices
  ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.04, 0.3, 1.0]), max_size=7))
def test_holm_is_closed_testing_with_bonferroni(p_values):
  assert significance.holm(p_values).tolist() == pytest.approx(closed_testing(p_values))


def test_holm_of_a_hand_counted_table():
  # 3 x .01, 2 x .02, then 1 x .03, which may not be below the one before.
  assert significance.holm([0.03, 0.01, 0.02]).tolist() == pytest.approx([0.04, 0.03, 0.04])


def test_holm_is_the_textbook_step_down_and_leaves_out_what_was_not_tested():
  # Sorted .005 x 4, .01 x 3, .03 x 2, .04 x 1, and never less than the one before.
  adjusted = significance.holm([0.01, 0.04, math.nan, 0.03, 0.005])
  np.testing.assert_allclose(adjusted, [0.03, 0.06, math.nan, 0.06, 0.02])
  assert significance.holm([0.9, 0.8]).tolist() == [1, 1]
  assert significance.holm([]).size == 0
