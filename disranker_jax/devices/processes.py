"""Several processes that train one model: rank, barriers, collectives, stopping together.

With one process everything here is a no-op. On a pod slice or several nodes every host runs the
same command on one shared workdir, and process 0 writes what must be written once.
"""

import contextlib
import faulthandler
import io
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import ClassVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from disranker_jax import progress
from disranker_jax.errors import Stopped, UserError

# A peer without a heartbeat for this long counts as dead; all hosts may take long to start.
HEARTBEAT_S, GATHER_S = 60, 1800
# An exiting process waits this long for the others. If they do not exit too, it failed, and the
# runtime ends them.
LEAVE_S = 60
# How long the others wait for work that one process does alone, such as preparing data.
ALONE_S = 7 * 24 * 3600
HUNG = 75  # exit status of the watchdog: EX_TEMPFAIL, worth a retry


def start() -> None:
  """Joins the other processes if the environment names any; call before the first array.

  Either DISRANKER_COORDINATOR=host:port, DISRANKER_PROCESSES (count) and DISRANKER_PROCESS (index),
  or DISRANKER_DISTRIBUTED=1, which detects Cloud TPU, GKE, SLURM and Open MPI.
  Raises: UserError for incomplete variables, or where no cluster is detected.
  """
  env = os.environ
  timeouts = {
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
    jax.distributed.initialize(coordinator, count, index, **timeouts)
  elif env.get('DISRANKER_DISTRIBUTED') == '1':
    try:
      jax.distributed.initialize(**timeouts)
    except ValueError as e:
      raise UserError(f'DISRANKER_DISTRIBUTED=1: no cluster was found here ({e})') from e
  progress.mute(not is_first())


def is_first() -> bool:
  """Whether this is process 0, which writes what is written once."""
  return jax.process_index() == 0


def place() -> str:
  """'process 3 on tpu-3', if there are several; '' of one. It does not look for devices."""
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return ''
  return f'process {jax.process_index()} on {socket.gethostname()}'


def barrier(name: str) -> None:
  """Waits until every process has reached the barrier of this name."""
  if jax.process_count() > 1:
    everyone = set(range(jax.process_count()))
    multihost.sync_global_processes(name, timeout=ALONE_S, processes=everyone)


def first_alone(name: str, work: Callable):
  """Runs `work` in process 0 while the others wait; they return None.

  Raises: UserError in every process if `work` raises one.
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


_computed = itertools.count()


def of_first(name: str, work: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """The arrays that `work` returns in process 0, in every process, bit by bit.

  Hosts may compute other last bits from the same values, and what follows from them must be the
  same everywhere. Raises: UserError in every process if `work` raises one.
  """
  found = first_alone(f'{name} {next(_computed)}', work)  # a barrier's name is used once
  if jax.process_count() == 1:
    return found
  packed = io.BytesIO()
  if is_first():
    np.savez(packed, **found)
  sent = np.frombuffer(packed.getvalue(), np.uint8)
  size = int(broadcast(np.array(len(sent))))
  sent = broadcast(sent if is_first() else np.zeros(size, np.uint8))
  with np.load(io.BytesIO(sent.tobytes())) as arrays:
    return dict(arrays)


def any_of(value: bool) -> bool:
  """Whether `value` is true in any process."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.process_allgather(np.array(value)).any())


def broadcast(values: np.ndarray) -> np.ndarray:
  """Process 0's array, in every process."""
  if jax.process_count() == 1:
    return values
  return np.asarray(multihost_utils.broadcast_one_to_all(values))


def add_up(values: np.ndarray) -> np.ndarray:
  """The sum of every process's array."""
  if jax.process_count() == 1:
    return values
  return multihost_utils.process_allgather(values).sum(0)


_asked = 0  # the signal that a StopRequest received last; see `asked`


def asked() -> int:
  """The signal that asked this process to stop since the last call, or 0.

  A stage that ends by itself just then does not raise Stopped; the next one must not start.
  """
  global _asked
  number, _asked = _asked, 0
  return number


class StopRequest:
  """True once this process has received SIGTERM or Ctrl-C; a second Ctrl-C stops at once.

  A context manager that restores the old handlers. `signal` is the first signal's number, or 0.
  Work inside of other work is asked together with it.
  """

  _entered: ClassVar[list['StopRequest']] = []

  def __init__(self):
    self.signal = 0
    self._before = {}

  def stopped(self, message: str) -> Stopped:
    """The exception to raise once everything is saved."""
    return Stopped(message, self.signal == signal.SIGINT)

  def __bool__(self) -> bool:
    return bool(self.signal)

  def __enter__(self):
    # A request that the work around this one has not acted on yet is for this one too.
    self.signal = next((each.signal for each in (self, *self._entered) if each.signal), 0)
    self._entered.append(self)
    with contextlib.suppress(ValueError):  # not the main thread, as in a notebook's worker
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_):
    self._entered.remove(self)
    for number, old in self._before.items():
      signal.signal(number, old)

  def _handle(self, number, frame):
    if self.signal and number == signal.SIGINT:
      raise KeyboardInterrupt
    global _asked
    if not self.signal:
      _asked = number
      for request in self._entered:
        request.signal = request.signal or number
      progress.say('stopping after this step; press Ctrl-C again to stop at once')


class Watchdog:
  """Ends this process with an error if `beat()` was not called for `seconds`.

  A collective waits forever for a peer that is alive but stuck, and JAX does not notice. A context
  manager; active only with more than one process. Work inside of other work beats for both.
  """

  _entered: ClassVar[list['Watchdog']] = []

  def __init__(self, what: str, seconds: float):
    self._what, self._seconds = what, seconds
    self._last = time.monotonic()
    self._done = threading.Event()

  def __enter__(self):
    self._entered.append(self)
    self.beat()
    if jax.process_count() > 1 and self._seconds:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_):
    self._entered.remove(self)
    self._done.set()

  def beat(self) -> None:
    now = time.monotonic()
    for watchdog in self._entered:
      watchdog._last = now

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
