"""Distillation from other teachers' scores: a whole run without a teacher of its own."""

import json

import helpers
import pytest

from disranker_jax.data import store
from disranker_jax.pipeline import runner

STAGES = ('prepare', 'student_sft', 'distill', 'evaluate', 'export', 'report')


def scores(folder, kinds, tilt: float):
  rows = [
    {'query_id': row['query_id'], 'doc_id': row['doc_id'], 'score': len(row['title']) ** tilt}
    for kind in kinds
    for row in helpers.own_rows(kind)
  ]
  return f'jsonl:{helpers.write_jsonl(folder / f"teacher{tilt}.jsonl", rows)}'


@pytest.mark.parametrize('hard', [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_distil_evaluate_without_a_score_stage(tmp_path, hard):
  kinds = ('candidates', 'judgements') if hard else ('candidates',)
  teachers = (scores(tmp_path, kinds, 2.0), scores(tmp_path, kinds, 0.5))
  stages = STAGES if hard else ('prepare', 'distill', 'evaluate')
  config = helpers.config(
    **helpers.own_data(tmp_path), stages=stages, data__teachers=teachers,
    evaluate__models=('bm25', 'student'), distill__hard_label_weight=hard,
  )  # fmt: skip
  runner.run(config, tmp_path / 'run')
  found = helpers.load(tmp_path / 'run' / 'data' / 'manifest.json')['results']
  assert ('judgements' in found) == bool(hard)
  facts = found['candidates']['teachers']
  assert facts['pairs'] == 24 and set(facts['teachers']) == set(teachers)
  assert facts['std'] > 0.5
  candidates = store.open('candidates', tmp_path / 'run' / 'data' / 'candidates')
  scored = {(len(doc.title), doc.teacher) for group in candidates for doc in group.docs}
  assert len(scored) == len({length for length, _ in scored}) > 2  # a longer title, a higher score
  assert sorted(scored) == sorted(scored, key=lambda pair: pair[1])
  done = helpers.load(tmp_path / 'run' / 'distill' / 'manifest.json')['results']
  assert done['rows'] == (12 if hard else 6)
  assert helpers.load(tmp_path / 'run' / 'evaluate' / 'results.json')['student']['pairs'] == 24
  if hard:
    assert (tmp_path / 'run' / 'export' / 'student' / 'model.safetensors').exists()
    assert (tmp_path / 'run' / 'report' / 'index.html').exists()


def test_an_order_of_teachers_is_what_a_decoder_learns(tmp_path):
  """The better document has the larger label, equal scores have equal ones."""
  address = scores(tmp_path, ('candidates',), 1.0)
  changes = {
    'stages': ('prepare', 'sft', 'evaluate'), 'data__teachers': (address,),
    'data__judgements': 'teachers:', 'evaluate__models': ('teacher',), 'sft__loss': 'ranknet',
  }  # fmt: skip
  config = helpers.config(**helpers.own_data(tmp_path) | changes)
  runner.run(config, tmp_path / 'run')
  judged = list(store.open('judgements', tmp_path / 'run' / 'data' / 'judgements'))
  candidates = {row['query_id'] for row in helpers.own_rows('candidates')}
  assert {group.query_id for group in judged} == candidates
  for group in judged:
    lengths = [len(doc.title) for doc in group.docs]
    labels = [doc.label for doc in group.docs]
    assert labels == [sum(other < own for other in lengths) for own in lengths]
  assert 'teacher' in helpers.load(tmp_path / 'run' / 'evaluate' / 'results.json')

  def refused(**more):
    return helpers.refused(helpers.config(**helpers.own_data(tmp_path) | changes | more), tmp_path)

  assert 'data.teachers, which is empty' in refused(data__teachers=())
  assert 'only judgements can be an order' in refused(data__test='teachers:')
  assert 'config.data.negatives.count=3: adds documents' in refused(data__negatives__count=3)
  stages = ('prepare', 'cpt', 'sft', 'evaluate')
  assert 'has none of relevance' in refused(stages=stages, data__clicks='judgements:')


def test_other_scores_make_the_run_stale(tmp_path):
  address = scores(tmp_path, ('candidates',), 2.0)
  config = helpers.config(
    **helpers.own_data(tmp_path), stages=('prepare', 'distill'), data__teachers=(address,)
  )
  runner.run(config, tmp_path / 'run', stages=['prepare'])
  rows = [json.loads(line) for line in (tmp_path / 'teacher2.0.jsonl').read_text().splitlines()]
  helpers.write_jsonl(tmp_path / 'teacher2.0.jsonl', rows[:-1])
  assert 'data.teachers' in helpers.refused(config, tmp_path / 'run')


def test_what_does_not_go_together_is_told(tmp_path):
  teachers = {'data__teachers': (scores(tmp_path, ('candidates',), 1.0),)}
  message = helpers.refused(helpers.config(**teachers), tmp_path / 'run')
  assert 'config.data.teachers' in message and 'score' in message
  message = helpers.refused(
    helpers.config(data__negatives__filter_false_negatives=True), tmp_path / 'run'
  )
  assert 'config.data.negatives.filter_false_negatives' in message
  config = helpers.config(
    **helpers.own_data(tmp_path),
    **teachers,
    stages=('prepare', 'distill'),
    distill__hard_label_weight=1.0,
  )
  assert 'config.distill.hard_label_weight' in helpers.refused(config, tmp_path / 'run')


def test_hard_negatives_come_into_the_judgements_and_into_no_other_kind(tmp_path):
  folder = tmp_path / 'trec'
  folder.mkdir()
  docs = [
    {'doc_id': f'd{i}', 'title': f'page {i}', 'summary': 'red fox ' * (i + 1)} for i in range(20)
  ]
  helpers.write_jsonl(folder / 'docs.jsonl', docs)
  (folder / 'queries.tsv').write_text('q1\tred fox\nq2\tfox red\n')
  (folder / 'qrels.txt').write_text('q1 0 d0 2\nq1 0 d1 1\nq2 0 d3 1\n')
  address = f'trec:{folder}?run=bm25'
  teacher = [
    {'query_id': q, 'doc_id': f'd{i}', 'score': i} for q in ('q1', 'q2') for i in range(20)
  ]
  config = helpers.config(
    stages=('prepare', 'student_sft', 'distill', 'evaluate'), data__test=address, data__depth=5,
    data__judgements=address, data__candidates=address, data__negatives__count=4,
    data__teachers=(f'jsonl:{helpers.write_jsonl(tmp_path / "t.jsonl", teacher)}',),
    data__negatives__max_rank=20, data__negatives__filter_false_negatives=True,
    data__negatives__margin=-5.5, data__allow_overlap=1.0,
  )  # fmt: skip
  runner.run(config, tmp_path / 'run', stages=['prepare'])
  data = tmp_path / 'run' / 'data'
  first, second = store.open('judgements', data / 'judgements')
  assert {d.doc_id for d in first.docs if d.label > 0} == {'d0', 'd1'}
  # At most 5.5 above the lowest positive: 0 + 5.5, 3 + 5.5.
  negatives = {d.doc_id for d in first.docs if d.label == 0}
  assert negatives == {'d2', 'd3', 'd4', 'd5'}
  assert {d.doc_id for d in second.docs if d.label == 0} < {f'd{i}' for i in range(9)} - {'d3'}
  assert len(second.docs) == 5
  for kind in ('candidates', 'test'):
    assert {d.label for group in store.open(kind, data / kind) for d in group.docs} <= {-1, 1, 2}
