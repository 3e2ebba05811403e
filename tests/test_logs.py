"""Training logs: TensorBoard and W&B show the numbers of metrics.jsonl, also after a kill."""

import json
import math
import shutil
import signal
import struct
import sys
from types import SimpleNamespace

import pytest
import test_train
from tensorboardX.proto.event_pb2 import Event, SessionLog

from disranker_jax import config
from disranker_jax.errors import UserError
from disranker_jax.training import logs


def events(file):
  """The records of an event file: length, its CRC, the event, its CRC; a kill may cut the last."""
  content, at = file.read_bytes(), 0
  while at + 12 <= len(content):
    (size,) = struct.unpack('<Q', content[at : at + 8])
    if at + 12 + size + 4 > len(content):
      return
    yield Event.FromString(content[at + 12 : at + 12 + size])
    at += 12 + size + 4


def shown(folder) -> dict[tuple[int, str], float]:
  """{(step, tag): value} as TensorBoard shows it: a start voids earlier events from its step on."""
  values = {}
  for file in sorted(folder.glob('events.out.tfevents.*')):
    for event in events(file):
      if event.session_log.status == SessionLog.START:
        values = {key: v for key, v in values.items() if key[0] < event.step}
      for value in event.summary.value:
        assert (event.step, value.tag) not in values
        values[event.step, value.tag] = value.simple_value
  return values


def logged(folder) -> dict[tuple[int, str], float]:
  """The same of metrics.jsonl."""
  rows = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  return {
    (row['step'], tag): value
    for row in rows
    for tag, value in row.items()
    if tag not in ('step', 'seconds')
  }


def values_of(step: int) -> dict[str, float]:
  return {'loss': 1 / 2**step, 'grad_norm': float(step)}


def write(folder, resumed_from: int, steps, saved: int = 0) -> None:
  """Logs some steps; with `saved`, as of a process that is killed in an event after that step."""
  opened = logs.Logs(folder, resumed_from, tensorboard=True, wandb_project='')
  for step in steps:
    opened.write(step, 4, values_of(step))
    if step == saved:
      opened.sync()
      size = newest(folder).stat().st_size
  opened.close()
  if saved:
    content = newest(folder).read_bytes()
    newest(folder).write_bytes(content[: (size + len(content)) // 2])


def newest(folder):
  return sorted(folder.glob('events.out.tfevents.*'))[-1]


def test_tensorboard_shows_every_number_of_metrics_jsonl(tmp_path):
  write(tmp_path, 0, range(1, 6))
  assert {tag for _, tag in logged(tmp_path)} == {'loss', 'grad_norm', 'examples'}
  assert len(shown(tmp_path)) == 15 and shown(tmp_path) == logged(tmp_path)


def test_values_that_are_not_finite_are_json_and_read_again(tmp_path):
  values = {'loss': math.nan, 'grad_norm': math.inf, 'low': -math.inf}
  with logs.Logs(tmp_path, 0, tensorboard=False, wandb_project='') as opened:
    opened.write(1, 4, values)
  [line] = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  json.loads(line, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
  [row] = logs.read(tmp_path / logs.FILE)
  assert math.isnan(row['loss']) and (row['grad_norm'], row['low']) == (math.inf, -math.inf)
  with (tmp_path / logs.FILE).open('a') as file:  # a kill may leave the half of a line
    file.write('{"step": 2')
  assert len(logs.read(tmp_path / logs.FILE)) == 1


def test_tensorboard_shows_each_step_once_after_restarts(tmp_path):
  write(tmp_path, 0, range(1, 4))  # killed before the first checkpoint
  write(tmp_path, 0, range(1, 8), saved=4)  # with steps ahead of the checkpoint
  write(tmp_path, 4, range(5, 9))
  assert {step for step, _ in shown(tmp_path)} == set(range(1, 9))
  assert shown(tmp_path) == logged(tmp_path)


def test_a_run_that_is_killed_and_resumed_logs_the_same_everywhere(tmp_path):
  assert test_train.in_process(tmp_path, 7, signal.SIGKILL) == -signal.SIGKILL
  test_train.fit(tmp_path)
  assert {step for step, _ in shown(tmp_path)} == set(range(1, 9))
  assert shown(tmp_path) == logged(tmp_path)


def test_without_tensorboard_there_are_no_event_files(tmp_path):
  with logs.Logs(tmp_path, 0, tensorboard=False, wandb_project='') as opened:
    opened.write(1, 4, {'loss': 0.5})
  assert [f.name for f in tmp_path.iterdir()] == ['metrics.jsonl']


class FakeWandB(SimpleNamespace):
  """Records what a run of W&B is given."""

  def __init__(self):
    super().__init__(inits=[], rows=[], finished=0)

  def init(self, **options):
    self.inits.append(options)
    return SimpleNamespace(log=lambda values, step: self.rows.append((step, values)),
                           finish=lambda: setattr(self, 'finished', self.finished + 1))  # fmt: skip


def test_wandb_gets_the_same_numbers_and_a_restart_continues_its_run(tmp_path, monkeypatch):
  fake = FakeWandB()
  fake.__spec__ = object()
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  stage = tmp_path / 'run' / 'distill'
  stage.mkdir(parents=True)
  for step in (0, 1):
    with logs.Logs(stage, step, tensorboard=False, wandb_project='rankers') as opened:
      opened.write(step + 1, 4, {'loss': 0.5 / (step + 1)})
      opened.sync()
  first, second = fake.inits
  assert first == second and first['resume'] == 'allow'
  assert (first['project'], first['name']) == ('rankers', 'run/distill')
  assert fake.rows == [(1, {'examples': 4, 'loss': 0.5}), (2, {'examples': 4, 'loss': 0.25})]
  assert fake.finished == 2
  # W&B would ignore the steps of a stage that is done again in the same place.
  shutil.rmtree(stage)
  stage.mkdir()
  logs.Logs(stage, 0, tensorboard=False, wandb_project='rankers').close()
  logs.Logs(tmp_path, 0, tensorboard=False, wandb_project='rankers').close()
  assert len({options['id'] for options in fake.inits}) == 3


def test_a_wandb_project_without_wandb_is_refused_before_anything_runs(monkeypatch):
  monkeypatch.setattr(logs.importlib.util, 'find_spec', lambda name: None)
  settings = config.defaults()
  settings.wandb_project = 'rankers'
  with pytest.raises(UserError, match=r"config\.wandb_project='rankers': wandb is not installed"):
    config.check(settings)
