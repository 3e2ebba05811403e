"""Text tables: numbers as text, aligned columns for terminals, and Markdown."""

import math
from collections.abc import Mapping, Sequence

from disranker_jax import escaping
from disranker_jax.evaluation import significance
from disranker_jax.evaluation.power import POWER


def number(value, digits: int, sign: str = '') -> str:
  """A number as text, 'inf' if infinite, '-' if undefined; `value` may be text as in results.json.

  sign  '+' writes the sign of positive numbers too
  """
  value = float(value)
  return '-' if math.isnan(value) else f'{value:{sign}.{digits}f}'


def decimals(metric: str, most: int) -> int:
  """Decimals of a metric: PNR, which is not between 0 and 1, has one fewer."""
  return most - metric.startswith('pnr')


def span(cell: Mapping[str, float], digits: int, sign: str = '') -> str:
  """An interval: '0.017 to 0.169'."""
  return ' to '.join(number(cell[end], digits, sign) for end in ('low', 'high'))


def chance(p: float, digits: int = 4) -> str:
  """A p-value: '0.0312' or '<0.0001'."""
  least = 10.0**-digits
  return f'{p:.{digits}f}' if p >= least / 2 else f'<{least:.{digits}f}'


def short(count: int) -> str:
  """134515008 -> '134.5M'."""
  for size, letter in ((1e9, 'B'), (1e6, 'M'), (1e3, 'K')):
    if count >= size:
      return f'{count / size:.1f}{letter}'
  return str(count)


def joined(names: Sequence[str]) -> str:
  """'Hits, MRR and nDCG'."""
  return ' and '.join(filter(None, [', '.join(names[:-1]), *names[-1:]]))


def aligned(heads: Sequence[str], lines: Sequence[Sequence[str]], indent: str = '') -> str:
  """Aligned columns, the first to the left, the others to the right; a rule under the heads."""
  every = [list(map(escaping.line, row)) for row in (heads, *lines)]
  widths = [max(len(row[i]) for row in every) for i in range(len(heads))]
  out = []
  for row in every:
    cells = [row[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    out.append('  '.join(cells).rstrip())
  out.insert(1, '-' * max(map(len, out)))
  return '\n'.join(indent + line for line in out)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """A Markdown table: the first column to the left, the others to the right."""
  rows = ['| ' + ' | '.join(map(escaping.markdown, row)) + ' |' for row in (heads, *lines)]
  return '\n'.join([rows[0], '|---|' + '---:|' * (len(heads) - 1), *rows[1:]])


def drawn(queries: int, clusters: int) -> str:
  """What intervals and tests resample: 'queries', or '48 clusters of queries'."""
  return 'queries' if clusters == queries else f'{clusters} clusters of queries'


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
