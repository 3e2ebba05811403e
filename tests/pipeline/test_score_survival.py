"""The score stage on a bad day: killed at random moments, on a disk that is full or read-only."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import helpers
import pytest

from disranker_jax.pipeline import runner

KILLS = 50
STAGES = ('prepare', 'cpt', 'sft')


def options(**more):
  return {
    'score__unit_queries': 1, 'score__batch_rows': 4, 'data__limit__candidates': 200, **more
  }  # fmt: skip


def contents(folder) -> dict[str, bytes]:
  """Every file of a score folder but the manifest, which has times in it."""
  files = (f for f in folder.rglob('*') if f.is_file() and f.name != 'manifest.json')
  return {str(f.relative_to(folder)): f.read_bytes() for f in files}


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
  """An undisturbed run up to the scores."""
  workdir = tmp_path_factory.mktemp('scored') / 'run'
  runner.run(helpers.config(**options()), workdir, stages=[*STAGES, 'score'])
  return workdir


@pytest.fixture
def unscored(scored, tmp_path):
  """The same run before its score stage."""
  copy = shutil.copytree(scored, tmp_path / 'run')
  shutil.rmtree(copy / 'score')
  return copy


def command(workdir) -> list[str]:
  flags = helpers.flags(workdir, **options())
  return [sys.executable, '-m', 'disranker_jax.main', *flags, '--stages=score']


def environment() -> dict:
  quick = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'PYTHONPATH': str(helpers.ROOT)}
  return os.environ | quick | {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'}


def killed_after(workdir, seconds: float) -> bool:
  """Runs the score stage and kills it so long after it wrote its next shard; whether it was."""
  notes = workdir / 'score' / 'shards'
  before = len(list(notes.rglob('_*.json')))
  with subprocess.Popen(command(workdir), env=environment(), stderr=subprocess.DEVNULL) as run:
    while run.poll() is None and len(list(notes.rglob('_*.json'))) == before:
      time.sleep(0.001)
    try:
      assert run.wait(seconds) == 0
      return False
    except subprocess.TimeoutExpired:
      run.send_signal(signal.SIGKILL)
      return True


@pytest.mark.slow
def test_killed_fifty_times_the_scores_are_those_of_an_undisturbed_run(scored, unscored):
  score, wanted = unscored / 'score', contents(scored / 'score')
  rng, killed, seen = random.Random(0), 0, set()
  while killed < KILLS:
    if killed_after(unscored, rng.random()):
      killed += 1
      seen.add(len(list(score.rglob('*.parquet'))))
    else:  # it came to its end: from the start again
      assert contents(score) == wanted
      shutil.rmtree(score)
  print(f'{killed} kills, at {len(seen)} different counts of shards: {sorted(seen)}')
  assert len(seen) > KILLS // 4
  subprocess.run(command(unscored), env=environment(), capture_output=True, check=True)
  assert contents(score) == wanted


@contextlib.contextmanager
def mounted(folder, *arguments):
  """A file system at folder, for as long as the body runs; skips where one may not mount."""
  folder.mkdir(exist_ok=True)
  done = subprocess.run(['mount', *arguments, folder], capture_output=True, text=True)
  if done.returncode:
    pytest.skip(f'needs the right to mount a file system: {done.stderr.strip()}')
  try:
    yield
  finally:
    subprocess.run(['umount', folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize('how', ['full', 'read-only'])
def test_a_disk_that_is_full_or_read_only_is_one_line_and_costs_nothing(scored, unscored, how):
  score = unscored / 'score'
  size = sum(map(len, contents(scored / 'score').values()))
  fill = ['-t', 'tmpfs', '-o', f'size={max(size // 2 // 4096, 1) * 4096}', 'tmpfs']
  lock = ['-t', 'tmpfs', '-o', 'ro', 'tmpfs']
  with mounted(score, *(fill if how == 'full' else lock)):
    done = subprocess.run(command(unscored), env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ') and 'run the same command again' in last
    assert ('no space is left' if how == 'full' else 'is read-only') in last
    assert not list(score.rglob('*.partial'))
    kept = contents(score)
    if how == 'full':
      assert any(name.endswith('.parquet') for name in kept)
  shutil.rmtree(score)
  for name, content in kept.items():
    (score / name).parent.mkdir(parents=True, exist_ok=True)
    (score / name).write_bytes(content)
  again = subprocess.run(command(unscored), env=environment(), capture_output=True, text=True)
  assert again.returncode == 0, again.stderr
  assert contents(score) == contents(scored / 'score')
