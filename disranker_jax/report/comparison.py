"""The tables of `disranker compare`, for a terminal and for Markdown."""

import math
import re
from typing import NamedTuple

from disranker_jax.report import tables

TITLES = {
  'pnr': 'PNR',
  'pnr_per_query': 'PNR by query',
  'ndcg': 'nDCG',
  'ndcg_linear': 'nDCG (linear gain)',
  'mrr': 'MRR',
  'map': 'MAP',
  'recall': 'Recall',
  'judged': 'Judged',
  'gsb': 'delta-GSB',
  'tau': "Kendall's tau",
}
WHAT = {
  'pnr': 'concordant / discordant pairs, pooled over queries',
  'pnr_per_query': 'mean over the queries where it is finite',
  'ndcg_linear': 'the gain is the grade, as in trec_eval',
  'judged': 'share of the ranking that has a judgement',
  'tau': 'with {teacher}, mean over queries',
  'gsb': 'by nDCG@{depth}, the same if at most {same:g} apart',
}


class Block(NamedTuple):
  title: str
  heads: list[str]
  rows: list[list[str]]


def title(metric: str) -> str:
  """'ndcg@5' -> 'nDCG@5'."""
  kind, at, depth = metric.partition('@')
  name, gain, rest = TITLES[kind].partition(' (')
  return f'{name}{at}{depth}{gain}{rest}'


def heading(metric: str, result: dict) -> str:
  kind, _, depth = metric.partition('@')
  what = WHAT.get(kind, '').format(depth=depth, same=result['same'], teacher=result.get('teacher'))
  return f'{title(metric)}: {what}' if what else title(metric)


def text(result: dict) -> str:
  """The result as it is printed: blocks of aligned columns."""
  parts = [headline(result)]
  for block in blocks(result):
    parts.append('\n'.join([*([block.title] if block.title else []), aligned(block)]))
  return '\n\n'.join([*parts, *notes(result)])


def markdown(result: dict) -> str:
  """The same for a page, warnings included."""
  parts = ['# Comparison of rankings', headline(result)]
  for block in blocks(result):
    heads, *rows = [[escaped(cell) for cell in row] for row in (block.heads, *block.rows)]
    parts += [f'## {block.title}'] if block.title else []
    parts.append(tables.markdown(heads, rows))
  parts += [escaped(note).replace('\n', '  \n') for note in notes(result)]
  if result['warnings']:
    parts.append('\n'.join(f'- {warning}' for warning in result['warnings']))
  return '\n\n'.join(parts) + '\n'


def escaped(text: str) -> str:
  return text.strip().replace('|', '\\|').replace('*', '\\*')


def headline(result: dict) -> str:
  if 'runs' not in result:
    return f'Human verdicts of {result["verdicts"]["file"]}'
  runs = len(result['runs'])
  return f'{result["queries"]} judged queries of {result["qrels"]}, {runs} run{"s"[: runs > 1]}'


def blocks(result: dict) -> list[Block]:
  found = []
  if 'runs' in result:
    alone = [m for m in result['metrics'] if not m.startswith('gsb')]
    if len(result['runs']) == 1:
      found.append(single(result))
    else:
      found += [overview(result, alone)] if len(alone) > 1 else []
      for metric in result['metrics']:
        found.append((gsb if metric.startswith('gsb') else details)(result, metric))
  if 'verdicts' in result:
    found.append(verdicts(result))
  return found


def overview(result: dict, metrics: list[str]) -> Block:
  """Every run's every metric, with a star where it differs from the baseline."""
  rows = []
  for name, run in result['runs'].items():
    cells = []
    for metric in metrics:
      mark = star(run['differences'].get(metric), result)
      cells.append(digits(run['metrics'][metric]['value'], metric) + mark.ljust(1))
    rows.append([name, *cells])
  return Block('', ['run', *(title(m) + ' ' for m in metrics)], rows)


def single(result: dict) -> Block:
  """All metrics of the one run."""
  [(name, run)] = result['runs'].items()
  rows = [[title(m), digits(v['value'], m), span(v, m)] for m, v in run['metrics'].items()]
  return Block('', [name, 'value', level(result)], rows)


