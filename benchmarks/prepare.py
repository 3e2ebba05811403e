"""Rows per second and peak memory of `disranker prepare`, for synthetic rows.

Each size is prepared by a process of its own, whose peak resident memory the system reports. Rows
resemble web results: 10 documents per query, about 60 words of summary, scores and ranks.
`shuffled` spreads the rows of a query over the whole file, the worst case for grouping them.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from disranker_jax.commands.common import Parser

WORDS = [
  f'{a}{b}' for a in ('re', 'con', 'pro', 'in', 'ex') for b in ('form', 'port', 'tain', 'act')
]


def write(path: Path, rows: int, order: str) -> None:
  """Writes a file of rows; equal arguments give equal files."""
  rng = random.Random(0)
  texts = [' '.join(rng.choices(WORDS, k=rng.randrange(20, 100))) for _ in range(1000)]
  step = 7_368_787 if order == 'shuffled' else 1  # a prime: every row once, neighbours far apart
  with path.open('w') as file:
    for place in range(rows):
      i = place * step % rows
      row = {
        'query_id': f'q{i // 10}', 'query': f'{texts[i // 10 % 1000][:40]} {i // 10}',
        'doc_id': f'd{i}', 'title': texts[i % 997][:60], 'summary': texts[i % 991],
        'rank': i % 10 + 1, 'score': 20 - i % 10 / 3, 'label': i % 5,
      }  # fmt: skip
      file.write(json.dumps(row) + '\n')


def measure(source: Path, kind: str, folder: Path) -> dict:
  """Wall and CPU seconds, peak memory and output size (MiB) of one `disranker prepare`."""
  command = [sys.executable, '-m', 'disranker_jax', 'prepare']
  command += ['--source', f'jsonl:{source}', '--kind', kind, '--out', str(folder / 'out')]
  begin = time.monotonic()
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    sys.exit(f'prepare failed: {status}')
  wall = time.monotonic() - begin
  size = sum(f.stat().st_size for f in (folder / 'out').iterdir())
  return {
    'wall_s': wall, 'cpu_s': usage.ru_utime + usage.ru_stime,
    'memory_mb': usage.ru_maxrss / 1024, 'out_mb': size / 2**20,
  }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  parser = Parser('bench prepare', __doc__, '1000000 4000000 --order shuffled')
  parser.add_argument('rows', type=int, nargs='+', metavar='ROWS', help='sizes to measure')
  parser.add_argument('--kind', default='candidates', help='what the rows are')
  parser.add_argument(
    '--order', default='sorted', choices=('sorted', 'shuffled'), help='of the rows'
  )
  args = parser.parse_args(argv)
  print(
    '| rows | kind | order | input MB | rows/s | rows/s of CPU time | peak memory MB | output MB |'
  )
  print('|---:|---|---|---:|---:|---:|---:|---:|')
  for rows in args.rows:
    with tempfile.TemporaryDirectory() as temp:
      source = Path(temp) / 'rows.jsonl'
      write(source, rows, args.order)
      cost = measure(source, args.kind, Path(temp))
      size = source.stat().st_size / 2**20
      print(
        f'| {rows:,} | {args.kind} | {args.order} | {size:,.0f} | {rows / cost["wall_s"]:,.0f} | '
        f'{rows / cost["cpu_s"]:,.0f} | {cost["memory_mb"]:,.0f} | {cost["out_mb"]:,.0f} |',
        flush=True,
      )
