"""Metrics against ir_measures, hand-counted pairs, and what input order may not do."""

import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, nDCG

from disranker_jax import metrics

# trec_eval's gains are grades; a table of gains makes it the exponential nDCG. Grades 0 and 1 are
# their own gains (2**0 - 1, 2**1 - 1).
EXPONENTIAL = {grade: 2**grade - 1 for grade in range(2, 6)}


def judged(run, qrels, relevant=1):
  """{query: {metric: value}} by ir_measures through pytrec_eval."""
  measures = {
    nDCG(gains=EXPONENTIAL) @ 5: 'ndcg@5',
    nDCG(gains=EXPONENTIAL) @ 10: 'ndcg@10',
    RR(rel=relevant): 'rr',
  }
  rows = {}
  for value in ir_measures.pytrec_eval.iter_calc(list(measures), qrels, run):
    rows.setdefault(value.query_id, {})[measures[value.measure]] = value.value
  for row in rows.values():
    row['mrr@10'] = row['rr'] if row['rr'] > 0.0999 else 0.0  # the first ten ranks
  return rows


def random_case(seed, queries=25, documents=30):
  """Runs and judgements that overlap in part, with few different scores, hence many ties."""
  rng = np.random.default_rng(seed)
  run, qrels = {}, {}
  for q in range(queries):
    ids = [f'd{i}' for i in rng.permutation(documents)]
    scores = rng.integers(-4, 4, documents) / 4
    in_run = rng.random(documents) < 0.7
    run[f'q{q}'] = {d: float(s) for d, s, x in zip(ids, scores, in_run, strict=True) if x}
    grades = rng.choice(6, documents, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    is_judged = rng.random(documents) < 0.6
    qrels[f'q{q}'] = {d: int(g) for d, g, x in zip(ids, grades, is_judged, strict=True) if x}
  return run, qrels


@pytest.mark.parametrize('relevant', [1, 3])
def test_ndcg_and_mrr_equal_ir_measures_with_ties_and_unjudged_documents(relevant):
  run, qrels = random_case(0)
  ours, theirs = metrics.per_query(run, qrels, relevant), judged(run, qrels, relevant)
  assert ours.keys() == theirs.keys()
  for query in ours:
    for metric in ('ndcg@5', 'ndcg@10', 'mrr@10'):
      assert ours[query][metric] == pytest.approx(theirs[query][metric], abs=1e-9), (query, metric)
  assert len({ours[q]['mrr@10'] for q in ours}) > 2


def test_means_equal_ir_measures_over_all_judged_queries_also_those_that_the_run_lacks():
  run, qrels = random_case(1)
  missing = ['q3', 'q7', 'q11']
  for query in missing:
    del run[query]
  measure = nDCG(gains=EXPONENTIAL) @ 5
  theirs = ir_measures.pytrec_eval.calc_aggregate([measure], qrels, run)[measure]
  rows = metrics.per_query(run, qrels)
  assert metrics.summary(rows)['ndcg@5'] == pytest.approx(theirs, abs=1e-9)
  assert all(rows[q]['ndcg@5'] == rows[q]['mrr@10'] == 0 for q in missing)
  assert metrics.summary(rows)['queries'] == len(qrels)


def test_queries_without_judgements_do_not_count():
  rows = metrics.per_query({'a': {'x': 1.0}, 'b': {'x': 1.0}}, {'a': {'x': 1}})
  assert list(rows) == ['a']


def test_ndcg_of_a_hand_counted_ranking():
  grades = {'a': 3, 'b': 2, 'c': 0, 'd': 1}
  scores = {'c': 4.0, 'a': 3.0, 'new': 2.0, 'd': 1.0}  # b is not in the run, new has no grade
  got = 7 / math.log2(3) + 1 / math.log2(5)
  ideal = 7 + 3 / math.log2(3) + 1 / math.log2(4)
  assert metrics.ndcg(scores, grades, 10) == pytest.approx(got / ideal)
  # At depth 2 only a counts, and the ideal is a, b.
  assert metrics.ndcg(scores, grades, 2) == pytest.approx(7 / math.log2(3) / (7 + 3 / math.log2(3)))


def test_a_query_with_no_relevant_document_has_ndcg_0():
  assert metrics.ndcg({'a': 1.0}, {'a': 0, 'b': 0}, 5) == 0
  assert metrics.ndcg({}, {}, 5) == 0


def test_equal_scores_are_ranked_by_document_id_the_greater_first():
  assert metrics.ranked({'d1': 1.0, 'd3': 1.0, 'd2': 1.0, 'd0': 2.0}) == ['d0', 'd3', 'd2', 'd1']


@pytest.mark.parametrize('rank, expected', [(1, 1.0), (4, 0.25), (10, 0.1), (11, 0.0)])
def test_the_reciprocal_rank_ends_at_ten(rank, expected):
  scores = {f'd{i}': -float(i) for i in range(1, 15)}
  assert metrics.reciprocal_rank(scores, {f'd{rank}': 2, 'd14': 4}, 10) == expected


def test_mrr_takes_only_grades_from_relevant_on():
  scores, grades = {'a': 3.0, 'b': 2.0, 'c': 1.0}, {'a': 1, 'b': 3, 'c': 4}
  at = [metrics.reciprocal_rank(scores, grades, 10, relevant) for relevant in (1, 3, 4, 5)]
  assert at == [1, 1 / 2, 1 / 3, 0]


# PNR


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
  assert total['pnr_per_query'] == (2 + 0.5) / 2  # the infinite one is left out


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


def test_a_summary_counts_queries_and_the_pairs_that_were_ranked():
  run = {'q1': {'a': 1.0, 'b': 2.0}, 'q2': {'a': 1.0, 'c': 0.5, 'd': 0.1}}
  qrels = {'q1': {'a': 1}, 'q2': {'a': 1, 'c': 0}, 'q3': {'a': 1}}
  total = metrics.summary(metrics.per_query(run, qrels))
  assert (total['queries'], total['pairs']) == (3, 5)


def test_a_summary_of_nothing_has_no_made_up_numbers():
  total = metrics.summary({})
  assert math.isnan(total['pnr']) and total['ndcg@5'] == 0 and total['queries'] == 0


documents = st.dictionaries(
  st.text('abcd', min_size=1, max_size=3), st.tuples(st.integers(-2, 2), st.integers(0, 4)),
  max_size=12,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text('qr', min_size=1, max_size=2), documents, max_size=4), st.randoms())
