"""The result table, for a terminal and for Markdown, and the machine's summary of a run."""

import math

from disranker_jax.evaluation import metrics

TITLES = {
  'random': 'random order',
  'bm25': 'BM25',
  'zero_shot': 'zero-shot LLM',
  'student_sft': 'student, labels only',
  'teacher': 'teacher',
  'student': 'distilled student',
}
HEADS = ('model', 'PNR', 'nDCG@5', 'nDCG@10', 'MRR@10', 'parameters', 'ms a pair')


def rows(results: dict) -> list[list[str]]:
  """One row a model, in the order of the results, as text."""
  table = []
  for name, values in results.items():
    cells = [TITLES.get(name, name)]
    cells += [number(values[m], 2 if m == 'pnr' else 4) for m in metrics.COLUMNS]
    cells.append(short(values['parameters']) if 'parameters' in values else '')
    cells.append(number(values['ms_per_pair'], 2) if 'ms_per_pair' in values else '')
    table.append(cells)
  return table


def number(value, digits: int) -> str:
  """A metric as text; 'inf' and 'nan' are already text in results.json."""
  value = float(value)
  return f'{value:.{digits}f}' if math.isfinite(value) else str(value)


def short(count: int) -> str:
  """134515008 -> '134.5M'."""
  for size, letter in ((1e9, 'B'), (1e6, 'M'), (1e3, 'K')):
    if count >= size:
      return f'{count / size:.1f}{letter}'
  return str(count)


def text(results: dict) -> str:
  """The table for a terminal: columns lined up, numbers to the right."""
  lines = [list(HEADS), *rows(results)]
  widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
  out = []
  for line in lines:
    cells = [line[0].ljust(widths[0])]
    cells += [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
    out.append('  '.join(cells).rstrip())
  out.insert(1, '-' * max(map(len, out)))
  return '\n'.join(out)


def markdown(heads, lines) -> str:
  """A Markdown table: the first column to the left, the others to the right."""
  out = ['| ' + ' | '.join(heads) + ' |', '|---|' + '---:|' * (len(heads) - 1)]
  out += ['| ' + ' | '.join(line) + ' |' for line in lines]
  return '\n'.join(out)
