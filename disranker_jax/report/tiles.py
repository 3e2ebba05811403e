"""The tiles at the head of the report page: a few figures."""

from typing import NamedTuple

from disranker_jax.evaluation import metrics
from disranker_jax.report import tables, times
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
  """Quality of the subject, what it keeps of the teacher's lead, with the first stage, and speed.

  Without a teacher: how far the subject is above each baseline.
  """
  table, intervals = facts.table, facts.intervals
  subject, teacher = (facts.results.get(model) for model in (table.subject, table.teacher))
  row = [quality(facts, table.subject)] if subject else []
  if kept := intervals.kept:
    row.append(lead_kept(facts, kept))
  for baseline in () if table.teacher else baselines(table, list(facts.results)):
    if cell := intervals.differences.get((baseline, table.subject, table.main)):
      what = f'{metrics.title(table.main)} against {facts.title(baseline)}'
      row.append(Tile(number(cell['value'], sign='+'), what, span(cell, sign='+')))
  row += [quality(facts, name) for name, found in facts.results.items() if found.get('fusion')]
  ms = [model.get('ms_per_pair', 0) for model in (subject, teacher) if model]
  if len(ms) == 2 and all(ms) and not times.uneven(facts):
    fast, slow, ratio = (tables.rounded(x, 2) for x in (*ms, ms[1] / ms[0]))
    what = f'as fast as the teacher: {fast} ms per pair against {slow}'
    row.append(Tile(f'{ratio} \N{MULTIPLICATION SIGN}', what, ''))
  return row


def quality(facts: Facts, name: str) -> Tile:
  """The main metric of a row."""
  main = facts.table.main
  mean = facts.intervals.means.get((name, main))
  what = f'{metrics.title(main)} of the {facts.title(name)}'
  return Tile(number(facts.results[name][main]), what, span(mean) if mean else '')


def lead_kept(facts: Facts, kept: dict) -> Tile:
  """The share of the teacher's lead that the subject keeps, or by how much it is behind."""
  table = facts.table
  first = facts.title(table.first_stage)
  cell = facts.intervals.differences.get((table.first_stage, table.subject, table.main))
  if kept['value'] < 0 and cell:  # a negative share of a lead says nothing
    return Tile(
      number(cell['value']), f'{metrics.title(table.main)} against {first}', span(cell, sign='+')
    )
  interval = f'{percent(kept["low"])} to {percent(kept["high"])}'
  return Tile(percent(kept['value']), f"of the teacher's lead over {first} kept", interval)
