"""Ratio metrics with the user as the unit: values, gains, p-values, sample sizes.

Pages of one user are correlated, so page-level tests find differences that do not exist. A metric
is a sum over users divided by a sum over users; its variance comes from the users' residuals (delta
method; Deng et al. 2018, Applying the Delta Method in Metric Analytics). Gains are tested on the
log scale, so an interval excludes 0 exactly if p < alpha.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

Totals = Mapping[str, np.ndarray]
MAX_MULTINOMIAL = 1 << 22  # bootstrap draws at a time: about 32 MB


@dataclasses.dataclass(frozen=True)
class Metric:
  """numerator_U and denominator_U of users' totals; `better` is +1 if more is better, else -1."""

  title: str
  unit: str
  better: int
  numerator: Callable[[Totals], np.ndarray]
  denominator: Callable[[Totals], np.ndarray]
  possible: Callable[[Totals], np.ndarray]  # the denominator if everything were recorded

  def sums(self, totals: Totals) -> tuple[np.ndarray, np.ndarray]:
    return self.numerator(totals), self.denominator(totals)


def _pages(t: Totals) -> np.ndarray:
  return t['pages']


def _users(t: Totals) -> np.ndarray:
  return np.ones(len(t['pages']))


METRICS = {
  'pagectr': Metric('PageCTR', '%', 1, lambda t: t['clicked'], _pages, _pages),
  'userctr': Metric('UserCTR', '%', 1, lambda t: 1.0 * (t['clicked'] > 0), _users, _users),
  'changequery': Metric(
    'change-query ratio', '%', -1, lambda t: t['changed'], lambda t: t['known'], _pages
  ),
  'dwell': Metric(
    'dwell time', 's', 1, lambda t: t['dwell'], lambda t: t['measured'], lambda t: t['clicks']
  ),
}


@dataclasses.dataclass(frozen=True)
class Ratio:
  """A metric's value in a bucket, and its variance: var(log value) = variance / users.

  NaN where undefined: without a denominator or without events.
  """

  value: float
  variance: float
  users: int

  @property
  def log_variance(self) -> float:
    return self.variance / self.users if self.users else math.nan


def ratio(x_U: np.ndarray, y_U: np.ndarray) -> Ratio:
  """sum(x) / sum(y) over users, with its variance by the delta method."""
  users, x, y = len(x_U), float(x_U.sum()), float(y_U.sum())
  value = x / y if y > 0 else math.nan
  if not x > 0 or users < 2:
    return Ratio(value, math.nan, users)
  residual_U = x_U - value * y_U
  variance = float(residual_U @ residual_U) / (users - 1) / (x / users) ** 2
  return Ratio(value, variance, users)


@dataclasses.dataclass(frozen=True)
class Gain:
  """A relative gain, e.g. .01 for +1 %, with its interval and the two-sided p-value of no gain."""

  gain: float
  low: float
  high: float
  p: float


UNKNOWN = Gain(math.nan, math.nan, math.nan, math.nan)


def compare(control: Ratio, other: Ratio, alpha: float = 0.05) -> Gain:
  """The gain of `other` over `control` with a 1 - alpha interval, by the delta method."""
  variance = control.log_variance + other.log_variance
  if not variance > 0:
    gain = other.value / control.value - 1 if control.value > 0 else math.nan
    return dataclasses.replace(UNKNOWN, gain=gain)
  log_gain, error = math.log(other.value / control.value), math.sqrt(variance)
  reach = stats.norm.isf(alpha / 2) * error
  p = 2 * stats.norm.sf(abs(log_gain) / error)
  low, high = math.expm1(log_gain - reach), math.expm1(log_gain + reach)
  return Gain(math.expm1(log_gain), low, high, float(p))


