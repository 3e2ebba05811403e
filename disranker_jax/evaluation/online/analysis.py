"""From a summed log to the results of the table, as plain JSON values (None: undefined)."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from disranker_jax.errors import UserError
from disranker_jax.evaluation import significance
from disranker_jax.evaluation.online import stats
from disranker_jax.evaluation.online.stats import METRICS, Ratio
from disranker_jax.evaluation.online.users import Bucket, Log

MISMATCH = 0.001  # below this p the split is broken; a false alarm once in 1000 tests
FEW_USERS = 200  # below this the normal approximation of skewed metrics is poor
POWER = 0.8
# A user is heavy with more than this share of a bucket's sum, and so many times the mean user's.
HEAVY, TIMES_THE_MEAN = 0.1, 5
HEAVY_IN = {'pages': 'pages', 'clicks': 'clicks', 'dwell': 'dwell time'}


def analyse(
  log: Log,
  *,
  control: str | None = None,
  shares: Mapping[str, float] | None = None,
  alpha: float = 0.05,
  replicates: int = 0,
  seed: int = 0,
) -> dict[str, Any]:
  """Metrics of each bucket, gains of every other bucket over `control`, and the sample ratio.

  `shares` are the intended shares of users (default: equal). `replicates` > 0 computes intervals
  and p-values by the user-level bootstrap instead of the delta method; use 1000 or more. With
  heavy users, `without_heavy_users` has the buckets and gains without them.
  Raises: UserError if `control` or `shares` do not fit the log.
  """
  control = control_of(log, control)
  names = [control, *(name for name in log.buckets if name != control)]
  shares = shares_of(names, shares)
  totals = {name: log.buckets[name].totals() for name in names}
  heavy = {name: users for name in names if (users := heavy_users(totals[name]))}
  result = compare(totals, alpha, replicates, seed)
  if heavy:
    rest = {name: without(totals[name], heavy.get(name, {})) for name in names}
    result['without_heavy_users'] = compare(rest, alpha, replicates, seed)
  return plain(
    {
      'control': control,
      'alpha': alpha,
      'power': POWER,
      'method': f'bootstrap, {replicates} replicates' if replicates else 'delta method',
      'first_day': log.days[0].isoformat(),
      'last_day': log.days[-1].isoformat(),
      'days': len(log.days),
      'rows': log.rows,
      'quarantined': log.quarantined,
      'users_in_several_buckets': log.users_in_several_buckets,
      'sample_ratio': sample_ratio(log, names, shares),
      'heavy_users': {
        name: [{'share': share, 'of': what} for share, what in sorted(users.values())[::-1]]
        for name, users in heavy.items()
      },
      **result,
    }
  )


def compare(
  totals: Mapping[str, stats.Totals], alpha: float, replicates: int, seed: int
) -> dict[str, Any]:
  """Summaries of the buckets, and the gains of all others over the first one, the control."""
  control, *others = totals
  ratios = {name: ratios_of(total) for name, total in totals.items()}
  gains = {}
  for name in others:
    gains[name] = {}
    for key, metric in METRICS.items():
      base, other = ratios[control][key], ratios[name][key]
      gain = stats.compare(base, other, alpha)
      if replicates and not math.isnan(gain.p):
        pair = (metric.sums(totals[b]) for b in (control, name))
        gain = stats.bootstrap(*pair, replicates, seed, alpha)
      gains[name][key] = {
        'gain': gain.gain,
        'low': gain.low,
        'high': gain.high,
        'p': gain.p,
        'detectable': stats.detectable(base.log_variance + other.log_variance, alpha, POWER),
      }
  adjust(gains, alpha)
  summaries = {name: bucket_summary(total, ratios[name]) for name, total in totals.items()}
  return {'buckets': summaries, 'gains': gains}


def heavy_users(totals: stats.Totals) -> dict[int, tuple[float, str]]:
  """{user: (largest share, of what)} of the users who can decide a bucket's metrics by themselves.

  Such a user is often a robot or a monitor; the variance does not show how much hangs on it.
  """
  limit = max(HEAVY, TIMES_THE_MEAN / len(totals['pages']))
  found: dict[int, tuple[float, str]] = {}
  for name, what in HEAVY_IN.items():
    share_U = totals[name] / max(totals[name].sum(), 1e-9)
    for user in np.flatnonzero(share_U > limit).tolist():
      found[user] = max(found.get(user, (0.0, '')), (float(share_U[user]), what))
  return found


def without(totals: stats.Totals, users: Collection[int]) -> dict[str, np.ndarray]:
  return {name: np.delete(sum_U, list(users)) for name, sum_U in totals.items()}


def control_of(log: Log, control: str | None) -> str:
  """The control's name: `control`, else 'control', else the only bucket."""
  if control is None and len(log.buckets) == 1:
    control = next(iter(log.buckets))
  control = 'control' if control is None else control
  if control not in log.buckets:
    raise UserError(
      f'--control: no bucket {control!r} in the log; name one of {", ".join(log.buckets)}'
    )
  for name, bucket in log.buckets.items():
    if not bucket.users:
      raise UserError(f'bucket {name!r}: all its users are in other buckets too; check the log')
  return control


