"""Holdout: every query is on one side, the same for all kinds of records; folds are disjoint."""

import dataclasses
import hashlib
import json
import unicodedata

import pytest

from disranker_jax import config
from disranker_jax.data import holdout, overlap, preparation, sources
from disranker_jax.data.holdout import Holdout
from disranker_jax.data.preparing import prepare as prepare_data
from disranker_jax.data.records import Click, Document, Group
from disranker_jax.errors import UserError
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import prepare

QUERIES = 400


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """One file for all kinds: each query has two documents; a session has four queries."""
  folder = tmp_path_factory.mktemp('log')
  groups = [
    {'query_id': f's{i // 4}-{i % 4}', 'query': f'Query {i}', 'doc_id': f'd{j}', 'title': 't',
     'summary': 's', 'label': j}
    for i in range(QUERIES) for j in (0, 1)
  ]  # fmt: skip
  clicks = [{'query': f' query {i}', 'title': 't', 'summary': 's'} for i in range(QUERIES)]
  for name, rows in (('groups', groups), ('clicks', clicks)):
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


def config_of(files, **changes):
  """A config with one file for training and test."""
  c = config.defaults()
  kinds = ('judgements', 'candidates', 'test')
  data = {kind: f'jsonl:{files}/groups.jsonl' for kind in kinds}
  c.data.update(data | {'clicks': f'jsonl:{files}/clicks.jsonl'} | changes)
  return c


def prepared(files, workdir, **changes):
  """{kind: records} of a run that has one file for training and test."""
  run = Run(config_of(files, **changes), workdir, None)
  prepare.prepare(run)
  records = {kind: prepare.records(run, kind) for kind in sources.KINDS}
  return {kind: [source[i] for i in range(len(source))] for kind, source in records.items()}


def test_a_query_is_trained_on_or_tested_and_clicks_follow_its_text(files, tmp_path):
  found = prepared(files, tmp_path, holdout=0.3)
  queries = {kind: {r.query.strip().casefold() for r in rows} for kind, rows in found.items()}
  assert queries['judgements'] == queries['candidates'] == queries['clicks']
  assert not queries['judgements'] & queries['test']
  assert len(queries['judgements'] | queries['test']) == QUERIES
  # 120 are expected; the standard deviation of the binomial is 9.2.
  assert abs(len(queries['test']) - 0.3 * QUERIES) < 4 * 9.2


def test_folds_are_disjoint_and_cover_everything(files, tmp_path):
  tests = [prepared(files, tmp_path / str(f), holdout=0.25, fold=f)['test'] for f in range(4)]
  queries = [r.query for rows in tests for r in rows]
  assert len(queries) == len(set(queries)) == QUERIES


def test_queries_whose_ids_have_the_same_match_stay_together(files, tmp_path):
  changes = {'holdout': 0.3, 'holdout_by': '^[^-]+', 'clicks': ''}
  c = config.defaults()
  c.stages = ('prepare', 'sft', 'score', 'evaluate')
  c.data.update(changes)
  for kind in ('judgements', 'candidates', 'test'):
    c.data[kind] = f'jsonl:{files}/groups.jsonl'
  run = Run(c, tmp_path, None)
  prepare.prepare(run)
  sides = []
  for kind in ('judgements', 'test'):
    source = prepare.records(run, kind)
    sides.append({source[i].query_id.split('-')[0] for i in range(len(source))})
  assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_clicks_follow_the_topics_of_their_queries_by_text(files, tmp_path):
  found = prepared(files, tmp_path, holdout=0.3, holdout_by='^[^-]+')
  queries = {kind: {r.query.strip().casefold() for r in rows} for kind, rows in found.items()}
  assert queries['clicks'] == queries['judgements']
  assert not queries['clicks'] & queries['test']
  results = prepare.prepare(Run(config_of(files, holdout=0.3, holdout_by='^[^-]+'), tmp_path, None))
  assert all(counts['queries'] == 0 for counts in results['overlap'].values())


def test_clicks_are_prepared_again_for_other_test_queries(files, tmp_path, capsys):
  prepared(files, tmp_path, holdout=0.3, holdout_by='^[^-]+')
  capsys.readouterr()
  prepared(files, tmp_path, holdout=0.3, holdout_by='^[^-]+')
  assert 'prepare clicks: done before' in capsys.readouterr().err
  found = prepared(files, tmp_path, holdout=0.3, holdout_by='^[^-]+', fold=1)
  queries = {kind: {r.query.strip().casefold() for r in rows} for kind, rows in found.items()}
  assert queries['clicks'] == queries['judgements']


def test_clicks_cannot_follow_a_test_that_no_stage_reads(files, tmp_path):
  c = config_of(files, holdout=0.3, holdout_by='^[^-]+')
  c.stages = ('prepare', 'cpt', 'sft')
  with pytest.raises(UserError, match=r'config\.data\.holdout_by: clicks have no ids.*evaluate'):
    prepare.prepare(Run(c, tmp_path, None))


def test_queries_that_differ_in_case_and_white_space_are_on_one_side():
  for i in range(50):
    same = [Click(text, 't', 's') for text in (f'Query  {i}', f' query {i}\t', f'QUERY {i}')]
    assert len({Holdout(0.5, 0, '', test=True)(click) for click in same}) == 1


