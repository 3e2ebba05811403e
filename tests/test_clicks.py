"""Clicks from labels: relevant documents of training queries only, from every source."""

import json

import pytest

from disranker_jax import config
from disranker_jax.data.clicks import Relevant
from disranker_jax.data.records import BadRow, BadRows, Document, Group
from disranker_jax.errors import UserError
from disranker_jax.pipeline import inputs
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import prepare


def run_of(folder, judgements: str, stages=('prepare', 'cpt'), **data):
  c = config.defaults()
  c.stages = stages
  c.data.update({'clicks': 'judgements:', 'judgements': judgements, 'test': judgements} | data)
  return Run(c, folder / 'run', None)


def clicks(run) -> list[tuple[str, str]]:
  prepare.prepare(run)
  return [(click.query, click.title) for click in records(run, 'clicks')]


def records(run, kind: str) -> list:
  source = prepare.records(run, kind)
  return [source[i] for i in range(len(source))]


@pytest.fixture
def rows(tmp_path):
  """40 queries of 20 sessions, each with documents of grade 0, 1 and 2."""
  file = tmp_path / 'judged.jsonl'
  found = [
    {'query_id': f's{q // 2}-{q}', 'query': f'query {q}', 'doc_id': f'd{label}',
     'title': f'of {q} with {label}', 'summary': '', 'label': label}
    for q in range(40) for label in (0, 1, 2)
  ]  # fmt: skip
  file.write_text(''.join(json.dumps(row) + '\n' for row in found))
  return f'jsonl:{file}'


def test_relevant_documents_become_clicks(rows, tmp_path):
  expected = [(f'query {q}', f'of {q} with {label}') for q in range(40) for label in (1, 2)]
  assert sorted(clicks(run_of(tmp_path, rows))) == sorted(expected)


def test_clicks_are_of_training_queries_also_when_sessions_are_held_out(rows, tmp_path):
  stages = ('prepare', 'cpt', 'sft', 'evaluate')
  run = run_of(tmp_path, rows, stages, holdout=0.5, holdout_by='^[^-]+')
  clicked = {query for query, _ in clicks(run)}
  trained, tested = ({g.query for g in records(run, k)} for k in ('judgements', 'test'))
  assert clicked == trained
  assert clicked and tested and not clicked & tested


@pytest.mark.parametrize('least, labels', [(1, (1, 2)), (2, (2,))])
def test_least_is_the_lowest_grade_that_is_a_click(rows, tmp_path, least, labels):
  run = run_of(tmp_path, rows, clicks=f'judgements:?least={least}')
  expected = [(f'query {q}', f'of {q} with {label}') for q in range(40) for label in labels]
  assert sorted(clicks(run)) == sorted(expected)


@pytest.mark.parametrize('address', ['judgements:2', 'judgements:?least=0', 'judgements:?most=2'])
def test_other_options_are_refused(rows, tmp_path, address):
  with pytest.raises(UserError, match=r"data\.clicks='judgements:.* write judgements: or"):
    clicks(run_of(tmp_path, rows, clicks=address))


def test_without_a_label_that_high_the_error_names_the_labels(rows, tmp_path):
  with pytest.raises(UserError, match=r'none of the 120 judged documents .* label of 3 or better'):
    clicks(run_of(tmp_path, rows, clicks='judgements:?least=3'))


def test_a_limit_counts_clicks_and_not_queries(rows, tmp_path, capsys):
  assert len(clicks(run_of(tmp_path, rows, limit={'clicks': 3}))) == 3
  assert 'prepare: clicks: the first 3 clicks; there are more (config.data.limit.clicks)' in (
    capsys.readouterr().err
  )


@pytest.mark.parametrize('mode', ['quarantine', 'error'])
def test_what_is_read_behind_a_limit_is_not_judged(tmp_path, mode):
  """It is read only to know whether there is more."""
  bad_rows = BadRows(mode, tmp_path / 'bad.jsonl')

  def groups():
    yield Group('q1', 'one', (Document('d', 't', 's', 1),))
    bad_rows.reject('f', 2, {}, BadRow('doc_id', 'is bad', 'correct it'))
    yield Group('q2', 'two', (Document('d', 't', 's', 1),))

  relevant = Relevant(1, limit=1)
  assert [click.query for click in relevant(groups(), bad_rows)] == ['one']
  assert relevant.is_cut and not bad_rows.quarantined
  assert mode == 'error' or not bad_rows.path.read_text()


def test_a_collection_gives_clicks_without_documents_that_have_no_text(tmp_path, capsys):
  folder = tmp_path / 'trec'
  folder.mkdir()
  (folder / 'queries.tsv').write_text('q1\tone\n')
  docs = [{'doc_id': f'd{i}', 'title': f't{i}' * (i != 2), 'summary': ''} for i in range(4)]
  (folder / 'docs.jsonl').write_text(''.join(json.dumps(doc) + '\n' for doc in docs))
  (folder / 'qrels.txt').write_text('q1 0 d0 0\nq1 0 d1 1\nq1 0 d2 1\nq1 0 d3 2\n')
  assert clicks(run_of(tmp_path, f'trec:{folder}')) == [('one', 't1'), ('one', 't3')]
  assert 'left out 1 relevant document without any text' in capsys.readouterr().err


def test_another_file_of_judgements_makes_another_cpt(rows, tmp_path):
  run = run_of(tmp_path, rows)
  before = inputs.outside(run.config, prepare.STAGE, run.workdir)['data.clicks']
  with open(rows.partition(':')[2], 'a') as file:
    file.write('\n')
  assert inputs.outside(run.config, prepare.STAGE, run.workdir)['data.clicks'] != before


def test_without_judgements_the_error_names_them(tmp_path):
  with pytest.raises(UserError, match=r'config\.data\.judgements: is empty, but read by cpt'):
    clicks(run_of(tmp_path, ''))
