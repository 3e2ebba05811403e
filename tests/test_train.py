"""The training loop on a linear scorer of a few values: restore, step, save, stop, log."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from disranker_jax.devices import sharding
from disranker_jax.errors import Stopped, UserError
from disranker_jax.models import tree
from disranker_jax.training import checkpoint, logs, train
from disranker_jax.training.checkpoint import load_params
from disranker_jax.training.settings import defaults as training_settings

WIDTH, DOCS, GROUPS = 3, 4, 2
TRUE = np.array([1.0, -2.0, 0.5], np.float32)


class Rows:
  """A feed of random features and labels without end.

  `poison` says what the features of some batches are multiplied by.
  """

  blocks, position = 1, 0

  def __init__(self, poison: dict[int, float] | None = None, missing: tuple[int, ...] = ()):
    self.poison, self.missing = poison or {}, missing

  def shapes(self):
    return make_batch(0)

  def positions(self):
    return jnp.array([self.position])

  def seek(self, positions_A):
    self.position = int(positions_A[0])

  def next(self, variables):
    while self.position in self.missing:
      self.position += 1
    i, self.position = self.position, self.position + 1
    return [make_batch(i, self.poison.get(i, 1.0))], [f'query {i}']


class Rollouts(Rows):
  """A policy's own samples: actions drawn around its current weights, with their advantages."""

  def next(self, variables):
    i, self.position = self.position, self.position + 1
    noise_GND = np.random.default_rng([1, i]).normal(size=(GROUPS, DOCS, WIDTH))
    actions_GND = np.asarray(variables['params']['w']) + noise_GND.astype(np.float32)
    rewards_GN = -np.square(actions_GND - TRUE).sum(2)
    advantages_GN = rewards_GN - rewards_GN.mean(1, keepdims=True)
    mask_GN = np.ones((GROUPS, DOCS), bool)
    batch = {'x_GND': actions_GND, 'labels_GN': advantages_GN, 'mask_GN': mask_GN}
    return [batch], [f'prompt {i}']


def policy_loss(variables, batch):
  """REINFORCE with a group baseline, as in GRPO: -advantage * log N(action; w, 1)."""
  distance_GN = jnp.square(batch['x_GND'] - variables['params']['w'][None, None]).sum(2)
  loss_GN = batch['labels_GN'] * distance_GN / 2
  return jnp.sum(loss_GN), jnp.array(float(GROUPS)), {'examples': jnp.sum(batch['mask_GN'])}


def make_batch(i: int, poison: float = 1.0) -> dict:
  rng = np.random.default_rng([0, i])
  x = rng.normal(size=(GROUPS, DOCS, WIDTH)).astype(np.float32) * np.float32(poison)
  labels = (x @ TRUE).astype(np.float32)
  return {'x_GND': x, 'labels_GN': labels, 'mask_GN': np.ones((GROUPS, DOCS), bool)}


def loss(variables, batch):
  scores_GN = batch['x_GND'] @ variables['params']['w'] + variables['params']['frozen']
  error_G = jnp.sum(jnp.square(scores_GN - batch['labels_GN']), axis=1)
  metrics = {'mean_score': jnp.mean(scores_GN), 'examples': jnp.sum(batch['mask_GN'])}
  return jnp.sum(error_G), jnp.array(float(GROUPS)), metrics


def start():
  return {'params': {'w': jnp.zeros(WIDTH), 'frozen': jnp.ones(())}}


def job(folder, steps=8, **changes) -> train.Job:
  settings = training_settings(learning_rate=0.1, save_every=2, trainable='params/w', **changes)
  return train.Job('test', Path(folder), loss, settings, steps, tensorboard=True)


def fit(folder, feed=None, **options):
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  return train.fit(job(folder, **options), feed or Rows(), start(), mesh)


def fit_on_policy(folder):
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  todo = dataclasses.replace(job(folder, steps=8), loss=policy_loss)
  return train.fit(todo, Rollouts(), start(), mesh)


def losses(folder) -> list[tuple[int, float]]:
  rows = [json.loads(line) for line in (Path(folder) / 'metrics.jsonl').read_text().splitlines()]
  return [(row['step'], row['loss']) for row in rows]


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """An unbroken run: its folder and its last parameters."""
  folder = tmp_path_factory.mktemp('straight')
  return folder, np.asarray(fit(folder)['params']['w'])


