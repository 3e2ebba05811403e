"""Seconds from a query's texts to its scores, of every system in turn, so that all share the noise.

Each system has a process of its own and all cores, and runs while the others wait. Threads of ONNX
Runtime (by its defaults) and of OpenMP look for more work for a while after a call, at the full
speed of a core. So there is a pause before each call; without it, the next system lacks that core.
"""

import argparse
import contextlib
import json
import time
from pathlib import Path

import numpy as np

from benchmarks import _baselines, _student, _texts
from disranker_jax.commands.common import Parser, load_config
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError
from disranker_jax.rankers import loaded
from disranker_jax.report import tables

# ONNX Runtime 1.31 used 44 to 56 ms of a core after each call (AMD EPYC, two cores).
PAUSE_S = 0.2


def parse_args(argv) -> argparse.Namespace:
  parser = Parser('bench latency', __doc__, '--model runs/quickstart/export/student')
  add = parser.add_argument_group('latency').add_argument
  add('--model', type=Path, metavar='DIR', help='an exported student')
  parser.add_config()
  add('--random', type=Path, metavar='DIR', help=(
    "instead of --model: a random student of --config's sizes, written to DIR"))  # fmt: skip
  add('--queries', type=int, default=50, help='held-out queries to score')
  add('--depth', type=int, default=20, help='texts per query')
  add('--max-len', type=int, default=0, help="tokens; 0: the model's own limit")
  add('--full', action='store_true', help='texts as long as the model reads')
  add('--rounds', type=int, default=3, help='rounds, of which the best counts')
  add(
    '--systems', type=_baselines.checked, default=_baselines.installed(), metavar='A,B',
    help='what to measure',
  )  # fmt: skip
  add('--json', type=Path, metavar='FILE', help='also write the rows as JSON')
  args = parser.parse_args(argv)
  if bool(args.model) == bool(args.random):
    raise UserError('name a student: --model DIR, or --config FILE with --random DIR')
  return args


def measure(systems: dict, requests: list, rounds: int) -> dict[str, dict]:
  """{system: figures} of (query, texts) -> (seconds, scores); the best of the rounds counts."""
  seconds = {name: np.full((rounds, len(requests)), np.inf) for name in systems}
  scores = {}
  for score in systems.values():
    score(requests[0].query, requests[0].texts)
  for turn in range(rounds):
    for i, request in enumerate(requests):
      for name, score in systems.items():
        time.sleep(PAUSE_S)
        seconds[name][turn, i], given = score(request.query, request.texts)
        scores.setdefault(name, []).append(given)
  pairs = sum(len(r.texts) for r in requests)
  out = {}
  for name in systems:
    best = seconds[name].min(0)
    out[name] = _texts.percentiles(best) | {
      'pairs_per_s': round(pairs / best.sum(), 1),
      'ndcg@5': round(_texts.ndcg(requests, scores[name][: len(requests)]), 4),
    }
  first = next(iter(out.values()))['pairs_per_s']
  for row in out.values():
    row['first_is_faster'] = round(first / row['pairs_per_s'], 2)
  return out


def main(argv) -> None:
  args = parse_args(argv)
  runtime.prepare()
  if args.random:
    args.model = _student.write(load_config(args.config, args.overrides), args.random)
  loaded.check(args.model)  # here, because an error in the process of a system has a traceback
  make = _texts.made if args.random else _texts.full if args.full else _texts.natural
  requests = make(args.queries, args.depth)
  with contextlib.ExitStack() as stack:
    systems = {name: _baselines.Apart(name, args.model, args.max_len) for name in args.systems}
    for system in systems.values():
      stack.callback(system.close)
    rows = measure(systems, requests, args.rounds)
  heads = ['system', *next(iter(rows.values()))]
  print(tables.markdown(heads, [[n, *map(str, row.values())] for n, row in rows.items()]))
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + '\n')
