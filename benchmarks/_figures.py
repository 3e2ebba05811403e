"""The arithmetic of benches: medians, ratios of turns, model FLOPs utilisation, slopes.

A row is one turn of one side: `seconds`, `tokens` (without padding), `places` (with padding),
`steps`, and further measurements that a side may add.
"""

import math
import statistics

import numpy as np

JOULES_PER_KWH = 3.6e6


def rate(row: dict, what: str = 'tokens', by: str = 'seconds') -> float:
  """`what` per second of a turn."""
  return row[what] / row[by]


def median(rows: list[dict], what: str = 'tokens') -> float:
  """The median of the turns' rates."""
  return statistics.median(rate(row, what) for row in rows)


def ratio(ours: list[dict], theirs: list[dict], by: str = 'seconds') -> dict[str, float]:
  """Our tokens per second over theirs, turn by turn: `median`, `low`, `high`.

  Turns with the same number ran one after the other, so a busy machine slows both. With
  `by='cpu_s'` it is tokens per second of CPU time: other processes do not count, spinning threads
  do.
  """
  turns = [rate(a, by=by) / rate(b, by=by) for a, b in zip(ours, theirs, strict=True)]
  return {'median': statistics.median(turns), 'low': min(turns), 'high': max(turns)}


def mfu(flops: float, seconds: float, peak: float) -> float:
  """Model FLOPs utilisation: the model's FLOP/s over the peak of the matrix units."""
  return flops / (seconds * peak)


def slope(xs, ys) -> float:
  """Slope of a line through the points on two logarithmic axes: 1 is linear, 0 is constant."""
  if len(xs) < 2 or min(*xs, *ys) <= 0:
    return math.nan
  return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def summary(rows: list[dict], facts: dict) -> dict:
  """The figures of one side, from its turns and its facts."""
  out = {
    'tokens_per_s': median(rows),
    'padded_tokens_per_s': median(rows, 'places'),
    'padding': 1 - sum(r['tokens'] for r in rows) / sum(r['places'] for r in rows),
    'step_s': statistics.median(r['seconds'] / r['steps'] for r in rows),
  }
  if 'pairs' in rows[0]:
    pairs = median(rows, 'pairs')
    out |= {'pairs_per_s': pairs, 'ms_per_pair': 1000 / pairs}
  if 'cpu_s' in rows[0]:
    out['cpu_s'] = statistics.median(r['cpu_s'] / r['steps'] for r in rows)
  if 'idle_s' in rows[0]:
    out['waiting'] = sum(r['idle_s'] for r in rows) / sum(r['seconds'] for r in rows)
  if 'peak_flops' in rows[0]:
    peak = statistics.median(r['peak_flops'] for r in rows)
    # Without the wait for the first batch and after the last one, where it is known.
    step_s = statistics.median(r.get('busy_s', r['seconds']) / r['steps'] for r in rows)
    out |= {'peak_flops': peak, 'mfu': mfu(facts['flops'], step_s, peak)}
  if watts := [r['watts'] for r in rows if 'watts' in r]:  # a short turn may have no sample
    out['watts'] = statistics.median(watts)
    if 'pairs_per_s' in out:
      out['pairs_per_kwh'] = out['pairs_per_s'] / out['watts'] * JOULES_PER_KWH
  return out | facts


def answer(turns: dict[str, list[dict]], facts: dict[str, dict], first: str = 'ours') -> dict:
  """The first side's figures on top, all sides' under `sides`, and `ratio_to_...` of each other."""
  sides = {name: summary(rows, facts[name]) for name, rows in turns.items() if rows}
  out = dict(sides[first])
  for name in ('torch_fp32', 'torch_bf16'):
    out[f'ratio_to_{name}'] = None  # if it did not run
  for name, rows in turns.items():
    if name != first and rows:
      sides[name]['first_is_faster'] = ratio(turns[first], rows)
      out[f'ratio_to_{name}'] = sides[name]['first_is_faster']['median']
      if 'cpu_s' in rows[0]:
        sides[name]['first_is_cheaper'] = ratio(turns[first], rows, 'cpu_s')
  return out | {'rounds': len(turns[first]), 'sides': sides}


def short(x):
  """Rounds all numbers to six digits, recursively; non-finite ones become None (JSON's null)."""
  if isinstance(x, dict):
    return {k: short(v) for k, v in x.items()}
  if isinstance(x, list | tuple):
    return [short(v) for v in x]
  if isinstance(x, float):
    return float(f'{x:.6g}') if math.isfinite(x) else None
  return x
