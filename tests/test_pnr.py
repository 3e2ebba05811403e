"""PNR: pairs counted by hand and by plain loops, and documents that the run lacks."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disranker_jax.evaluation import metrics


def test_pairs_are_counted_as_by_hand():
  grades = {'a': 3, 'b': 1, 'c': 1, 'd': 0}
  scores = {'a': 2.0, 'b': 3.0, 'c': 1.0, 'd': 1.0, 'unjudged': 9.0}
  # ab discordant, ac and ad concordant; bc has equal grades; bd concordant; cd is a tie.
  assert metrics.pairs(scores, grades) == (3, 1, 1)
  assert metrics.per_query({'q': scores}, {'q': grades})['q']['pnr'] == 3


def test_pnr_is_pooled_over_queries_and_its_mean_by_query_stands_beside_it():
  ladder = {'a': 2, 'b': 1, 'c': 0}
  run = {
    'three': {'a': 3.0, 'b': 2.0, 'c': 1.0},  # 3 : 0
    'two': {'a': 3.0, 'b': 1.0, 'c': 2.0},  # 2 : 1
    'one': {'a': 1.0, 'b': 3.0, 'c': 2.0},  # 1 : 2
  }
  rows = metrics.per_query(run, dict.fromkeys(run, ladder))
  assert [rows[q]['pnr'] for q in run] == [math.inf, 2, 0.5]
  total = metrics.summary(rows)
  assert total['pnr'] == (3 + 2 + 1) / (0 + 1 + 2)
  # The mean share of concordant pairs is (1 + 2/3 + 1/3) / 3 = 2/3, so 2 : 1.
  assert total['pnr_per_query'] == pytest.approx(2)


def test_pnr_by_query_is_of_the_same_queries_for_every_run():
  """A perfect query counts, one whose pairs are all tied is half and half, one without is out."""
  qrels = {'perfect': {'a': 1, 'b': 0}, 'tied': {'a': 1, 'b': 0}, 'alike': {'a': 1, 'b': 1}}
  run = {q: {'a': 1.0 if q == 'tied' else 2.0, 'b': 1.0} for q in qrels}
  shares = [metrics.share(row) for row in metrics.per_query(run, qrels).values()]
  assert shares[:2] == [1, 0.5] and math.isnan(shares[2])
  # (1 + 1/2) / 2 = 3/4, so 3 : 1.
  assert metrics.summary(metrics.per_query(run, qrels))['pnr_per_query'] == 3


# PNR when the run lacks documents


def test_pairs_of_a_run_that_lacks_documents_are_counted_as_by_hand():
  grades = {'a': 3, 'b': 1, 'c': 1, 'd': 0, 'nobody has it': 2}
  scores = {'b': 2.0, 'a': 1.0, 'unjudged': 9.0}
  pool = ['a', 'b', 'c', 'd', 'unjudged', 'other']
  # ab discordant, ac ad bd concordant, bc of equal grades; c and d are missing: half and half.
  assert metrics.pairs(scores, grades, pool) == (3.5, 1.5, 0)
  row = metrics.per_query({'q': scores}, {'q': grades}, pool={'q': pool})['q']
  assert row['pnr'] == pytest.approx(3.5 / 1.5)
  assert (row['missing'], row['documents'], row['relevant']) == (2, 3, 4)
  # A missing document of a higher grade than those that are held is discordant.
  assert metrics.pairs({'c': 1.0, 'd': 0.0}, grades, ['a', 'c', 'd']) == (1, 2, 0)
  # A run without the query: its order is that of chance.
  assert metrics.pairs({}, grades, ['a', 'b', 'd']) == (1.5, 1.5, 0)


def test_documents_outside_the_pool_form_no_pairs():
  grades = {'a': 2, 'b': 1, 'c': 0}
  assert metrics.pairs({'a': 1.0, 'b': 2.0, 'c': 3.0}, grades, ['a', 'b']) == (0, 1, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=7))
def test_missing_documents_count_as_in_random_order_behind_the_others(docs):
  grades = {f'd{i}': grade for i, (_, grade, _) in enumerate(docs)}
  held = {f'd{i}': float(score) for i, (score, _, is_held) in enumerate(docs) if is_held}
  missing = [doc for doc in grades if doc not in held]
  orders = [
    metrics.pairs(held | {doc: -float(r) for r, doc in enumerate(order, 1)}, grades)
    for order in itertools.permutations(missing)
  ]
  assert metrics.pairs(held, grades, grades) == pytest.approx(tuple(np.mean(orders, 0)))


def test_a_good_ranking_gains_nothing_by_being_cut():
  """If pairs of missing documents were ties, which do not count, the first document would do."""
  rng = np.random.default_rng(0)
  qrels = {f'q{q}': {f'd{d}': int(g) for d, g in enumerate(rng.choice(4, 30))} for q in range(40)}
  run = {q: {d: g + 2 * rng.normal() for d, g in docs.items()} for q, docs in qrels.items()}
  values = []
  for depth in (1, 3, 10, 20, 30):
    cut = {q: {d: docs[d] for d in metrics.ranked(docs)[:depth]} for q, docs in run.items()}
    values.append(metrics.summary(metrics.per_query(cut, qrels, pool=qrels))['pnr'])
  assert values == sorted(values) and values[0] < 1.3 and values[-1] > 2


def test_runs_that_hold_the_pool_have_the_values_that_they_have_without_one():
  """20 documents are ranked, 20 are judged, 10 are both."""
  rng = np.random.default_rng(3)
  run = {f'q{q}': {f'd{d}': float(rng.integers(9)) for d in range(20)} for q in range(25)}
  qrels = {query: {f'd{d}': int(rng.integers(4)) for d in range(10, 30)} for query in run}
  pool = {query: list(docs) for query, docs in run.items()}
  rows, plain = metrics.per_query(run, qrels, pool=pool), metrics.per_query(run, qrels)
  assert rows == plain and metrics.summary(rows) == metrics.summary(plain)


def test_a_summary_counts_what_its_means_are_of():
  qrels = {'q1': {'a': 2, 'b': 0}, 'q2': {'a': 1, 'b': 0}, 'q3': {'a': 2, 'b': 1}}
  pool = dict.fromkeys(qrels, ('a', 'b'))
  rows = metrics.per_query({'q1': {'a': 1.0, 'b': 0.5}, 'q2': {'a': 1.0}}, qrels, 2, pool=pool)
  total = metrics.summary(rows)
  found = [total[k] for k in ('queries', 'queries_missing', 'queries_without_relevant', 'missing')]
  assert found == [3, 1, 1, 3]


def test_without_discordant_pairs_pnr_is_inf_and_without_any_pair_nan():
  assert metrics.ratio(3, 0) == math.inf
  assert math.isnan(metrics.ratio(0, 0))
  assert metrics.ratio(0, 2) == 0
  only_ties = metrics.summary(
    metrics.per_query({'q': {'a': 1.0, 'b': 1.0}}, {'q': {'a': 1, 'b': 0}})
  )
  assert math.isnan(only_ties['pnr']) and only_ties['tie_rate'] == 1


def test_ties_in_the_scores_count_in_neither_but_in_the_tie_rate():
  grades = {'a': 1, 'b': 0, 'c': 0}
  total = metrics.summary(metrics.per_query({'q': {'a': 1.0, 'b': 1.0, 'c': 0.0}}, {'q': grades}))
  assert total['pnr'] == math.inf and total['tie_rate'] == 0.5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-2, 4)), max_size=30))
def test_pairs_are_those_of_two_plain_loops(docs):
  concordant = discordant = tied = 0
  for i, (score_i, grade_i) in enumerate(docs):
    for score_j, grade_j in docs[:i]:
      product = (score_i - score_j) * (grade_i - grade_j)
      concordant += product > 0
      discordant += product < 0
      tied += score_i == score_j and grade_i != grade_j
  names = [f'd{i}' for i in range(len(docs))]
  got = metrics.pairs(
    {n: float(s) for n, (s, _) in zip(names, docs, strict=True)},
    {n: g for n, (_, g) in zip(names, docs, strict=True)},
  )
  assert got == (concordant, discordant, tied)
  assert all(type(count) is int for count in got)  # they go into JSON
