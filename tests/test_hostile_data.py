"""Data of strangers: they never run code, and small files never take gigabytes."""

import json
import os
import pathlib
import pickle
import re

import pytest
import tensorstore

from disranker_jax import locks
from disranker_jax.data import lines, preparing, sources, store, tfds_rows
from disranker_jax.data.preparing import Job
from disranker_jax.data.records import Click
from disranker_jax.data.spool import Spool
from disranker_jax.errors import UserError
from disranker_jax.training import checkpoint

CLICK = Click('query', 'title', 'summary')


@pytest.fixture
def current(tmp_path, monkeypatch):
  """The current folder, from which `python -m` imports; a module in it says that it has run."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  return tmp_path


def planted(folder: pathlib.Path) -> None:
  """Prepared clicks with a module `evil` beside the shards."""
  store.write('clicks', [CLICK], folder)
  (folder / 'evil.py').write_text("open('PWNED', 'w').close()\n")


def name_class(folder: pathlib.Path, where: str) -> None:
  """Names the class F of the planted module in the metadata, in the way `where`."""
  name = '.'.join((*folder.parts, 'evil', 'F'))
  features, info = folder / 'features.json', folder / 'dataset_info.json'
  value = json.loads(features.read_text())
  text = value['featuresDict']['features']['query']
  if where == 'features':
    text['pythonClassName'] = name
  elif where == 'snake case':
    text['python_class_name'] = name
    del text['pythonClassName']
  elif where == 'legacy':
    value = {'type': name, 'content': {}}
  elif where == 'nested JSON':
    sequence = 'tensorflow_datasets.core.features.sequence_feature.Sequence'
    inner = json.dumps({'feature': {'type': name, 'content': {}}, 'length': None})
    value['featuresDict']['features']['query'] = {
      'pythonClassName': sequence, 'jsonFeature': {'json': inner},
    }  # fmt: skip
  else:
    features.unlink()
    text['pythonClassName'] = name
    info.write_text(json.dumps(json.loads(info.read_text()) | {'features': value}))
    return
  features.write_text(json.dumps(value))


@pytest.mark.parametrize('where', ['features', 'snake case', 'legacy', 'nested JSON', 'info'])
def test_a_class_that_a_dataset_names_is_not_imported(current, where):
  folder = pathlib.Path('downloaded/clicks')
  planted(folder)
  name_class(folder, where)
  with pytest.raises(UserError, match=r'downloaded/clicks/.*json: names the class .*evil\.F'):
    list(sources.read(f'tfds:{folder}', 'clicks'))
  assert not pathlib.Path('PWNED').exists()


def test_a_class_is_not_imported_for_a_name_either(current, monkeypatch):
  folder = pathlib.Path('datasets/mine/1.1.0')
  planted(folder)
  name_class(folder, 'features')
  monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', str(current / 'datasets'))
  with pytest.raises(UserError, match=r'mine/1\.1\.0/features\.json: names the class'):
    tfds_rows.read('mine', {})
  with pytest.raises(UserError, match='whose code TFDS would download and run'):
    tfds_rows.read('huggingface:squad', {})
  assert not pathlib.Path('PWNED').exists()


def test_a_workdirs_prepared_data_need_no_class(current):
  folder = pathlib.Path('runs/stranger/data/clicks')
  planted(folder)
  name_class(folder, 'features')
  assert list(store.open('clicks', folder)) == [CLICK]
  assert not pathlib.Path('PWNED').exists()


def test_shards_are_those_of_the_folder_only(tmp_path):
  store.write('clicks', [CLICK], tmp_path / 'private')
  store.write('clicks', [CLICK], tmp_path / 'c')
  file = tmp_path / 'c' / 'dataset_info.json'
  info = json.loads(file.read_text())
  info['splits'][0]['filepathTemplate'] = '../private/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  file.write_text(json.dumps(info))
  next((tmp_path / 'c').glob('*array_record*')).unlink()
  with pytest.raises(UserError, match='is missing'):
    store.open('clicks', tmp_path / 'c')


def test_a_link_in_prepared_data_is_copied_not_linked(tmp_path):
  store.write('clicks', [CLICK], tmp_path / 'c')
  secret = tmp_path / 'secret'
  secret.write_text('x')
  (tmp_path / 'c' / 'extra').symlink_to(secret)
  store.copy(tmp_path / 'c', tmp_path / 'd', {})
  assert secret.stat().st_nlink == 1 and not (tmp_path / 'd' / 'extra').is_symlink()


class Evil:
  """What a pickle can do."""

  def __reduce__(self):
    return os.system, ('touch PWNED',)


def unfinished(current, monkeypatch, name='run-000000000001.rows') -> tuple[Job, pathlib.Path]:
  """A job whose unfinished folder holds a pickle where sorted rows are expected."""
  row = {'query_id': 'q', 'query': 'q', 'doc_id': 'd', 'title': 't', 'summary': 's', 'label': 1}
  pathlib.Path('j.jsonl').write_text(json.dumps(row) + '\n')
  job = Job('jsonl:j.jsonl', 'judgements', pathlib.Path('out/j'), pathlib.Path('out/bad.jsonl'))
  run = job.partial / 'by_query' / name
  run.parent.mkdir(parents=True)
  run.write_bytes(pickle.dumps([('q', 0, pickle.dumps(Evil()))]))
  state = {
    'digest': job.digest(), 'rows': 1, 'read': True, 'wall_s': 0.0,
    'bad_rows': {'rows_in': 1, 'quarantined': 0, 'bytes': 0},
    'runs': {'count': 1, 'runs': [name]}, 'shards': {'lengths': [], 'bytes': 0},
  }  # fmt: skip
  (job.partial / 'journal.json').write_text(json.dumps(state))
  return job, run


def test_a_pickle_in_unfinished_work_is_not_loaded(current, monkeypatch):
  job, run = unfinished(current, monkeypatch)
  with pytest.raises(UserError, match=r'run-000000000001\.rows: is not a run of sorted rows'):
    preparing.prepare(job)
  run.write_bytes(pickle.dumps(Evil()))
  with pytest.raises(UserError, match='is not a run of sorted rows'):
    preparing.prepare(job)
  assert not pathlib.Path('PWNED').exists()


@pytest.mark.parametrize('name', ['../../elsewhere.rows', '/etc/hostname', '..'])
def test_a_journal_names_files_of_its_folder_only(current, monkeypatch, capsys, name):
  job, _ = unfinished(current, monkeypatch)
  journal = job.partial / 'journal.json'
  state = json.loads(journal.read_text())
  state['runs']['runs'] = [name]
  journal.write_text(json.dumps(state))
  assert preparing.prepare(job).records == 1
  assert 'is not a journal; starts again' in capsys.readouterr().err
  with pytest.raises(ValueError, match='is not a file of'):
    Spool(job.partial).rewind({'count': 1, 'runs': ['../x.rows']})


@pytest.mark.parametrize(('folder', 'lock'), [(0o755, 0o600), (0o775, 0o660), (0o777, 0o660)])
def test_only_those_who_may_write_to_a_workdir_can_lock_it(tmp_path, folder, lock):
  tmp_path.chmod(folder)
  (tmp_path / '.lock').touch(0o644)  # as somebody else made it
  with locks.locked(tmp_path):
    assert (tmp_path / '.lock').stat().st_mode & 0o777 == lock


@pytest.mark.parametrize('name', ['../../private', '/dev/zero', 'params/../../private'])
def test_checksums_are_of_files_in_the_checkpoint(tmp_path, name):
  (tmp_path / 'checksums.0.json').write_text(json.dumps({name: [1, 2]}))
  with pytest.raises(ValueError, match='which is not in the checkpoint'):
    checkpoint.check_sums(tmp_path)


def test_checkpoints_are_read_from_their_folder_only(tmp_path):
  """What keeps a stranger's OCDBT manifest inside: a property of the library that Orbax uses."""
  (tmp_path / 'checkpoint').mkdir()
  (tmp_path / 'private').write_bytes(b'secret')
  opened = tensorstore.KvStore.open({'driver': 'file', 'path': f'{tmp_path}/checkpoint/'}).result()
  for key in ('../private', 'x/../../private', str(tmp_path / 'private')):
    with pytest.raises(ValueError, match='Invalid key'):
      opened.read(key).result()


def test_nobody_is_told_to_install_a_name_that_anybody_may_take():
  """The package is in no index."""
  root = pathlib.Path(__file__).parents[1]
  files = [*root.glob('*.md'), *root.glob('docs/*'), *root.rglob('disranker_jax/**/*.py')]
  texts = {f: f.read_text(errors='ignore') for f in files if f.name != 'CHANGELOG.md'}
  assert len(texts) > 100
  assert not [f for f, text in texts.items() if re.search(r'install\W+disranker_jax', text)]


def test_nothing_in_the_package_reads_pickles():
  package = pathlib.Path(lines.__file__).parents[1]
  readers = r'\b(import (pickle|marshal|shelve|joblib|dill|cloudpickle)|torch\.load|allow_pickle)\b'
  found = {f.name: re.search(readers, f.read_text()) for f in package.rglob('*.py')}
  assert len(found) > 100
  assert not [name for name, match in found.items() if match]
