"""The report's statistics: means and differences with intervals, and the share of a lead kept.

Rows are those of per_query.csv: {model: {query_id: {metric: value}}}.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from disranker_jax.evaluation import significance
from disranker_jax.evaluation.table import Table, sums
from disranker_jax.stages import result_table

Rows = Mapping[str, Mapping[str, Mapping[str, float]]]

FEWEST = 2  # queries, or clusters of them, for an interval


class Intervals(NamedTuple):
  """Each value is {value, low, high}; a difference also has p and p_holm."""

  means: dict[tuple[str, str], dict[str, float]]  # by (model, metric)
  differences: dict[tuple[str, str, str], dict[str, float]]  # by (baseline, model, metric)
  kept: dict[str, float] | None  # the subject's share of the teacher's lead over the first stage


def analyse(
  of: result_table.Table,
  rows: Rows,
  samples: int = significance.SAMPLES,
  clusters_Q: Sequence[str] | None = None,
  against: Mapping[str, Sequence[str]] | None = None,
) -> Intervals:
  """All statistics of a result table; empty if there are fewer than two queries or clusters.

  clusters_Q has the cluster of each query of the first row; queries of one cluster are drawn
  together (None: every query by itself). A query that a model lacks counts 0. A row that `against`
  has is tested against the rows that it names, not against all baselines.
  """
  queries = list(next(iter(rows.values()), ()))
  of_Q = queries if clusters_Q is None else clusters_Q
  if len(set(of_Q)) < FEWEST:
    return Intervals({}, {}, None)
  cells = {(m, metric): sums(rows[m], metric, queries) for m in rows for metric in of.columns}
  table = Table(cells, of_Q, samples)
  pairs = {
    (baseline, model, metric): ((model, metric), (baseline, metric))
    for baseline, model in compared(of, list(rows), against or {})
    for metric in of.tested
  }
  return Intervals({c: table.mean(c) for c in cells}, table.differences(pairs), kept(of, table))


def baselines(of: result_table.Table, models: Sequence[str]) -> list[str]:
  """The rows that others are compared with: the baselines, and rankings from elsewhere."""
  return [name for name in models if name in of.baselines or name not in of.rows]


def compared(
  of: result_table.Table,
  models: Sequence[str],
  against: Mapping[str, Sequence[str]] | None = None,
) -> list[tuple[str, str]]:
  """(baseline, model) of every tested pair, each once; `against` as in `analyse`."""
  pairs: list[tuple[str, str]] = []
  others = against or {}
  for baseline in baselines(of, models):
    for model in models:
      is_new = model != baseline and (model, baseline) not in pairs
      if is_new and not of.is_floor(model) and model not in others:
        pairs.append((baseline, model))
  for model, named in others.items():
    pairs += [(other, model) for other in named if model in models and other in models]
  return pairs


def kept(of: result_table.Table, table: Table) -> dict[str, float] | None:
  """(subject - first stage) / (teacher - first stage), in the main metric.

  None without a teacher, and unless the interval of the teacher's lead is above 0: without a lead
  there is no share.
  """
  cells = [(row, of.main) for row in (of.first_stage, of.teacher, of.subject)]
  if not all(cell in table for cell in cells):
    return None
  (low, low_S), (top, top_S), (ours, ours_S) = [(table.value(c), table.draws(c)) for c in cells]
  lead_S = top_S - low_S
  if not table.spread(top - low, lead_S)['low'] > 0:
    return None
  # The few draws without a lead have no share.
  share_S = np.divide(ours_S - low_S, lead_S, out=np.full_like(lead_S, np.nan), where=lead_S > 0)
  return table.spread((ours - low) / (top - low), share_S)
