"""Bad rows, files and model folders: one clear line, and nothing half-written is left."""

import dataclasses
import os
import shutil

import helpers
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from disranker_jax import losses
from disranker_jax.config import defaults
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import Stopped, UserError
from disranker_jax.models import weights
from disranker_jax.pipeline import runner, systems, unfinished
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import sft

JUDGEMENTS = helpers.own_rows('judgements')


class TestBadInput:
  """Each is one line for the person, and leaves nothing behind."""

  def config(self, tmp_path, rows, **changes):
    file = helpers.write_jsonl(tmp_path / 'rows.jsonl', rows)
    address = f'jsonl:{file}'
    return helpers.config(
      stages=('prepare', 'student_sft'), data__judgements=address, **changes
    ), str(file)

  @pytest.mark.parametrize(
    'row, place',
    [
      ('{"query_id": "q", ', '2:row'),
      ('[1, 2]', '2:row'),
      ({k: v for k, v in JUDGEMENTS[1].items() if k != 'summary'}, '2:summary'),
      ({k: v for k, v in JUDGEMENTS[1].items() if k != 'label'}, '2:label'),
      (JUDGEMENTS[1] | {'query': ' '}, '2:query'),
      (JUDGEMENTS[1] | {'query': ''}, '2:query'),
      (JUDGEMENTS[1] | {'label': -1}, '2:label'),
      (JUDGEMENTS[1] | {'label': 1.5}, '2:label'),
      (JUDGEMENTS[1] | {'label': '2'}, '2:label'),
      (JUDGEMENTS[1] | {'label': True}, '2:label'),
    ],
  )
  def test_a_bad_row_is_named_by_file_line_and_field(self, tmp_path, row, place):
    config, file = self.config(tmp_path, [JUDGEMENTS[0], row, *JUDGEMENTS[2:]])
    assert helpers.refused(config, tmp_path / 'run').startswith(f'{file}:{place}: ')
    assert not (tmp_path / 'run').exists()

  @pytest.mark.parametrize('stage', ['sft', 'student_sft'])
  @pytest.mark.parametrize(
    'rows',
    [
      [row | {'label': 1} for row in JUDGEMENTS],
      [row for row in JUDGEMENTS if row['doc_id'] == 'd0'],
    ],
    ids=['all labels equal', 'one document per query'],
  )
  def test_labels_without_a_pair_to_learn_from_are_an_error_before_training(
    self, tmp_path, stage, rows
  ):
    config, _ = self.config(tmp_path, rows)
    with config.unlocked():
      config.stages = ('prepare', stage)
    message = helpers.refused(config, tmp_path / 'run')
    assert message.startswith(f'config.{stage}.loss: 0 usable pairs: none of the 6 queries')
    assert not (tmp_path / 'run' / stage).exists()

  def test_labels_are_looked_at_before_the_first_model_is_trained(self, tmp_path):
    config, _ = self.config(tmp_path, [row | {'label': 1} for row in JUDGEMENTS])
    with config.unlocked():
      config.stages = ('prepare', 'cpt', 'student_sft')
    message = helpers.refused(config, tmp_path / 'run')
    assert message.startswith('config.student_sft.loss: 0 usable pairs')
    assert not (tmp_path / 'run' / 'cpt').exists()

  def test_losses_on_single_documents_may_learn_from_labels_without_pairs(self, caplog):
    docs = [Document(f'd{i}', 't', '', label=1) for i in range(3)]
    judged = [Group('q', 'text', tuple(docs)), Group('q2', 'text', tuple(docs[:1]))]
    for name, loss in losses.ON_LABELS.items():
      caplog.clear()
      try:
        sft.check_labels(judged, loss.per_group, 'sft.loss')
      except UserError as error:
        assert 'at most 3 labelled documents per query' in str(error)
        assert name != 'pointwise_ce'
      else:
        assert '0 usable pairs: none of the 2 queries' in caplog.text
        assert name not in ('pairwise_hinge', 'ranknet', 'lambda_loss', 'approx_ndcg', 'info_nce')

  def test_one_query_with_a_pair_is_enough(self):
    graded = Document('d', 't', '', label=2)
    groups = [[graded], [graded, dataclasses.replace(graded, label=0)]]
    judged = [Group(str(i), 'text', tuple(docs)) for i, docs in enumerate(groups)]
    sft.check_labels(judged, losses.pairwise_hinge.per_group, 'sft.loss')

  def test_a_missing_file_is_named(self, tmp_path):
    config = helpers.config(data__clicks=f'jsonl:{tmp_path}/clicks.jsonl')
    assert f'{tmp_path}/clicks.jsonl' in helpers.refused(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()

  @pytest.mark.parametrize(
    'key',
    [
      'data.clicks', 'data.judgements', 'data.candidates', 'data.test', 'data.documents',
      'generate.examples', 'evaluate.runs.production',
    ],
  )  # fmt: skip
  def test_a_misspelt_file_of_any_key_is_named_before_anything_is_prepared(self, tmp_path, key):
    changes = helpers.own_data(tmp_path) | {'data__documents': f'jsonl:{tmp_path}/test.jsonl'}
    config = helpers.config(**changes)
    with config.unlocked():
      config.stages = ('prepare', 'cpt', 'generate', 'score', 'evaluate')
      config.evaluate.models = ('bm25',)
      config.evaluate.runs.production = f'trec:{tmp_path}/test.jsonl'
      config.generate.examples = changes['data__clicks']
      address = f'jsonl:{tmp_path}/none.jsonl'
      if key.endswith('production'):
        config.evaluate.runs.production = address
      else:
        config.update_from_flattened_dict({key: address})
    message = helpers.refused(config, tmp_path / 'run')
    assert message.startswith(f'config.{key}={address!r}: {tmp_path}/none.jsonl: does not exist')
    assert not (tmp_path / 'run').exists()

  def test_after_a_row_is_mended_the_same_command_goes_on(self, tmp_path):
    config, _ = self.config(tmp_path, [JUDGEMENTS[0] | {'label': -1}, *JUDGEMENTS[1:]])
    helpers.refused(config, tmp_path / 'run')
    config, _ = self.config(tmp_path, JUDGEMENTS)
    runner.run(config, tmp_path / 'run', stages=['prepare'])
    assert helpers.load(tmp_path / 'run' / 'data' / 'manifest.json')['status'] == 'done'

  def test_what_was_prepared_before_a_bad_row_is_not_prepared_again(self, tmp_path, capsys):
    files = helpers.own_data(tmp_path)
    bad = helpers.write_jsonl(tmp_path / 'bad.jsonl', [JUDGEMENTS[0] | {'label': -1}])
    config = helpers.config(**files | {'data__judgements': f'jsonl:{bad}'})
    assert f'{bad}:1:label' in helpers.refused(config, tmp_path / 'run')
    clicks = tmp_path / 'run' / 'data' / 'clicks'
    before = {file: file.stat().st_mtime_ns for file in clicks.iterdir()}
    assert before
    helpers.write_jsonl(bad, JUDGEMENTS)
    runner.run(config, tmp_path / 'run', stages=['prepare'])
    assert 'prepare clicks: done before' in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in clicks.iterdir()} == before
    # Another source for the clicks is seen.
    changed = helpers.config(**files | {'data__clicks': 'python_docs:', 'data__limit__clicks': 3})
    shutil.rmtree(tmp_path / 'run' / 'data' / 'test')
    (tmp_path / 'run' / 'data' / 'manifest.json').unlink()
    runner.run(changed, tmp_path / 'run', stages=['prepare'])
    found = helpers.load(tmp_path / 'run' / 'data' / 'manifest.json')['results']
    assert found['clicks']['rows'] == 3

  def test_quarantined_rows_are_counted_and_the_rest_is_used(self, tmp_path):
    rows = [JUDGEMENTS[0] | {'label': -1}, *JUDGEMENTS[1:]]
    config, _ = self.config(tmp_path, rows, data__on_bad_row='quarantine')
    runner.run(config, tmp_path / 'run', stages=['prepare'])
    results = helpers.load(tmp_path / 'run' / 'data' / 'manifest.json')['results']
    assert results['judgements']['quarantined'] == 1
    [aside] = (tmp_path / 'run' / 'data' / 'judgements.quarantine.jsonl').read_text().splitlines()
    assert helpers.json.loads(aside)['line'] == 1

  def test_a_changed_source_file_makes_a_run_stale(self, tmp_path):
    config, _ = self.config(tmp_path, JUDGEMENTS)
    runner.run(config, tmp_path / 'run', stages=['prepare'])
    helpers.write_jsonl(tmp_path / 'rows.jsonl', JUDGEMENTS[:-1])
    before = helpers.snapshot(tmp_path / 'run')
    message = helpers.refused(config, tmp_path / 'run')
    assert 'data.judgements' in message and '--rerun=prepare' in message
    assert helpers.snapshot(tmp_path / 'run') == before

  def test_copies_of_the_sources_and_models_do_not_make_a_run_stale(self, tmp_path, capsys):
    config, file = self.config(tmp_path, JUDGEMENTS, student__model=str(tmp_path / 'model'))
    shutil.copytree(weights.find('tiny-encoder'), tmp_path / 'model')
    runner.run(config, tmp_path / 'run')
    for copied in (file, *(tmp_path / 'model').iterdir()):
      os.utime(copied, (1, 1))
    (tmp_path / 'model' / 'README.md').write_text('A note.')
    capsys.readouterr()
    runner.run(config, tmp_path / 'run')
    assert 'all is done' in capsys.readouterr().err
    runner.run(config, tmp_path / 'other', reuse=[tmp_path / 'run'])
    assert capsys.readouterr().err.count('taken from there') == 2

  def test_another_version_of_a_named_model_makes_a_run_stale(self, tmp_path, capsys, monkeypatch):
    config, _ = self.config(tmp_path, JUDGEMENTS)
    version = {'tiny-encoder': ''}  # not on this machine yet
    monkeypatch.setattr(weights, 'version', lambda name: version.get(name, ''))
    runner.run(config, tmp_path / 'before')
    version['tiny-encoder'] = 'tiny@1'
    runner.run(config, tmp_path / 'run')
    for folder, found in (('before', 'tiny@2'), ('run', 'tiny@1'), ('run', '')):
      version['tiny-encoder'] = found
      capsys.readouterr()
      runner.run(config, tmp_path / folder)
      assert 'all is done' in capsys.readouterr().err
    version['tiny-encoder'] = 'tiny@2'
    message = helpers.refused(config, tmp_path / 'run')
    assert 'its input student.model version has changed' in message and '--rerun=' in message
    # Another run takes what is of the same version, and of one that is not known.
    for donor, taken in (('run', 1), ('before', 2)):
      capsys.readouterr()
      runner.run(config, tmp_path / f'from-{donor}', reuse=[tmp_path / donor])
      said = capsys.readouterr().err
      assert said.count('taken from there') == taken
      unknown = 'warning: student_sft: which version of student.model it was made with is known of'
      assert (unknown in said) == (donor == 'before')
      kept = f'student_sft: {tmp_path}/run/student_sft has the same settings and is not taken: '
      assert (f'{kept}its input student.model version has changed\n' in said) == (donor == 'run')

  def test_a_changed_model_folder_is_why_a_stage_is_not_taken(self, tmp_path, capsys):
    model = shutil.copytree(weights.find('tiny-encoder'), tmp_path / 'model')
    config, _ = self.config(tmp_path, JUDGEMENTS, student__model=str(model))
    runner.run(config, tmp_path / 'run')
    file = next(model.glob('*.safetensors'))
    save_file({name: 0.9 * value for name, value in load_file(file).items()}, file)
    capsys.readouterr()
    runner.run(config, tmp_path / 'other', reuse=[tmp_path / 'run'])
    before, _, after = capsys.readouterr().err.partition('prepare: the same as in')
    assert before.count(' has the same settings and is not taken: ') == 1
    assert 'student_sft has the same settings and is not taken: its input student.model' in before
    assert f'student: {model}, all' in before and 'student_sft (2/2): starts' in after
    runner.run(config, tmp_path / 'third', reuse=[tmp_path / 'run', tmp_path / 'other'])
    assert 'is not taken' not in capsys.readouterr().err

  @pytest.mark.parametrize('how', ['lost', 'reshaped'])
  def test_a_model_folder_with_a_wrong_tensor_names_it(self, tmp_path, how):
    folder = shutil.copytree(weights.find('tiny-encoder'), tmp_path / 'model')
    tensors = load_file(folder / 'model.safetensors')
    name = 'bert.encoder.layer.1.output.dense.weight'
    if how == 'lost':
      del tensors[name]
    else:
      tensors[name] = np.ascontiguousarray(tensors[name].T)
    save_file(tensors, folder / 'model.safetensors')
    config, _ = self.config(tmp_path, JUDGEMENTS, student__model=str(folder))
    message = helpers.refused(config, tmp_path / 'run')
    assert str(folder) in message and name in message
    assert not (tmp_path / 'run').exists()

  def test_a_workdir_that_is_a_file_is_left_alone(self, tmp_path):
    (tmp_path / 'run').write_text('mine')
    assert f'{tmp_path / "run"}: is a file' in helpers.refused(helpers.config(), tmp_path / 'run')
    assert (tmp_path / 'run').read_text() == 'mine'