def test_the_order_in_which_anything_was_put_in_never_matters(queries, random):
  def shuffled(mapping):
    keys = list(mapping)
    random.shuffle(keys)
    return {k: mapping[k] for k in keys}

  run = {q: {d: float(s) for d, (s, _) in docs.items()} for q, docs in queries.items()}
  qrels = {q: {d: g for d, (_, g) in docs.items()} for q, docs in queries.items()}
  rows = metrics.per_query(run, qrels)
  mixed = metrics.per_query(
    shuffled({q: shuffled(d) for q, d in run.items()}),
    shuffled({q: shuffled(d) for q, d in qrels.items()}),
  )
  # nan is not equal to itself, its text is.
  assert {q: str(row) for q, row in rows.items()} == {q: str(mixed[q]) for q in rows}
  total, mixed_total = metrics.summary(rows), metrics.summary(mixed)
  for metric in total:
    assert total[metric] == pytest.approx(mixed_total[metric], nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(documents)
def test_a_run_in_the_order_of_the_grades_is_perfect(docs):
  scores = {d: float(g) for d, (_, g) in docs.items()}
  grades = {d: g for d, (_, g) in docs.items()}
  row = metrics.per_query({'q': scores}, {'q': grades})['q']
  assert row['ndcg@10'] == pytest.approx(1.0 if any(grades.values()) else 0.0)
  assert row['discordant'] == row['tied'] == 0
