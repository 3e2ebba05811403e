"""The command line with a bomb in it: `python interrupted.py SIGNAL STAGE COUNT FLAGS...`.

The process sends itself SIGNAL right after STAGE wrote line COUNT of its metrics.jsonl (or, for
`score` and `generate`, shard COUNT), so a test stops it at one exact point on a machine of any
speed.
"""

import functools
import os
import signal
import sys

from disranker_jax import main
from disranker_jax.rankers import shards
from disranker_jax.training import logs


def exploding(write, matches, count: int, number: int):
  """`write`, that sends the signal after it was called `count` times where `matches(*args)`."""
  calls = []

  @functools.wraps(write)
  def wrapped(*args):
    write(*args)
    if matches(*args):
      calls.append(args)
      if len(calls) == count:
        os.kill(os.getpid(), number)

  return wrapped


if __name__ == '__main__':
  name, stage, count, *flags = sys.argv[1:]
  bomb = {'count': int(count), 'number': signal.Signals[name]}
  if stage in ('score', 'generate'):
    shards.Shards.write = exploding(shards.Shards.write, lambda *_: True, **bomb)
  else:
    logs.MetricsLog.write = exploding(
      logs.MetricsLog.write, lambda log, *_: f'/{stage}/' in log._file.name, **bomb
    )
  sys.argv = ['main', *flags]
  main.cli()
