"""The command line with a bomb: `python bombed.py STAGE PROCESS COUNT FLAGS...`.

In STAGE, process PROCESS gets SIGTERM as its COUNT-th batch of documents is scored.
"""

import functools
import os
import signal
import sys

from disranker_jax import main
from disranker_jax.devices import processes


def arm(stage: str, process: str, count: int) -> None:
  from disranker_jax.pipeline import runner
  from disranker_jax.rankers import pointwise  # arrays are made by some of what they import

  run_stage, begin = runner.Pipeline.run_stage, pointwise.Scorer._begin
  now, calls = [''], []

  def stage_starts(self, stage):
    now[0] = stage.name
    return run_stage(self, stage)

  def scored(self, *args):
    if now[0] == stage and os.environ['DISRANKER_PROCESS'] == process:
      calls.append(stage)
      if len(calls) == count:
        os.kill(os.getpid(), signal.SIGTERM)
    return begin(self, *args)

  runner.Pipeline.run_stage, pointwise.Scorer._begin = stage_starts, scored


def started(start, bomb) -> None:
  start()
  arm(bomb[0], bomb[1], int(bomb[2]))


if __name__ == '__main__':
  processes.start = functools.partial(started, processes.start, sys.argv[1:4])
  sys.argv = ['main', *sys.argv[4:]]
  main.cli()
