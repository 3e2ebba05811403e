"""Files that an address names are looked for before anything is read, and no row is read."""

import pathlib
import re

import pytest
from source_files import ROW, jsonl, trec_folder

from disranker_jax import config as configs
from disranker_jax.data import sources, store
from disranker_jax.data.records import Document, Group
from disranker_jax.data.source import DOCUMENTS
from disranker_jax.errors import UserError
from disranker_jax.pipeline import inputs, systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import prepare

KINDS = ('judgements', 'candidates', 'test', sources.POOLED, DOCUMENTS, sources.SCORES)


@pytest.fixture
def here(tmp_path, monkeypatch):
  """The current folder with some files; no row of them can be read."""
  monkeypatch.chdir(tmp_path)
  trec_folder(tmp_path)
  pathlib.Path('a.jsonl').write_bytes(jsonl(ROW))
  for name in ('empty-1.jsonl', 'empty-2.jsonl', 'empty.parquet', 'empty.run'):
    pathlib.Path(name).touch()
  docs = (Document('d', 't', 's', 1),)
  store.write('test', [Group('q', 'x', docs)], 'done')

  def unread(*args):
    raise AssertionError('a row is read')

  monkeypatch.setattr(sources.BadRows, 'parse', unread)
  return tmp_path


def check(address, kind):
  sources.open(address, kind).check(kind)


def refused(address, kind):
  with pytest.raises(UserError) as caught:
    check(address, kind)
  return str(caught.value)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
  'address',
  [
    'jsonl:a.jsonl', 'jsonl:*.jsonl', 'trec:trec', 'trec:trec?run=bm25.run', 'tfds:done',
    'trec:trec?qrels=qrels.dev.txt&only=qrels.txt,qrels.dev.txt', 'python_docs:',
  ],
)  # fmt: skip
def test_what_is_there_is_accepted_for_every_kind(here, address, kind):
  check(address, kind)


@pytest.mark.parametrize(
  ('address', 'kind', 'says'),
  [
    ('jsonl:none.jsonl', 'test', 'none.jsonl: does not exist'),
    ('parquet:none.parquet', 'test', 'none.parquet: does not exist'),
    ('jsonl:none*.jsonl', 'clicks', 'none*.jsonl: matches no file'),
    ('jsonl:trec', 'test', 'trec: is a folder'),
    ('jsonl:empty-*.jsonl', 'test', 'empty-1.jsonl: is empty'),
    ('parquet:empty.parquet', 'test', 'empty.parquet: is empty'),
    ('trec:nowhere', 'judgements', 'nowhere: is not a folder'),
    ('trec:nowhere.run', sources.SCORES, 'nowhere.run: does not exist'),
    ('trec:empty.run', sources.SCORES, 'empty.run: is empty'),
    ('trec:trec', 'clicks', 'trec/clicks.jsonl: does not exist'),
    ('trec:trec?docs=none', DOCUMENTS, 'trec/none: does not exist'),
    ('trec:trec?qrels=none', 'judgements', 'trec/none: does not exist'),
    ('trec:trec?run=none', 'candidates', 'trec/none: does not exist'),
    ('trec:trec?run=none', sources.POOLED, 'trec/none: does not exist'),
    ('trec:trec?run=bm25', sources.SCORES, 'trec/bm25: does not exist'),
    ('trec:trec?exclude=qrels.txt,none', 'test', 'trec/none: does not exist'),
    ('tfds:nowhere', 'test', 'tfds:nowhere: cannot be opened'),
    ('bright:nowhere?task=biology', 'test', 'nowhere: is not a folder'),
  ],
)
def test_what_is_missing_is_said_as_reading_says_it(here, address, kind, says):
  assert refused(address, kind).startswith(says)


def test_bm25_that_is_computed_needs_no_file(here):
  (here / 'trec' / 'bm25.run.gz').unlink()
  for kind in KINDS[:-1]:
    check('trec:trec?run=bm25', kind)
  with pytest.raises(UserError, match='trec/bm25: does not exist'):
    sources.read('trec:trec?run=bm25', sources.SCORES)


def test_what_a_kind_is_not_read_with_may_be_missing(here):
  for address in ('trec:trec?run=none', 'trec:trec?exclude=none', 'trec:trec?qrels=none'):
    check(address, DOCUMENTS)
  check('trec:trec?exclude=none', sources.SCORES)


@pytest.mark.parametrize('option', ['only', 'exclude'])
def test_clicks_need_the_queries_that_they_are_chosen_by(here, option, monkeypatch):
  (here / 'trec' / 'clicks.jsonl').write_bytes(jsonl(ROW))
  (here / 'trec' / 'queries.tsv').rename(here / 'queries.tsv')
  check('trec:trec', 'clicks')
  says = 'trec/queries.tsv: does not exist'
  assert refused(f'trec:trec?{option}=qrels.txt', 'clicks').startswith(says)
  monkeypatch.undo()  # rows are read now
  with pytest.raises(UserError, match=says):
    list(sources.read(f'trec:{here}/trec?{option}=qrels.txt', 'clicks'))


