"""Errors of models and sizes come before the first stage, and name the key of the config."""

import json
import runpy
import shutil
import sys
import types
from pathlib import Path

import jax
import pytest

from disranker_jax import config as configs
from disranker_jax.devices import memory
from disranker_jax.errors import UserError
from disranker_jax.models import weights
from disranker_jax.pipeline import estimate, opening, runner, systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.training import logs

CONFIGS = Path(__file__).parents[1] / 'configs'


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('DISRANKER_CACHE', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture(autouse=True)
def no_stage_starts(monkeypatch):
  """Fails a test in which a stage begins."""

  def started(self, stage):
    raise AssertionError(f'{stage.name} has started')

  monkeypatch.setattr(runner.Pipeline, 'run_stage', started)


def tiny(**changes):
  c = runpy.run_path(str(CONFIGS / 'tiny.py'))['get_config']()
  c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return c


def refused(tmp_path, config=None, **changes) -> str:
  """The error of a run, which leaves nothing behind."""
  with pytest.raises(UserError) as caught:
    runner.run(config or tiny(**changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists() and '\n' not in str(caught.value)
  return str(caught.value)


def changed(tmp_path, name: str, **values) -> str:
  """A copy of a tiny model whose config.json has other values."""
  folder = shutil.copytree(weights.find(name), tmp_path / 'model')
  file = folder / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | values))
  return str(folder)


def test_a_misspelt_student_is_an_error_of_its_key(tmp_path):
  message = refused(tmp_path, student__model='tiny-encodr')
  assert message.startswith("config.student.model='tiny-encodr': weights 'tiny-encodr' not found")


def test_layers_that_the_student_does_not_have_are_an_error_that_says_which_it_has(tmp_path):
  message = refused(tmp_path, student__layers=(0, 2, 4))
  assert message.startswith('config.student.layers=[0, 2, 4]: ')
  assert 'has the layers 0 to 1' in message and '() for all' in message


def test_own_data_with_another_student_says_what_to_set(tmp_path):
  c = runpy.run_path(str(CONFIGS / 'own_data.py'))['get_config']()
  assert len(c.student.layers) == 6  # of the paper's student
  for kind in ('clicks', 'judgements', 'candidates', 'test'):
    c.data[kind] = 'python_docs:'
  c.mesh.update(data=-1, fsdp=1)
  c.teacher.update(model='tiny-decoder')
  c.student.update(model='tiny-encoder')
  message = refused(tmp_path, c)
  assert (
    message.startswith('config.student.layers=[0, 2, 4, 6, 8, 10]: ') and '() for all' in message
  )


@pytest.mark.parametrize(
  ('role', 'model', 'values', 'key', 'reason'),
  [
    ('teacher', 'tiny-decoder', {'model_type': 'mamba'}, 'model', "model_type 'mamba' is not supp"),
    ('student', 'tiny-encoder', {'hidden_act': 'tanh'}, 'model', "hidden_act 'tanh'"),
    ('student', 'tiny-encoder', {'hidden_size': 64}, 'model', 'tensors do not fit the model'),
    ('student', 'tiny-encoder', {'vocab_size': 300}, 'model', 'the tokenizer has'),
    ('student', 'tiny-encoder', {'max_position_embeddings': 40}, 'max_len', 'reads at most 40'),
    ('teacher', 'tiny-decoder', {'max_position_embeddings': 40}, 'max_len', 'reads at most 40'),
  ],
)
def test_what_a_folder_does_not_fit_is_an_error_of_its_key(
  tmp_path, role, model, values, key, reason
):
  message = refused(tmp_path, **{f'{role}__model': changed(tmp_path, model, **values)})
  assert message.startswith(f'config.{role}.{key}=') and reason in message


def test_weights_that_are_missing_are_noticed_without_reading_any(tmp_path):
  folder = shutil.copytree(weights.find('tiny-encoder'), tmp_path / 'model')
  (folder / 'model.safetensors').unlink()
  message = refused(tmp_path, student__model=str(folder))
  assert message.startswith('config.student.model=') and 'model.safetensors is missing' in message


@pytest.mark.parametrize(
  ('changes', 'beginning'),
  [
    ({'sft__trainable': 'lora/.*'}, "config.sft.trainable='lora/.*': matches no parameter"),
    ({'distill__data_shards': 3, 'distill__batch_rows': 12}, 'config.distill.data_shards=3'),
    ({'teacher__model': 'tiny-encoder'}, "config.teacher.model='tiny-encoder': head 'lm': a bert"),
    (
      {'teacher__model': 'tiny-encoder', 'stages': ('prepare', 'sft', 'evaluate')},
      "config.evaluate.models: 'zero_shot' ranks by the likelihood of the query",
    ),
    ({'distill__hidden_weight': 1.0}, 'config.distill.hidden_weight: the teacher must be an enc'),
    ({'export__vocabulary': 'no/such.jsonl'}, "config.export.vocabulary='no/such.jsonl': no such"),
  ],
)
def test_settings_that_do_not_fit_a_model_are_errors_of_their_key(
  tmp_path, changes, beginning, monkeypatch
):
  if 'distill__data_shards' in changes:  # one block in three parts fits one device only
    monkeypatch.setattr(opening.steps.sharding, 'parts', lambda mesh: 2)
  assert refused(tmp_path, **changes).startswith(beginning)


def test_models_of_stages_that_are_not_chosen_are_not_opened(tmp_path, monkeypatch):
  opened = []
  monkeypatch.setattr(opening, 'describe', lambda found: opened.extend(found))
  with pytest.raises(AssertionError, match='prepare has started'):
    runner.run(tiny(student__model='nowhere'), tmp_path / 'run', stages=['prepare', 'cpt', 'sft'])
  assert [(one.stage.name, one.use.label) for one in opened] == [
    ('cpt', 'teacher'), ('sft', 'teacher'),
  ]  # fmt: skip


def test_each_stage_and_row_that_uses_a_model_is_opened_as_it_will_be(tmp_path, monkeypatch):
  opened = []
  monkeypatch.setattr(opening, 'describe', lambda found: opened.extend(found))
  with pytest.raises(AssertionError, match='prepare has started'):
    runner.run(tiny(), tmp_path / 'run')
  found = {(one.stage.name, one.use.label): one for one in opened}
  trained = ['cpt', 'sft', 'student_sft', 'distill']
  assert {name for (name, _), one in found.items() if one.step.trained} == set(trained)
  rows = {label for name, label in found if name == 'evaluate'}
  assert rows == {'zero_shot', 'student_sft', 'teacher', 'student'}
  assert found['cpt', 'teacher'].model.network.head == 'lm'
  assert found['evaluate', 'zero_shot'].model.scorer == 'query_likelihood'


@pytest.mark.parametrize(
  ('stage', 'label', 'keys'),
  [
    ('retrieve', 'retriever', 'config.retrieve.batch_rows or config.retrieve.beams'),
    ('search', 'memorised', 'config.retrieve.batch_rows or config.retrieve.beams'),
    ('generate', 'writer', 'config.generate.batch_rows or config.generate.samples'),
    ('memorise', 'retriever', 'config.memorise.batch_rows'),
    ('score', 'teacher', 'config.score.batch_rows'),
  ],
)
def test_messages_about_a_batch_name_the_keys_that_decide_its_rows(
  tmp_path, monkeypatch, capsys, stage, label, keys
):
  c = configs.defaults('dgr')
  for role in ('teacher', 'retriever'):
    c[role].update(model='tiny-decoder', max_len=64, row_len=64, max_query_len=16)
  c.retrieve.update(batch_rows=16, beams=10)
  c.update(stages=(*c.stages, 'generate'))
  run, found = runner.Run(c, tmp_path, mesh()), systems.find(c, stage)
  opened = [one for one in opening.models_of(run, found) if one.use.label == label]
  reckoned = estimate.Estimate(run, opened)
  reckoned.bytes_of = [2 << 30]
  monkeypatch.setattr(memory, 'limit', lambda: 1 << 30)
  reckoned.say_memory()
  assert f'warning: {stage} will probably not fit into 1.0 GiB: lower {keys} or the model' in (
    capsys.readouterr().err
  )
  with pytest.raises(UserError) as caught, opening.naming_stage(c, found, opened[0].use):
    raise UserError('batch_rows=160 is wrong')
  what = ': the rows of its batches follow from this: ' if ' or ' in keys else '=160 is wrong'
  assert str(caught.value).startswith(keys + what)


def test_the_models_are_said_with_their_layers(tmp_path, capsys):
  with pytest.raises(AssertionError):
    runner.run(tiny(student__layers=(1,)), tmp_path / 'run')
  said = capsys.readouterr().err
  assert 'teacher: tiny-decoder, all 2 layers, 57.0K parameters' in said
  assert 'student: tiny-encoder, 1 of its 2 layers, 45.3K parameters' in said


def test_parameters_and_moments_larger_than_the_memory_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(memory, 'limit', lambda: 1000)
  message = refused(tmp_path)
  assert message.startswith("config.teacher.model='tiny-decoder': cpt needs parameters ")
  assert 'this machine has 1000 B' in message and 'optimizer=adafactor' in message


def test_a_disk_without_room_for_the_checkpoints_is_refused(tmp_path, monkeypatch):
  usage = types.SimpleNamespace(free=1 << 20)
  monkeypatch.setattr(opening.shutil, 'disk_usage', lambda place: usage)
  message = refused(tmp_path)
  assert message.startswith(
    f'--workdir {tmp_path / "run"}: has 1 MiB free, and the checkpoints of '
  )
  assert 'cpt, sft, student_sft, distill need ' in message
  usage.free = 1 << 30
  with pytest.raises(AssertionError, match='prepare has started'):
    runner.run(tiny(), tmp_path / 'run')


def test_memory_that_adapters_need_is_not_that_of_all_parameters(tmp_path):
  run = runner.Run(tiny(teacher__lora_rank=2, sft__trainable='lora|score'), tmp_path, mesh())
  whole = runner.Run(tiny(), tmp_path, mesh())
  [few], [many] = (opening.models_of(r, systems.find(r.config, 'sft')) for r in (run, whole))
  assert 0 < few.step.saved < many.step.saved / 5
  assert few.step.held['parameters'] > many.step.held['parameters']


def mesh():
  from disranker_jax.devices import sharding

  return sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])


