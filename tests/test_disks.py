"""A disk that cannot be written is one line with the place, whatever the library that met it."""

import errno
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from disranker_jax import disks
from disranker_jax.commands import common
from disranker_jax.data import spool, store
from disranker_jax.data.records import Click
from disranker_jax.devices import processes
from disranker_jax.models import files
from disranker_jax.pipeline import manifest
from disranker_jax.training.checkpoint import Checkpoints

FULL, QUOTA = os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT)
# As the libraries say it.
ORBAX = f'RESOURCE_EXHAUSTED: Failed writing: "d/1": Failed to write 9 bytes: {FULL} [os_error...]'


def line_of(error: Exception, capsys) -> str:
  with pytest.raises(SystemExit) as end, common.guarded():
    raise error
  said = capsys.readouterr().err
  assert end.value.code == 2 and said.count('\n') == 1
  return said


@pytest.mark.parametrize(
  ('error', 'what'),
  [
    (ValueError(ORBAX), 'no space is left on the disk'),
    (RuntimeError(f'write() failed: {FULL}; writing shard-000000.partial'), 'no space is left'),
    (RuntimeError(f'write() failed: {QUOTA}; at byte 9'), 'the quota is used up'),
    (Exception('Read-only file system (os error 30)'), 'the disk is read-only'),
    (jax.errors.JaxRuntimeError(ORBAX), 'no space is left on the disk'),
    (OSError(errno.ENOSPC, FULL), 'no space is left on the disk'),
  ],
)
def test_another_librarys_error_is_the_same_line(error, what, capsys, monkeypatch):
  said = line_of(error, capsys)
  assert said.startswith(f'error: {what}') and 'run the same command again' in said
  with pytest.raises(OSError) as named, disks.writing('/data/run'):
    raise error
  assert line_of(named.value, capsys).startswith(f'error: /data/run: {what}')
  monkeypatch.setattr(processes, 'place', lambda: 'process 3 on tpu-3')
  assert line_of(named.value, capsys).startswith(f'error: /data/run (process 3 on tpu-3): {what}')
  assert line_of(error, capsys).startswith(f'error: (process 3 on tpu-3): {what}')


def test_other_errors_keep_their_traceback():
  for error in (RuntimeError('a bug'), OSError(errno.EIO, 'Input/output error'), KeyError('a')):
    with pytest.raises(type(error)) as found, common.guarded(), disks.writing('/data/run'):
      raise error
    assert found.value is error


def test_the_name_of_a_file_that_is_told_stays():
  with pytest.raises(OSError) as found, disks.writing('/data/run'):
    raise OSError(errno.ENOSPC, FULL, '/tmp/x')
  assert found.value.filename == '/tmp/x'


def checkpoint(folder):
  with Checkpoints(folder / 'checkpoints') as checkpoints:
    params = {'w': np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)}
    checkpoints.save(1, jax.device_put(params), {'m': jax.device_put(np.zeros(3))})
    checkpoints.wait()


def records(folder):
  shards = store.Shards('clicks', folder)
  for i in range(20000):
    shards.add(Click(f'q{i}', 'title', f'{i * i} ' * 9, 1))
  shards.close_shard()


def rows(folder):
  rows = spool.Spool(folder)
  for i in range(9):
    rows.add(str(i), os.urandom(1 << 16).hex())
  rows.flush()


def tensors(folder):
  files.write_tensors(folder, [('a', np.zeros((300, 300)))])


def note(folder):
  manifest.write_json(folder / 'note.json', 'x' * 200_000)


WRITERS = {f.__name__: f for f in (checkpoint, records, rows, tensors, note)}


@pytest.fixture
def full(tmp_path):
  """A file system of 96 kB."""
  folder = tmp_path / 'full'
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=96k', 'tmpfs', folder]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    pytest.skip(f'needs the right to mount a file system: {done.stderr.strip()}')
  yield folder
  subprocess.run(['umount', folder], check=True)


@pytest.mark.parametrize('name', WRITERS)
def test_a_full_disk_is_one_line_with_the_place(name, full, capsys):
  with pytest.raises(SystemExit) as end, common.guarded():
    WRITERS[name](full)
  last = capsys.readouterr().err.splitlines()[-1]
  assert end.value.code == 2 and last.startswith(f'error: {full}')
  assert 'no space is left on the disk' in last


def test_one_process_has_no_number_and_looks_for_no_device():
  code = (
    'from disranker_jax.devices import processes\nassert processes.place() == ""\n'
    'from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_one_of_several_processes_has_its_number_and_host(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  monkeypatch.setattr(jax, 'process_index', lambda: 3)
  monkeypatch.setattr(processes.socket, 'gethostname', lambda: 'tpu-3')
  assert processes.place() == 'process 3 on tpu-3'
