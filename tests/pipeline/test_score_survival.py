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

from disranker_jax import pipeline

KILLS = 50
STAGES = ('prepare', 'cpt', 'sft')


def options(**more):
  return {'score__shard_queries': 1, 'score__batch_rows': 4, **more}


def contents(folder) -> dict[str, bytes]:
  """Every file of a score folder but the manifest, which has times in it."""
  files = (f for f in folder.rglob('*') if f.is_file() and f.name != 'manifest.json')
  return {str(f.relative_to(folder)): f.read_bytes() for f in files}


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
  """An undisturbed run up to the scores."""
  workdir = tmp_path_factory.mktemp('scored') / 'run'
  pipeline.run(helpers.config(**options()), workdir, stages=[*STAGES, 'score'])
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


@pytest.mark.slow
def test_killed_fifty_times_the_scores_are_those_of_an_undisturbed_run(scored, unscored):
  rng, shards = random.Random(0), unscored / 'score' / 'shards'
  begin = time.monotonic()
  subprocess.run(command(unscored), env=environment(), capture_output=True, check=True)
  whole = time.monotonic() - begin
  assert contents(unscored / 'score') == contents(scored / 'score')
  shutil.rmtree(unscored / 'score')
  killed, seen = 0, set()
  while killed < KILLS:
    with subprocess.Popen(command(unscored), env=environment(), stderr=subprocess.DEVNULL) as run:
      try:
        # Most of a run is Python's and JAX's start; half of the kills are in its later part.
        assert run.wait(whole * rng.choice([rng.random(), 0.5 + rng.random() / 2])) == 0
        shutil.rmtree(unscored / 'score')  # it came to its end: again from the start
      except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGKILL)
        killed += 1
        seen.add(len(list(shards.rglob('*.parquet'))) if shards.is_dir() else 0)
  assert len(seen) > 2  # kills before, while and after shards were written
  subprocess.run(command(unscored), env=environment(), capture_output=True, check=True)
  assert contents(unscored / 'score') == contents(scored / 'score')


@contextlib.contextmanager
def mounted(folder, *arguments):
  """A file system at folder, for as long as the body runs; skips where one may not mount."""
  folder.mkdir(exist_ok=True)
  done = subprocess.run(['mount', *arguments, folder], capture_output=True, text=True)
  if done.returncode:
    pytest.skip(f'cannot mount: {done.stderr.strip()}')
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
    assert last.startswith('error: ') and 'the same command goes on' in last
    assert ('no space is left' if how == 'full' else 'can only be read') in last
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
