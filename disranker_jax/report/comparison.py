"""The tables of `disranker compare`, for a terminal and for Markdown."""

import math
from typing import NamedTuple

from disranker_jax import escaping
from disranker_jax.evaluation.documents import RULES
from disranker_jax.evaluation.metrics import METRICS, title
from disranker_jax.progress import amount
from disranker_jax.report import tables
from disranker_jax.report.tables import chance, decimals, drawn

DIGITS = 3  # of metrics between 0 and 1
MAIN = 'ndcg@5'  # the metric of the sentences on power, if it is among the metrics; else the first


class Block(NamedTuple):
  title: str
  heads: list[str]
  rows: list[list[str]]


def heading(metric: str, result: dict) -> str:
  kind, _, depth = metric.partition('@')
  note = METRICS[kind].note.format(depth=depth, same=result['same'], teacher=result.get('teacher'))
  return f'{title(metric)}: {note}' if note else title(metric)


def text(result: dict) -> str:
  """The result as it is printed: blocks of aligned columns."""
  parts, width = [tables.wrapped(headline(result))], tables.columns()
  for block in blocks(result):
    aligned = tables.aligned(block.heads, block.rows, width=width)
    parts.append('\n'.join([*([tables.wrapped(block.title)] if block.title else []), aligned]))
  return '\n\n'.join([*parts, *map(tables.wrapped, notes(result))])


def markdown(result: dict) -> str:
  """The same as Markdown, with the warnings."""
  parts = ['# Comparison of rankings', escaping.markdown(headline(result))]
  for block in blocks(result):
    parts += [f'## {escaping.markdown(block.title)}'] if block.title else []
    parts.append(tables.markdown(block.heads, block.rows))
  parts += ['  \n'.join(map(escaping.markdown, note.split('\n'))) for note in notes(result)]
  if result['warnings']:
    parts.append('\n'.join(f'- {escaping.markdown(w)}' for w in result['warnings']))
  return '\n\n'.join(parts) + '\n'


def headline(result: dict) -> str:
  if 'runs' not in result:
    return f'Human verdicts of {result["verdicts"]["file"]}'
  runs = len(result['runs'])
  return (
    f'{amount(result["queries"], "judged query", "judged queries")} of {result["qrels"]}, {runs} '
    f'run{"s"[: runs > 1]}'
  )


def blocks(result: dict) -> list[Block]:
  every = []
  if 'runs' in result:
    every += [documents(result)] if result['documents']['differ'] else []
    alone = [m for m in result['metrics'] if not m.startswith('gsb')]
    if len(result['runs']) == 1:
      every.append(single(result))
    else:
      every += [overview(result, alone)] if len(alone) > 1 else []
      for metric in result['metrics']:
        every.append((gsb if metric.startswith('gsb') else details)(result, metric))
  if 'verdicts' in result:
    every.append(verdicts(result))
  return every


def documents(result: dict) -> Block:
  """What each run holds, if the runs differ."""
  heads = ['run', 'queries', 'documents', 'missing', 'judged', 'missing judged']
  rows = []
  for name, run in result['runs'].items():
    held = run['documents']
    keys = ('queries', 'documents', 'lacks', 'judged', 'lacks_judged')
    rows.append([name, *(f'{held[key]:,}' for key in keys)])
  counted = result['documents']
  rows.append(['any run', '', f'{counted["held"]:,}', '', f'{counted["held_judged"]:,}', ''])
  rule = counted['rule']
  return Block(f'The runs hold different documents ({rule}: {RULES[rule]})', heads, rows)


def overview(result: dict, metrics: list[str]) -> Block:
  """Every metric of every run, with a star where it differs from the baseline."""
  rows = []
  for name, run in result['runs'].items():
    cells = []
    for metric in metrics:
      mark = star(run['differences'].get(metric), result)
      cells.append(number(run['metrics'][metric]['value'], metric) + mark.ljust(1))
    rows.append([name, *cells])
  return Block('', ['run', *(title(m) + ' ' for m in metrics)], rows)


def single(result: dict) -> Block:
  """All metrics of the only run."""
  [(name, run)] = result['runs'].items()
  rows = [[title(m), number(v['value'], m), span(v, m)] for m, v in run['metrics'].items()]
  return Block('', [name, 'value', level(result)], rows)


