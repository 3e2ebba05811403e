"""What the report may claim: means and differences with intervals, and the share of a lead kept.

Rows are what evaluate writes to per_query.csv: {model: {query_id: {metric: value}}}.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from disranker_jax.commands.compare import minus, scale
from disranker_jax.data.holdout import clusters
from disranker_jax.evaluation import metrics, significance

Rows = Mapping[str, Mapping[str, Mapping[str, float]]]

MAIN = 'ndcg@5'  # what the report's charts and sentences are about
TESTED = (MAIN, 'pnr')
BASELINES = ('bm25', 'student_sft')
FLOOR = 'random'  # nobody asks whether a model is better than chance
FEWEST = 2  # queries of which something can be said


class Intervals(NamedTuple):
  """Each value is {value, low, high}; a difference also has p and p_holm."""

  means: dict[tuple[str, str], dict[str, float]]  # by (model, metric)
  differences: dict[tuple[str, str, str], dict[str, float]]  # by (baseline, model, metric)
  lead: dict[str, float] | None  # the teacher's over BM25, in the main metric
  kept: dict[str, float] | None  # the share of it that the student has


def analyse(rows: Rows, samples: int = significance.SAMPLES, by: str = '') -> Intervals:
  """Everything from one bootstrap over queries, so that all of it is paired.

  Queries whose ids `by` matches alike are drawn together. Nothing, if there are fewer than two to
  draw from. A query that a model lacks counts 0.
  """
  queries = list(next(iter(rows.values()), ()))
  of_Q = clusters(queries, by)
  if len(set(of_Q)) < FEWEST:
    return Intervals({}, {}, None, None)
  cells = [(model, metric) for model in rows for metric in metrics.COLUMNS]
  sums_QK2 = np.stack([sums(rows[model], queries, metric) for model, metric in cells], 1)
  sums_CK2 = significance.clustered(sums_QK2, of_Q)
  draws_SK = significance.bootstrap(sums_CK2, samples)
  values_K = significance.ratio(sums_CK2.sum(0))
  draws = {cell: scale(cell[1], draws_SK[:, k]) for k, cell in enumerate(cells)}
  values = {cell: float(scale(cell[1], values_K[k])) for k, cell in enumerate(cells)}
  means = {cell: spread(values[cell], draws[cell]) for cell in cells}
  at = {cell: sums_CK2[:, k] for k, cell in enumerate(cells)}
  return Intervals(means, differences(rows, at, values, draws, samples), *kept(values, draws))


def sums(rows: Mapping[str, Mapping[str, float]], queries: list[str], metric: str) -> np.ndarray:
  """Sums_Q2 of a metric; PNR's is the share of concordant pairs, which is finite."""
  empty: Mapping[str, float] = {}
  of = [rows.get(query, empty) for query in queries]
  if metric != 'pnr':
    return significance.mean_of([row.get(metric, 0.0) for row in of])
  agreed = [row.get('concordant', 0.0) for row in of]
  return np.array([(a, a + row.get('discordant', 0.0)) for a, row in zip(agreed, of, strict=True)])


def spread(value: float, draws_S) -> dict[str, float]:
  low, high = significance.interval(draws_S)
  return {'value': float(value), 'low': low, 'high': high}


def compared(models) -> list[tuple[str, str]]:
  """(baseline, model) of the pairs that are tested, each once."""
  found: list[tuple[str, str]] = []
  for baseline in BASELINES:
    for model in models:
      new = model != baseline and (model, baseline) not in found
      if new and baseline in models and model != FLOOR:
        found.append((baseline, model))
  return found


def differences(rows: Rows, at, values, draws, samples: int) -> dict:
  """Paired differences with p-values by randomisation, corrected over all of them (Holm)."""
  cells = [(*pair, metric) for pair in compared(list(rows)) for metric in TESTED]
  if not cells:
    return {}
  ours_CK2 = np.stack([at[model, metric] for _, model, metric in cells], 1)
  theirs_CK2 = np.stack([at[baseline, metric] for baseline, _, metric in cells], 1)
  p_K = significance.randomisation_p(ours_CK2, theirs_CK2, samples)
  found = {}
  for cell, p, p_holm in zip(cells, p_K, significance.holm(p_K), strict=True):
    baseline, model, metric = cell
    apart = float(minus(values[model, metric], values[baseline, metric]))
    draws_S = minus(draws[model, metric], draws[baseline, metric])
    found[cell] = spread(apart, draws_S) | {'p': float(p), 'p_holm': float(p_holm)}
  return found


def kept(values, draws) -> tuple[dict[str, float] | None, dict[str, Any] | None]:
  """The teacher's lead over BM25, and (student - BM25) / (teacher - BM25).

  The share is None unless the interval of the lead is above 0: one cannot keep a part of nothing.
  """
  low, top, ours = ((model, MAIN) for model in ('bm25', 'teacher', 'student'))
  if low not in values or top not in values:
    return None, None
  lead_S = draws[top] - draws[low]
  lead = spread(values[top] - values[low], lead_S)
  if ours not in values or not lead['low'] > 0:
    return lead, None
  gained_S = draws[ours] - draws[low]
  # The few draws without a lead have no share; they are on neither side of it.
  shares_S = np.divide(gained_S, lead_S, out=np.full_like(lead_S, np.nan), where=lead_S > 0)
  return lead, spread((values[ours] - values[low]) / lead['value'], shares_S)
