"""Intervals and tests: is a difference between rankings larger than the random choice of queries?

Queries are the sample, so everything here resamples queries, never documents. A statistic is a
ratio of two sums over queries: values and ones for a mean, concordant and all ordered pairs for a
pooled ratio. Arrays: Q queries, K statistics, S samples, 2 = (top, bottom).
"""

import math

import numpy as np

SAMPLES = 10_000
LEVEL = 0.95
CHUNK = 2**22  # numbers held at a time: 32 MB, whatever the number of queries


def mean_of(values_Q) -> np.ndarray:
  """Sums_Q2 of a mean over queries; values that are not finite do not count.

  The bottoms add up to the number of those that do, which a table must state if some do not.
  """
  values_Q = np.asarray(values_Q, np.float64)
  counts_Q = np.isfinite(values_Q)
  return np.stack([np.where(counts_Q, values_Q, 0.0), counts_Q.astype(np.float64)], -1)


def ratio(sums_2) -> np.ndarray:
  """Top / bottom of the last axis; nan where the bottom is 0."""
  with np.errstate(divide='ignore', invalid='ignore'):
    return sums_2[..., 0] / sums_2[..., 1]


def clustered(sums_QK2, clusters_Q) -> np.ndarray:
  """Sums of each cluster of queries, [C, K, 2], which are then drawn and swapped as one query.

  Queries of one session or topic share judgements. Drawn one by one they would count as independent
  and intervals would be too narrow (Cameron and Miller, 2015).
  """
  at: dict = {}
  at_Q = [at.setdefault(cluster, len(at)) for cluster in clusters_Q]
  sums_QK2 = np.asarray(sums_QK2, np.float64)
  sums_CK2 = np.zeros((len(at), *sums_QK2.shape[1:]))
  np.add.at(sums_CK2, at_Q, sums_QK2)
  return sums_CK2


def bootstrap(sums_QK2, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
  """Statistics of `samples` draws of Q queries with replacement, [S, K] (Efron, 1979).

  All K see the same draws, so the difference of two columns is that of a paired bootstrap.
  """
  sums_QK2 = np.asarray(sums_QK2, np.float64)
  queries = len(sums_QK2)
  flat = sums_QK2.reshape(queries, -1)
  rng = np.random.default_rng(seed)
  drawn = []
  for rows in _chunks(samples, queries):
    picks = rng.integers(queries, size=(rows, queries)) + queries * np.arange(rows)[:, None]
    times = np.bincount(picks.ravel(), minlength=rows * queries).reshape(rows, queries)
    drawn.append(times.astype(np.float64) @ flat)
  return ratio(np.concatenate(drawn).reshape(samples, *sums_QK2.shape[1:]))


def interval(draws_S, level: float = LEVEL) -> tuple[float, float]:
  """The bootstrap's percentile interval: (low, high).

  The ends are draws themselves, so they may be infinite, and an increasing function of the interval
  is the interval of that function. Draws that are nan are left out.
  """
  draws_S = np.asarray(draws_S)[~np.isnan(draws_S)]
  if not len(draws_S):
    return math.nan, math.nan
  tail = (1 - level) / 2
  low, high = np.quantile(draws_S, [tail, 1 - tail], method='inverted_cdf')
  return float(low), float(high)


def bootstrap_p(draws_S, observed: float) -> float:
  """Two-sided p-value of a difference: how often a draw is as far from it as it is from 0.

  The draws are shifted to the null hypothesis (Efron and Tibshirani, 1993, ch. 16). p is somewhat
  too small for few queries, where `randomisation_p` is exact.
  """
  extreme = _at_least(np.asarray(draws_S) - observed, observed)
  return float((1 + extreme.sum()) / (1 + len(extreme)))


def paired_bootstrap_p(ours_QK2, theirs_QK2, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
  """Two-sided p-values [K] of ratio(ours) - ratio(theirs) by `bootstrap_p`."""
  sides_QJ2 = np.concatenate([ours_QK2, theirs_QK2], 1)
  ours_SK, theirs_SK = np.split(bootstrap(sides_QJ2, samples, seed), 2, 1)
  observed_K = ratio(np.sum(ours_QK2, 0)) - ratio(np.sum(theirs_QK2, 0))
  draws_KS = (ours_SK - theirs_SK).T
  return np.array([bootstrap_p(*pair) for pair in zip(draws_KS, observed_K, strict=True)])


def randomisation_p(ours_QK2, theirs_QK2, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
  """Two-sided p-values [K] of ratio(ours) - ratio(theirs) when the sides are swapped by query.

  Fisher's paired randomisation: p is exact, over all 2^Q ways to swap the Q queries that differ, if
  these are at most `samples`; else it is over `samples` random ways. A way in which one side's
  bottom is 0 counts as extreme.
  """
  ours_QK2, theirs_QK2 = np.asarray(ours_QK2, np.float64), np.asarray(theirs_QK2, np.float64)
  statistics = ours_QK2.shape[1]
  apart = (ours_QK2 - theirs_QK2).reshape(len(ours_QK2), -1)
  apart = apart[apart.any(1)]  # swapping equal sides changes nothing
  queries = len(apart)
  both = (ours_QK2 + theirs_QK2).sum(0)
  observed = ratio(ours_QK2.sum(0)) - ratio(theirs_QK2.sum(0))
  exact = queries < 63 and 2**queries <= samples
  extreme = np.zeros(statistics, np.int64)
  for signs in _all_signs(queries) if exact else _random_signs(queries, samples, seed):
    swapped = (signs.astype(np.float64) @ apart).reshape(-1, statistics, 2)
    differences = ratio((both + swapped) / 2) - ratio((both - swapped) / 2)
    extreme += _at_least(differences, observed).sum(0)
  return extreme / 2**queries if exact else (1 + extreme) / (1 + samples)


def holm(p_values) -> np.ndarray:
  """Holm's (1979) adjusted p-values, in the order given; NaN marks no test and stays NaN.

  The probability that any true null hypothesis gets an adjusted p below `alpha` is at most `alpha`.
  """
  p_values = np.asarray(p_values, np.float64)
  tests = np.flatnonzero(~np.isnan(p_values))
  order = tests[np.argsort(p_values[tests], kind='stable')]
  steps = np.arange(len(order), 0, -1)
  adjusted = np.full(len(p_values), np.nan)
  adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * steps), 1.0)
  return adjusted


def _at_least(values, observed) -> np.ndarray:
  """Whether |values| >= |observed| up to rounding; true for nan."""
  return ~(np.abs(values) < np.abs(observed) * (1 - 1e-9) - 1e-15)


def _chunks(samples: int, queries: int) -> list[int]:
  """Row counts of about CHUNK numbers that add up to `samples`."""
  rows = max(1, CHUNK // max(queries, 1))
  return [min(rows, samples - begin) for begin in range(0, samples, rows)]


def _all_signs(queries: int):
  """Every row of +1 and -1, in chunks."""
  begin = 0
  for rows in _chunks(2**queries, queries):
    ways = np.arange(begin, begin + rows)[:, None]
    yield 1 - 2 * (ways >> np.arange(queries) & 1)
    begin += rows


def _random_signs(queries: int, samples: int, seed: int):
  rng = np.random.default_rng(seed)
  for rows in _chunks(samples, queries):
    yield 1 - 2 * rng.integers(2, size=(rows, queries), dtype=np.int8)
