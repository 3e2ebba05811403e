"""A broken run ends bitwise as an unbroken one, and damaged checkpoints are detected."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gang
import numpy as np
import pytest
import trainer

from disranker_jax.data import streams
from disranker_jax.devices import sharding
from disranker_jax.errors import Stopped, UserError
from disranker_jax.training import train
from disranker_jax.training.checkpoint import Checkpoints, check_sums, load_params
from disranker_jax.training.feed import OfflineFeed

STEPS = 8


def fit(folder: Path, **spec):
  """An unbroken or resumed run of the trainer in this process, batches recorded in FOLDER."""
  spec = trainer.DEFAULTS | spec | {'folder': str(folder / 'job')}
  with pytest.MonkeyPatch.context() as patch:
    for owner, name in ((streams.Stream, 'next'), (OfflineFeed, 'next')):
      patch.setattr(owner, name, getattr(owner, name))  # to be put back
    patch.setattr(train.Checkpoints, 'save', train.Checkpoints.save)
    folder.mkdir(exist_ok=True)
    trainer.record(folder / '0.jsonl')
    for bomb in spec['bombs']:
      trainer.arm(**bomb)
    mesh = sharding.make_mesh(spec['mesh'])
    todo = trainer.job(spec, trainer.Source(), mesh)
    return train.fit(*todo, trainer.variables(spec['wide']), mesh)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """The folder of an unbroken run."""
  folder = tmp_path_factory.mktemp('straight')
  fit(folder)
  return folder


def assert_bitwise(folder: Path, straight: Path, steps: int = STEPS) -> None:
  """Every batch, loss, parameter, moment, statistic and place in the data."""
  assert trainer.taken(folder) == trainer.taken(straight)
  assert trainer.losses(folder / 'job') == trainer.losses(straight / 'job')
  there, wanted = trainer.saved(folder / 'job', steps), trainer.saved(straight / 'job', steps)
  assert there.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_array_equal(there[name], value, err_msg=name)


def test_a_checkpoint_holds_moments_statistics_and_the_place_in_the_data(straight):
  names = ' '.join(trainer.saved(straight / 'job', STEPS))
  for part in ('mu', 'nu', 'norm', 'good', 'bad', 'positions_A', "params['params']['embed']"):
    assert part in names


@pytest.mark.parametrize('count', [2, 3, 4, 5, 6])
def test_resume_is_bitwise_before_at_and_after_a_save(straight, tmp_path, count):
  """Asked to stop as batch `count` is taken; saves are asynchronous, after every second step."""
  with pytest.raises(Stopped, match=f'stopped at step {count} of'):
    fit(tmp_path, bombs=[{'at': 'step', 'what': 'SIGTERM', 'count': count}])
  fit(tmp_path)
  assert_bitwise(tmp_path, straight)


@pytest.mark.slow
def test_stopped_at_every_step_it_ends_the_same(straight, tmp_path):
  for _ in range(STEPS - 1):
    with pytest.raises(Stopped):
      fit(tmp_path, bombs=[{'at': 'step', 'what': 'SIGTERM', 'count': 1}])
  fit(tmp_path)
  assert_bitwise(tmp_path, straight)


def test_micro_batches_resume_bitwise_too(tmp_path):
  settings = {'gradient_accumulation_steps': 2, 'optimizer': 'adamw', 'adam_mu_dtype': 'bfloat16'}
  fit(tmp_path / 'straight', settings=settings)
  with pytest.raises(Stopped):
    fit(tmp_path / 'broken', settings=settings,
        bombs=[{'at': 'step', 'what': 'SIGTERM', 'count': 3}])  # fmt: skip
  fit(tmp_path / 'broken', settings=settings)
  assert_bitwise(tmp_path / 'broken', tmp_path / 'straight')


def largest(folder: Path) -> Path:
  """The file that holds the numbers."""
  return max((f for f in folder.rglob('*') if f.is_file()), key=lambda f: f.stat().st_size)


def flip(folder: Path) -> None:
  """One bit, in the middle of the numbers."""
  file = largest(folder)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)


def truncate(folder: Path) -> None:
  file = largest(folder)
  file.write_bytes(file.read_bytes()[:-100])


def remove(folder: Path) -> None:
  largest(folder).unlink()


def empty(folder: Path) -> None:
  shutil.rmtree(folder)
  folder.mkdir()


DAMAGE = (flip, truncate, remove, empty)


@pytest.fixture
def done(straight, tmp_path):
  """A copy of the unbroken run, for damage."""
  shutil.copytree(straight, tmp_path / 'done')
  return tmp_path / 'done'


@pytest.mark.parametrize('part', ['params', 'train'])
@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
  straight, done, damage, part, caplog
):
  damage(done / 'job/checkpoints' / str(STEPS) / part)
  fit(done)
  assert f'checkpoints/{STEPS} cannot be read' in caplog.text
  assert (done / 'job/unreadable' / str(STEPS)).is_dir()
  assert_bitwise(done, straight)


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_later_stage_does_not_read_damaged_parameters(done, damage, caplog):
  mesh = sharding.make_mesh(trainer.DEFAULTS['mesh'])
  wanted = trainer.saved(done / 'job', STEPS - 2)["params['params']['head']"]
  damage(done / 'job/checkpoints' / str(STEPS) / 'params')
  found = load_params(done / 'job/checkpoints', mesh)
  np.testing.assert_array_equal(found['params']['head'], wanted)
  assert f'checkpoints/{STEPS} cannot be read' in caplog.text
  damage(done / 'job/checkpoints' / str(STEPS - 2) / 'params')
  with pytest.raises(UserError, match='no checkpoint can be read'):
    load_params(done / 'job/checkpoints', mesh)


def test_a_checkpoint_whose_checksums_a_kill_cut_off_can_be_read(straight, done):
  """A kill can hit between the step and its checksums."""
  (done / 'job/checkpoints' / str(STEPS) / 'checksums.0.json').unlink()
  fit(done)
  assert_bitwise(done, straight)
  assert not (done / 'job/unreadable').exists()


def state(mesh, fill: float):
  values = {'params': {'w': np.full((64, 64), fill, np.float32)}}
  return sharding.put(values, mesh), sharding.put({'m': np.zeros((64, 64), np.float32)}, mesh)


def test_a_save_that_fails_in_the_background_is_an_error_of_the_next_or_of_the_wait(
  tmp_path, monkeypatch
):
  """The disk is full: no file may grow beyond some bytes."""
  program = (
    'import resource, signal, sys; sys.path.insert(0, sys.argv[1]); '
    'import test_reliability as t; '
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
    't.save_until_it_fails(t.Path(sys.argv[2]), sys.argv[3])'
  )
  for how in ('save', 'wait'):
    arguments = [str(Path(__file__).parent), str(tmp_path / how), how]
    command = [sys.executable, '-c', program, *arguments]
    env = os.environ | {'PYTHONPATH': str(gang.ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert ended.returncode == 1, ended.stderr
    assert 'File too large' in ended.stderr
    assert f'{how} raised' in ended.stdout
    assert sorted(p.name for p in (tmp_path / how).glob('[0-9]')) == ['1']


def save_until_it_fails(folder: Path, how: str) -> None:
  import resource

  mesh = sharding.make_mesh(trainer.DEFAULTS['mesh'])
  rng = np.random.default_rng(0)
  values = {'params': {'w': rng.normal(size=(256, 256)).astype(np.float32)}}
  values = sharding.put(values, mesh)
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(1, values, {'m': values['params']['w']})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    checkpoints.save(2, values, {'m': values['params']['w']})
    try:
      if how == 'wait':
        checkpoints.wait()
      else:
        checkpoints.save(3, values, {'m': values['params']['w']})
    except Exception:
      print(f'{how} raised')
      raise


def test_a_run_whose_folder_is_taken_away_fails_at_once(tmp_path):
  """Training neither continues without checkpoints nor waits for a write that cannot succeed."""
  program = (
    'import sys; sys.path.insert(0, sys.argv[1]); '
    'import test_reliability as t; t.take_the_folder_away(t.Path(sys.argv[2]))'
  )
  command = [sys.executable, '-c', program, str(Path(__file__).parent), str(tmp_path)]
  env = os.environ | {'PYTHONPATH': str(gang.ROOT)}
  ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
  assert ended.returncode == 1, ended.stderr
  assert 'NotADirectoryError' in ended.stderr.splitlines()[-1], ended.stderr
  assert len(trainer.losses(tmp_path / 'job')) < STEPS


def take_the_folder_away(folder: Path) -> None:
  save = train.Checkpoints.save

  def taken_away(self, step, *items):
    if step == 4:
      self.wait()
      shutil.rmtree(folder / 'job/checkpoints')
      (folder / 'job/checkpoints').write_text('not a folder')
    save(self, step, *items)

  train.Checkpoints.save = taken_away
  fit(folder)


@pytest.mark.slow
def test_killed_while_it_saves_the_step_before_survives(tmp_path):
  """At 50 random moments of a save of some MB: what is there loads, and leftovers are cleaned."""
  seen = []
  delays = random.Random(0)
  folder = tmp_path / 'job'
  for trial in range(50):
    spec = {'steps': 100_000, 'save_every': 1, 'wide': 2000, 'data_shards': 1}
    with gang.Gang(tmp_path, gang.trainer(folder, **spec), count=1, devices=1) as those:
      process = those.processes[0]
      before = newest(folder)
      end = time.monotonic() + 120
      while newest(folder) == before:  # until it saves for the first time
        assert process.poll() is None and time.monotonic() < end, those.said(0)
        time.sleep(0.002)
      time.sleep(delays.uniform(0, 0.3))
      process.kill()
      assert process.wait(60) == -signal.SIGKILL
    left = unfinished(folder)
    seen.append(bool(left))
    kept = newest(folder)
    assert kept >= before, 'the step before is there'
    with Checkpoints(folder / 'checkpoints') as checkpoints:  # as a restart begins
      assert checkpoints.steps()[0] == kept
      end = time.monotonic() + 60  # they are removed in the background
      while unfinished(folder):
        assert time.monotonic() < end
        time.sleep(0.01)
    check_sums(folder / 'checkpoints' / str(kept))
    trainer.saved(folder, kept)
    assert not (folder / 'unreadable').exists(), trial
  assert any(seen), 'no kill hit a save'
  print(f'{sum(seen)} of {len(seen)} kills left an unfinished step')


def newest(folder: Path) -> int:
  steps = [int(p.name) for p in (folder / 'checkpoints').glob('*') if p.name.isdigit()]
  return max(steps, default=0)


def unfinished(folder: Path) -> list[str]:
  return [p.name for p in (folder / 'checkpoints').glob('*') if not p.name.isdigit()]
