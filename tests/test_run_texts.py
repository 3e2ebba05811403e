"""The texts whose tokens a smaller vocabulary keeps: all that a student may have learned."""

import json
import shutil

import pytest

from disranker_jax.config import defaults
from disranker_jax.data import store
from disranker_jax.data.records import Click, Document, Group
from disranker_jax.pipeline import systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import export, prepare, run_texts


def group(text: str) -> Group:
  docs = tuple(Document(f'd{i}', f'{text} title {i}', f'{text} summary {i}') for i in range(2))
  return Group('q', f'{text} query', docs)


def words_of(text: str) -> set[str]:
  """The texts of `group(text)`."""
  found = group(text)
  return {found.query, *(t for doc in found.docs for t in (doc.title, doc.summary))}


def made(folder, *, generates=False, start='', scores=(), **changes) -> Run:
  """A run on disk: its config, and records whose texts name its folder and their kind."""
  c = defaults()
  c.stages = ('prepare', *(['generate'] if generates else []), 'score', 'distill', 'export')
  c.data.update(candidates='jsonl:c.jsonl', judgements='jsonl:j.jsonl')
  c.export.vocabulary = 'data'
  c.student.init_from, c.distill.earlier_runs = str(start), tuple(map(str, scores))
  c.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
  run = Run(c, folder, None)
  for kind in prepare.every_kind(c):
    of = 'candidates' if kind in prepare.MADE_BY else kind
    text = f'{folder.name} {kind}'
    record = Click(f'{text} query', f'{text} title', '') if kind == 'clicks' else group(text)
    store.write(of, [record], prepare.place(run, kind))
  for stage in ('prepare', *(['generate'] if generates else [])):
    note(run, stage, f'{stage} of {folder.name}')
  (folder / 'config.json').write_text(json.dumps(c.to_dict()))
  return run


def note(run: Run, stage: str, fingerprint: str, inputs=None) -> None:
  """Writes the manifest of a finished stage."""
  run.folder(stage).mkdir(exist_ok=True)
  value = {'status': 'done', 'fingerprint': fingerprint, 'inputs': inputs or {}}
  (run.folder(stage) / 'manifest.json').write_text(json.dumps(value))


@pytest.fixture
def weeks(tmp_path):
  """Three runs: each starts from the one before, and `other` is of whose scores week3 learns."""
  week1 = made(tmp_path / 'week1', generates=True)
  week2 = made(tmp_path / 'week2', start=week1.workdir)
  other = made(tmp_path / 'other')
  return week1, week2, other, made(tmp_path / 'week3', start=week2.workdir, scores=[other.workdir])


def inputs(run: Run) -> dict:
  return systems.find(run.config, 'export').outside(run.config, run.workdir)


def test_the_texts_of_a_chain_are_those_of_all_its_runs(weeks):
  texts = set(export.texts(weeks[-1]))
  assert words_of('week1 generated') <= texts
  for run in weeks:
    assert words_of(f'{run.workdir.name} candidates') <= texts
  # A run knows nothing of those that build on it.
  assert set(export.texts(weeks[2])) == words_of('other candidates') | words_of('other judgements')


def test_documents_that_no_query_found_count(tmp_path):
  rows = [{'doc_id': f'p{i}', 'title': f'page {i}', 'summary': f'text {i}'} for i in range(3)]
  (tmp_path / 'pages.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  pages = f'jsonl:{tmp_path}/pages.jsonl'
  own = {'data__candidates': prepare.GENERATED_ADDRESS, 'data__documents': pages}
  run = made(tmp_path / 'run', generates=True, score__judgements=False, **own)
  assert prepare.every_kind(run.config) == [prepare.GENERATED]
  found = {text for row in rows for text in (row['title'], row['summary'])}
  assert set(export.texts(run)) == words_of('run generated') | found


def test_runs_whose_data_are_gone_are_said_before_training_and_at_the_export(weeks, capsys):
  week1, _, other, week3 = weeks
  look = systems.find(week3.config, 'export').check_records
  look(week3)
  assert not capsys.readouterr().err
  shutil.rmtree(week1.workdir)  # named by week2 alone
  shutil.rmtree(other.folder('prepare'))
  assert run_texts.missing(week3.config) == [str(week1.workdir), str(other.workdir)]
  for say in (lambda: look(week3), lambda: set(export.texts(week3))):
    say()
    err = capsys.readouterr().err
    assert f'{week1.workdir}, {other.workdir} are not there any more' in err
    assert 'tokens that only they have' in err
  assert words_of('week2 candidates') <= set(export.texts(week3))
  week3.config.export.vocabulary = ''
  capsys.readouterr()
  look(week3)
  assert not capsys.readouterr().err


def test_other_texts_of_an_earlier_run_make_the_export_stale(weeks):
  week1, week2, _, week3 = weeks
  before = inputs(week2)
  assert len(before) == 1 and inputs(week1) == {}
  for stage in ('prepare', 'generate'):
    note(week1, stage, 'changed')
    assert inputs(week2) != before
    note(week1, stage, f'{stage} of week1')
    assert inputs(week2) == before
  # A finished export stays valid when the earlier run is deleted.
  note(week2, 'export', 'x', inputs=before)
  shutil.rmtree(week1.workdir)
  assert inputs(week2) == before
  week3.config.export.vocabulary = ''
  assert inputs(week3) == {}


@pytest.mark.parametrize('named', ['{}/*.jsonl', 'jsonl:{}/docs.jsonl', '~/docs.jsonl'])
def test_another_text_in_a_file_of_documents_makes_the_export_stale(tmp_path, monkeypatch, named):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'docs.jsonl').write_text('{"doc_id": "a", "title": "one", "summary": ""}\n')
  run = made(tmp_path / 'run', export__vocabulary=named.format(tmp_path))
  before = inputs(run)
  assert list(before) == ['export.vocabulary'] and set(export.texts(run)) == {'one', ''}
  (tmp_path / 'docs.jsonl').write_text('{"doc_id": "a", "title": "two", "summary": ""}\n')
  assert inputs(run) != before
