"""Text tables: numbers as text, aligned columns for terminals, and Markdown."""

import math
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence

from disranker_jax import escaping
from disranker_jax.evaluation import significance
from disranker_jax.evaluation.power import POWER
from disranker_jax.progress import amount

NEGATIVE = re.compile(r'(?:(?<=[\s(])|^)-(?=\.?\d)')
LEAST_NAME = 12  # characters to which the first column of a table is narrowed at most
FAIR_NAME = 24  # and to which it is narrowed before other columns are left out


def number(value, digits: int, sign: str = '') -> str:
  """A number as text, 'inf' if infinite, '-' if undefined; `value` may be text as in results.json.

  sign  '+' writes the sign of positive numbers too
  """
  value = float(value)
  return '-' if math.isnan(value) else f'{value:{sign}.{digits}f}'


def with_minus(text: str) -> str:
  """A sentence whose negative numbers have a minus sign; names and flags keep their hyphens."""
  return NEGATIVE.sub('\N{MINUS SIGN}', text)


def decimals(metric: str, most: int) -> int:
  """Decimals of a metric: PNR, which is not between 0 and 1, has one fewer."""
  return most - metric.startswith('pnr')


def span(cell: Mapping[str, float], digits: int, sign: str = '') -> str:
  """An interval: '0.017 to 0.169'."""
  return ' to '.join(number(cell[end], digits, sign) for end in ('low', 'high'))


def chance(p: float, digits: int = 3) -> str:
  """A p-value: '0.031' or '<0.001'."""
  least = 10.0**-digits
  return f'{p:.{digits}f}' if p >= least / 2 else f'<{least:.{digits}f}'


def short(count: int) -> str:
  """134515008 -> '134.5M'."""
  for size, letter in ((1e9, 'B'), (1e6, 'M'), (1e3, 'K')):
    if count >= size:
      return f'{count / size:.1f}{letter}'
  return str(count)


def significant(value: float) -> str:
  """Three significant digits: '0.165', '11.6', '12,395'."""
  return f'{value:,.0f}' if abs(value) >= 99.95 else f'{value:#.3g}'


def rounded(value: float, digits: int) -> str:
  """At most so many significant digits, never as a power of ten: '3.4', '33', '1,800' with two."""
  return f'{float(f"{value:.{digits}g}"):,.10g}'


def joined(names: Sequence[str]) -> str:
  """'Hits, MRR and nDCG'."""
  return ' and '.join(filter(None, [', '.join(names[:-1]), *names[-1:]]))


def aligned(
  heads: Sequence[str], lines: Sequence[Sequence[str]], indent: str = '', width: float = math.inf
) -> str:
  """Aligned columns, the first to the left, the others to the right; a rule under the heads.

  Where the lines would be longer than `width`, the first column is broken between words.
  """
  every = [list(map(escaping.line, row)) for row in (heads, *lines)]
  widths = [max(len(row[i]) for row in every) for i in range(len(heads))]
  names = [row[0] for row in every]
  if (over := len(indent) + _across(widths) - width) > 0:
    names = [wrapped(name, max(widths[0] - int(over), LEAST_NAME)) for name in names]
    widths[0] = max(len(part) for name in names for part in name.split('\n'))
  out = []
  for name, row in zip(names, every, strict=True):
    first, *more = name.split('\n')
    cells = [first.ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    out += ['  '.join(cells).rstrip(), *more]
  end = 1 + names[0].count('\n')
  out.insert(end, '-' * max(map(len, out)))
  return '\n'.join(indent + line for line in out)


def fitting(
  heads: Sequence[str], lines: Sequence[Sequence[str]], width: float, optional: Collection[int]
) -> tuple[list[str], list[list[str]], list[str]]:
  """(heads, lines, the heads that are left out): without optional columns if they do not fit.

  The columns that may be left out are named in the order in which they go.
  """
  left_out: list[int] = []
  for column in [None, *optional]:
    left_out += [] if column is None else [column]
    kept = [i for i in range(len(heads)) if i not in left_out]
    widths = [max(len(escaping.line(row[i])) for row in (heads, *lines)) for i in kept]
    if _across([min(widths[0], FAIR_NAME), *widths[1:]]) <= width:
      break
  gone = [heads[i] for i in sorted(left_out)]
  return [heads[i] for i in kept], [[row[i] for i in kept] for row in lines], gone


def _across(widths: Sequence[int]) -> int:
  return sum(widths) + 2 * (len(widths) - 1)


def columns() -> float:
  """The width of the terminal that reads the output; without a limit if it is a file or a pipe."""
  return max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else math.inf


def wrapped(text: str, width: float | None = None, hang: str = '  ') -> str:
  """A text in lines between words, all but the first with a hanging indent.

  width  None: that of the terminal
  """
  width = columns() if width is None else width
  if not math.isfinite(width):
    return text
  fill = textwrap.TextWrapper(
    int(width), subsequent_indent=hang, break_long_words=False, break_on_hyphens=False,
    replace_whitespace=False,
  )  # fmt: skip
  return '\n'.join(fill.fill(line) for line in text.split('\n'))


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """A Markdown table: the first column to the left, the others to the right."""
  rows = ['| ' + ' | '.join(map(escaping.markdown, row)) + ' |' for row in (heads, *lines)]
  return '\n'.join([rows[0], '|---|' + '---:|' * (len(heads) - 1), *rows[1:]])


def drawn(queries: int, clusters: int) -> str:
  """What intervals and tests resample: 'queries', or '48 clusters of queries'."""
  return 'queries' if clusters == queries else f'{amount(clusters, "cluster")} of queries'


def power(
  cell: Mapping[str, float], count: int, unit: str, digits: int, *, of: str = '',
  level: float = significance.LEVEL,
) -> str:  # fmt: skip
  """What a difference of Table.differences says about the size of the test.

  The test drew `count` units, such as 'queries'; `of` follows the number, such as ' nDCG@5'.
  """
  said = (
    f'with {count:,} {unit} a true difference of {number(cell["detectable"], digits)}{of} is found '
    f'in {100 * POWER:g} % of cases (p < {1 - level:.3g}, one test)'
  )
  if not math.isfinite(cell['needed']):
    return said
  value = number(cell['value'], digits, '+')
  return f'{said}; one of {value} needs about {cell["needed"]:,.0f} {unit}'


def plain(value):
  """A value for JSON, which has neither infinity nor nan: both become text, in dicts and lists."""
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, list):
    return [plain(v) for v in value]
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value
