"""Several processes that train one model: who is first, waiting for each other, stopping together.

A laptop is one process and everything here stands aside. On a pod slice or several nodes each host
runs the same command on one shared workdir; process 0 writes what must be written once.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from disranker_jax import progress
from disranker_jax.errors import Stopped, UserError

# A peer is taken for dead after this long without a sign of life; gangs may take long to gather.
HEARTBEAT_S, GATHER_S = 60, 1800
# One that ends waits this long for the others; if they do not end too, it failed, and they must.
LEAVE_S = 60
# How long the others wait for what one process does alone, such as preparing data.
ALONE_S = 7 * 24 * 3600
HUNG = 75  # exit status of the watchdog: EX_TEMPFAIL, worth another try


def start() -> None:
  """Joins the other processes, if the environment says that there are any; before any array.

  DISRANKER_COORDINATOR=host:port, DISRANKER_PROCESSES and DISRANKER_PROCESS name them;
  DISRANKER_DISTRIBUTED=1 finds them by itself (Cloud TPU, GKE, SLURM, Open MPI).
  """
  env = os.environ
  how = {
    'initialization_timeout': GATHER_S,
    'heartbeat_timeout_seconds': HEARTBEAT_S,
    'shutdown_timeout_seconds': LEAVE_S,
  }
  if coordinator := env.get('DISRANKER_COORDINATOR'):
    try:
      count, index = int(env['DISRANKER_PROCESSES']), int(env['DISRANKER_PROCESS'])
    except (KeyError, ValueError) as e:
      raise UserError(
        'DISRANKER_COORDINATOR is set: set DISRANKER_PROCESSES (how many) and DISRANKER_PROCESS '
        '(0 for the first) to numbers as well'
      ) from e
    jax.distributed.initialize(coordinator, count, index, **how)
  elif env.get('DISRANKER_DISTRIBUTED') == '1':
    try:
      jax.distributed.initialize(**how)
    except ValueError as e:
      raise UserError(f'DISRANKER_DISTRIBUTED=1: no cluster was found here ({e})') from e
  progress.mute(not is_first())


def is_first() -> bool:
  """Whether this is the process that writes what is written once."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until every process is here."""
  if jax.process_count() > 1:
    everyone = set(range(jax.process_count()))
    multihost.sync_global_processes(name, timeout=ALONE_S, processes=everyone)


def first_alone(name: str, work: Callable):
  """Process 0 does the work while the others wait; its result there, None elsewhere.

  If it raises UserError, all stop.
  """
  if jax.process_count() == 1:
    return work()
  result = error = None
  if is_first():
    try:
      result = work()
    except UserError as e:
      error = e
  barrier(name)
  failed = bool(multihost_utils.broadcast_one_to_all(np.array(error is not None)))
  if error:
    raise error
  if failed:
    raise UserError(f'{name}: process 0 stopped with an error; see its message')
  return result


def any_of(value: bool) -> bool:
  """Whether it is so in any process."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.process_allgather(np.array(value)).any())


def told(values: np.ndarray) -> np.ndarray:
  """Process 0's array, in every process."""
  if jax.process_count() == 1:
    return values
  return np.asarray(multihost_utils.broadcast_one_to_all(values))


def add_up(values: np.ndarray) -> np.ndarray:
  """The sum of every process's array."""
  if jax.process_count() == 1:
    return values
  return multihost_utils.process_allgather(values).sum(0)


class StopRequest:
  """Whether SIGTERM or Ctrl-C came to this process; a second Ctrl-C is immediate.

  A context manager that puts the old handlers back. `signal` is the number of the first that came.
  """

  def __init__(self):
    self.signal = 0
    self._before = {}

  def stopped(self, message: str) -> Stopped:
    """What to raise, once everything is on disk."""
    return Stopped(message, self.signal == signal.SIGINT)

  def __bool__(self) -> bool:
    return bool(self.signal)

  def __enter__(self):
    with contextlib.suppress(ValueError):  # not the main thread, as in a notebook's worker
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_):
    for number, old in self._before.items():
      signal.signal(number, old)

  def _handle(self, number, frame):
    if self.signal and number == signal.SIGINT:
      raise KeyboardInterrupt
    if not self.signal:
      self.signal = number
      progress.say('stopping after this step; once more to stop at once')


class Watchdog:
  """Ends this process with a reason if nothing has moved for `seconds`: a peer died or hangs.

  A collective waits for ever for a process that is alive but does not come; nothing else notices.
  Only where there is more than one process. A context manager; `beat()` says that work goes on.
  """

  def __init__(self, what: str, seconds: float):
    self._what, self._seconds = what, seconds
    self._last = time.monotonic()
    self._done = threading.Event()

  def __enter__(self):
    if jax.process_count() > 1 and self._seconds:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_):
    self._done.set()

  def beat(self) -> None:
    self._last = time.monotonic()

  def _watch(self) -> None:
    while not self._done.wait(min(self._seconds / 4, 5)):
      idle = time.monotonic() - self._last
      if idle > self._seconds:
        faulthandler.dump_traceback(sys.stderr)
        print(
          f'error: {self._what}: process {jax.process_index()} has made no step for {idle:.0f} s '
          '(config.watchdog_s); another process died or hangs. The same command continues from the '
          'last checkpoint',
          file=sys.stderr,
          flush=True,
        )
        os._exit(HUNG)
