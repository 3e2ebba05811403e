"""The arithmetic of benches: medians, ratios of turns, model FLOPs utilisation, slopes.

A row is what one turn of one side measured: `seconds`, `tokens` (real ones), `places` (with
padding), `steps`, and more that a side may tell.
"""

import math
import statistics

import numpy as np


def rate(row: dict, what: str = 'tokens', by: str = 'seconds') -> float:
  """Of a turn, a second."""
  return row[what] / row[by]


def median(rows: list[dict], what: str = 'tokens') -> float:
  """Of the turns' rates."""
  return statistics.median(rate(row, what) for row in rows)


def ratio(ours: list[dict], theirs: list[dict], by: str = 'seconds') -> dict[str, float]:
  """Our real tokens a second over theirs, turn by turn: `median`, `low`, `high`.

  Turns with the same number ran one after the other, so that a busy machine slows both. `by`
  'cpu_s' it is tokens a second of the cores' time: without others' work, with spinning threads.
  """
  turns = [rate(a, by=by) / rate(b, by=by) for a, b in zip(ours, theirs, strict=True)]
  return {'median': statistics.median(turns), 'low': min(turns), 'high': max(turns)}


def mfu(flops: float, seconds: float, peak: float) -> float:
  """Model FLOPs utilisation: what the mathematics asks for over what the matrix units could do."""
  return flops / (seconds * peak)


def slope(xs, ys) -> float:
  """Of a line through the points on two logarithmic axes: 1 is linear, 0 does not grow."""
  if len(xs) < 2 or min(*xs, *ys) <= 0:
    return math.nan
  return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def summary(rows: list[dict], facts: dict) -> dict:
  """What one side's turns come to."""
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
    out |= {'peak_flops': peak, 'mfu': mfu(facts['flops'], out['step_s'], peak)}
  return out | facts


def answer(turns: dict[str, list[dict]], facts: dict[str, dict], first: str = 'ours') -> dict:
  """The first side's figures on top, all sides' under `sides`, and `ratio_to_...` of each other."""
  sides = {name: summary(rows, facts[name]) for name, rows in turns.items() if rows}
  out = dict(sides[first])
  for name in ('torch_fp32', 'torch_bf16'):
    out[f'ratio_to_{name}'] = None  # until it has run
  for name, rows in turns.items():
    if name != first and rows:
      found = ratio(turns[first], rows)
      sides[name]['first_is_faster'] = found
      out[f'ratio_to_{name}'] = found['median']
      if 'cpu_s' in rows[0]:
        sides[name]['first_is_cheaper'] = ratio(turns[first], rows, 'cpu_s')
  return out | {'rounds': len(turns[first]), 'sides': sides}


def short(x):
  """Numbers with six digits, all the way down; what is not finite becomes None, as JSON has it."""
  if isinstance(x, dict):
    return {k: short(v) for k, v in x.items()}
  if isinstance(x, list | tuple):
    return [short(v) for v in x]
  if isinstance(x, float):
    return float(f'{x:.6g}') if math.isfinite(x) else None
  return x
