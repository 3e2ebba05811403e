"""The result table of a run, from {row: {metric: value}}."""

from collections.abc import Mapping

from disranker_jax.evaluation import metrics
from disranker_jax.report import tables
from disranker_jax.report.intervals import MAIN
from disranker_jax.stages.result_rows import title

Means = Mapping[str, Mapping[str, Mapping[str, float]]]  # {row: {metric: {value, low, high}}}


def heads(means: Means) -> list[str]:
  """The columns; without intervals there is no column for them."""
  columns = ['model']
  for metric in metrics.COLUMNS:
    columns.append(metrics.title(metric))
    if metric == MAIN and means:
      columns.append('95 % interval')
  return [*columns, 'parameters', 'ms per pair']


def rows(results: Mapping[str, Mapping], means: Means) -> list[list[str]]:
  """The cells, one line per row."""
  table = []
  for name, values in results.items():
    cells = [title(name, results)]
    for metric in metrics.COLUMNS:
      cells.append(tables.number(values[metric], 2 if metric == 'pnr' else 4))
      if metric == MAIN and means:
        interval = means.get(name, {}).get(metric)
        cells.append(tables.span(interval, 3) if interval else '')
    cells.append(tables.short(values['parameters']) if 'parameters' in values else '')
    cells.append(tables.number(values['ms_per_pair'], 2) if 'ms_per_pair' in values else '')
    table.append(cells)
  return table


# What LLM rankers have: the fact, its column, its decimals.
COSTS = (
  ('prompts_per_query', 'prompts', 1), ('tokens_per_query', 'tokens', 0),
  ('ms_per_query', 'ms per query', 0), ('conflict_rate', 'conflicts', 3), ('tie_rate', 'ties', 3),
  ('fault_rate', 'malformed', 3),
)  # fmt: skip


def with_costs(results: Mapping[str, Mapping], means: Means) -> tuple[list, list]:
  """(columns, cells); with columns of costs per query if a row ranks by prompts."""
  head, table = heads(means), rows(results, means)
  for key, column, digits in COSTS:
    if any(key in values for values in results.values()):
      head.append(column)
      for cells, values in zip(table, results.values(), strict=True):
        cells.append(tables.number(values[key], digits) if key in values else '')
  return head, table


def text(results: Mapping[str, Mapping], means: Means) -> str:
  """The table for a terminal."""
  return tables.aligned(*with_costs(results, means))


def markdown(results: Mapping[str, Mapping], means: Means) -> str:
  return tables.markdown(*with_costs(results, means))


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
