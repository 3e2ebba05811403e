"""Which differences between rankings are more than the luck of these queries.

Queries are what is drawn at random, so everything here resamples queries, never documents. A
statistic is a ratio of two sums over queries: of values and ones for a mean, of concordant and all
ordered pairs for a pooled ratio. Arrays: Q queries, K statistics, S samples, 2 = (top, bottom).
"""

import math

import numpy as np

SAMPLES = 10_000
LEVEL = 0.95
CHUNK = 2**22  # numbers held at a time: 32 MB, whatever the number of queries


def mean_of(values_Q) -> np.ndarray:
  """Sums_Q2 of a mean over queries; those whose value is not finite do not count."""
  values_Q = np.asarray(values_Q, np.float64)
  counts_Q = np.isfinite(values_Q)
  return np.stack([np.where(counts_Q, values_Q, 0.0), counts_Q.astype(np.float64)], -1)


def ratio(sums_2) -> np.ndarray:
  """Top / bottom of the last axis; nan where nothing counts."""
  with np.errstate(divide='ignore', invalid='ignore'):
    return sums_2[..., 0] / sums_2[..., 1]


def clustered(sums_QK2, clusters_Q) -> np.ndarray:
  """Sums of each cluster of queries, [C, K, 2], to be drawn and swapped in the queries' place.

  Queries of one session or topic share judgements. Drawn one by one they would count as that many
  independent ones, and intervals would be too narrow (Cameron and Miller, 2015).
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

  Its ends are draws themselves, so it may be infinite and every rising function of it is the
  interval of that function. Draws in which nothing counted are left out.
  """
  draws_S = np.asarray(draws_S)[~np.isnan(draws_S)]
  if not len(draws_S):
    return math.nan, math.nan
  tail = (1 - level) / 2
  low, high = np.quantile(draws_S, [tail, 1 - tail], method='inverted_cdf')
  return float(low), float(high)


def bootstrap_p(draws_S, observed: float) -> float:
  """Two-sided p-value of a difference: how often draws lie as far from it as it does from 0.

  The draws' spread stands for that under no difference (Efron and Tibshirani, 1993, ch. 16); it is
  somewhat too small for few queries, where `randomisation_p` is exact.
  """
  extreme = _at_least(np.asarray(draws_S) - observed, observed)
  return float((1 + extreme.sum()) / (1 + len(extreme)))


def randomisation_p(ours_QK2, theirs_QK2, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
  """Two-sided p-values [K] of ratio(ours) - ratio(theirs) if the two could be swapped by query.

  Fisher's paired randomisation: over all 2^Q ways to swap the Q queries that differ if they are at
  most `samples` (then p is exact), else over so many random ones. A way in which one side has
  nothing that counts is taken as extreme.
  """
  ours_QK2, theirs_QK2 = np.asarray(ours_QK2, np.float64), np.asarray(theirs_QK2, np.float64)
  statistics = ours_QK2.shape[1]
  apart = (ours_QK2 - theirs_QK2).reshape(len(ours_QK2), -1)
  apart = apart[apart.any(1)]  # to swap equal sides changes nothing
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
  """Holm's (1979) adjusted p-values, in the order given; NaN is no test and stays NaN.

  At most `alpha` is the chance that any true null hypothesis of the table falls below `alpha`.
  """
  p_values = np.asarray(p_values, np.float64)
  tests = np.flatnonzero(~np.isnan(p_values))
  order = tests[np.argsort(p_values[tests], kind='stable')]
  steps = np.arange(len(order), 0, -1)
  adjusted = np.full(len(p_values), np.nan)
  adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * steps), 1.0)
  return adjusted


def paired(ours_Q, theirs_Q, samples: int = SAMPLES, seed: int = 0, level: float = LEVEL) -> dict:
  """One metric of two systems on the same queries: the mean difference with all that is known.

  Returns difference, low and high (paired bootstrap), p (randomisation) and p_bootstrap.
  """
  ours_Q12, theirs_Q12 = mean_of(ours_Q)[:, None], mean_of(theirs_Q)[:, None]
  draws_S2 = bootstrap(np.concatenate([ours_Q12, theirs_Q12], 1), samples, seed)
  draws_S = draws_S2[:, 0] - draws_S2[:, 1]
  difference = float(ratio(ours_Q12.sum(0))[0] - ratio(theirs_Q12.sum(0))[0])
  low, high = interval(draws_S, level)
  return {
    'difference': difference,
    'low': low,
    'high': high,
    'p': float(randomisation_p(ours_Q12, theirs_Q12, samples, seed)[0]),
    'p_bootstrap': bootstrap_p(draws_S, difference),
  }


def _at_least(values, observed) -> np.ndarray:
  """Whether |values| >= |observed| but for rounding; true for nan."""
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