def test_it_moves_towards_the_weights_that_made_the_labels(straight):
  assert np.linalg.norm(straight[1] - TRUE) < np.linalg.norm(TRUE)


def test_frozen_parameters_stay_and_are_not_saved(straight, tmp_path):
  variables = fit(tmp_path)
  assert float(variables['params']['frozen']) == 1.0
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  assert list(tree.flatten(load_params(straight[0] / 'checkpoints', mesh))) == ['params/w']


@pytest.mark.parametrize('stop', [1, 2, 3, 5])
def test_resume_is_bitwise_the_unbroken_run(straight, tmp_path, stop, monkeypatch):
  """Stopped after `stop` steps, on and off the saving interval, and started again."""
  monkeypatch.setattr(logs.MetricsLog, 'write', logs.MetricsLog.write)  # to be put back
  signal_at(stop, signal.SIGTERM)
  with pytest.raises(Stopped):
    fit(tmp_path)
  monkeypatch.undo()
  again = fit(tmp_path)
  np.testing.assert_array_equal(np.asarray(again['params']['w']), straight[1])
  assert losses(tmp_path) == losses(straight[0])


def signal_at(step: int, number: int) -> None:
  """From here on the process gets a signal right after a step's line is written."""
  write = logs.MetricsLog.write

  def write_then_signal(self, at, *rest):
    write(self, at, *rest)
    if at == step:
      os.kill(os.getpid(), number)

  logs.MetricsLog.write = write_then_signal


def in_process(folder, step: int, number: int, fit: str = 'fit') -> int:
  """Runs `fit` in its own process, which gets the signal at a step; its exit status."""
  program = (
    'import sys; sys.path.insert(0, sys.argv[1]); import conftest, test_train; '
    'test_train.signal_at(int(sys.argv[3]), int(sys.argv[4])); '
    'getattr(test_train, sys.argv[5])(sys.argv[2])'
  )
  arguments = [str(Path(__file__).parent), str(folder), str(step), str(int(number)), fit]
  command = [sys.executable, '-c', program, *arguments]
  return subprocess.run(command, stderr=subprocess.PIPE, timeout=120).returncode


def test_killed_at_any_moment_it_ends_with_the_same_result(straight, tmp_path):
  # Before the first checkpoint; while one is being written; with lines ahead of the checkpoint.
  for step in (1, 4, 7):
    assert in_process(tmp_path, step, signal.SIGKILL) == -signal.SIGKILL
    assert step in dict(losses(tmp_path))
  again = fit(tmp_path)
  np.testing.assert_array_equal(np.asarray(again['params']['w']), straight[1])
  assert losses(tmp_path) == losses(straight[0])


def test_a_process_that_is_asked_to_stop_saves_and_another_one_goes_on(straight, tmp_path):
  assert in_process(tmp_path, 3, signal.SIGTERM) == 1, 'Stopped is not caught there'
  # The line of step 3 is written while step 4 runs, after which a lone process stops.
  assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4]
  assert (tmp_path / 'checkpoints' / '4').is_dir()
  again = fit(tmp_path)
  np.testing.assert_array_equal(np.asarray(again['params']['w']), straight[1])
  assert losses(tmp_path) == losses(straight[0])


def test_a_policy_learns_from_its_own_samples_and_resumes_bitwise(tmp_path):
  """Batches follow the parameters of their step, also after a kill beyond the last checkpoint."""
  straight = np.asarray(fit_on_policy(tmp_path / 'straight')['params']['w'])
  assert np.linalg.norm(straight - TRUE) < np.linalg.norm(TRUE)
  for step in (1, 5):
    assert in_process(tmp_path / 'killed', step, signal.SIGKILL, 'fit_on_policy') == -signal.SIGKILL
  again = fit_on_policy(tmp_path / 'killed')
  np.testing.assert_array_equal(np.asarray(again['params']['w']), straight)
  assert losses(tmp_path / 'killed') == losses(tmp_path / 'straight')


def test_a_finished_run_is_not_trained_on(straight):
  before = losses(straight[0])
  np.testing.assert_array_equal(np.asarray(fit(straight[0])['params']['w']), straight[1])
  assert losses(straight[0]) == before