@pytest.mark.parametrize('answer', [False, RuntimeError('api_key not configured (no-tty)')])
def test_a_missing_login_is_noticed_before_the_first_stage(answer, monkeypatch, tmp_path):
  def login():
    if isinstance(answer, Exception):
      raise answer
    return answer

  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(login=login))
  monkeypatch.setattr(logs, 'check_wandb', lambda project: None)
  monkeypatch.delenv('WANDB_MODE', raising=False)
  message = refused(tmp_path, wandb_project='mine')
  assert message.startswith("config.wandb_project='mine': not logged in")
  assert 'wandb login' in message and 'WANDB_MODE=offline' in message
  monkeypatch.setenv('WANDB_MODE', 'offline')
  logs.check_login('mine')


class TestStagesOfAnotherRun:
  """What a donor has done alike needs no model here; what follows from a change does."""

  @pytest.fixture
  def donor(self, tmp_path):
    """A run of the tiny config whose stages count as done."""
    pipeline = runner.Pipeline(Run(tiny(), tmp_path / 'donor', None))
    states = {stage.name: pipeline.state(stage) for stage in pipeline.listed}
    for name, state in states.items():
      folder = pipeline.run.folder(name)
      folder.mkdir(parents=True)
      inputs = {key: value or 'of an earlier stage' for key, value in state.inputs.items()}
      made = {'config': state.wanted, 'inputs': inputs, 'status': 'done'}
      (folder / 'manifest.json').write_text(json.dumps(made))
    return pipeline.run

  def opened(self, tmp_path, donor, **changes) -> list[str]:
    pipeline = runner.Pipeline(Run(tiny(**changes), tmp_path / 'run', None))
    return [stage.name for stage in pipeline.to_open([donor])]

  def test_the_same_config_opens_nothing_but_the_report(self, tmp_path, donor):
    assert self.opened(tmp_path, donor) == ['report']

  def test_a_change_opens_what_follows_from_it(self, tmp_path, donor, capsys):
    found = self.opened(tmp_path, donor, sft__learning_rate=0.01)
    assert found == ['sft', 'score', 'distill', 'evaluate', 'export', 'report']
    assert 'is not taken' not in capsys.readouterr().err  # the settings say why