def details(result: dict, metric: str) -> Block:
  """One metric of every run with intervals, and how it stands to the baseline."""
  heads = ['run', 'value', level(result)]
  is_tested = any(metric in run['differences'] for run in result['runs'].values())
  if is_tested:
    heads += ['difference', level(result), 'p', 'p (Holm)']
  rows = []
  for name, run in result['runs'].items():
    value = run['metrics'][metric]
    row = [name, digits(value['value'], metric), span(value, metric)]
    if against := run['differences'].get(metric):
      row += [digits(against['value'], metric, sign=True), span(against, metric, sign=True)]
      row += [chance(against['p']), chance(against['p_holm']) + star(against, result).ljust(1)]
    rows.append(row + [''] * (len(heads) - len(row)))
  if is_tested:
    heads[-1] += ' '
    rows[0][3] = 'baseline'
  return Block(heading(metric, result), heads, rows)


def gsb(result: dict, metric: str) -> Block:
  rows = []
  for name, run in result['runs'].items():
    if against := run['differences'].get(metric):
      rows.append([name, *votes(against, 'value')])
      rows[-1] += [chance(against['p_holm']) + star(against, result).ljust(1)]
  against = f' against {result["baseline"]}'
  first, _, rest = heading(metric, result).partition(': ')
  heads = ['run', 'good : same : bad', 'delta', level(result), 'p', 'p (Holm) ']
  return Block(f'{first}{against}: {rest}', heads, rows)


def verdicts(result: dict) -> Block:
  """The verdicts of people."""
  found = result['verdicts']
  heads = ['queries', 'good : same : bad', 'delta', level(result), 'p']
  name = 'delta-GSB of human verdicts'
  return Block(name, heads, [[str(found['queries']), *votes(found, 'delta')]])


def votes(found: dict, key: str) -> list[str]:
  """good : same : bad, delta, interval, p."""
  counts = ' : '.join(str(found[k]) for k in ('good', 'same', 'bad'))
  delta = digits(found[key], '', sign=True)
  return [counts, delta, span(found, '', sign=True), chance(found['p'])]


def notes(result: dict) -> list[str]:
  """How to read it."""
  draws = f'{result["samples"]} samples, seed {result["seed"]}'
  over = drawn(result.get('queries', 0), result.get('clusters', result.get('queries', 0)))
  out = [f'Intervals: bootstrap over {over}, percentiles ({draws}).']
  if result.get('tests'):
    alpha = 1 - result['level']
    out.append(
      f'p: paired {result["test"]} over {over}, two-sided. Holm: corrected for the '
      f'{result["tests"]} tests here.\n* differs from {result["baseline"]} '
      f'(corrected p < {alpha:.3g}).'
    )
  if verdicts := result.get('verdicts'):
    over = drawn(verdicts['queries'], verdicts['clusters'])
    out.append(
      f"Verdicts: p by paired randomisation over {over}; a query's verdicts stay together."
    )
  return ['\n'.join(out)]


def drawn(queries: int, clusters: int) -> str:
  """What is drawn at random: 'queries', or '48 clusters of queries'."""
  return 'queries' if clusters == queries else f'{clusters} clusters of queries'


def star(against: dict | None, result: dict) -> str:
  return '*' if against and against['p_holm'] < 1 - result['level'] else ''


def level(result: dict) -> str:
  return f'{100 * result["level"]:g} % interval'


def digits(value: float, metric: str, sign: bool = False) -> str:
  """Three decimals for PNR, four for what lies between 0 and 1; '-' for what has no value."""
  if math.isnan(value):
    return '-'
  return f'{value:{"+" if sign else ""}.{3 if metric.startswith("pnr") else 4}f}'


def span(cell: dict, metric: str, sign: bool = False) -> str:
  return ' to '.join(digits(cell[end], metric, sign) for end in ('low', 'high'))


def chance(p: float) -> str:
  return f'{p:.4f}' if p >= 0.00005 else '<0.0001'


def aligned(block: Block) -> str:
  """The first column to the left, the others to the right, a rule under the heads."""
  lines = [block.heads, *block.rows]
  widths = [max(len(line[i]) for line in lines) for i in range(len(block.heads))]
  out = []
  for line in lines:
    cells = [line[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
    out.append('  '.join(cells).rstrip())
  out.insert(1, re.sub('.', '-', max(out, key=len)))
  return '\n'.join(out)
