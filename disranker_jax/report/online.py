"""The analysis of an online test as text for a terminal and as Markdown."""

import textwrap
from collections.abc import Sequence
from typing import Any

from disranker_jax import escaping
from disranker_jax.evaluation.online.analysis import FEW_USERS
from disranker_jax.evaluation.online.stats import METRICS
from disranker_jax.progress import amount, part_of
from disranker_jax.report.tables import aligned, markdown

NONE = '-'
WIDTH = 96
Lines = list[list[str]]


def text(result: dict[str, Any], holm: bool = False) -> str:
  """The whole report for a terminal."""
  parts = [title(result)]
  parts += wrapped([f'! {line}' for line in warnings(result)])
  parts.append(columns(*buckets_table(result)))
  if not result['gains']:
    parts.append(columns(*values_table(result)))
  for name in result['gains']:
    parts.append(f'{name!r} against {result["control"]!r}')
    parts.append(columns(*gains_table(result, name, holm)))
  if rest := without_heavy_users(result):
    for name in rest['gains']:
      parts.append(f'{name!r} against {rest["control"]!r}, without heavy users')
      parts.append(columns(*gains_table(rest, name, holm)))
    if not rest['gains']:
      parts += ['Without heavy users', columns(*values_table(rest))]
  parts += wrapped(notes(result, holm))
  if size := result.get('size'):
    parts += [size_title(size), columns(*size_table(size)), *wrapped(size_notes(size))]
  return '\n\n'.join(parts)


def wrapped(notes: Sequence[str]) -> list[str]:
  return [textwrap.fill(note, WIDTH, break_long_words=False) for note in notes]


def as_markdown(result: dict[str, Any], holm: bool = False) -> str:
  """The whole report as Markdown."""
  parts = [f'# {title(result)}']
  parts += [f'**{escaping.markdown(line)}**' for line in warnings(result)]
  parts.append(markdown(*buckets_table(result)))
  if not result['gains']:
    parts.append(markdown(*values_table(result)))
  for name in result['gains']:
    heading = escaping.markdown(f'{name} against {result["control"]}')
    parts += [f'## {heading}', markdown(*gains_table(result, name, holm))]
  if rest := without_heavy_users(result):
    parts.append('## Without heavy users')
    if not rest['gains']:
      parts.append(markdown(*values_table(rest)))
    for name in rest['gains']:
      label = escaping.markdown(f'{name} against {rest["control"]}:')
      parts += [label, markdown(*gains_table(rest, name, holm))]
  parts += map(escaping.markdown, notes(result, holm))
  if size := result.get('size'):
    parts += [f'## {size_title(size)}', markdown(*size_table(size)), *size_notes(size)]
  return '\n\n'.join(parts) + '\n'


def without_heavy_users(result: dict[str, Any]) -> dict[str, Any] | None:
  """The result with the buckets and gains of all other users; None if there are no heavy ones."""
  rest = result.get('without_heavy_users')
  return rest and result | rest


def columns(heads: Sequence[str], lines: Lines) -> str:
  return aligned(heads, lines, indent='  ')


def title(result: dict[str, Any]) -> str:
  days = f'{result["days"]} day' + 's' * (result['days'] > 1)
  span = result['first_day']
  if result['days'] > 1:
    span += f' to {result["last_day"]}'
  return f'Online test, {days} ({span})'


def warnings(result: dict[str, Any]) -> list[str]:
  """What a reader must know before any gain."""
  found = []
  ratio = result['sample_ratio']
  if ratio and ratio['mismatch']:
    found.append(
      f'SAMPLE-RATIO MISMATCH: {split(ratio)}, p {p_value(ratio["p"])}. Users are assigned to '
      'buckets, or lost, unevenly: find the cause before you trust any gain.'
    )
  if moved := result['users_in_several_buckets']:
    kept = sum(bucket['users'] for bucket in result['buckets'].values())
    part = percent(moved / (moved + kept))
    found.append(
      f'{amount(moved, "user")} ({part}) {"was" if moved == 1 else "were"} in several buckets and '
      f'{"is" if moved == 1 else "are"} excluded.'
    )
  for name, users in result['heavy_users'].items():
    shares = ', '.join(f'{percent(user["share"])} of the {user["of"]}' for user in users)
    found.append(
      f'HEAVY USERS in {name!r}: {len(users)} of '
      f'{amount(result["buckets"][name]["users"], "user")} with {shares}. Often this is a robot. '
      'The tables without heavy users are below.'
    )
  if result['quarantined']:
    said = part_of(result['quarantined'], result['rows'], 'row', 'rows', 'was', 'were')
    found.append(f'{said} quarantined.')
  if small := [name for name, b in result['buckets'].items() if b['users'] < FEW_USERS]:
    what = f'Fewer than {FEW_USERS} users in {", ".join(map(repr, small))}'
    found.append(f'{what}: intervals and p-values are rough.')
  return found


def buckets_table(result: dict[str, Any]) -> tuple[list[str], Lines]:
  """One row per bucket."""
  heads = ['bucket', 'users', 'pages', 'pages per user', 'clicks', 'clicks per page']
  lines = []
  for name, bucket in result['buckets'].items():
    users, pages, clicks = bucket['users'], bucket['pages'], bucket['clicks']
    label = f'{name} (control)' if result['gains'] and name == result['control'] else name
    line = [label, f'{users:,}', f'{pages:,}', f'{pages / users:.2f}']
    lines.append([*line, f'{clicks:,}', f'{clicks / pages:.2f}'])
  return heads, lines