@pytest.mark.parametrize(
  ('name', 'written', 'folder_stays', 'manifest_stays'),
  [
    ('prepare', [], False, False),
    ('prepare', ['test.quarantine.jsonl'], False, False),
    ('prepare', ['test/prepared.json'], True, False),
    ('prepare', ['.test.partial/journal.json'], True, False),
    ('cpt', ['samples.md'], False, False),
    ('cpt', ['metrics.jsonl', 'checkpoints/7/params'], True, True),
    ('cpt', ['metrics.jsonl', 'checkpoints/.part'], True, True),  # its logs may tell why
    ('distill', ['trials/0.5/metrics.jsonl', 'trials/0.5/checkpoints/.part'], True, True),
    ('distill', ['trials/0.5/checkpoints/.part'], False, False),  # before the first step
    ('distill', ['trials/0.5/checkpoints/7/params'], True, True),
    ('score', ['quantise_gate.json'], True, False),
    ('evaluate', [], False, False),
    ('evaluate', ['bm25.json'], True, False),
    ('export', ['student/config.json'], False, False),  # made again, with other settings too
    ('report', ['summary.json'], False, False),
  ],
)
def test_what_a_stage_leaves_where_its_input_is_bad(
  tmp_path, name, written, folder_stays, manifest_stays
):
  """Work to continue from stays, and no manifest by which other settings would be stale."""
  run = Run(defaults(), tmp_path / 'run', None)
  folder = run.folder(name)
  for file in ('manifest.json', '../config.json', *written):
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text('{}')
  unfinished.remove_if_empty(run, systems.find(run.config, name))
  assert folder.exists() == folder_stays and run.workdir.exists() == folder_stays
  assert (folder / 'manifest.json').exists() == manifest_stays
  assert all((folder / file).exists() == folder_stays for file in written)


@pytest.mark.parametrize('name', ['score', 'retrieve'])
def test_what_is_kept_and_cannot_be_read_hides_no_other_error(tmp_path, name):
  """What a stage keeps is counted by prepared records, which may be what is wrong."""
  run = Run(defaults(system='dgr'), tmp_path / 'run', None)
  stage = systems.find(run.config, name)
  with pytest.raises(UserError) as unreadable:
    stage.kept(run)

  def refused(run):
    (run.folder(name) / 'shards').mkdir()
    raise UserError('the first error')

  def asked_to_stop(run):
    raise Stopped('')

  pipeline = runner.Pipeline(run)
  with pytest.raises(UserError, match=r'^the first error$'):
    pipeline.run_stage(dataclasses.replace(stage, execute=refused))
  assert (run.folder(name) / 'shards').exists()
  with pytest.raises(Stopped, match=rf'^{name}: stopped; ') as stopped:
    pipeline.run_stage(dataclasses.replace(stage, execute=asked_to_stop))
  assert str(unreadable.value) in str(stopped.value)
