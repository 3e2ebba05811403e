"""Validation in the training loop: what it measures, when it stops, which checkpoint stays."""

import contextlib
import dataclasses
import json
import math
import signal

import jax.numpy as jnp
import numpy as np
import pytest
import test_train
from ml_collections import ConfigDict

from disranker_jax.config import defaults
from disranker_jax.devices import sharding
from disranker_jax.errors import Stopped, UserError
from disranker_jax.pipeline import estimate
from disranker_jax.training import logs, train, validation
from disranker_jax.training.checkpoint import load_params
from disranker_jax.training.settings import defaults as training_settings
from disranker_jax.training.validation import Validation

HELD_OUT = test_train.make_batch(999)
MESH = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
STEPS = 8


@dataclasses.dataclass
class Near:
  """How near the weights are to some point, as nDCG@5, and the loss on a batch of its own."""

  point: np.ndarray
  names = ('ndcg@5', 'loss')
  queries, labelled, made_of, batches = 12, 12, 'abc', 1

  def __call__(self, variables):
    w = np.asarray(variables['params']['w'])
    total, weight, _ = test_train.loss(variables, HELD_OUT)
    return {'ndcg@5': -float(np.linalg.norm(w - self.point)), 'loss': float(total / weight)}


def fit(folder, point, feed=None, **changes):
  """(weights, results) of a run of eight steps that is validated after each."""
  settings = training_settings(learning_rate=0.1, save_every=3, trainable='params/w')
  settings.validation.update({'every': 1} | changes)
  todo = train.Job('test', folder, test_train.loss, settings, STEPS)
  checked = Validation('test', Near(point), settings, STEPS)
  trained = train.fit(todo, feed or test_train.Rows(), test_train.start(), MESH, checked)
  return np.asarray(trained['params']['w']), checked.results()


def lines(folder) -> list[dict]:
  rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in row.items() if k != 'seconds'} for row in rows]


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """The weights after each step of a run without validation: {step: w}."""
  folder, by_step = tmp_path_factory.mktemp('path'), {}

  class Watching(test_train.Rows):
    def next(self, variables):
      by_step[self.position] = np.asarray(variables['params']['w'])
      return super().next(variables)

  settings = training_settings(learning_rate=0.1, save_every=3, trainable='params/w')
  todo = train.Job('test', folder, test_train.loss, settings, STEPS)
  trained = train.fit(todo, Watching(), test_train.start(), MESH)
  return by_step | {STEPS: np.asarray(trained['params']['w'])}


def test_validation_changes_nothing_of_the_training(path, tmp_path):
  weights, _ = fit(tmp_path, path[4])
  np.testing.assert_array_equal(weights, path[STEPS])


def test_the_values_of_a_step_are_those_of_its_weights(path, tmp_path):
  fit(tmp_path, path[4])
  for row in lines(tmp_path):
    w = path[row['step']]
    scores_GN = HELD_OUT['x_GND'] @ w + 1
    loss = np.square(scores_GN - HELD_OUT['labels_GN']).sum(1).mean()
    np.testing.assert_allclose(row['validation/loss'], loss, rtol=1e-5)
    np.testing.assert_allclose(
      row['validation/ndcg@5'], -np.linalg.norm(w - path[4]), rtol=1e-5, atol=1e-6
    )


def test_the_best_step_is_the_result_and_its_checkpoint_stays(path, tmp_path):
  weights, results = fit(tmp_path, path[2], keep_best=True)
  np.testing.assert_array_equal(weights, path[2])
  saved = load_params(tmp_path / 'checkpoints', MESH)  # what later stages read
  np.testing.assert_array_equal(np.asarray(saved['params']['w']), path[2])
  assert {p.name for p in (tmp_path / 'checkpoints').glob('[0-9]*')} == {'2', '6', '8'}
  found = results['validation']
  assert (results['steps'], found['step'], found['best_step']) == (STEPS, 2, 2)
  assert found['ndcg@5'] == pytest.approx(0, abs=1e-6)


def test_patience_counts_validations_since_the_best(path, tmp_path):
  weights, results = fit(tmp_path, path[3], patience=2)
  assert [row['step'] for row in lines(tmp_path)] == [1, 2, 3, 4, 5]
  np.testing.assert_array_equal(weights, path[5])
  assert (results['steps'], results['validation']['best_step']) == (5, 3)


def test_a_run_that_stopped_early_is_not_trained_on(path, tmp_path):
  fit(tmp_path, path[3], patience=2, keep_best=True)
  before = lines(tmp_path)

  class Nothing(test_train.Rows):
    def next(self, variables):
      raise AssertionError('a batch was taken')

  weights, results = fit(tmp_path, path[3], Nothing(), patience=2, keep_best=True)
  np.testing.assert_array_equal(weights, path[3])
  assert lines(tmp_path) == before and results['steps'] == 5


@pytest.mark.parametrize('stop', [1, 2, 4, 5])
def test_a_broken_run_takes_the_same_decisions(path, tmp_path, stop, monkeypatch):
  """Stopped or killed after a step: before the best one, at it, and after it."""
  choice = {'patience': 3, 'keep_best': True}
  wanted, results = fit(tmp_path / 'straight', path[2], **choice)
  monkeypatch.setattr(logs.MetricsLog, 'write', logs.MetricsLog.write)  # to be put back
  test_train.signal_at(stop, signal.SIGTERM)
  with pytest.raises(Stopped) if stop < 5 else contextlib.nullcontext():
    fit(tmp_path / 'stopped', path[2], **choice)
  monkeypatch.undo()

  class Broken(test_train.Rows):
    def next(self, variables):
      if self.position == stop:
        raise RuntimeError('killed')
      return super().next(variables)

  with pytest.raises(RuntimeError) if stop < 5 else contextlib.nullcontext():
    fit(tmp_path / 'killed', path[2], Broken(), **choice)
  for folder in (tmp_path / 'stopped', tmp_path / 'killed'):
    weights, again = fit(folder, path[2], **choice)
    np.testing.assert_array_equal(weights, wanted)
    assert lines(folder) == lines(tmp_path / 'straight')
    assert {**again['validation'], 'seconds': 0} == {**results['validation'], 'seconds': 0}
    assert again['steps'] == results['steps'] == 5


