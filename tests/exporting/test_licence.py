"""The model card's licence and base model are those that the model's folder states."""

import json
import pathlib

import huggingface_hub
import pytest

from disranker_jax.exporting import licence
from disranker_jax.exporting.licence import Origin
from disranker_jax.models import tiny, weights


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'my-bert'
  folder.mkdir()
  (folder / 'config.json').write_text('{}')
  return folder


def metadata(base, license='', folder=None):
  """The metadata as the hub reads it."""
  file = folder / 'card.md'
  file.write_text(licence.metadata(base, license) + '\n# model\n')
  return huggingface_hub.metadata_load(file)


def test_a_card_that_states_a_licence_is_believed(folder):
  (folder / 'README.md').write_text(
    '---\nlicense: other\nlicense_name: gemma\nlicense_link: https://x.org/l\ntags: [a]\n---\n# x\n'
  )
  origin = licence.of(str(folder), folder)
  assert (origin.name, origin.on_hub, origin.license) == ('my-bert', False, 'gemma')
  found = metadata(origin, folder=folder)
  assert {k: found[k] for k in licence.FIELDS} == {
    'license': 'other', 'license_name': 'gemma', 'license_link': 'https://x.org/l',
  }  # fmt: skip
  assert 'base_model' not in found and 'my-bert' not in found.values()


@pytest.mark.parametrize(
  'card', [None, '', '# no metadata: MIT licence', '---\ntags: [x]\n---\n', '---\n: : [\n---\n',
           '---\nlicense_name: x\n---\n']
)  # fmt: skip
def test_without_a_statement_the_licence_is_unknown_and_never_guessed(folder, card):
  if card is not None:
    (folder / 'README.md').write_text(card)
  origin = licence.of(str(folder), folder)
  assert origin.license == '' and metadata(origin, folder=folder)['license'] == 'unknown'
  assert licence.described(origin) == '- base model: `my-bert`, licence not stated\n'


def test_the_setting_replaces_what_the_folder_states(folder):
  (folder / 'README.md').write_text('---\nlicense: mit\n---\n')
  origin = licence.of(str(folder), folder)
  assert metadata(origin, 'cc-by-4.0', folder)['license'] == 'cc-by-4.0'
  assert '`cc-by-4.0`, by the setting' in licence.described(origin, (), 'cc-by-4.0')


def test_an_unpacked_wheel_records_licence_and_hub_id(folder):
  record = {'license': 'Apache-2.0', 'hub_id': 'sentence-transformers/all-MiniLM-L6-v2'}
  (folder / 'origin.json').write_text(json.dumps(record))
  found = metadata(licence.of('minilm-l6', folder), folder=folder)
  assert (found['license'], found['base_model']) == ('apache-2.0', record['hub_id'])


def test_a_hub_model_is_named_by_its_id(tmp_path):
  cache = tmp_path / 'snapshots' / 'a1b2'
  cache.mkdir(parents=True)
  assert licence.of('org/name', cache) == Origin('org/name', True, {})
  assert licence.of('minilm-l6', cache).fields == {'license': 'apache-2.0'}
  assert weights.hub_id('minilm-l6', cache) == weights.KNOWN['minilm-l6'].hub_id
  assert all(weights.hub_id(name, pathlib.Path(name)) == '' for name in tiny.CONFIGS)


def test_an_export_of_an_export_keeps_the_licence(folder):
  base = Origin('org/base', True, {'license': 'mit'})
  (folder / 'README.md').write_text(licence.metadata(base) + '\n# student\n')
  assert licence.of(str(folder), folder).license == 'mit'


def test_the_teacher_is_named_with_its_licence():
  text = licence.described(
    Origin('a/b', True, {'license': 'mit'}), [Origin('c/d', True, {'license': 'llama3'})]
  )
  assert '- teacher, whose scores or texts this model learned: `c/d`, licence `llama3`' in text
