"""Holdout: every query is on one side, the same for all kinds of records; folds are disjoint."""

import json

import pytest

from disranker_jax import config
from disranker_jax.data import sources
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


def prepared(files, workdir, **changes):
  """{kind: records} of a run that has one file for training and test."""
  c = config.defaults()
  c.data.update({'clicks': f'jsonl:{files}/clicks.jsonl'} | changes)
  for kind in ('judgements', 'candidates', 'test'):
    c.data[kind] = f'jsonl:{files}/groups.jsonl'
  run = Run(c, workdir, None)
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


def test_clicks_have_no_ids_to_match(files, tmp_path):
  with pytest.raises(UserError, match=r'config\.data\.holdout_by: clicks have no ids'):
    prepared(files, tmp_path, holdout=0.3, holdout_by='^[^-]+')


def test_everything_held_out_is_refused():
  c = config.defaults()
  c.data.holdout = 1.0
  with pytest.raises(UserError, match=r'config\.data\.holdout=1\.0: must be from 0 to below 1'):
    config.check(c)
