"""Power: textbook sample sizes, simulation, and what pooled ratios and clusters do."""

import math

import numpy as np
import pytest
import scipy.stats

from disranker_jax.evaluation import power, significance
from disranker_jax.evaluation.table import Table


def sums(values_Q):
  return significance.mean_of(values_Q)[:, None]


@pytest.mark.parametrize(('effect', 'count'), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_the_sizes_of_a_paired_t_test_are_cohens(effect, count):
  """Differences of `effect` standard deviations, alpha .05, power .8 (Cohen, 1988)."""
  for n in (10, 400):  # whatever the pilot's size
    assert power.needed(effect, 1 / math.sqrt(n), n) == count
  assert power.detectable(1 / math.sqrt(count), count) <= effect
  assert power.detectable(1 / math.sqrt(count - 1), count - 1) > effect


def test_many_units_reach_the_normal_2_80_standard_errors():
  assert power.reach(10**6) == pytest.approx(1.95996 + 0.84162, abs=1e-4)
  # Twenty-five topics need more: 2.064 + .857.
  assert power.reach(25) == pytest.approx(2.0639 + 0.8569, abs=1e-3)


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five():
  rng, n, trials = np.random.default_rng(0), 25, 2000
  size = power.detectable(0.3 / math.sqrt(n), n)
  differences_TQ = size + 0.3 * rng.normal(size=(trials, n))
  found = int((scipy.stats.ttest_1samp(differences_TQ, 0, axis=1).pvalue < 0.05).sum())
  low, high = scipy.stats.binom.ppf([0.0005, 0.9995], trials, 0.8)
  assert low <= found <= high


def test_the_randomisation_test_of_skewed_metrics_has_this_power_too():
  """Two systems with values of 0 to 1 and many zeros, 60 queries."""
  rng, n, trials = np.random.default_rng(1), 60, 250
  makes = lambda size: np.where(rng.random(size) < 0.4, 0, rng.beta(2, 2, size))  # noqa: E731
  error = (makes(100_000) - makes(100_000)).std() / math.sqrt(n)
  size, found = power.detectable(error, n), 0
  for _ in range(trials):
    ours, theirs = makes(n) + size, makes(n)
    found += significance.randomisation_p(sums(ours), sums(theirs), 500)[0] <= 0.05
  low, high = scipy.stats.binom.ppf([0.0005, 0.9995], trials, 0.8)
  assert low <= found <= high


def test_the_error_of_a_mean_difference_is_that_of_the_paired_differences():
  # Differences 1, 0, 2, 1: mean 1, squares of the rest 0 1 1 0, so sqrt(2 / 3 / 4).
  errors = power.standard_errors(sums([2.0, 1, 4, 2]), sums([1.0, 1, 2, 1]))
  assert errors == pytest.approx([math.sqrt(2 / 3 / 4)])


def test_the_error_of_a_pooled_ratio_is_that_of_the_bootstrap():
  rng = np.random.default_rng(2)
  top = rng.integers(0, 30, (400, 2))
  sides_QK2 = np.stack([top, top + rng.integers(1, 15, (400, 2))], -1).astype(float)
  draws_SK = significance.bootstrap(sides_QK2, 4000)
  [error] = power.standard_errors(sides_QK2[:, :1], sides_QK2[:, 1:])
  assert error == pytest.approx((draws_SK[:, 0] - draws_SK[:, 1]).std(), rel=0.05)


def test_what_cannot_be_known_is_nan_and_no_difference_needs_infinitely_many():
  assert math.isnan(power.standard_errors(sums([1.0]), sums([0.0]))[0])
  assert math.isnan(power.needed(0.1, math.nan, 1)) and math.isnan(power.detectable(math.nan, 1))
  assert math.isnan(power.needed(0.0, 0.0, 9)) and math.isnan(power.detectable(0.0, 9))
  assert power.needed(0.0, 0.1, 9) == math.inf
  assert power.needed(1e-9, 0.1, 9) > 1e15


# In a table


def differences(ours, theirs, clusters, metric='ndcg@5'):
  cells = {('ours', metric): ours, ('theirs', metric): theirs}
  pair = {'x': (('ours', metric), ('theirs', metric))}
  return Table(cells, clusters, 200).differences(pair)['x']


def test_a_tables_difference_has_both_numbers():
  values = np.random.default_rng(3).normal(0.5, 1, 34)
  values += 0.5 - values.mean()
  values = 0.5 + (values - 0.5) / values.std(ddof=1)  # half a standard deviation
  found = differences(significance.mean_of(values), significance.mean_of(np.zeros(34)), range(34))
  assert found['needed'] == 34
  assert found['detectable'] == pytest.approx(power.reach(34) / math.sqrt(34))


def test_asking_a_topic_again_adds_no_power():
  rng = np.random.default_rng(4)
  ours, theirs = (significance.mean_of(rng.random(20)) for _ in range(2))
  once = differences(ours, theirs, range(20))
  thrice = differences(np.repeat(ours, 3, 0), np.repeat(theirs, 3, 0), np.repeat(range(20), 3))
  for key in ('detectable', 'needed'):
    assert thrice[key] == pytest.approx(once[key])


def test_pnrs_detectable_difference_is_in_pnr():
  """Shares .6 and .5 of 1000 pairs each by query: PNR 1.5 and 1."""
  rng = np.random.default_rng(5)
  noise = rng.normal(0, 50, 40)
  noise -= noise.mean()
  ours = np.stack([600 + noise, np.full(40, 1000.0)], -1)
  theirs = np.tile([500.0, 1000.0], (40, 1))
  found = differences(ours, theirs, range(40), 'pnr')
  step = power.reach(40) * noise.std(ddof=1) / 1000 / math.sqrt(40)
  assert found['value'] == pytest.approx(0.5)
  assert found['detectable'] == pytest.approx((0.5 + step) / (0.5 - step) - 1)
  worse = differences(theirs, ours, range(40), 'pnr')
  assert worse['detectable'] == pytest.approx(1.5 - (0.6 - step) / (0.4 + step))
  assert worse['needed'] == found['needed']
