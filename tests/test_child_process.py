"""A command in a process of its own: it saves its work when it is asked to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from disranker_jax.commands import child_process

ROOT = Path(__file__).parents[1]
# Saves its work when it is asked to stop: longer than subprocess.run waits after Ctrl-C.
COMMAND = """
import signal, sys, time
from pathlib import Path
folder, asked = Path(sys.argv[1]), []
for number in (signal.SIGINT, signal.SIGTERM):
  signal.signal(number, lambda number, _: asked.append(number))
(folder / 'begun').touch()
while not asked:
  time.sleep(0.02)
(folder / 'saving').touch()
time.sleep(float(sys.argv[2]))
(folder / 'saved').write_text(signal.Signals(asked[0]).name)
"""
PARENT = """
import sys
from disranker_jax.commands import child_process
from disranker_jax.errors import Stopped
try:
  child_process.run([sys.executable, '-c', *sys.argv[1:]])
except Stopped as e:
  print(e.interrupted, e)
"""


@pytest.fixture
def start(tmp_path):
  """Starts the command below a parent in a session of their own, as in a terminal."""
  started = []

  def start(saving_s: float) -> subprocess.Popen:
    words = [sys.executable, '-c', PARENT, COMMAND, str(tmp_path), str(saving_s)]
    parent = subprocess.Popen(
      words, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    started.append(parent)
    until(tmp_path / 'begun')
    return parent

  yield start
  for parent in started:
    if parent.poll() is None:
      os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()


def until(file: Path) -> None:
  end = time.monotonic() + 60
  while not file.exists():
    assert time.monotonic() < end, f'{file.name} does not come'
    time.sleep(0.02)


def test_ctrl_c_lets_it_save_its_work(start, tmp_path):
  parent = start(1.0)
  os.killpg(parent.pid, signal.SIGINT)  # a terminal sends it to both
  said, _ = parent.communicate(timeout=60)
  assert (tmp_path / 'saved').read_text() == 'SIGINT'
  assert said == 'True stopped; the same command continues from there\n'


def test_sigterm_is_passed_on(start, tmp_path):
  parent = start(0.1)
  parent.terminate()
  said, _ = parent.communicate(timeout=60)
  assert (tmp_path / 'saved').read_text() == 'SIGTERM' and said.startswith('False stopped')


def test_a_second_ctrl_c_kills_it(start, tmp_path):
  parent = start(600.0)
  os.killpg(parent.pid, signal.SIGINT)
  until(tmp_path / 'saving')
  os.killpg(parent.pid, signal.SIGINT)
  said, _ = parent.communicate(timeout=60)
  assert said.startswith('True stopped') and not (tmp_path / 'saved').exists()


def test_its_status_is_returned_and_handlers_are_as_before():
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  assert child_process.run([sys.executable, '-c', 'raise SystemExit(7)']) == 7
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
