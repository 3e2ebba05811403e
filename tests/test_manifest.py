"""A stage's manifest: what it was asked, whether that has changed, and how long it took."""

import dataclasses
import json
import os
import shutil
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disranker_jax import config as configs
from disranker_jax.commands.rerank_run import Job
from disranker_jax.config.settings import flatten
from disranker_jax.errors import UserError
from disranker_jax.pipeline import inputs, manifest, systems
from disranker_jax.pipeline.manifest import Manifest
from disranker_jax.pipeline.stage import Stage

scalars = st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=5)
values = st.recursive(
  scalars,
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
  max_leaves=8,
)


def turned(value):
  """The same value with the keys of every object in another order."""
  if isinstance(value, dict):
    return {k: turned(v) for k, v in reversed(value.items())}
  return [turned(v) for v in value] if isinstance(value, list) else value


class TestDigest:
  @settings(max_examples=60, deadline=None)
  @given(value=values)
  def test_it_does_not_depend_on_the_order_of_keys(self, value):
    assert manifest.digest(turned(value)) == manifest.digest(value)
    assert manifest.digest(json.loads(json.dumps(value))) == manifest.digest(value)

  def test_different_values_have_different_names(self):
    different = [{}, [], None, 0, False, '', '0', [1, 2], [2, 1], {'a': 1}, {'a': 2}, {'b': 1}]
    assert len({manifest.digest(value) for value in different}) == len(different)

  def test_it_is_a_short_name_for_files_and_tables(self):
    assert manifest.digest({'a': 1}).isalnum() and len(manifest.digest({'a': 1})) == 16