def break_checkpoint(folder: Path, step: int, part: str = '') -> None:
  for file in (folder / 'checkpoints' / str(step) / part).rglob('*'):
    if file.is_file() and file.stat().st_size > 100:
      file.write_bytes(b'broken')


def test_a_broken_checkpoint_falls_back_and_is_written_again(straight, tmp_path, caplog):
  fit(tmp_path)
  break_checkpoint(tmp_path, 8)
  again = fit(tmp_path)
  assert 'cannot be read' in caplog.text
  np.testing.assert_array_equal(np.asarray(again['params']['w']), straight[1])
  assert losses(tmp_path) == losses(straight[0])
  caplog.clear()
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  saved = load_params(tmp_path / 'checkpoints', mesh)
  np.testing.assert_array_equal(np.asarray(saved['params']['w']), straight[1])
  assert 'cannot be read' not in caplog.text


def test_with_no_readable_checkpoint_it_starts_again_with_the_first_batch(straight, tmp_path):
  fit(tmp_path)
  for step in (6, 8):
    break_checkpoint(tmp_path, step, 'params')  # the place in the data can still be read
  again = fit(tmp_path)
  np.testing.assert_array_equal(np.asarray(again['params']['w']), straight[1])
  assert losses(tmp_path) == losses(straight[0])


def test_checkpoints_open_without_a_warning_and_create_folders_at_once(tmp_path, caplog):
  with caplog.at_level('WARNING'), checkpoint.Checkpoints(tmp_path / 'c'):
    pass
  assert not caplog.records
  assert checkpoint.context().asynchronous.create_directories_asynchronously is False


def test_parameters_of_a_stage_without_checkpoints_are_an_error(tmp_path):
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  with pytest.raises(UserError, match=r'no checkpoint.*--rerun=sft'):
    load_params(tmp_path / 'sft' / 'checkpoints', mesh)


BAD = {'not finite': np.nan, 'infinite': np.inf, 'exploding': 1e4}


@pytest.mark.parametrize('poison', BAD.values(), ids=BAD)
def test_a_bad_step_is_as_if_its_batch_had_not_been_there(tmp_path, poison, capsys):
  """It does not count as a step of the schedule: the state afterwards is bitwise equal."""
  at = train.NORM_STEPS + 3
  options = {'steps': at + 6, 'schedule': 'constant'}
  bad = fit(tmp_path / 'bad', feed=Rows(poison={at: poison}), **options)
  options['steps'] -= 1
  absent = fit(tmp_path / 'absent', feed=Rows(missing=(at,)), **options)
  np.testing.assert_array_equal(bad['params']['w'], absent['params']['w'])
  lines = (tmp_path / 'bad' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines if json.loads(line)['skipped']] == [at + 1]
  assert f'step {at + 1} is bad' in capsys.readouterr().err


def test_exploding_steps_pass_if_their_check_is_off(tmp_path):
  at = train.NORM_STEPS + 3
  fit(tmp_path, steps=at + 2, skip_step_norm_ratio=0.0, feed=Rows(poison={at: 1e4}))
  assert not any(
    json.loads(line)['skipped'] for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()
  )


def test_steps_without_a_gradient_do_not_make_the_next_one_bad(tmp_path):
  """They are not in the mean that a norm is compared with, and an exploding one is still found."""
  nothing = dict.fromkeys(range(train.NORM_STEPS + 2), 0.0)
  at = 2 * train.NORM_STEPS + 4
  fit(tmp_path, feed=Rows(poison=nothing | {at: 1e4}), steps=at + 2, schedule='constant')
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [row['grad_norm'] > 0 for row in rows] == [i not in nothing for i in range(at + 2)]
  assert [row['step'] for row in rows if row['skipped']] == [at + 1]


def test_three_bad_steps_in_a_row_end_the_run_and_name_their_queries(tmp_path):
  poison = dict.fromkeys((2, 4, 5, 6), np.nan)
  with pytest.raises(UserError, match=r"3 bad steps in a row, the last one step 7 .*'query 4', "):
    fit(tmp_path, feed=Rows(poison), steps=12)
  # The same command goes on, and the same steps end it again.
  with pytest.raises(UserError, match='the last one step 7'):
    fit(tmp_path, feed=Rows(poison), steps=12)


