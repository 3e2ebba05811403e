"""Power: how large a difference do these queries show, and how many queries does one need?

The unit is what is drawn: a query, or a cluster of queries. A paired test over n of them finds a
true difference of `reach(n)` standard errors with the power that is asked for (Bloom, 1995, Minimum
Detectable Effects; Sakai, 2016, Topic Set Size Design, uses the same for test collections).
"""

import math

import numpy as np
from scipy.special import ndtri, stdtrit

from disranker_jax.evaluation.significance import ratio

POWER = 0.8
ALPHA = 0.05


def standard_errors(ours_CK2, theirs_CK2) -> np.ndarray:
  """Standard errors [K] of ratio(ours) - ratio(theirs), from paired clusters; nan for one cluster.

  A ratio of sums is linearised (delta method); for a mean this is the standard error of the mean
  paired difference.
  """
  clusters = len(ours_CK2)
  if clusters < 2:
    return np.full(np.shape(ours_CK2)[1], math.nan)
  apart_CK = _influence(ours_CK2) - _influence(theirs_CK2)
  return apart_CK.std(0, ddof=1) / math.sqrt(clusters)


def _influence(sums_CK2) -> np.ndarray:
  """By how much each cluster moves the ratio, times the number of clusters, [C, K]."""
  sums_CK2 = np.asarray(sums_CK2, np.float64)
  residual_CK = sums_CK2[..., 0] - ratio(sums_CK2.sum(0)) * sums_CK2[..., 1]
  with np.errstate(divide='ignore', invalid='ignore'):
    return residual_CK / sums_CK2[..., 1].mean(0)


def reach(n: int, alpha: float = ALPHA, power: float = POWER) -> float:
  """The true difference, in standard errors, that a two-sided test over n units finds."""
  return float(stdtrit(n - 1, 1 - alpha / 2) + stdtrit(n - 1, power))


def detectable(error: float, n: int, alpha: float = ALPHA, power: float = POWER) -> float:
  """The true difference that n units find with this power; nan if the error is 0 or unknown."""
  return reach(n, alpha, power) * error if n > 1 and error > 0 else math.nan


def needed(
  difference: float, error: float, n: int, alpha: float = ALPHA, power: float = POWER
) -> float:
  """The units that find this difference with this power, if it is the true one.

  `error` is the standard error with n units. inf for no difference; nan if the error is 0 or
  unknown.
  """
  if not (n > 1 and error > 0) or math.isnan(difference):
    return math.nan
  if not difference:
    return math.inf
  units_per_square = (error * math.sqrt(n) / difference) ** 2
  normal = float(ndtri(1 - alpha / 2) + ndtri(power))
  count = max(2.0, float(math.ceil(normal**2 * units_per_square)))
  # The reach of Student's t is larger than the normal one, for few units by a lot.
  while reach(int(count), alpha, power) ** 2 * units_per_square > count:
    count += 1
  return count
