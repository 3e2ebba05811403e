"""The table of `disranker average`, for a terminal and as Markdown."""

from disranker_jax import escaping
from disranker_jax.evaluation import metrics
from disranker_jax.progress import amount
from disranker_jax.report import tables
from disranker_jax.report.tables import chance, number, span

DIGITS = 3


def cells(result: dict) -> tuple[list[str], list[list[str]]]:
  """Heads and rows: the mean, its difference, and then the metric of each run."""
  heads = ['model', 'mean', '95 % interval', 'difference', '95 % interval', 'p', 'p (Holm)']
  heads += [run['name'] for run in result['runs']]
  rows = []
  for row in result['rows']:
    line = [row['title'], number(row['value'], DIGITS), span(row, DIGITS)]
    if away := row.get('difference'):
      line += [number(away['value'], DIGITS, '+'), span(away, DIGITS, '+')]
      line += [chance(away['p']), chance(away['p_holm'])]
    else:
      line += ['reference' if row['name'] == result['against'] else '', '', '', '']
    rows.append([*line, *(number(value, DIGITS) for value in row['runs'].values())])
  return heads, rows


def heading(result: dict) -> str:
  return f'{metrics.title(result["metric"])}, mean over {amount(len(result["runs"]), "run")}'


def sentences(result: dict) -> list[str]:
  """What the table is of, and in which runs a row is worse than the one it is compared with."""
  reference = next(row for row in result['rows'] if row['name'] == result['against'])
  counts = ', '.join(
    f'{run["name"]} {tables.drawn(run["queries"], run["clusters"])}'
    if run['clusters'] < run['queries']
    else f'{run["name"]} {run["queries"]:,}'
    for run in result['runs']
  )
  queries = sum(run['queries'] for run in result['runs'])
  said = [
    f'{amount(queries, "test query", "test queries")} ({counts}); each run counts alike.',
    'Intervals: bootstrap within each run. p: paired randomisation within each run against '
    f'{reference["title"]!r}; Holm: corrected over the rows.',
  ]
  for row in result['rows']:
    if 'difference' not in row:
      continue
    away = {name: value - reference['runs'][name] for name, value in row['runs'].items()}
    worse = [f'{name} {number(d, DIGITS, "+")}' for name, d in away.items() if d < 0]
    listed = f': {", ".join(worse)}' if worse else ''
    said.append(
      f'{row["title"]}: better than {reference["title"]} in {sum(d > 0 for d in away.values())} of '
      f'{amount(len(away), "run")}, worse in {len(worse)}{listed}'
    )
  return said


def text(result: dict) -> str:
  """The result as it is printed."""
  table = tables.aligned(*cells(result), width=tables.columns())
  said = '\n'.join(map(tables.wrapped, sentences(result)))
  parts = [tables.wrapped(heading(result)), table, said]
  return escaping.terminal('\n\n'.join(parts))


def markdown(result: dict, command: str) -> str:
  """The same as Markdown, with the warnings and the command."""
  said = [*sentences(result), *(f'Warning: {warning}' for warning in result['warnings'])]
  return '\n'.join([
    f'# {escaping.markdown(heading(result))}', '', tables.markdown(*cells(result)), '',
    *(f'- {escaping.markdown(sentence)}' for sentence in said), '',
    f'Made by {escaping.code(command)}.', '',
  ])  # fmt: skip
