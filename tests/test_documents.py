"""Runs of different documents: what is counted, and what each rule keeps."""

import pytest

from disranker_jax.evaluation import documents

QRELS = {'q1': {'a': 2, 'b': 1, 'c': 0, 'd': 1}, 'q2': {'a': 1, 'e': 0}, 'q3': {'a': 1}}
RUNS = {
  'first': {'q1': {'a': 3.0, 'b': 2.0, 'x': 1.0}, 'q2': {'a': 1.0}, 'other': {'a': 1.0}},
  'second': {'q1': {'a': 1.0, 'c': 2.0, 'x': 3.0, 'y': 4.0}, 'q3': {'a': 1.0}},
}


def test_what_each_run_holds_and_lacks_is_counted_as_by_hand():
  """Of q1 the runs hold a b c x y, of q2 and q3 a: 7 documents, 5 of them judged."""
  counted = documents.counted(RUNS, QRELS)
  assert counted.union == (7, 5)
  assert counted.held['first'] == documents.Held(2, 4, 3, 3, 2)
  assert counted.held['second'] == documents.Held(2, 5, 3, 2, 2)
  assert counted.differ and counted.queries == 3


def test_all_keeps_everything_and_pools_the_judged_documents_of_any_run():
  counted = documents.counted(RUNS, QRELS, 'all')
  assert counted.runs is RUNS and counted.qrels is QRELS and counted.reduced(QRELS) is QRELS
  assert counted.pool == {'q1': {'a', 'b', 'c'}, 'q2': {'a'}, 'q3': {'a'}}


def test_judged_removes_documents_without_a_judgement():
  counted = documents.counted(RUNS, QRELS, 'judged')
  assert counted.runs['second'] == {'q1': {'a': 1.0, 'c': 2.0}, 'q3': {'a': 1.0}}
  assert counted.qrels is QRELS
  assert counted.pool == documents.counted(RUNS, QRELS).pool
  assert counted.reduced({'q2': {'e': 1.0, 'x': 2.0}}) == {'q2': {'e': 1.0}}


def test_common_keeps_what_all_runs_hold_and_leaves_out_queries_without_such_documents():
  counted = documents.counted(RUNS, QRELS, 'common')
  assert counted.runs == {
    'first': {'q1': {'a': 3.0, 'x': 1.0}},
    'second': {'q1': {'a': 1.0, 'x': 3.0}},
  }
  assert counted.qrels == {'q1': {'a': 2}}
  assert counted.empty == ('q2', 'q3')
  assert counted.held == documents.counted(RUNS, QRELS).held


@pytest.mark.parametrize('rule', documents.RULES)
def test_runs_of_the_same_documents_do_not_differ(rule):
  runs = {'one': RUNS['first'], 'two': {q: dict.fromkeys(d, 0.0) for q, d in RUNS['first'].items()}}
  counted = documents.counted(runs, QRELS, rule)
  assert not counted.differ
  assert {(held.lacks, held.lacks_judged) for held in counted.held.values()} == {(0, 0)}