def test_a_damaged_best_checkpoint_gives_the_last_one_and_says_so(path, tmp_path, capsys):
  class Damaging(test_train.Rows):
    def next(self, variables):
      if self.position == STEPS - 1:
        for file in (tmp_path / 'checkpoints' / '2' / 'params').rglob('*'):
          if file.is_file():
            file.write_bytes(b'')
      return super().next(variables)

  weights, _ = fit(tmp_path, path[2], Damaging(), keep_best=True)
  np.testing.assert_array_equal(weights, path[STEPS])
  assert 'the best checkpoint, step 2, cannot be read' in capsys.readouterr().err


def test_the_loss_decides_where_it_is_named_and_less_is_better(path, tmp_path):
  _, results = fit(tmp_path, path[1], metric='loss', keep_best=True)
  by_step = {row['step']: row['validation/loss'] for row in lines(tmp_path)}
  assert results['validation']['step'] == min(by_step, key=by_step.get) != 1


def test_a_metric_that_the_stage_does_not_measure_is_refused(path, tmp_path):
  with pytest.raises(UserError, match=r"config.test.validation.metric='tau'.*ndcg@5, loss"):
    fit(tmp_path, path[1], metric='tau')


def test_a_value_that_is_not_finite_is_no_gain_and_is_left_out(tmp_path):
  checked = Validation('test', Near(np.full(3, np.nan)), section(every=1, patience=1), STEPS)
  found = checked.take(1, {'params': {'w': jnp.zeros(3), 'frozen': jnp.ones(())}})
  assert set(found) == {'validation/loss'} and checked.best == 0
  assert checked.is_over


@dataclasses.dataclass
class Perfect(Near):
  """Ranks without a discordant pair at steps 2 and 3."""

  names = ('pnr', 'loss')
  calls: int = 0

  def __call__(self, variables):
    self.calls += 1
    return {'pnr': math.inf if self.calls in (2, 3) else 7.0, 'loss': math.inf}


def test_the_pnr_of_a_perfect_order_is_the_best_value(tmp_path):
  settings = training_settings(learning_rate=0.1, save_every=3, trainable='params/w')
  settings.validation.update({'every': 1, 'metric': 'pnr', 'keep_best': True, 'patience': 2})

  def run():
    todo = train.Job('test', tmp_path, test_train.loss, settings, STEPS)
    checked = Validation('test', Perfect(np.zeros(3)), settings, STEPS)
    train.fit(todo, test_train.Rows(), test_train.start(), MESH, checked)
    return checked

  found = run()
  assert (found.best, max(found.history)) == (2, 4)
  assert found.history[2] == {'pnr': math.inf}  # an infinite loss is no value
  results = json.loads(json.dumps(found.results(), allow_nan=False))['validation']
  assert (results['step'], results['pnr']) == (2, 'inf')
  again = run()  # reads them from the log
  assert again.history == found.history and again.best == 2


def section(accumulate: int = 1, **changes) -> ConfigDict:
  settings = training_settings(gradient_accumulation_steps=accumulate)
  settings.validation.update(changes)
  return settings


@pytest.mark.parametrize(
  ('steps', 'batches', 'accumulate', 'times'),
  [(12, 5, 1, 2), (100, 5, 1, 3), (100, 5, 4, 12), (100_000, 5, 1, 20), (3, 100, 1, 2)],
)
def test_how_often_follows_from_the_work(steps, batches, accumulate, times):
  every = validation.interval(section(accumulate), steps, batches)
  assert len(range(every, steps + 1, every)) + bool(steps % every) in (times, times + 1)
  assert validation.interval(section(every=7), steps, batches) == 7


def test_the_last_step_is_always_validated():
  checked = Validation('test', Near(np.zeros(3)), section(every=3), STEPS)
  assert [step for step in range(1, STEPS + 1) if checked.is_due(step)] == [3, 6, 8]


def test_the_progress_line_shows_held_out_values_beside_the_loss(path, tmp_path, capsys):
  fit(tmp_path, path[4])
  last = [line for line in capsys.readouterr().err.splitlines() if '8/8' in line][-1]
  assert ' nDCG@5 -' in last and ' held-out loss ' in last


def test_the_estimate_counts_what_the_loop_validates():
  c = defaults()
  checks, work = estimate.validations(c, c.distill, 24.0, 0.03, 87)
  every = validation.interval(c.distill, 87, 8)  # 24 queries of 10 documents, 0.03 batches each
  assert checks == sum(step % every == 0 or step == 87 for step in range(1, 88))
  assert work == pytest.approx(checks * 8 / 3)
  checks, work = estimate.validations(c, c.cpt, 24.0, 0.03, 87)  # one batch: a click is a document
  assert checks > 10 and work == pytest.approx(checks / 3)
  assert estimate.validations(c, c.distill, 9.0, 0.03, 87) == (0, 0.0)
