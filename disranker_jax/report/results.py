"""The result table of a run, from {row: {metric: value}}."""

from collections.abc import Mapping

from disranker_jax.evaluation import metrics
from disranker_jax.report import tables
from disranker_jax.stages.result_table import Table

Means = Mapping[str, Mapping[str, Mapping[str, float]]]  # {row: {metric: {value, low, high}}}
# Facts of rows that are columns: the column and its decimals. Those that the table does not name
# are columns where a row has them, as rows that rank by prompts do.
COSTS = {
  'parameters': ('parameters', None), 'ms_per_pair': ('ms per pair', 2),
  'prompts_per_query': ('prompts', 1), 'tokens_per_query': ('tokens', 0),
  'ms_per_query': ('ms per query', 0), 'conflict_rate': ('conflicts', 3), 'tied_rate': ('ties', 3),
  'fault_rate': ('malformed', 3),
}  # fmt: skip


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
      cells.append(tables.number(values[metric], 2 if metric == 'pnr' else 4))
      if metric == table.main and means:
        interval = means.get(name, {}).get(metric)
        cells.append(tables.span(interval, 3) if interval else '')
    lines.append([*cells, *(cost(name, values) for name in table.costs)])
  return lines


def cost(name: str, values: Mapping) -> str:
  """A fact of a row as text; '' if it has none."""
  digits = COSTS[name][1]
  if name not in values:
    return ''
  return tables.short(values[name]) if digits is None else tables.number(values[name], digits)


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


def text(table: Table, results: Mapping[str, Mapping], means: Means) -> str:
  """The table for a terminal."""
  return tables.aligned(*with_costs(table, results, means))


def markdown(table: Table, results: Mapping[str, Mapping], means: Means) -> str:
  return tables.markdown(*with_costs(table, results, means))


def differences(found: list[Mapping]) -> str:
  """The tested differences as a Markdown table, from summary.json's list of them."""
  columns = ('model', 'against', 'metric', 'difference', '95 % interval', 'p', 'p (Holm)')
  lines = []
  for cell in found:
    digits = tables.decimals(cell['metric'], 3)
    line = [cell['model'], cell['against'], metrics.title(cell['metric'])]
    line += [tables.number(cell['value'], digits, '+'), tables.span(cell, digits, '+')]
    lines.append([*line, tables.chance(cell['p']), tables.chance(cell['p_holm'])])
  return tables.markdown(columns, lines)
