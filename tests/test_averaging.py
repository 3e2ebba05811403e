"""The average of the trained parameters (`ema`): what it is, who sees it, and that it is saved."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_train
import test_validation
import trainer
from jax.sharding import PartitionSpec as P
from test_mesh_rules import shapes, specs

from disranker_jax import config as configs
from disranker_jax.devices import memory, sharding
from disranker_jax.errors import Stopped, UserError
from disranker_jax.models import tree
from disranker_jax.pipeline import opening, systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import roles
from disranker_jax.training import logs, optimizer, train
from disranker_jax.training.checkpoint import load_params
from disranker_jax.training.settings import defaults as training_settings

MESH = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
STEPS, DECAY = 8, 0.3  # the first three steps have a smaller decay


class Watching(test_train.Rows):
  """Keeps the parameters with which each step starts: {steps so far: w}."""

  parts = 1  # micro-batches

  def __init__(self, *arguments):
    super().__init__(*arguments)
    self.seen = {}

  def next(self, variables):
    self.seen[len(self.seen)] = np.asarray(variables['params']['w'])
    drawn = [super(Watching, self).next(variables) for _ in range(self.parts)]
    return [batch for [batch], _ in drawn], [name for _, [name] in drawn]


class InParts(Watching):
  parts = 3


def fit(folder, feed=None, **options):
  return test_train.fit(folder, feed, **options)['params']['w']


def averages(path: dict[int, np.ndarray], decay: float = DECAY) -> dict[int, np.ndarray]:
  """The average after each step, from the parameters after each step, in float64."""
  found = {0: path[0].astype(np.float64)}
  for t in range(len(path) - 1):
    d = min(decay, (1 + t) / (10 + t))
    found[t + 1] = d * found[t] + (1 - d) * path[t + 1]
  return found


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """The parameters after each step of a run without an average: {step: w}."""
  feed = Watching()
  last = fit(tmp_path_factory.mktemp('raw'), feed)
  return feed.seen | {STEPS: np.asarray(last)}


@pytest.mark.parametrize('decay', [DECAY, 0.999])
def test_the_result_is_the_average_and_training_goes_on_from_the_raw_parameters(
  path, tmp_path, decay
):
  feed = Watching()
  found = fit(tmp_path, feed, ema=decay)
  for step in range(STEPS):
    np.testing.assert_allclose(feed.seen[step], path[step], rtol=1e-6)
  np.testing.assert_allclose(found, averages(path, decay)[STEPS], rtol=1e-5)
  assert np.abs(found - path[STEPS]).max() > 1e-3
  # What later stages read is the same, and has the trained parameters only.
  saved = tree.flatten(load_params(tmp_path / 'checkpoints', MESH))
  assert saved.keys() == {'params/w'}
  np.testing.assert_array_equal(saved['params/w'], found)
  # A checkpoint before the end has the average of its step and the parameters to go on from.
  inside = trainer.saved(tmp_path, STEPS - 2)
  np.testing.assert_allclose(
    inside["params['params']['w']"], averages(path, decay)[STEPS - 2], rtol=1e-5
  )
  [raw] = [value for name, value in inside.items() if "['average']" in name]
  np.testing.assert_allclose(raw, path[STEPS - 2], rtol=1e-6)


def test_micro_batches_are_one_step_of_the_average(tmp_path):
  options = {'gradient_accumulation_steps': InParts.parts}
  feed = InParts()
  last = np.asarray(fit(tmp_path / 'raw', feed, **options))
  found = fit(tmp_path / 'averaged', InParts(), ema=DECAY, **options)
  np.testing.assert_allclose(found, averages(feed.seen | {STEPS: last})[STEPS], rtol=1e-5)


def test_without_it_the_state_has_nothing_of_it(tmp_path):
  """So a checkpoint from before the setting existed continues."""
  fit(tmp_path / 'off')
  fit(tmp_path / 'on', ema=DECAY)
  before = {
    "params['params']['w']", "train['bad']", "train['good']", "train['norm']",
    "train['positions_A']", "train['opt'][1]['count']", "train['opt'][3]['count']",
    "train['opt'][1]['mu']['params/w']", "train['opt'][1]['nu']['params/w']",
  }  # fmt: skip
  off, on = (set(trainer.saved(tmp_path / name, STEPS)) for name in ('off', 'on'))
  assert off == before
  assert on - off == {"train['opt'][4]['average']['params/w']", "train['opt'][4]['steps']"}


def same(folder, straight) -> None:
  found, wanted = (trainer.saved(place, STEPS) for place in (folder, straight))
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize('stop', [1, 4])
def test_a_stopped_run_continues_bitwise(tmp_path, stop, monkeypatch):
  wanted = fit(tmp_path / 'straight', ema=DECAY)
  monkeypatch.setattr(logs.MetricsLog, 'write', logs.MetricsLog.write)  # to be put back
  test_train.signal_at(stop, signal.SIGTERM)
  with pytest.raises(Stopped):
    fit(tmp_path / 'stopped', ema=DECAY)
  monkeypatch.undo()
  np.testing.assert_array_equal(fit(tmp_path / 'stopped', ema=DECAY), wanted)
  same(tmp_path / 'stopped', tmp_path / 'straight')
  # A finished run gives it again.
  np.testing.assert_array_equal(fit(tmp_path / 'stopped', ema=DECAY), wanted)


def test_a_bad_step_leaves_the_average_as_it_is(tmp_path):
  options = {'schedule': 'constant', 'ema': DECAY}
  bad = fit(tmp_path / 'bad', test_train.Rows({4: np.nan}), steps=STEPS + 1, **options)
  absent = fit(tmp_path / 'absent', test_train.Rows(missing=(4,)), **options)
  assert np.isfinite(bad).all()
  np.testing.assert_array_equal(bad, absent)


def test_a_policy_samples_with_its_raw_parameters(tmp_path):
  for name, decay in (('off', 0.0), ('on', 0.9)):
    todo = test_train.job(tmp_path / name, steps=STEPS, ema=decay)
    todo = dataclasses.replace(todo, loss=test_train.policy_loss)
    train.fit(todo, test_train.Rollouts(), test_train.start(), MESH)
  on, off = (test_train.losses(tmp_path / name) for name in ('on', 'off'))
  np.testing.assert_allclose(on, off, rtol=1e-6)


class Validated:
  """A run that is validated after each step; nDCG@5 is the nearness to a point."""

  def __init__(self, folder, point, **changes):
    settings = training_settings(learning_rate=0.1, save_every=3, trainable='params/w', ema=DECAY)
    settings.validation.update({'every': 1} | changes)
    todo = train.Job('test', folder, test_train.loss, settings, STEPS)
    near = test_validation.Near(point)
    checked = test_validation.Validation('test', near, settings, STEPS)
    trained = train.fit(todo, test_train.Rows(), test_train.start(), MESH, checked)
    self.w, self.results = np.asarray(trained['params']['w']), checked.results()
    self.rows = test_validation.lines(folder)


def test_validation_measures_the_average(path, tmp_path):
  rows = Validated(tmp_path, path[STEPS]).rows
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  found = [row['validation/ndcg@5'] for row in rows]
  wanted = [-np.linalg.norm(averages(path)[row['step']] - path[STEPS]) for row in rows]
  np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_the_best_and_the_last_step_are_those_of_the_average(path, tmp_path):
  point, choice = averages(path)[3].astype(np.float32), {'keep_best': True, 'patience': 2}
  run = Validated(tmp_path / 'run', point, **choice)
  assert (run.results['steps'], run.results['validation']['best_step']) == (5, 3)
  assert run.results['validation']['ndcg@5'] == pytest.approx(0, abs=1e-6)
  np.testing.assert_allclose(run.w, point, rtol=1e-5)
  saved = load_params(tmp_path / 'run' / 'checkpoints', MESH)['params']['w']
  np.testing.assert_array_equal(saved, run.w)
  again = Validated(tmp_path / 'run', point, **choice)
  np.testing.assert_array_equal(again.w, run.w)
  assert again.rows == run.rows


def half(dtype='bfloat16'):
  start = test_train.start()
  return start | {'params': start['params'] | {'w': jnp.full(3, 0.5, dtype)}}


def test_bf16_parameters_have_an_average_in_fp32(tmp_path, monkeypatch):
  """Steps of 1 - decay are lost in bf16."""

  def trained(folder):
    todo = test_train.job(tmp_path / folder, steps=STEPS, ema=0.99)
    return train.fit(todo, test_train.Rows(), half(), MESH)['params']['w']

  wanted = trained('straight')
  assert wanted.dtype == np.float32
  saved = load_params(tmp_path / 'straight' / 'checkpoints', MESH)['params']['w']
  np.testing.assert_array_equal(saved, wanted)
  assert np.any(saved != saved.astype(jnp.bfloat16).astype(np.float32))
  monkeypatch.setattr(logs.MetricsLog, 'write', logs.MetricsLog.write)
  test_train.signal_at(3, signal.SIGTERM)
  with pytest.raises(Stopped):
    trained('stopped')
  monkeypatch.undo()
  trained('stopped')
  same(tmp_path / 'stopped', tmp_path / 'straight')


def test_a_later_stage_takes_the_average(tmp_path):
  todo = test_train.job(tmp_path / 'sft', steps=STEPS, ema=0.99)
  result = train.fit(todo, test_train.Rows(), half(), MESH)['params']['w']
  run = SimpleNamespace(
    mesh=MESH, config=SimpleNamespace(seed=0, stages=('sft',)), folder=lambda name: tmp_path / name
  )
  model = SimpleNamespace(settings=SimpleNamespace(init_from=''), pretrained=lambda *_: half())
  found = roles.trained(run, 'teacher', model, ('sft',), trains='')['params']['w']
  np.testing.assert_array_equal(found, result)


def test_two_devices_have_the_average_of_one(tmp_path):
  spec = {'steps': 4, 'settings': {'ema': 0.9, 'gradient_accumulation_steps': 2}}
  one = {'folder': str(tmp_path / 'one'), 'mesh': {'data': 1, 'fsdp': 1, 'model': 1}}
  two = {'folder': str(tmp_path / 'two'), 'mesh': {'data': 1, 'fsdp': 2, 'model': 1}}
  for place, devices in ((one, 1), (two, 2)):
    flags = f'--xla_force_host_platform_device_count={devices}'
    subprocess.run(
      [sys.executable, str(Path(trainer.__file__)), json.dumps(spec | place)],
      env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
      check=True, timeout=120, stderr=subprocess.PIPE,
    )  # fmt: skip
  found, wanted = (trainer.saved(Path(place['folder']), 4) for place in (two, one))
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_it_lies_where_the_parameters_do(monkeypatch):
  flat = tree.flatten(shapes('tiny-encoder'))
  tx = optimizer.make(training_settings(ema=0.9), 10)
  state = specs(jax.eval_shape(tx.init, flat), monkeypatch, fsdp=2, model=4)
  found = {k.partition('average/')[2]: v for k, v in state.items() if 'average/' in k}
  assert found == specs(flat, monkeypatch, fsdp=2, model=4)
  assert set(found.values()) != {P()}


# Memory and messages


def test_the_average_is_counted_in_fp32_of_the_trained_parameters_only():
  variables = half()
  batch = test_train.make_batch(0)
  sizes = {}
  for decay in (0.0, 0.9):
    settings = training_settings(trainable='params/w', ema=decay)
    program = train.Program(test_train.loss, settings, 10, variables, batch, 1, MESH)
    sizes[decay] = memory.parts(program)
  assert 'average' not in sizes[0.0] and sizes[0.9].pop('average') == 3 * 4
  assert sizes[0.9].pop('moments') - sizes[0.0].pop('moments') == 4  # its count of steps
  assert sizes[0.9] == sizes[0.0]


@pytest.mark.parametrize('lower', ['', 'lower config.test.prompts'])
def test_without_enough_memory_the_message_names_it(tmp_path, monkeypatch, lower):
  monkeypatch.setattr(train.Program, 'lower', lambda program: test_train.OutOfMemory())
  todo = dataclasses.replace(test_train.job(tmp_path, ema=0.9), lower=lower)
  with pytest.raises(UserError, match=r'average 12 B.*; lower config.*, set config.test.ema=0, '):
    train.fit(todo, test_train.Rows(), test_train.start(), MESH)


def sft(tmp_path, **changes) -> opening.Opened:
  run = Run(tiny(**changes), tmp_path, MESH)
  [found] = opening.models_of(run, systems.find(run.config, 'sft'))
  return found


def tiny(**changes):
  config = configs.defaults()
  sizes = {'precision': 'float32', 'max_len': 32, 'max_query_len': 8, 'row_len': 32}
  config.teacher.update(model='tiny-decoder', **sizes)
  config.sft.update(batch_rows=4, group_size=2, **changes)
  return config


def test_the_estimate_and_the_disk_count_it(tmp_path, monkeypatch):
  off, on = sft(tmp_path).step, sft(tmp_path, ema=0.9).step
  parameters = on.held['parameters']
  assert 'average' not in off.held and on.held['average'] == parameters
  assert on.held | {'average': 0, 'moments': 0} == off.held | {'average': 0, 'moments': 0}
  assert on.saved - off.saved == parameters + 4
  monkeypatch.setattr(memory, 'limit', lambda: 1000)
  moments = 'set config.sft.adam_mu_dtype=bfloat16, set config.sft.optimizer=adafactor'
  for ema, said in ((0.9, f'set config.sft.ema=0, {moments}'), (0.0, moments)):
    with pytest.raises(UserError, match=f'before activations, .*; {said}, train only adapters'):
      opening.refuse_too_large(Run(tiny(ema=ema), tmp_path, MESH), [sft(tmp_path, ema=ema)])


def test_a_plan_that_does_not_fit_names_it(tmp_path):
  from disranker_jax.commands.plan import report

  step = sft(tmp_path).step
  assert '--config.sft.ema=0' in report.remedies(tiny(ema=0.9), 'sft', step, MESH)
  assert not any('ema' in option for option in report.remedies(tiny(), 'sft', step, MESH))


def test_a_decay_of_one_would_never_move():
  config = configs.defaults()
  config.distill.ema = 1.0
  with pytest.raises(UserError, match=r'config.distill.ema=1.0: must be from 0 to below 1'):
    configs.check(config)


def test_every_training_stage_has_it():
  for system in systems.every():
    config = configs.defaults(system)
    for stage in systems.get(system).stages:
      if stage.task is not None:
        assert config[stage.name].ema == 0.0, stage.name