def details(result: dict, metric: str) -> Block:
  """One metric of every run with intervals and the difference to the baseline."""
  heads = ['run', 'value', level(result)]
  is_tested = any(metric in run['differences'] for run in result['runs'].values())
  if is_tested:
    heads += ['difference', level(result), 'p', 'p (Holm)']
  rows = []
  for name, run in result['runs'].items():
    value = run['metrics'][metric]
    row = [name, number(value['value'], metric), span(value, metric)]
    if against := run['differences'].get(metric):
      row += [number(against['value'], metric, '+'), span(against, metric, '+')]
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
  counts = result['verdicts']
  heads = ['queries', 'good : same : bad', 'delta', level(result), 'p']
  name = 'delta-GSB of human verdicts'
  return Block(name, heads, [[str(counts['queries']), *votes(counts, 'delta')]])


def votes(counts: dict, key: str) -> list[str]:
  """good : same : bad, delta, interval, p."""
  numbers = ' : '.join(str(counts[k]) for k in ('good', 'same', 'bad'))
  return [numbers, number(counts[key], '', '+'), span(counts, '', '+'), chance(counts['p'])]


def notes(result: dict) -> list[str]:
  """How the numbers were computed."""
  draws = f'{result["samples"]} samples, seed {result["seed"]}'
  over = drawn(result.get('queries', 0), result.get('clusters', result.get('queries', 0)))
  out = basis(result) if 'runs' in result else []
  out.append(f'Intervals: bootstrap over {over}, percentiles ({draws}).')
  if result.get('tests'):
    out.append(
      f'p: paired {result["test"]} over {over}, two-sided. Holm: corrected for the '
      f'{result["tests"]} tests here.\n* differs from {result["baseline"]} '
      f'(corrected p < {alpha(result)}).'
    )
    out += power(result)
  if verdicts := result.get('verdicts'):
    over = drawn(verdicts['queries'], verdicts['clusters'])
    out.append(
      f"Verdicts: p by paired randomisation over {over}; a query's verdicts stay together."
    )
  return ['\n'.join(out)]


def basis(result: dict) -> list[str]:
  """What the numbers are of."""
  counted, runs = result['documents'], result['runs']
  out = [
    f'Means: of {amount(result["queries"], "query", "queries")} and '
    f'{amount(counted["judged"], "judged document")}.'
  ]
  if others := counted['judged'] - counted['held_judged'] if counted['rule'] != 'common' else 0:
    out[0] += (
      f' No run holds {others:,} of these, which count in the best possible ranking (nDCG, MAP, '
      'recall) and in no pair (PNR).'
    )
  if any(metric.startswith('pnr') for metric in result['metrics']):
    pairs = sum(next(iter(runs.values()))['pairs'].values())
    tied = ', '.join(
      f'{name} {100 * run["pairs"]["tied"] / max(pairs, 1):.1f} %' for name, run in runs.items()
    )
    out.append(f'PNR: of {amount(round(pairs), "pair")}; tied, which do not count: {tied}.')
  for metric, cell in next(iter(runs.values()))['metrics'].items():
    if metric != 'pnr' and cell['counted'] < result['queries']:
      out.append(
        f'{title(metric)}: of the {amount(round(cell["counted"]), "query", "queries")} where it '
        'is defined.'
      )
  return out


def power(result: dict) -> list[str]:
  """A sentence per run: which difference these queries show, how many the measured one needs."""
  out = []
  for name, run in result['runs'].items():
    differences = run['differences']
    if not differences:
      continue
    metric = MAIN if MAIN in differences else next(iter(differences))
    cell = differences[metric]
    said = f'unknown, as no query differs from {result["baseline"]}'
    if not math.isnan(cell['needed']):
      unit = 'queries' if result['clusters'] == result['queries'] else 'clusters'
      digits = decimals(metric, DIGITS)
      said = tables.power(cell, result['clusters'], unit, digits, level=result['level'])
    out.append(f'Power: {name}, {title(metric)}: {said}.')
  return out


def alpha(result: dict) -> str:
  return f'{1 - result["level"]:.3g}'


def star(against: dict | None, result: dict) -> str:
  return '*' if against and against['p_holm'] < 1 - result['level'] else ''


def level(result: dict) -> str:
  return f'{100 * result["level"]:g} % interval'


def number(value: float, metric: str, sign: str = '') -> str:
  return tables.number(value, decimals(metric, DIGITS), sign)


def span(cell: dict, metric: str, sign: str = '') -> str:
  return tables.span(cell, decimals(metric, DIGITS), sign)
