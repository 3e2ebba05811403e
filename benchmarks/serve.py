"""Servers under load, ours and others' in turn: p50, p95, p99, pairs and tokens per second.

The others are what a team writes first: sentence-transformers, or ONNX Runtime, behind the same web
server, with one call per request. This process makes the load; each server is another process.
"""

import argparse
import collections
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import _baselines, _load, _texts
from disranker_jax.commands.common import Parser
from disranker_jax.devices import processor, runtime
from disranker_jax.errors import UserError
from disranker_jax.models.load import open_exported
from disranker_jax.report import tables
from disranker_jax.serve.__main__ import TOKEN_ENV


def parse_args(argv) -> argparse.Namespace:
  parser = Parser(
    'bench serve', __doc__, '--model runs/quickstart/export/student --clients 1,16,64'
  )
  add = parser.add_argument_group('load').add_argument
  add('--model', required=True, type=Path, metavar='DIR', help='an exported student')
  add('--clients', default='1,4,16,64', metavar='N,N', help='clients of each closed loop')
  add('--rate', type=float, default=0.0, help='requests per second of an open loop; 0: none')
  add('--seconds', type=float, default=20.0, help='length of each measurement')
  add('--depth', type=int, default=20, help='texts per request')
  add('--full', action='store_true', help='texts as long as the model reads')
  add(
    '--systems', type=_baselines.checked, default=_baselines.installed(), metavar='A,B',
    help='what to measure',
  )  # fmt: skip
  add('--json', type=Path, metavar='FILE', help='also write the rows as JSON')
  return parser.parse_args(argv)


@contextlib.contextmanager
def server(system: str, model: Path, search: bool = False):
  """(address, process) of a system's server, ready to answer; `search`: ours has a collection."""
  port = free_port()
  command = [sys.executable, '-m']
  if system.startswith('ours'):
    backend = system.removeprefix('ours ')
    command += ['disranker_jax', 'serve', '--backend', backend]
    command += [] if search else ['--no-search']
    command += ['--keep-alive', '5']  # idle connections end before _hostile.HOLD_S
  else:
    command += ['benchmarks._other', '--system', system]
  command += ['--model', str(model), '--port', str(port)]
  # The clients of the load send no token, and only this machine reaches the server.
  env = {name: value for name, value in os.environ.items() if name != TOKEN_ENV}
  quiet = subprocess.DEVNULL
  process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=env)
  url = f'http://127.0.0.1:{port}'
  try:
    wait(url, process, system)
    yield url, process
  finally:
    process.terminate()
    try:
      process.wait(60)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def wait(url: str, process, system: str, seconds: float = 180.0) -> None:
  end = time.monotonic() + seconds
  while time.monotonic() < end and process.poll() is None:
    if _load.health(url, timeout_s=5) == 200:
      return
    time.sleep(0.1)
  raise UserError(f'{system}: its server did not start; run it yourself to see why')


def outcomes(rows: list) -> str:
  """What became of requests of which none has status 200, and what to do."""
  if not rows:
    return 'none was sent; raise --seconds or --rate'
  counts = collections.Counter(status for status, _ in rows)
  said = [f'{n} x {f"status {s}" if s else "no answer"}' for s, n in counts.most_common()]
  return f'{", ".join(said)}; run the server yourself to see why'


def figures(rows: list, seconds: float, depth: int, tokens: float) -> dict:
  """Latency and rates of the answered requests, and the number of failed ones."""
  times = [took for status, took in rows if status == 200]
  if not times:
    raise UserError(f'no request was scored: {outcomes(rows)}')
  rate = len(times) * depth / max(seconds, sum(times) / len(times))
  return _texts.percentiles(times) | {
    'pairs_per_s': round(rate, 1),
    'tokens_per_s': round(rate * tokens),
    'failed': len(rows) - len(times),
  }


def main(argv) -> None:
  args = parse_args(argv)
  runtime.prepare()
  requests = (_texts.full if args.full else _texts.natural)(100, args.depth)
  bodies = [_load.rerank_body(r) for r in requests]
  prompt = open_exported(args.model, precision='float32').prompt()  # asks no device
  lengths = [len(e) for r in requests for e in prompt.encode_texts(r.query, r.texts)]
  depth, tokens = len(lengths) / len(requests), sum(lengths) / len(lengths)
  loads = [('closed', int(n)) for n in args.clients.split(',') if n]
  loads += [('open', args.rate)] if args.rate else []
  rows = {}
  for name in args.systems:
    with server(name, args.model) as (url, _):
      _load.closed(url, bodies, 2, min(3.0, args.seconds))  # warm
      for kind, size in loads:
        run = _load.closed if kind == 'closed' else _load.opened
        rows[name, kind, size] = figures(run(url, bodies, size, args.seconds), args.seconds,
                                         depth, tokens)  # fmt: skip
  for (_name, *what), row in rows.items():
    row['first_is_faster'] = round(
      rows[args.systems[0], *what]['pairs_per_s'] / row['pairs_per_s'], 2
    )
  heads = ['system', 'load', *next(iter(rows.values()))]
  lines = [[n, f'{k} {s}', *map(str, row.values())] for (n, k, s), row in rows.items()]
  print(f'{len(requests)} queries, {depth:.0f} texts each, {tokens:.0f} tokens per pair, '
        f'{processor.cores()} cores\n')  # fmt: skip
  print(tables.markdown(heads, lines))
  if args.json:
    listed = [{'system': n, 'load': k, 'size': s} | row for (n, k, s), row in rows.items()]
    args.json.write_text(json.dumps(listed, indent=2) + '\n')