class TestModelFiles:
  """What a stage's fingerprint of a local model is made from."""

  def test_a_file_of_llama_cpp_is_the_model(self, tmp_path):
    file = tmp_path / 'model.gguf'
    assert inputs.of_model('teacher.model', str(file)) == {}
    file.write_bytes(b'weights')
    before = inputs.of_model('teacher.model', str(file))
    assert before == {'teacher.model': manifest.files([file])}
    file.write_bytes(b'others')
    assert inputs.of_model('teacher.model', str(file)) not in ({}, before)

  def test_the_head_of_a_folder_is_a_part_of_it(self, tmp_path):
    head = tmp_path / '2_Dense' / 'model.safetensors'
    head.parent.mkdir()
    (tmp_path / 'config.json').write_text('{}')
    without = manifest.files(inputs.model_files(tmp_path))
    head.write_bytes(b'head')
    first = manifest.files(inputs.model_files(tmp_path))
    head.write_bytes(b'another')
    assert len({without, first, manifest.files(inputs.model_files(tmp_path))}) == 3

  def test_what_is_not_read_does_not_count(self, tmp_path):
    read = ('config.json', 'model.safetensors', 'tokenizer.json', 'vocab.txt', 'modules.json')
    for name in read:
      (tmp_path / name).write_text('{}')
    before = inputs.of_model('student.model', str(tmp_path))
    for name in (
      'README.md',
      'notes.json',
      '.DS_Store',
      'pytorch_model.bin',
      'model-1.safetensors',
    ):
      (tmp_path / name).write_text('more')
      assert inputs.of_model('student.model', str(tmp_path)) == before, name
    for name in read:
      (tmp_path / name).write_text('{ }')
      after = inputs.of_model('student.model', str(tmp_path))
      assert after != before, name
      before = after

  def test_all_parts_of_the_weights_count(self, tmp_path):
    parts = ('model-1-of-2.safetensors', 'model-2-of-2.safetensors')
    index = {'weight_map': dict(zip('ab', parts, strict=True))}
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    found = set()
    for name in parts:
      (tmp_path / name).write_bytes(b'weights')
      found.add(inputs.of_model('student.model', str(tmp_path))['student.model'])
    assert len(found) == 2

  def test_what_onnx_runtime_reads_counts_for_rankers_alone(self, tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    (tmp_path / 'onnx').mkdir()
    found = [inputs.model_files(tmp_path, onnx=True)]
    for name in ('model.onnx', 'model_int8.onnx', 'model.onnx_data'):
      (tmp_path / 'onnx' / name).write_text('{}')
      found.append(inputs.model_files(tmp_path, onnx=True))
      assert inputs.model_files(tmp_path) == found[0]
    assert len({manifest.files(paths) for paths in found}) == 4
    for name in ('README.md', 'onnx/README.md'):
      (tmp_path / name).write_text('A note.')
    assert inputs.model_files(tmp_path, onnx=True) == found[-1]

  @pytest.mark.parametrize(
    ('name', 'again'), [('README.md', False), ('vocab.txt', True), ('onnx/model.onnx', True)]
  )
  def test_unfinished_work_of_rerank_follows_what_is_read(self, tmp_path, name, again):
    model, run, docs = tmp_path / 'model', tmp_path / 'first.run', tmp_path / 'docs.jsonl'
    (model / 'onnx').mkdir(parents=True)
    for file in (run, docs, model / 'config.json'):
      file.write_text('{}')
    job = Job(model, run, f'jsonl:{docs}', tmp_path / 'out.run', 0, 'error', 'auto', False)
    before = job.digest()
    (model / name).write_text('others')
    assert (job.digest() != before) == again

  def test_a_version_that_one_side_does_not_know_is_not_compared(self):
    key = 'teacher.model version'
    known, other = {key: 'a@1'}, {key: 'a@2'}
    for before, now, is_same in (
      ({}, known, True), (known, {}, True), (known, known, True), (known, other, False),
    ):  # fmt: skip
      assert (inputs.as_before(before, now) == before) == is_same, (before, now)
      changes = inputs.changes({'config': {}, 'inputs': before}, {}, now)
      assert changes == ([] if is_same else [f'its input {key} has changed'])


class TestAsked:
  def test_whole_sections_and_single_keys_are_taken(self):
    config = configs.defaults()
    found = manifest.settings_of(config, ('seed', 'sft', 'data.depth'))
    flat = configs.flatten(config)
    assert {'seed', 'sft.epochs', 'sft.margin', 'data.depth'} <= found.keys()
    assert all(k in ('seed', 'data.depth') or k.startswith('sft.') for k in found)
    assert all(found[k] == flat[k] for k in found)

  def test_deeper_keys_of_a_section_are_taken(self):
    assert 'data.limit.clicks' in manifest.settings_of(configs.defaults(), ('data',))

  def test_settings_without_effect_on_the_result_are_left_out(self):
    sections = ('seed', 'cpt', 'teacher')
    config = configs.defaults()
    before = manifest.settings_of(config, sections)
    config.cpt.save_every, config.teacher.remat = 7, 'none'
    assert manifest.settings_of(config, sections) == before
    config.cpt.epochs = 3.0
    assert manifest.settings_of(config, sections) != before

  def test_it_is_the_same_after_it_was_written_and_read(self):
    found = manifest.settings_of(configs.defaults(), ('student', 'distill', 'evaluate'))
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize('system', systems.every())
def test_keys_that_a_stage_depends_on_are_keys_of_its_system(system):
  """Nothing would notice another one: no change of it would make the stage stale."""
  known = flatten(configs.sections(system))
  for stage in systems.get(system).stages:
    keys = stage.keys(configs.defaults(system)) if stage.keys else ()
    assert set(keys) <= known.keys(), stage.name


def test_a_training_stage_depends_on_what_is_held_out_whatever_keys_it_names():
  c = configs.defaults()
  plain = Stage('a', '', dict, role='r')
  named = dataclasses.replace(plain, keys=lambda config: ('r.model',))
  assert plain.sections(c) == ('seed', 'r', 'a') and named.sections(c) == ('r.model', 'a')
  plain, named = (dataclasses.replace(stage, task=dict) for stage in (plain, named))
  assert plain.sections(c) == ('seed', 'r', 'validation', 'a')
  assert named.sections(c) == ('r.model', 'validation', 'a')


BEFORE = {'config': {'sft.epochs': 1.0, 'seed': 0}, 'inputs': {'cpt': 'aaa', 'prepare': 'bbb'}}


class TestChanges:
  def changes(self, config=(), inputs=()):
    wanted = BEFORE['config'] | dict(config)
    return manifest.changes(BEFORE, wanted, BEFORE['inputs'] | dict(inputs))

  def test_nothing_changed(self):
    assert self.changes() == []

  def test_a_setting_is_named_with_both_values(self):
    [line] = self.changes({'sft.epochs': 2.0})
    assert 'config.sft.epochs' in line and '1.0' in line and '2.0' in line

  def test_an_input_is_named(self):
    [line] = self.changes(inputs={'cpt': 'ccc'})
    assert 'cpt' in line and 'prepare' not in line

  def test_every_change_is_told(self):
    lines = self.changes({'sft.epochs': 2.0, 'seed': 1}, {'cpt': 'ccc', 'prepare': 'ddd'})
    assert len(lines) == 4

  def test_an_input_that_is_not_known_yet_is_no_change(self):
    assert self.changes(inputs={'cpt': None}) == []

  def test_settings_that_came_or_went_are_changes(self):
    [line] = self.changes({'sft.new': 1})
    assert 'config.sft.new' in line
    [line] = manifest.changes(BEFORE, {'seed': 0}, BEFORE['inputs'])
    assert 'config.sft.epochs' in line

  def test_inputs_that_came_or_went_are_changes(self):
    [line] = self.changes(inputs={'sft': 'eee'})
    assert 'sft' in line
    [line] = manifest.changes(BEFORE, BEFORE['config'], {'cpt': 'aaa'})
    assert 'prepare' in line


class TestFiles:
  def test_what_is_written_is_read(self, tmp_path):
    value = {'status': 'done', 'results': {'a': [1, 2.5, None, 'ü']}}
    manifest.write_json(tmp_path / 'manifest.json', value)
    assert manifest.read(tmp_path) == value
    assert [p.name for p in tmp_path.iterdir()] == ['manifest.json']

  def test_a_stage_that_has_not_begun_has_none(self, tmp_path):
    assert manifest.read(tmp_path) is None and manifest.read(tmp_path / 'none') is None

  def test_killed_while_writing_the_old_file_is_whole(self, tmp_path, monkeypatch):
    file = tmp_path / 'manifest.json'
    manifest.write_json(file, {'step': 1})
    whole = file.read_bytes()

    def killed(source, target):
      assert file.read_bytes() == whole, 'the new values are written under another name'
      assert json.loads(source.read_text()) == {'step': 2}, 'and are complete when renamed'
      raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
      manifest.write_json(file, {'step': 2})
    assert file.read_bytes() == whole
    monkeypatch.undo()
    manifest.write_json(file, {'step': 3})
    assert manifest.read(tmp_path) == {'step': 3}

  def test_a_value_that_is_not_json_leaves_the_old_file(self, tmp_path):
    file = tmp_path / 'manifest.json'
    manifest.write_json(file, {'step': 1})
    with pytest.raises(TypeError):
      manifest.write_json(file, {'step': object()})
    assert manifest.read(tmp_path) == {'step': 1}

  @pytest.mark.parametrize('content', [b'', b'{"status": "ru', b'\xff\xfe\x00'])
  def test_a_manifest_that_cannot_be_read_is_told_with_its_file(self, tmp_path, content):
    (tmp_path / 'manifest.json').write_bytes(content)
    with pytest.raises(UserError, match=r'manifest\.json: is not JSON.*delete'):
      manifest.read(tmp_path)
    with pytest.raises(UserError):
      Manifest(tmp_path, 'sft', {}, {})


@pytest.fixture
def clock(monkeypatch):
  """A clock that the test moves: `clock[0] += 5`."""
  at = [100.0]
  monkeypatch.setattr(manifest.time, 'monotonic', lambda: at[0])
  return at


class TestManifest:
  def test_it_is_running_with_all_it_was_made_from_before_any_work(self, tmp_path):
    folder = tmp_path / 'run' / 'sft'
    Manifest(folder, 'sft', {'seed': 0}, {'cpt': 'aaa'})
    found = manifest.read(folder)
    assert (found['stage'], found['status']) == ('sft', 'running')
    assert (found['config'], found['inputs']) == ({'seed': 0}, {'cpt': 'aaa'})
    assert found['wall_s'] == 0 and 'fingerprint' not in found
    assert found['versions'].keys() == set(manifest.PACKAGES)
    assert 'unknown' not in found['versions'].values()

  def test_time_adds_up_over_stops(self, tmp_path, clock, monkeypatch):
    monkeypatch.setattr(manifest, 'now', lambda: f'at {clock[0]}')
    first = Manifest(tmp_path, 'sft', {}, {})
    clock[0] += 5
    first.stopped()
    clock[0] += 1000  # no process works on it
    again = Manifest(tmp_path, 'sft', {}, {})
    assert manifest.read(tmp_path)['wall_s'] == 5
    clock[0] += 7
    again.stopped()
    again.stopped()
    assert manifest.read(tmp_path)['wall_s'] == 12
    assert manifest.read(tmp_path)['status'] == 'running'
    last = Manifest(tmp_path, 'sft', {}, {})
    clock[0] += 2
    last.finished({'steps': 3})
    found = manifest.read(tmp_path)
    assert (found['wall_s'], found['status']) == (14, 'done')
    assert (found['started'], found['finished']) == ('at 100.0', f'at {clock[0]}')
    assert found['results'] == {'steps': 3}

  def test_the_time_of_a_start_that_is_killed_counts(self, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, 'TIMED_S', 0.01)
    folder = tmp_path / 'sft'
    with Manifest(folder, 'sft', {}, {}):
      end = time.monotonic() + 30
      while not (spent := manifest.read(folder)['wall_s']) and time.monotonic() < end:
        time.sleep(0.01)
      assert manifest.read(folder)['status'] == 'running'
      # As after SIGKILL, nothing more is written by the first start.
      shutil.copy(folder / manifest.FILE, tmp_path)
    assert Manifest(tmp_path, 'sft', {}, {}).value['wall_s'] >= spent > 0
    shutil.rmtree(folder)  # what a stage without results leaves is removed, and does not come back
    time.sleep(0.1)
    assert not folder.exists()

  def fingerprint(self, folder, wanted, inputs, results):
    Manifest(folder, 'prepare', wanted, inputs).finished(results)
    return manifest.read(folder)['fingerprint']

  def test_the_fingerprint_is_of_settings_inputs_and_data_not_of_when_and_how_long(
    self, tmp_path, clock
  ):
    made = {'seed': 0}, {'file': 'x'}, {'clicks': {'fingerprint': 'c1', 'rows': 3}, 'note': 'n'}
    first = self.fingerprint(tmp_path / 'a', *made)
    clock[0] += 60
    assert self.fingerprint(tmp_path / 'b', *made) == first
    others = [
      ({'seed': 1}, made[1], made[2]),
      (made[0], {'file': 'y'}, made[2]),
      (made[0], made[1], {'clicks': {'fingerprint': 'c2', 'rows': 3}}),
    ]
    found = {self.fingerprint(tmp_path / str(i), *other) for i, other in enumerate(others)}
    assert len(found | {first}) == 4
    slower = made[2] | {'note': 'other', 'seconds': 9}
    assert self.fingerprint(tmp_path / 'c', made[0], made[1], slower) == first