def shares_of(names: Sequence[str], shares: Mapping[str, float] | None) -> dict[str, float]:
  """Each bucket's intended share of the users; they add up to 1."""
  shares = dict.fromkeys(names, 1.0) if shares is None else shares
  if shares.keys() != set(names):
    missing = ', '.join(sorted(set(names) ^ shares.keys()))
    raise UserError(f'--split: give every bucket of the log one share; see {missing}')
  if not all(0 < share < math.inf for share in shares.values()):
    raise UserError('--split: shares must be above 0, such as base=90,new=10')
  return {name: shares[name] / sum(shares.values()) for name in names}


def ratios_of(totals: stats.Totals) -> dict[str, Ratio]:
  """Every metric of a bucket."""
  return {key: stats.ratio(*metric.sums(totals)) for key, metric in METRICS.items()}


def adjust(gains: dict[str, dict[str, dict]], alpha: float) -> None:
  """Adds p_holm over all metrics and buckets, and the verdicts of p and p_holm at alpha."""
  tests = [(key, test) for metrics in gains.values() for key, test in metrics.items()]
  adjusted = significance.holm([test['p'] for _, test in tests]).tolist()
  for (key, test), p_holm in zip(tests, adjusted, strict=True):
    test['p_holm'] = p_holm
    word = 'better' if test['gain'] * METRICS[key].better > 0 else 'worse'
    test['verdict'] = word if test['p'] < alpha else ''
    test['verdict_holm'] = word if p_holm < alpha else ''


def sample_ratio(log: Log, names: Sequence[str], shares: Mapping[str, float]) -> dict | None:
  """Tests the bucket sizes against the intended shares; None for a single bucket."""
  if len(names) < 2:
    return None
  users = [log.buckets[name].users for name in names]
  statistic, p = stats.sample_ratio(users, [shares[name] for name in names])
  return {
    'users': dict(zip(names, users, strict=True)),
    'expected_shares': {name: shares[name] for name in names},
    'chi_square': statistic,
    'p': p,
    'mismatch': p < MISMATCH,
  }


def bucket_summary(totals: stats.Totals, ratios: Mapping[str, Ratio]) -> dict[str, Any]:
  """Counts of a bucket; value, standard error and recorded share of each of its metrics."""
  metrics = {}
  for key, metric in METRICS.items():
    value, possible = ratios[key], float(metric.possible(totals).sum())
    recorded = float(metric.denominator(totals).sum()) / possible if possible else math.nan
    metrics[key] = {
      'value': value.value,
      'standard_error': value.value * math.sqrt(value.log_variance),
      'recorded': recorded,
    }
  pages, clicks = int(totals['pages'].sum()), int(totals['clicks'].sum())
  return {'users': len(totals['pages']), 'pages': pages, 'clicks': clicks, 'metrics': metrics}


def size(
  log: Log,
  gain: float,
  *,
  control: str | None = None,
  metrics: Sequence[str] = tuple(METRICS),
  alpha: float = 0.05,
  power: float = POWER,
) -> dict[str, Any]:
  """How large a test must be to find a relative gain with this power, for each metric.

  users: in each of two equal buckets, if users are as active as in this log; the variance is the
  control's. days: with the buckets and traffic of the log, for the slowest pair with the control;
  a log with one bucket is taken twice.
  """
  control = control_of(log, control)
  needed = stats.needed_variance(gain, alpha, power)
  others = [name for name in log.buckets if name != control] or [control]
  curves = {name: log_variances(log.buckets[name], len(log.days)) for name in {control, *others}}
  found = {}
  base = ratios_of(log.buckets[control].totals())
  for key in metrics:
    days = [stats.days_needed(curves[control][key] + curves[n][key], needed) for n in others]
    users = stats.users_needed(base[key].variance, gain, alpha, power)
    endless = any(math.isinf(d) for d in days)
    found[key] = {'users': users, 'days': float(np.max(days)), 'more_days_do_not_help': endless}
  return plain(
    {
      'gain': gain,
      'alpha': alpha,
      'power': power,
      'control': control,
      'days_of_log': len(log.days),
      'metrics': found,
    }
  )


def log_variances(bucket: Bucket, days: int) -> dict[str, np.ndarray]:
  """Variance of each metric's logarithm after the first 1, 2, ..., `days` days."""
  spans = [ratios_of(bucket.totals(day)) for day in range(1, days + 1)]
  return {key: np.array([ratios[key].log_variance for ratios in spans]) for key in METRICS}


def plain(value: Any) -> Any:
  """JSON has no NaN and no infinity: None."""
  if isinstance(value, Mapping):
    return {key: plain(entry) for key, entry in value.items()}
  if isinstance(value, (float, np.floating)):
    return float(value) if math.isfinite(value) else None
  return value