def test_a_gradient_that_is_not_finite_changes_nothing_though_the_loss_is(tmp_path):
  def unsound(variables, batch):
    total, weight, metrics = loss(variables, batch)
    nothing = jnp.sum(variables['params']['w']) * 0.0
    return total + jnp.sqrt(nothing), weight, metrics  # 0, whose slope is infinite times 0

  bad = dataclasses.replace(job(tmp_path), loss=unsound)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  bad.settings.save_every = 1
  with pytest.raises(UserError, match='gradient norm nan'):
    train.fit(bad, Rows(), start(), mesh)
  saved = load_params(tmp_path / 'checkpoints', mesh)
  assert not np.any(saved['params']['w'])


def test_micro_batches_give_the_step_of_the_whole_batch():
  """Sums are added and divided once, also where the micro-batches weigh differently."""
  tx = optax.sgd(0.1)
  trained, frozen = {'params/w': jnp.ones(WIDTH)}, {'params/frozen': jnp.ones(())}

  def weighted(variables, batch):
    scores_GN = batch['x_GND'] @ variables['params']['w']
    error_GN = jnp.where(batch['mask_GN'], jnp.square(scores_GN - batch['labels_GN']), 0.0)
    count = jnp.sum(batch['mask_GN'])
    return jnp.sum(error_GN), count, {'examples': count}

  parts = [make_batch(i) for i in range(3)]
  parts[1]['mask_GN'][:, 1:] = False
  whole = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  state = {'opt': tx.init(trained), 'norm': jnp.zeros(()), 'good': jnp.zeros((), jnp.int32)}
  state['bad'] = jnp.zeros((), jnp.int32)
  step = functools.partial(train.train_step, weighted, tx, 0.0, trained, state, frozen)
  one, _, one_metrics = step([whole], {})
  more, _, more_metrics = step(parts, {})
  np.testing.assert_allclose(one['params/w'], more['params/w'], rtol=1e-6)
  for name in ('loss', 'grad_norm', 'examples'):
    np.testing.assert_allclose(one_metrics[name], more_metrics[name], rtol=1e-6)
  assert one_metrics['examples'] == sum(p['mask_GN'].sum() for p in parts)


def test_steps_follow_epochs_and_the_limit():
  class Data:
    def queries_per_batch(self):
      return 2.0

  settings = training_settings(epochs=1.5)
  assert train.steps(settings, Data(), rows=40) == 30
  assert (
    train.steps(training_settings(epochs=1.5, gradient_accumulation_steps=3), Data(), rows=40) == 10
  )
  assert train.steps(training_settings(max_steps=7), Data(), rows=40) == 7
  assert train.steps(settings, Data(), rows=1) == 1


def test_placed_batches_need_not_be_tokens():
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  placed = sharding.put_batch(make_batch(0), mesh)
  assert all(isinstance(v, jax.Array) for v in placed.values())


class OutOfMemory:
  """A step of which the device has no room for the program, or for a call of it."""

  def __init__(self, step=None):
    self._step = step

  def compile(self):
    if self._step is None:
      self()
    return self

  def memory_analysis(self):
    return self._step.memory_analysis()

  def __call__(self, *_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nLog')


@pytest.mark.parametrize('when', ['compile', 'step'])
def test_without_enough_memory_one_line_has_the_estimate_and_what_lowers_it(
  when, tmp_path, monkeypatch
):
  lower = train.Program.lower

  def lowered(program):
    return OutOfMemory(lower(program).compile() if when == 'step' else None)

  monkeypatch.setattr(train.Program, 'lower', lowered)
  with pytest.raises(UserError) as caught:
    fit(tmp_path, batch_rows=7)
  message = str(caught.value)
  assert message.startswith('test: out of device memory: needs parameters 16 B, moments ')
  assert ('activations ' in message.partition(' in all')[0]) == (when == 'step')
  assert 'config.test.batch_rows (now 7' in message and '\n' not in message
  for name in ('remat', 'param_dtype', 'fsdp'):
    assert name in message


def test_another_error_of_the_runtime_keeps_its_traceback(tmp_path, monkeypatch):
  def broken(program):
    raise jax.errors.JaxRuntimeError('INTERNAL: a bug')

  monkeypatch.setattr(train.Program, 'lower', broken)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    fit(tmp_path)
