"""A command in a process of its own, which may save its work when this process is asked to stop."""

import contextlib
import signal
import subprocess
from collections.abc import Sequence

from disranker_jax.errors import Stopped


def run(command: Sequence[str]) -> int:
  """The exit status of a command, which is waited for whatever happens; its output is not shown.

  Ctrl-C reaches both processes at once, and the command saves its work. A second one kills it.
  SIGTERM, which this process gets alone, is passed on.

  Raises: Stopped when the command has ended, if this process was asked to stop.
  """
  asked: list[int] = []
  child: subprocess.Popen | None = None

  def act() -> None:
    if child and asked.count(signal.SIGINT) > 1:
      child.kill()
    elif child and signal.SIGTERM in asked:
      child.terminate()

  def note(number, frame) -> None:
    asked.append(number)
    act()

  before = {}
  with contextlib.suppress(ValueError):  # not the main thread, as in a notebook's worker
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    act()  # on what came before there was a process
    status = child.wait()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  if asked:
    raise Stopped('stopped; the same command continues from there', signal.SIGINT in asked)
  return status
