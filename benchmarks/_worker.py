"""A side of a bench in a process of its own, so that sides can take turns.

The process answers each line of JSON on its standard input with one on its standard output.
"""

import contextlib
import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from disranker_jax.commands.plan.machine import FRACTIONS
from disranker_jax.errors import UserError

ALONE_FRACTION = '.9'  # of a GPU's memory; its libraries need the rest


class Worker:
  """The parent's end: starts the process, sends requests, ends it; a context manager."""

  def __init__(self, bench: str, name: str, argv: list[str], folder: Path, env=None, alone=True):
    self.name, self.begin = name, time.perf_counter()
    command = [sys.executable, '-m', 'benchmarks._worker', bench, name, str(folder), *argv]
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
      env=environment(name, alone) | (env or {}),
    )  # fmt: skip

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._process.stdin.close()
    try:
      self._process.wait(60)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()

  def ask(self, method: str) -> dict:
    """The result of the side's method; `failed` is the reason if there is none."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(method) + '\n')
      self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      return {'failed': f'its process ended with status {self._process.wait()}; see above'}
    return json.loads(line)

  @property
  def age(self) -> float:
    """Seconds since the process was started."""
    return time.perf_counter() - self.begin


def is_ours(name: str) -> bool:
  """Whether a side is our code, with or without a variant's settings."""
  return name == 'ours' or '=' in name


def variant(name: str) -> tuple[list[str], dict[str, str]]:
  """(config overrides, environment) of '--config.student.scan_layers=True XLA_FLAGS=...'."""
  words = [word for word in shlex.split(name) if '=' in word]
  changes = [word for word in words if word.startswith('--config.')]
  pairs = [word.split('=', 1) for word in words]
  return changes, {key: value for key, value in pairs if key.isupper()}


def environment(name: str, alone: bool) -> dict[str, str]:
  """The environment of a side: huge pages, and how it takes a GPU's memory.

  A side that is alone takes most of the memory at its start: piece by piece it would fragment.
  Several sides at a time take what they need.
  """
  env = os.environ | {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
  env.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'true' if alone else 'false')
  if alone and not any(env.get(key) for key in FRACTIONS):
    env[FRACTIONS[1]] = ALONE_FRACTION
  if not is_ours(name):  # its batches come from code that imports jax
    env['JAX_PLATFORMS'] = 'cpu'
  return env | variant(name)[1]


def in_turn(bench: str, names, argv, folder: Path, rounds: int, apart: bool) -> tuple[dict, dict]:
  """({side: turns}, {side: facts}) of sides that take `rounds` turns each.

  `apart` ends a side's process before the next one starts, for memory that cannot hold all. A side
  that fails has no turns and its reason in `facts`; if ours fails, the bench fails.
  """
  turns, facts = {name: [] for name in names}, {name: {} for name in names}
  if apart:
    for _ in range(rounds):
      for name in names:
        with Worker(bench, name, argv, folder) as worker:
          _begin(worker, facts)
          _turn(worker, turns, facts)
          _end(worker, facts)
    return turns, facts
  with contextlib.ExitStack() as stack:
    workers = []
    for name in names:
      alone = len(names) == 1
      workers.append(stack.enter_context(Worker(bench, name, argv, folder, alone=alone)))
      _begin(workers[-1], facts)
    for _ in range(rounds):
      for worker in workers:
        _turn(worker, turns, facts)
    for worker in workers:
      _end(worker, facts)
  return turns, facts


def _begin(worker: Worker, facts: dict) -> None:
  facts[worker.name] |= checked(worker, 'start')


def _turn(worker: Worker, turns: dict, facts: dict) -> None:
  """A warm-up step, then the measured ones.

  While other sides work, the kernel reclaims memory: the first step takes three times as long.
  """
  if 'failed' in facts[worker.name]:
    return
  row = checked(worker, 'warm')
  if 'failed' not in row:
    row = checked(worker, 'turn')
  if 'failed' in row:
    turns[worker.name].clear()
    facts[worker.name] |= row
  else:
    turns[worker.name].append(row)


def _end(worker: Worker, facts: dict) -> None:
  if 'failed' not in facts[worker.name]:
    facts[worker.name] |= checked(worker, 'end')


def checked(worker: Worker, method: str) -> dict:
  answer = worker.ask(method)
  if 'failed' in answer and worker.name == 'ours':
    raise UserError(answer['failed'])
  return answer


def main(argv: list[str]) -> None:
  bench, name, folder, *rest = argv
  if is_ours(name):
    name, rest = 'ours', [*rest, *variant(name)[0]]
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print must not mix with answers
  from disranker_jax.devices import runtime

  runtime.prepare()
  side = None
  for line in sys.stdin:
    try:
      if side is None:
        module = importlib.import_module(f'benchmarks.{bench}')
        side = module.open_side(name, rest, Path(folder))
      answer = getattr(side, json.loads(line))()
    except (UserError, MemoryError, RuntimeError) as e:
      answer = {'failed': f'{type(e).__name__}: {e}' if not isinstance(e, UserError) else str(e)}
    answers.write(json.dumps(answer) + '\n')
    answers.flush()


if __name__ == '__main__':
  main(sys.argv[1:])