def bootstrap(
  control: tuple[np.ndarray, np.ndarray],
  other: tuple[np.ndarray, np.ndarray],
  replicates: int,
  seed: int,
  alpha: float = 0.05,
) -> Gain:
  """The same by resampling users: percentile interval, and p by inverting it.

  Each argument is (x_U, y_U) of a bucket. p is at least 2 / (replicates + 1).
  """
  rng = np.random.default_rng(seed)
  base_B, new_B = (_resampled(x, y, replicates, rng) for x, y in (control, other))
  with np.errstate(divide='ignore', invalid='ignore'):
    gain_B = new_B / base_B - 1
    gain = (other[0].sum() / other[1].sum()) / (control[0].sum() / control[1].sum()) - 1
  if not np.isfinite(gain_B).all() or np.ptp(gain_B) == 0:
    return dataclasses.replace(UNKNOWN, gain=float(gain))
  low, high = np.quantile(gain_B, [alpha / 2, 1 - alpha / 2])
  tail = min((gain_B <= 0).sum(), (gain_B >= 0).sum()) + 1
  return Gain(float(gain), float(low), float(high), min(1.0, 2 * tail / (replicates + 1)))


def _resampled(x_U, y_U, replicates: int, rng: np.random.Generator) -> np.ndarray:
  # Users with equal sums are drawn together: millions of users have a few hundred kinds.
  kind_KC, count_K = np.unique(np.stack([x_U, y_U], 1), axis=0, return_counts=True)
  out = []
  at_once = max(1, MAX_MULTINOMIAL // len(count_K))
  for begin in range(0, replicates, at_once):
    size = min(at_once, replicates - begin)
    drawn_BK = rng.multinomial(len(x_U), count_K / len(x_U), size)
    out.append(drawn_BK @ kind_KC)
  sums_BC = np.concatenate(out)
  with np.errstate(divide='ignore', invalid='ignore'):
    return sums_BC[:, 0] / sums_BC[:, 1]


def sample_ratio(users: Sequence[int], shares: Sequence[float]) -> tuple[float, float]:
  """Chi-square and p-value of the bucket sizes against the intended shares."""
  expected = np.asarray(shares, float) / sum(shares) * sum(users)
  statistic, p = stats.chisquare(users, expected)
  return float(statistic), float(p)


def reach(alpha: float, power: float) -> float:
  """The effect, in standard errors, that a two-sided test finds with this power."""
  return float(stats.norm.isf(alpha / 2) + stats.norm.ppf(power))


def detectable(log_variance: float, alpha: float = 0.05, power: float = 0.8) -> float:
  """The gain that a test with this variance of the log gain finds with this power."""
  return math.expm1(reach(alpha, power) * math.sqrt(log_variance))


def needed_variance(gain: float, alpha: float = 0.05, power: float = 0.8) -> float:
  """The variance of the log gain at which this gain is found with this power."""
  return (math.log1p(gain) / reach(alpha, power)) ** 2


def users_needed(variance: float, gain: float, alpha: float = 0.05, power: float = 0.8) -> float:
  """Users in each of two buckets of equal size; `variance` as in `Ratio`; NaN if that is NaN."""
  users = 2 * variance / needed_variance(gain, alpha, power)
  return users if math.isnan(users) else math.ceil(users)


def days_needed(log_variance_D: np.ndarray, needed: float) -> float:
  """The days after which the variance of the log gain is down to `needed`; inf if never.

  log_variance_D is the variance after the first 1, 2, ..., D days. Beyond D it is extrapolated as
  a + b / days through its values at D / 2 and D days: a = 0 if every day brings new users; if the
  same users return, more days reduce the noise per user (b) but not the number of users (a).
  """
  last = log_variance_D[-1]
  if not last > 0:
    return math.nan
  if len(enough := np.flatnonzero(log_variance_D <= needed)):
    return float(enough[0] + 1)
  days = len(log_variance_D)
  half = (days + 1) // 2
  b = last * days  # days are independent, as if all users were new
  if days > 1 and log_variance_D[half - 1] > 0:
    b = (log_variance_D[half - 1] - last) / (1 / half - 1 / days)
  b = min(max(b, 0.0), last * days)
  a = last - b / days
  return math.ceil(b / (needed - a)) if needed > a else math.inf
