"""The statistics of the report: means and differences with intervals, and the share of a lead."""

import math

import numpy as np
import pytest

from disranker_jax.evaluation import metrics
from disranker_jax.report import intervals, tables
from disranker_jax.stages.result_rows import TABLE


def rows_of(values: dict[str, list[float]]):
  """per_query rows in which nDCG@5 is given and the other metrics are 0."""
  empty = dict.fromkeys((*metrics.COLUMNS, 'concordant', 'discordant'), 0.0)
  return {
    model: {f'q{i}': empty | {'ndcg@5': x} for i, x in enumerate(of_model)}
    for model, of_model in values.items()
  }


class TestIntervals:
  def test_means_and_intervals_agree_with_a_plain_bootstrap(self):
    rng = np.random.default_rng(3)
    x = rng.random(60)
    found = intervals.analyse(TABLE, rows_of({'bm25': x.tolist()})).means['bm25', 'ndcg@5']
    draws = x[rng.integers(60, size=(20_000, 60))].mean(1)
    assert found['value'] == pytest.approx(x.mean())
    assert [found['low'], found['high']] == pytest.approx(
      np.quantile(draws, [0.025, 0.975]), abs=4e-3
    )

  def test_queries_of_one_cluster_are_drawn_together(self):
    """q0, q10, q20, ... are one cluster: their values are one value, asked for six times."""
    ten = np.random.default_rng(3).random(10)
    once = intervals.analyse(TABLE, rows_of({'bm25': ten, 'student': ten**2}))
    rows = rows_of({'bm25': np.tile(ten, 6), 'student': np.tile(ten**2, 6)})
    again = intervals.analyse(TABLE, rows, clusters_Q=[query[-1] for query in rows['bm25']])
    assert again.means['bm25', 'ndcg@5'] == pytest.approx(once.means['bm25', 'ndcg@5'])
    cell = ('bm25', 'student', 'ndcg@5')
    assert again.differences[cell] == pytest.approx(once.differences[cell])
    assert not intervals.analyse(
      TABLE, rows, clusters_Q=['q'] * 60
    ).means  # one cluster: nothing to draw from

  def test_the_share_kept_is_paired(self):
    """With a student halfway on every query the share is one half in every draw."""
    rng = np.random.default_rng(0)
    bm25, lead = rng.random(50) / 2, rng.random(50) / 2
    values = rows_of({'bm25': bm25, 'teacher': bm25 + lead, 'student': bm25 + lead / 2})
    found = intervals.analyse(TABLE, values)
    assert [found.kept[k] for k in ('value', 'low', 'high')] == pytest.approx([0.5] * 3)

  def test_without_a_sure_lead_there_is_no_share(self):
    rng = np.random.default_rng(0)
    found = intervals.analyse(
      TABLE, rows_of({m: rng.random(30) for m in ('bm25', 'teacher', 'student')})
    )
    assert found.kept is None and found.means

  def test_every_pair_is_tested_once_and_chance_never(self):
    models = ('random', 'bm25', 'student_sft', 'teacher', 'student')
    assert intervals.compared(TABLE, models) == [
      ('bm25', 'student_sft'), ('bm25', 'teacher'), ('bm25', 'student'),
      ('student_sft', 'teacher'), ('student_sft', 'student'),
    ]  # fmt: skip

  def test_a_row_may_name_the_rows_that_it_is_tested_against(self):
    models = ('random', 'bm25', 'student_sft', 'student', 'fused', 'fused_ranks')
    against = {'fused': ['bm25', 'student'], 'fused_ranks': [], 'gone': ['bm25']}
    plain = intervals.compared(TABLE, models[:4])
    assert intervals.compared(TABLE, models, against) == [
      *plain,
      ('bm25', 'fused'),
      ('student', 'fused'),
    ]
    values = rows_of({m: np.random.default_rng(2).random(9) for m in models})
    found = intervals.analyse(TABLE, values, samples=100, against=against).differences
    assert ('student', 'fused', 'ndcg@5') in found and ('student_sft', 'fused', 'pnr') not in found

  def test_corrected_p_are_larger_and_equal_models_do_not_differ(self):
    rng = np.random.default_rng(1)
    bm25 = rng.random(40)
    rows = rows_of({'bm25': bm25, 'teacher': bm25 + rng.random(40), 'student': bm25})
    found = intervals.analyse(TABLE, rows, samples=2000).differences
    assert found['bm25', 'student', 'ndcg@5']['p'] == 1
    sure = found['bm25', 'teacher', 'ndcg@5']
    assert sure['p'] < sure['p_holm'] < 0.01

  def test_pooled_pnr_of_nothing_but_agreement_is_infinite(self):
    rows = rows_of({'bm25': [0.1, 0.2, 0.3]})
    for row in rows['bm25'].values():
      row['concordant'] = 5.0
    found = intervals.analyse(TABLE, rows).means['bm25', 'pnr']
    assert found['value'] == found['low'] == math.inf
    assert tables.span(found, 2) == 'inf to inf'