def test_queries_that_differ_in_the_form_of_their_characters_are_on_one_side():
  for i in range(50):
    forms = ('NFC', 'NFD', 'NFKC')
    same = [unicodedata.normalize(form, f'Größe \uff4e\uff4f. é{i}') for form in forms]
    assert len({Holdout(0.5, 0, '', test=True)(Click(text, 't', 's')) for text in same}) == 1
  test = overlap.Test([Group('q', 'Cafe\u0301', (Document('d', 't', 's', 1),))])
  assert test.shared([Click('caf\u00e9', 't', 's')])['query_texts'] == 1


def test_ascii_queries_stay_on_the_side_that_their_text_always_had():
  for i in range(50):
    side = int.from_bytes(hashlib.sha256(f'query {i}'.encode()).digest()[:8]) / 2**64 < 0.3
    assert Holdout(0.3, 0, '', test=True)(Click(f' Query  {i}', 't', 's')) == side


def test_prepared_data_is_split_too(files, tmp_path):
  address = f'jsonl:{files}/groups.jsonl'
  done = prepare_data(preparation.Job(address, 'judgements', tmp_path / 'j', tmp_path / 'bad'))
  assert done.records == QUERIES
  found = prepared(files, tmp_path / 'run', holdout=0.3, judgements=f'tfds:{tmp_path}/j')
  assert not {r.query for r in found['judgements']} & {r.query for r in found['test']}


@pytest.mark.parametrize('is_prepared', [False, True])
def test_queries_on_the_other_side_are_not_counted_as_too_deep(tmp_path, is_prepared):
  sides = {True: [], False: []}
  for i in range(40):
    query, side = f'query {i}', Holdout(0.5, 0, '', test=True)
    sides[side(Group(f'q{i}', query, ()))].append((f'q{i}', query))
  shallow, deep = sides[True], sides[False]  # the test has ranks of 1, training none up to 5
  rows = [
    {'query_id': i, 'query': text, 'doc_id': 'd', 'title': 't', 'summary': 's', 'rank': rank,
     'label': 1} for side, rank in ((shallow, 1), (deep, 9)) for i, text in side
  ]  # fmt: skip
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  address = f'jsonl:{tmp_path}/a.jsonl'
  if is_prepared:
    prepare_data(preparation.Job(address, 'test', tmp_path / 'all', tmp_path / 'bad'))
    address = f'tfds:{tmp_path}/all'
  keep = {test: Holdout(0.5, 0, '', test=test) for test in (True, False)}
  job = preparation.Job(
    address, 'test', tmp_path / 'out', tmp_path / 'bad', depth=5, keep=keep[True]
  )
  done = prepare_data(job)
  assert done.records == len(shallow) > 0 and deep and not done.notes
  other = dataclasses.replace(job, folder=tmp_path / 'other', keep=keep[False])
  with pytest.raises(UserError, match='depth=5: no query has a document of first-stage rank'):
    prepare_data(other)


class TestTopics:
  """Queries with the same relevant documents, and the expression that their ids suggest."""

  @staticmethod
  def group(query_id, *labels):
    docs = tuple(Document(f'd{i}', 't', 's', label) for i, label in labels)
    return Group(query_id, query_id, docs)

  def test_are_those_with_the_same_relevant_documents_and_grades(self):
    same = (1, 2), (2, 1)
    tests = [self.group('a-1', *same, (3, 0)), self.group('b-1', (7, 1), (8, 1))]
    judged = [
      self.group('a-2', *reversed(same), (9, 0)),  # other documents that are not relevant
      self.group('c-1', (1, 1), (2, 1)),  # other grades
      self.group('d-1', (1, 2)),
      self.group('e-1', (7, 0), (8, 0)),
    ]
    assert holdout.topics(tests, judged) == [(['a-1'], ['a-2'])]

  def test_one_relevant_document_in_common_is_no_topic(self):
    assert holdout.topics([self.group('a', (1, 1))], [self.group('b', (1, 1))]) == []

  @pytest.mark.parametrize(
    'topics, queries, first',
    [
      ([['12-1', '12-3'], ['7-2', '7-4']], ['12-1', '7-2'], '^[^-]+'),
      ([['s_1_a', 's_1_b'], ['s_2_a', 's_2_c']], ['s_1_a', 's_2_a'], '^.*(?=_)'),
      ([['3.1', '3.2']], ['3.1', '4.1'], '^[^.]+'),
      ([['q-1', 'q-7']], ['q-1', 'q-2', 'q-3'], ''),  # would join all queries
      ([['1', '5'], ['2', '9']], ['1', '2'], ''),
      ([['x-1', 'x-2'], ['x-3', 'x-4']], ['x-1', 'y-1'], ''),  # two topics of one name
    ],
  )
  def test_the_suggested_expression_joins_topics_and_tells_them_apart(self, topics, queries, first):
    assert holdout.patterns(topics, queries)[:1] == ([first] if first else [])


def test_everything_held_out_is_refused():
  c = config.defaults()
  c.data.holdout = 1.0
  with pytest.raises(UserError, match=r'config\.data\.holdout=1\.0: must be from 0 to below 1'):
    config.check(c)
