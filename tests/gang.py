"""Several processes on this machine that work as hosts do, for tests; none outlives its test."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
TRAINER = str(pathlib.Path(__file__).parent / 'trainer.py')


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


class Gang:
  """`count` processes of one command, with `devices` each; a context manager that ends them all."""

  def __init__(self, folder, arguments, count: int = 2, devices: int = 2):
    self.folder = pathlib.Path(folder)
    self.folder.mkdir(parents=True, exist_ok=True)
    self._arguments, self._count, self._devices = arguments, count, devices
    self.processes: list[subprocess.Popen] = []

  def __enter__(self):
    env = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={self._devices}',
      'PYTHONPATH': str(ROOT),
      'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0',  # or main would restart itself to set it
    }
    if self._count > 1:
      env['DISRANKER_COORDINATOR'] = f'127.0.0.1:{free_port()}'
      env['DISRANKER_PROCESSES'] = str(self._count)
    for i in range(self._count):
      with self.log(i).open('w') as log:
        command = [sys.executable, *map(str, self._arguments)]
        own = env | {'DISRANKER_PROCESS': str(i)}
        self.processes.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
    return self

  def __exit__(self, *_):
    for process in self.processes:
      with contextlib.suppress(ProcessLookupError):
        process.kill()  # also one that is stopped
      process.wait()

  def log(self, i: int) -> pathlib.Path:
    return self.folder / f'process.{i}.log'

  def said(self, i: int) -> str:
    return self.log(i).read_text()

  def wait(self, timeout: float = 480) -> list[int]:
    """Exit statuses; raises if one of the processes is still there after `timeout` seconds."""
    end = time.monotonic() + timeout
    return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]


def run(folder, arguments, count: int = 2, devices: int = 2) -> list[int]:
  """Runs a gang to its end: exit statuses, with what was said in FOLDER/process.<i>.log."""
  with Gang(folder, arguments, count, devices) as gang:
    return gang.wait()


def trainer(folder, **spec) -> list[str]:
  """The command line of tests/trainer.py."""
  return [TRAINER, json.dumps({'folder': str(folder), **spec})]