def values_table(result: dict[str, Any]) -> tuple[list[str], Lines]:
  """The metrics of the only bucket of a log."""
  [bucket] = result['buckets'].values()
  lines = []
  for key, metric in METRICS.items():
    found = bucket['metrics'][key]
    cells = [value(found['value'], key), value(found['standard_error'], key)]
    lines.append([metric.title, *cells])
  return ['metric', 'value', 'standard error'], lines


def gains_table(result: dict[str, Any], name: str, holm: bool) -> tuple[list[str], Lines]:
  """The paper's table 4: one row per metric."""
  control = result['buckets'][result['control']]['metrics']
  other = result['buckets'][name]['metrics']
  level = short_percent(1 - result['alpha'])
  heads = ['metric', result['control'], name, 'gain', f'{level} interval', 'p']
  heads += ['p (Holm)', 'verdict'] if holm else ['verdict']
  heads.append('detectable')
  lines = []
  for key, metric in METRICS.items():
    test = result['gains'][name][key]
    line = [metric.title, value(control[key]['value'], key), value(other[key]['value'], key)]
    line += [signed(test['gain']), interval(test['low'], test['high']), p_value(test['p'])]
    if holm:
      line.append(p_value(test['p_holm']))
    verdict = test['verdict_holm' if holm else 'verdict']
    lines.append([*line, verdict, percent(test['detectable'])])
  return heads, lines


def notes(result: dict[str, Any], holm: bool) -> list[str]:
  """How to read the table."""
  found = []
  if ratio := result['sample_ratio']:
    if not ratio['mismatch']:
      found.append(f'Split: {split(ratio)}, p {p_value(ratio["p"])}: as intended.')
    family = ', Holm-corrected over all rows' if holm else ''
    found.append(
      f'Unit: the user; {result["method"]}. Verdicts at {short_percent(result["alpha"])}, two-sided'
      f'{family}. Detectable: the gain that a test of this size finds with '
      f'{short_percent(result["power"])} power.'
    )
  for key, metric in METRICS.items():
    parts = {n: b['metrics'][key]['recorded'] for n, b in result['buckets'].items()}
    if not any(parts.values()):
      found.append(f'{metric.title}: not recorded in this log.')
    elif any(part is not None and part < 1 for part in parts.values()):
      shares = ', '.join(f'{n} {percent(p)}' for n, p in parts.items())
      of_what = 'clicks' if key == 'dwell' else 'pages'
      found.append(f'{metric.title}: recorded for a part of the {of_what} only ({shares}).')
  return found


def size_title(size: dict[str, Any]) -> str:
  gain, power, alpha = (
    signed(size['gain']),
    short_percent(size['power']),
    short_percent(size['alpha']),
  )
  return f'To find a gain of {gain} with {power} power at {alpha}, two-sided'


def size_table(size: dict[str, Any]) -> tuple[list[str], Lines]:
  """One row per metric: users and days."""
  lines = []
  for key, found in size['metrics'].items():
    users = NONE if found['users'] is None else f'{found["users"]:,}'
    days = 'days do not help' if found['more_days_do_not_help'] else NONE
    if found['days'] is not None:
      days = f'{found["days"]:,.0f}'
    lines.append([METRICS[key].title, users, days])
  return ['metric', 'users per bucket', 'days at this traffic'], lines


def size_notes(size: dict[str, Any]) -> list[str]:
  days = f'{size["days_of_log"]} day' + 's' * (size['days_of_log'] > 1)
  found = [
    f'Users: in each of two equal buckets, for a test of {days}. Days: with the buckets of this '
    'log, or a second one like it; days beyond the log are extrapolated. Run whole weeks.'
  ]
  if any(metric['more_days_do_not_help'] for metric in size['metrics'].values()):
    found.append('Where days do not help, the same users return: give the buckets more users.')
  return found


def split(ratio: dict[str, Any]) -> str:
  users = ratio['users']
  parts = [f'{name} {n:,} ({percent(n / sum(users.values()))})' for name, n in users.items()]
  meant = ' : '.join(short_percent(share) for share in ratio['expected_shares'].values())
  return f'{", ".join(parts)} where {meant} was intended'


def value(number: float | None, key: str) -> str:
  if number is None:
    return NONE
  return percent(number) if METRICS[key].unit == '%' else f'{number:.2f} {METRICS[key].unit}'


def percent(share: float | None) -> str:
  """.0123 -> '1.23%'."""
  return NONE if share is None else f'{100 * share:.2f}%'


def short_percent(share: float) -> str:
  """.05 -> '5%', for settings."""
  return f'{100 * share:.6g}%'


def signed(share: float | None) -> str:
  return NONE if share is None else f'{100 * share:+.2f}%'


def interval(low: float | None, high: float | None) -> str:
  return NONE if low is None or high is None else f'{signed(low)} to {signed(high)}'


def p_value(p: float | None) -> str:
  if p is None:
    return NONE
  return '< 0.001' if p < 0.001 else f'{p:.3f}'
