"""The tiles at the head of the report page: a few figures."""

from typing import NamedTuple

from disranker_jax.evaluation import metrics
from disranker_jax.report import tables
from disranker_jax.report.facts import Facts
from disranker_jax.report.intervals import baselines

DIGITS = 3  # of nDCG and p
SPACE = '\N{NO-BREAK SPACE}'


class Tile(NamedTuple):
  figure: str
  what: str
  interval: str


def typographic(text: str) -> str:
  """A number with a minus sign; a dash if it is undefined."""
  return '\N{EN DASH}' if text == '-' else text.replace('-', '\N{MINUS SIGN}')


def number(value: float, digits: int = DIGITS, sign: str = '') -> str:
  return typographic(tables.number(value, digits, sign))


def span(cell: dict, digits: int = DIGITS, sign: str = '') -> str:
  return typographic(tables.span(cell, digits, sign))


def percent(share: float) -> str:
  return typographic(f'{100 * share:.0f}{SPACE}%')


def tiles(facts: Facts) -> list[Tile]:
  """Quality of the subject, and what it keeps of the teacher's lead at which speed.

  Without a teacher: how far the subject is above each baseline.
  """
  table, intervals, row = facts.table, facts.intervals, []
  subject, teacher = (facts.results.get(model) for model in (table.subject, table.teacher))
  metric = metrics.title(table.main)
  if subject:
    mean = intervals.means.get((table.subject, table.main))
    what = f'{metric} of the {facts.title(table.subject)}'
    row.append(Tile(number(subject[table.main]), what, span(mean) if mean else ''))
  if kept := intervals.kept:
    what = f"of the teacher's lead over {facts.title(table.first_stage)} kept"
    interval = f'{percent(kept["low"])} to {percent(kept["high"])}'
    row.append(Tile(percent(kept['value']), what, interval))
  for baseline in () if table.teacher else baselines(table, list(facts.results)):
    if cell := intervals.differences.get((baseline, table.subject, table.main)):
      what = f'{metric} against {facts.title(baseline)}'
      row.append(Tile(number(cell['value'], sign='+'), what, span(cell, sign='+')))
  times = [model.get('ms_per_pair', 0) for model in (subject, teacher) if model]
  if len(times) == 2 and all(times):
    what = f'as fast as the teacher: {times[0]:.3g} ms per pair against {times[1]:.3g}'
    row.append(Tile(f'{times[1] / times[0]:.1f} \N{MULTIPLICATION SIGN}', what, ''))
  return row