@pytest.mark.parametrize('system', ['dgr', 'query_rewriting'])
def test_documents_are_looked_for_at_the_key_that_they_are_read_from(here, system):
  config = configs.defaults(system)
  config.data.update(dict.fromkeys(('clicks', 'judgements', 'candidates', 'test'), 'jsonl:a.jsonl'))
  own = {'dgr': 'candidates', 'query_rewriting': 'test'}[system]
  config.data[own] = 'jsonl:none.jsonl'
  stages = [s for s in systems.listed(config) if s.name != 'prepare']  # which reads more
  with pytest.raises(UserError, match=rf"^config\.data\.{own}='jsonl:none.jsonl': none"):
    inputs.check(config, stages)
  config.data.documents = 'jsonl:a.jsonl'
  inputs.check(config, stages)
  config.data.documents = 'jsonl:lost.jsonl'
  with pytest.raises(UserError, match=r"^config\.data\.documents='jsonl:lost.jsonl'"):
    inputs.check(config, stages)


def test_scores_of_teachers_are_looked_for_where_they_are_joined(here):
  config = configs.defaults()
  config.data.update(test='jsonl:a.jsonl', judgements='jsonl:a.jsonl', teachers=('trec:none.run',))
  config.stages = ('prepare', 'evaluate')
  inputs.check(config, systems.listed(config))
  config.stages = ('prepare', 'student_sft', 'evaluate')
  with pytest.raises(UserError, match=r"^config\.data\.teachers='trec:none.run'"):
    inputs.check(config, systems.listed(config))


@pytest.mark.parametrize(
  ('system', 'own', 'left'),
  [
    ('query_rewriting', {'judgements', 'test', 'documents'}, {'clicks'}),
    ('dgr', {'documents', 'clicks'}, {'judgements', 'test'}),
    ('disranker', {'test'}, {'clicks', 'judgements', 'candidates'}),
    ('disranker', {'clicks', 'judgements', 'candidates', 'test'}, set()),
    ('disranker', set(), {'clicks', 'judgements', 'candidates', 'test'}),
  ],
)
def test_addresses_left_at_pythons_documentation_beside_others_are_named(
  here, capsys, system, own, left
):
  config = configs.defaults(system)
  config.data.update(dict.fromkeys(own, 'jsonl:a.jsonl'))
  inputs.check(config, systems.listed(config))
  said, _, other = capsys.readouterr().err.partition("Python's documentation, and ")
  if own and left:
    assert set(re.findall(r"config\.data\.(\w+)='python_docs:'", said)) == left
    assert set(re.findall(r"config\.data\.(\w+)='jsonl:a.jsonl'", other)) == own
  else:
    assert not said


def test_an_empty_part_beside_others_is_skipped_as_in_reading(here):
  check('jsonl:*.jsonl', 'test')


def test_candidates_need_no_judgements_and_judgements_no_run(here):
  (here / 'trec' / 'bm25.run.gz').unlink()
  check('trec:trec', 'judgements')
  assert 'bm25.run: does not exist' in refused('trec:trec', 'candidates')
  assert 'bm25.run: does not exist' in refused('trec:trec?pool=run', 'judgements')
  (here / 'trec' / 'qrels.txt').unlink()
  check('trec:trec?run=bm25', 'candidates')


def test_clicks_made_of_judgements_need_no_run_where_these_get_negatives(here):
  (here / 'trec' / 'bm25.run.gz').unlink()
  config = configs.defaults()
  config.data.update(clicks='judgements:', judgements='trec:trec', candidates='', test='')
  config.data.negatives.count = 2
  config.stages = ('prepare', 'cpt')
  inputs.check(config, [systems.find(config, 'prepare')])
  config.stages = ('prepare', 'sft')
  with pytest.raises(UserError, match=r"^config.data.judgements='trec:trec': .*bm25.run: does not"):
    inputs.check(config, [systems.find(config, 'prepare')])


@pytest.mark.parametrize(
  'data',
  [{}, {'clicks': 'judgements:'}, {'judgements': 'teachers:', 'teachers': ('trec:a.run',)}],
)
@pytest.mark.parametrize('count', [0, 2])
def test_files_are_looked_for_as_they_are_read(here, data, count):
  config = configs.defaults()
  config.data.update(data)
  config.data.negatives.count = 0 if 'teachers' in data else count
  run = Run(config, here, None)
  jobs = [prepare.job_of(run, kind) for kind in prepare.kinds(config)]
  found = [address[1:] for address in prepare.addresses(config) if address[1] != sources.SCORES]
  assert found == [(job.read_as or job.kind, job.address) for job in jobs]
