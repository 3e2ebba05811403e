"""The result table of a run, from {model: {metric: value}}."""

from collections.abc import Mapping

from disranker_jax.evaluation import metrics
from disranker_jax.report import tables
from disranker_jax.stages.result_rows import title

HEADS = ('model', *map(metrics.title, metrics.COLUMNS), 'parameters', 'ms per pair')


def rows(results: Mapping[str, Mapping]) -> list[list[str]]:
  """The cells, one row per model."""
  table = []
  for name, values in results.items():
    cells = [title(name)]
    cells += [tables.number(values[m], 2 if m == 'pnr' else 4) for m in metrics.COLUMNS]
    cells.append(tables.short(values['parameters']) if 'parameters' in values else '')
    cells.append(tables.number(values['ms_per_pair'], 2) if 'ms_per_pair' in values else '')
    table.append(cells)
  return table


def text(results: Mapping[str, Mapping]) -> str:
  """The table for a terminal."""
  return tables.aligned(HEADS, rows(results))


def markdown(results: Mapping[str, Mapping]) -> str:
  return tables.markdown(HEADS, rows(results))
