"""The result table of a run, from {row: {metric: value}}."""

import math
from collections.abc import Mapping

from disranker_jax.evaluation import metrics
from disranker_jax.report import tables
from disranker_jax.stages.result_table import Table

Means = Mapping[str, Mapping[str, Mapping[str, float]]]  # {row: {metric: {value, low, high}}}
DIGITS = 3  # of metrics between 0 and 1
# Facts of rows that are columns: the column and how it is written. Those that the table does not
# name are columns where a row has them, as rows that rank by prompts do.
COSTS = {
  'parameters': ('parameters', tables.short),
  'ms_per_pair': ('ms per pair', tables.significant),
  'prompts_per_query': ('prompts', lambda count: tables.number(count, 1)),
  'tokens_per_query': ('tokens', lambda count: tables.number(count, 0)),
  'ms_per_query': ('ms per query', tables.significant),
  'conflict_rate': ('conflicts', lambda share: tables.number(share, DIGITS)),
  'tied_rate': ('ties', lambda share: tables.number(share, DIGITS)),
  'fault_rate': ('malformed', lambda share: tables.number(share, DIGITS)),
}


def heads(table: Table, means: Means) -> list[str]:
  """The columns; without intervals there is no column for them."""
  columns = ['model']
  for metric in table.columns:
    columns.append(metrics.title(metric))
    if metric == table.main and means:
      columns.append('95 % interval')
  return [*columns, *(COSTS[name][0] for name in table.costs)]


def rows(table: Table, results: Mapping[str, Mapping], means: Means) -> list[list[str]]:
  """The cells, one line per row."""
  lines = []
  for name, values in results.items():
    cells = [table.row_title(name, results)]
    for metric in table.columns:
      cells.append(tables.number(values[metric], tables.decimals(metric, DIGITS)))
      if metric == table.main and means:
        interval = means.get(name, {}).get(metric)
        cells.append(tables.span(interval, DIGITS) if interval else '')
    lines.append([*cells, *(cost(name, values) for name in table.costs)])
  return lines


def cost(name: str, values: Mapping) -> str:
  """A fact of a row as text; '' if it has none."""
  return COSTS[name][1](values[name]) if name in values else ''


def with_costs(table: Table, results: Mapping[str, Mapping], means: Means) -> tuple[list, list]:
  """(columns, cells); with more columns of costs if a row has them."""
  head, lines = heads(table, means), rows(table, results, means)
  more = [name for name in COSTS if name not in table.costs]
  for name in more:
    column, _ = COSTS[name]
    if any(name in values for values in results.values()):
      head.append(column)
      for cells, values in zip(lines, results.values(), strict=True):
        cells.append(cost(name, values))
  return head, lines


def text(
  table: Table, results: Mapping[str, Mapping], means: Means, width: float = math.inf
) -> str:
  """The table for a terminal; columns of costs that do not fit into its width are left out."""
  head, lines = with_costs(table, results, means)
  titles = [title for title, _ in COSTS.values()]
  costs = [i for i, title in reversed([*enumerate(head)]) if title in titles]
  head, lines, gone = tables.fitting(head, lines, width, costs)
  said = f'not shown in {width:g} columns: {tables.joined(gone)}'
  note = f'\n{tables.wrapped(said, width)}' if gone else ''
  return tables.aligned(head, lines, width=width) + note


def markdown(table: Table, results: Mapping[str, Mapping], means: Means) -> str:
  return tables.markdown(*with_costs(table, results, means))


def notes(table: Table, relevant: int, device: str = '') -> list[str]:
  """What a reader must know about the columns, in sentences.

  `relevant` is the lowest grade of a relevant document; `device` that of the times, to be named.
  """
  kinds = {name.partition('@')[0] for name in table.columns}
  graded = [m.title for kind, m in metrics.METRICS.items() if m.has_threshold and kind in kinds]
  on = f' on {device}' if device else ''
  said = {
    'nDCG has exponential gain.': 'ndcg' in kinds,
    f'PNR: {metrics.METRICS["pnr"].note}.': 'pnr' in kinds,
    f'For {tables.joined(graded)}, grade {relevant} or higher is relevant.': graded,
    f'ms per pair is model time with full batches{on}.': 'ms_per_pair' in table.costs,
  }
  return [sentence for sentence, is_said in said.items() if is_said]


def differences(found: list[Mapping]) -> str:
  """The tested differences as a Markdown table, from summary.json's list of them."""
  columns = ('model', 'against', 'metric', 'difference', '95 % interval', 'p', 'p (Holm)')
  lines = []
  for cell in found:
    digits = tables.decimals(cell['metric'], DIGITS)
    line = [cell['model'], cell['against'], metrics.title(cell['metric'])]
    line += [tables.number(cell['value'], digits, '+'), tables.span(cell, digits, '+')]
    lines.append([*line, tables.chance(cell['p']), tables.chance(cell['p_holm'])])
  return tables.markdown(columns, lines)
