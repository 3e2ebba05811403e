"""Statistics of online tests: on simulated users, what p-values, intervals and sizes promise."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from disranker_jax.evaluation.online import analysis, stats
from disranker_jax.evaluation.online.stats import METRICS


def simulated(rng, tests, users_each, lift=1.0):
  """Totals (tests, users) of users who differ in their habits: pages of one user are alike."""
  shape = (tests, users_each)
  pages = rng.geometric(1 / 6, shape)
  clicked = rng.binomial(pages, np.minimum(1, rng.beta(2, 4, shape) * lift))
  clicks = clicked + rng.binomial(clicked, 0.2)
  speed = rng.lognormal(3, 0.5, shape)  # seconds a click, each user's own
  dwell = rng.gamma(np.maximum(clicks, 1e-9)) * speed * lift
  changed = rng.binomial(pages, rng.beta(1, 5, shape))
  return {
    'pages': pages,
    'clicked': clicked,
    'clicks': clicks,
    'measured': clicks,
    'dwell': np.where(clicks > 0, dwell, 0.0),
    'known': pages,
    'changed': changed,
  }


def one(totals, test):
  return {key: value[test].astype(float) for key, value in totals.items()}


def gains(rng, key, tests, users_each, lift=1.0):
  """stats.compare of that many independent tests."""
  control, other = (simulated(rng, tests, users_each, x) for x in (1.0, lift))
  sums = METRICS[key].sums
  pairs = (
    (stats.ratio(*sums(one(control, t))), stats.ratio(*sums(one(other, t)))) for t in range(tests)
  )
  return [stats.compare(*pair) for pair in pairs]


def within(rate, expected, tests, sigmas=4):
  return abs(rate - expected) <= sigmas * math.sqrt(expected * (1 - expected) / tests)


def naive_p(control, other):
  """The p-value of people who take pages for independent."""
  n = [t['pages'].sum(1) for t in (control, other)]
  share = [t['clicked'].sum(1) / m for t, m in zip((control, other), n, strict=True)]
  error = np.sqrt(sum(s * (1 - s) / m for s, m in zip(share, n, strict=True)))
  return 2 * scipy_stats.norm.sf(abs(share[1] - share[0]) / error)


class TestPromises:
  @pytest.mark.parametrize('key', METRICS)
  def test_without_an_effect_five_percent_are_significant(self, key):
    p = np.array([g.p for g in gains(np.random.default_rng(1), key, 2000, 400)])
    assert within((p < 0.05).mean(), 0.05, 2000)
    assert scipy_stats.kstest(p, 'uniform').pvalue > 1e-4

  def test_a_page_level_test_would_not_hold_that(self):
    rng = np.random.default_rng(1)
    naive = naive_p(simulated(rng, 2000, 400), simulated(rng, 2000, 400))
    rate = (naive < 0.05).mean()
    assert rate > 0.1 and not within(rate, 0.05, 2000, sigmas=10)

  @pytest.mark.parametrize('key', ['pagectr', 'dwell'])
  def test_intervals_cover_the_true_gain(self, key):
    found = gains(np.random.default_rng(2), key, 2000, 400, lift=1.1)
    assert within(np.mean([g.low <= 0.1 <= g.high for g in found]), 0.95, 2000)

  @pytest.mark.parametrize('key', ['pagectr', 'dwell'])
  def test_the_computed_number_of_users_finds_the_gain_as_often_as_asked(self, key):
    rng = np.random.default_rng(3)
    pilot = stats.ratio(*METRICS[key].sums(one(simulated(rng, 1, 200_000), 0)))
    for power in (0.5, 0.8):
      count = stats.users_needed(pilot.variance, 0.1, power=power)
      rate = np.mean([g.p < 0.05 for g in gains(rng, key, 1000, count, lift=1.1)])
      assert within(rate, power, 1000), (power, count, rate)

  def test_detectable_and_users_needed_are_one_formula(self):
    variance = 1.7
    count = stats.users_needed(variance, 0.03, alpha=0.01, power=0.9)
    assert stats.detectable(2 * variance / count, alpha=0.01, power=0.9) == pytest.approx(
      0.03, rel=1e-3
    )

  def test_users_needed_for_a_proportion_is_the_textbook_number(self):
    # 40 % of users click, +5 %: on the scale of differences, with both variances at 40 %.
    share, gain = 0.4, 0.05
    x = np.repeat([1.0, 0.0], [40_000, 60_000])
    count = stats.users_needed(stats.ratio(x, np.ones_like(x)).variance, gain)
    z = scipy_stats.norm.ppf(0.975) + scipy_stats.norm.ppf(0.8)
    textbook = 2 * share * (1 - share) * z**2 / (share * gain) ** 2
    assert count == pytest.approx(textbook, rel=gain * 1.1)


class TestVariance:
  def test_is_the_delta_method_written_out_with_covariances(self):
    x, y = METRICS['dwell'].sums(one(simulated(np.random.default_rng(4), 1, 500), 0))
    cov = np.cov(x, y)
    mx, my = x.mean(), y.mean()
    expected = cov[0, 0] / mx**2 + cov[1, 1] / my**2 - 2 * cov[0, 1] / (mx * my)
    found = stats.ratio(x, y)
    assert found.value == pytest.approx(mx / my)
    assert found.variance == pytest.approx(expected, rel=1e-10)

  def test_is_near_the_jackknife_over_users(self):
    x, y = METRICS['pagectr'].sums(one(simulated(np.random.default_rng(5), 1, 800), 0))
    without = np.log((x.sum() - x) / (y.sum() - y))
    jackknife = (len(x) - 1) * without.var()
    assert stats.ratio(x, y).log_variance == pytest.approx(jackknife, rel=0.02)

  def test_scales_do_not_matter_and_exchanging_buckets_inverts_the_gain(self):
    rng = np.random.default_rng(6)
    control, other = (METRICS['dwell'].sums(one(simulated(rng, 1, 300), 0)) for _ in range(2))
    ratio = stats.ratio
    seconds = stats.compare(ratio(*control), ratio(*other))
    minutes = stats.compare(ratio(control[0] / 60, control[1]), ratio(other[0] / 60, other[1]))
    back = stats.compare(ratio(*other), ratio(*control))
    assert minutes.gain == pytest.approx(seconds.gain) and minutes.p == pytest.approx(seconds.p)
    assert 1 + back.gain == pytest.approx(1 / (1 + seconds.gain))
    assert back.p == pytest.approx(seconds.p)
    assert 1 + back.low == pytest.approx(1 / (1 + seconds.high))

  def test_the_interval_leaves_out_zero_exactly_if_p_is_below_alpha(self):
    found = gains(np.random.default_rng(7), 'pagectr', 300, 100, lift=1.2)
    assert 0.1 < np.mean([g.p < 0.05 for g in found]) < 0.9
    assert all((g.p < 0.05) == (g.low > 0 or g.high < 0) for g in found)

  def test_what_cannot_be_told_is_nan_and_no_warning(self, recwarn):
    nothing, some = np.zeros(5), np.ones(5)
    clicks = np.array([0.0, 1, 0, 1, 1])
    assert math.isnan(stats.ratio(nothing, nothing).value)
    never, always = stats.ratio(nothing, some), stats.ratio(some, some)
    assert never.value == 0 and math.isnan(never.log_variance)
    assert math.isnan(stats.compare(never, stats.ratio(clicks, some)).p)
    down = stats.compare(stats.ratio(clicks, some), never)
    assert down.gain == -1 and math.isnan(down.p) and math.isnan(down.low)
    same = stats.compare(always, always)
    assert same.gain == 0 and math.isnan(same.p)
    assert math.isnan(stats.bootstrap((nothing, some), (clicks, some), 1000, 0).p)
    assert not recwarn.list


class TestBootstrap:
  @pytest.mark.parametrize('key', METRICS)
  def test_agrees_with_the_delta_method(self, key):
    rng = np.random.default_rng(8)
    control, other = (one(simulated(rng, 1, 3000, lift), 0) for lift in (1.0, 1.03))
    control, other = METRICS[key].sums(control), METRICS[key].sums(other)
    delta = stats.compare(stats.ratio(*control), stats.ratio(*other))
    drawn = stats.bootstrap(control, other, 4000, seed=0)
    width = delta.high - delta.low
    assert drawn.gain == pytest.approx(delta.gain, abs=1e-12)
    assert drawn.low == pytest.approx(delta.low, abs=0.06 * width)
    assert drawn.high == pytest.approx(delta.high, abs=0.06 * width)
    assert drawn.p == pytest.approx(delta.p, abs=0.04)

  def test_drawing_kinds_of_users_is_drawing_users(self, monkeypatch):
    monkeypatch.setattr(stats, 'MAX_MULTINOMIAL', 1 << 10)  # many rounds
    rng = np.random.default_rng(9)
    x = rng.integers(0, 3, 400).astype(float)
    y = x + rng.integers(1, 4, 400)
    rows_BU = rng.integers(0, 400, (20_000, 400))
    plain_B = x[rows_BU].sum(1) / y[rows_BU].sum(1)
    kinds_B = stats._resampled(x, y, 20_000, rng)
    assert len(kinds_B) == 20_000
    assert kinds_B.mean() == pytest.approx(plain_B.mean(), abs=5 * plain_B.std() / 20_000**0.5)
    assert kinds_B.std() == pytest.approx(plain_B.std(), rel=0.03)

  def test_repeats_with_its_seed(self):
    x, y = METRICS['dwell'].sums(one(simulated(np.random.default_rng(10), 1, 100), 0))
    draws = [stats.bootstrap((x, y), (x * 1.1, y), 1000, seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


class TestSampleRatio:
  def rates(self, share):
    rng = np.random.default_rng(11)
    first = rng.binomial(20_000, share, 2000)
    return np.array([stats.sample_ratio((n, 20_000 - n), (1, 1))[1] for n in first])

  def test_finds_52_to_48_among_20000_users(self):
    assert (self.rates(0.52) < analysis.MISMATCH).mean() > 0.98

  def test_leaves_chance_alone(self):
    p = self.rates(0.5)
    assert within((p < 0.05).mean(), 0.05, 2000)
    assert (p < analysis.MISMATCH).mean() < 0.005

  def test_knows_the_intended_shares(self):
    assert stats.sample_ratio((9000, 1000), (90, 10)) == (0, 1)
    assert stats.sample_ratio((9000, 1000), (1, 1))[1] < 1e-100
    statistic, p = stats.sample_ratio((480, 520, 500), (1, 1, 1))
    assert statistic == pytest.approx(1.6) and p == pytest.approx(math.exp(-0.8))


class TestDays:
  def test_within_the_log_it_is_the_first_day_that_is_enough(self):
    assert stats.days_needed(np.array([4.0, 2.0, 1.5]), 2.0) == 2

  def test_new_users_every_day_need_days_in_proportion(self):
    variance = 3.0 / np.arange(1, 8)
    assert stats.days_needed(variance, variance[-1] / 4) == 28
    assert stats.days_needed(np.array([1.0]), 0.125) == 8

  def test_the_same_users_reach_what_a_longer_test_measures_or_never(self):
    rng = np.random.default_rng(12)
    habit_U = rng.beta(2, 4, 30_000)
    clicked_UD = rng.binomial(1, habit_U[:, None], (30_000, 40)).cumsum(1)
    curve = np.array(
      [
        stats.ratio(c.astype(float), np.full(30_000, d)).log_variance
        for d, c in enumerate(clicked_UD.T.astype(float), 1)
      ]
    )
    assert abs(stats.days_needed(curve[:10], curve[-1]) - 40) <= 6
    assert stats.days_needed(curve[:10], habit_U.var() / habit_U.mean() ** 2 / 31_000) == math.inf

  def test_without_events_nobody_can_say(self):
    assert math.isnan(stats.days_needed(np.array([math.nan, math.nan]), 0.1))
    assert stats.days_needed(np.array([math.nan, 0.2]), 0.1) == 4
