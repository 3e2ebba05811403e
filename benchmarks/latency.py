"""Seconds from a query's texts to its scores, of every system in turn: all share the noise.

Each system has a process of its own and all cores, and is asked while the others wait.
"""

import argparse
import contextlib
import json
from pathlib import Path

import numpy as np

from benchmarks import baselines, texts
from disranker_jax.devices import runtime
from disranker_jax.report import tables


def parse_args(argv) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='disranker bench latency', description=__doc__)
  parser.add_argument('--model', required=True, type=Path, help='an exported student')
  parser.add_argument('--queries', type=int, default=50, help='of the held-out ones (50)')
  parser.add_argument('--depth', type=int, default=20, help='texts of a query (20)')
  parser.add_argument('--max-len', type=int, default=0, help="tokens; 0: the model's own")
  parser.add_argument('--full', action='store_true', help='texts as long as the model takes')
  parser.add_argument('--rounds', type=int, default=3, help='the best of each is kept (3)')
  parser.add_argument('--systems', default='', help=f'of {", ".join(baselines.installed())}')
  parser.add_argument('--json', type=Path, help='also write the rows there')
  return parser.parse_args(argv)


def measure(systems: dict, requests: list, rounds: int) -> dict[str, dict]:
  """{system: figures} of (query, texts) -> (seconds, scores); the best of the rounds counts."""
  seconds = {name: np.full((rounds, len(requests)), np.inf) for name in systems}
  scores = {}
  for score in systems.values():
    score(requests[0].query, requests[0].texts)
  for turn in range(rounds):
    for i, request in enumerate(requests):
      for name, score in systems.items():
        seconds[name][turn, i], given = score(request.query, request.texts)
        scores.setdefault(name, []).append(given)
  pairs = sum(len(r.texts) for r in requests)
  out = {}
  for name in systems:
    best = seconds[name].min(0)
    out[name] = texts.percentiles(best) | {
      'pairs_per_s': round(pairs / best.sum(), 1),
      'ndcg@5': round(texts.ndcg(requests, scores[name][: len(requests)]), 4),
    }
  first = next(iter(out.values()))['pairs_per_s']
  for row in out.values():
    row['first_is_faster'] = round(first / row['pairs_per_s'], 2)
  return out


def main(argv) -> None:
  args = parse_args(argv)
  runtime.prepare()
  make = texts.full if args.full else texts.natural
  requests = make(args.queries, args.depth)
  names = [n.strip() for n in args.systems.split(',') if n.strip()] or baselines.installed()
  with contextlib.ExitStack() as stack:
    systems = {name: baselines.Apart(name, args.model, args.max_len) for name in names}
    for system in systems.values():
      stack.callback(system.close)
    rows = measure(systems, requests, args.rounds)
  heads = ['system', *next(iter(rows.values()))]
  print(tables.markdown(heads, [[n, *map(str, row.values())] for n, row in rows.items()]))
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + '\n')
