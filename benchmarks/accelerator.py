"""The speed table of one accelerator: every row of docs/performance.md within a time budget.

Each row is a command in a process of its own with a time limit, the cheapest first. Its answer is
written to DIR/rows.jsonl as soon as it is there. A row that fails is recorded with its reason, and
the next one begins. The same command with the same --out goes on with the rows that are missing.
"""

import argparse
import concurrent.futures
import contextlib
import datetime
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import _accelerator_table, _rows
from benchmarks._accelerator_table import MEASURED
from disranker_jax.commands.common import Parser, positive, words
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError
from disranker_jax.progress import clock, say

LEAST_S = 20.0  # a row does not begin with less than this left of the budget


def parse_args(argv) -> argparse.Namespace:
  parser = Parser('bench accelerator', __doc__, '--out runs/accelerator')
  add = parser.add_argument_group('accelerator').add_argument
  add('--out', required=True, type=Path, metavar='DIR', help='the folder of the answers and logs')
  add(
    '--rows',
    type=words,
    action='extend',
    default=[],
    metavar='A,B',
    help='only these rows; all if not given',
  )
  add('--budget', type=positive, default=600, metavar='SECONDS', help='for all rows together')
  add('--small', action='store_true', help='tiny models: does every row work? For a CPU')
  add('--list', action='store_true', help='print the rows with their commands, and run none')
  args = parser.parse_args(argv)
  names = [row.name for row in _rows.ROWS]
  if unknown := [name for name in args.rows if name not in names]:
    raise UserError(f'--rows: there is no row {unknown[0]!r}; there are {", ".join(names)}')
  return args


def device_kind() -> str:
  """The kind of the accelerator, '' without one; asked by a process of its own."""
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    return pool.submit(_device_kind).result()


def _device_kind() -> str:
  os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
  import jax

  return jax.devices()[0].device_kind if jax.default_backend() != 'cpu' else ''


def commit() -> str:
  """The checkout's commit, with a + if files differ from it; '' where git does not say."""
  with contextlib.suppress(OSError, subprocess.CalledProcessError):
    ask = lambda *words: subprocess.check_output(['git', *words], text=True).strip()  # noqa: E731
    changed = '+' if ask('status', '--porcelain', '--untracked-files=no') else ''
    return ask('rev-parse', '--short', 'HEAD') + changed
  return ''


class Results:
  """The answers so far, one line of JSON each, in a file that is only appended to."""

  def __init__(self, folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    self.file = folder / 'rows.jsonl'
    text = self.file.read_text() if self.file.exists() else ''
    self._rows = []
    for number, line in enumerate(text.splitlines(), 1):
      try:
        self._rows.append(json.loads(line))
      except ValueError:
        say(f'{self.file}:{number}: cannot be read; skipped, so its row is measured again')
    if text and not text.endswith('\n'):
      self.file.write_text(f'{text}\n')

  def add(self, row: dict) -> None:
    self._rows.append(row)
    with self.file.open('a') as file:
      file.write(json.dumps(row) + '\n')

  def last(self, name: str, **like) -> dict | None:
    """The latest record of a row that has these values; a measured one has priority."""
    found = [r for r in self._rows if r['row'] == name and like.items() <= r.items()]
    return next((r for r in reversed(found) if r['status'] == MEASURED), (found or [None])[-1])


def run(row: _rows.Row, folder: Path, small: bool, limit_s: float) -> dict:
  """{'status', 'reason', 'seconds', 'answer'} of a row; its output and log are in its folder."""
  shutil.rmtree(folder / 'run', ignore_errors=True)  # a whole run would continue an earlier one
  folder.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, '-m', 'disranker_jax', *row.command(str(folder), small)]
  begin = time.monotonic()
  with (folder / 'output.txt').open('w') as output, (folder / 'log.txt').open('w') as log:
    more = {k: f'{os.environ.get(k, "")} {v}'.strip() for k, v in row.env}
    if small:
      more['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'  # compiling is most of the time
    status, reason = finished(command, limit_s, os.environ | more, output, log)
  seconds = time.monotonic() - begin
  answer = {}
  if status == MEASURED:
    try:
      answer = answer_of(row, folder)
    except (OSError, ValueError, IndexError) as e:
      status, reason = 'failed', f'its answer cannot be read: {e}'
  elif status == 'failed':
    lines = [x for x in (folder / 'log.txt').read_text().splitlines() if x.strip()]
    reason = f'{reason}: {lines[-1][:300] if lines else "no message"}'
  return {'status': status, 'reason': reason, 'seconds': round(seconds, 1), 'answer': answer}


def finished(command, limit_s: float, env, output, log) -> tuple[str, str]:
  """(status, reason) of a command, which is ended with all of its processes after `limit_s`."""
  process = subprocess.Popen(command, stdout=output, stderr=log, env=env, start_new_session=True)
  try:
    code = process.wait(limit_s)
  except subprocess.TimeoutExpired:
    return 'too long', f'not finished after {limit_s:.0f} s'
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  return (MEASURED, '') if code == 0 else ('failed', f'status {code}')


def answer_of(row: _rows.Row, folder: Path) -> dict:
  """What the row's command has measured."""
  if row.kind == 'run':
    return {}
  if row.kind == 'latency':
    return json.loads((folder / 'latency.json').read_text())
  return json.loads((folder / 'output.txt').read_text().splitlines()[-1])


def main(argv) -> None:
  args = parse_args(argv)
  runtime.prepare()
  chosen = [row for row in _rows.ROWS if row.name in (args.rows or [r.name for r in _rows.ROWS])]
  if args.list:
    for row in chosen:
      env = ''.join(f'{k}={v!r} ' for k, v in row.env)
      print(f'{row.name}: {env}disranker {" ".join(row.command("DIR", args.small))}')
    return
  kind = device_kind()
  if not (kind or args.small):
    raise UserError(
      'bench accelerator: JAX finds no accelerator here; --small tries every row with tiny models'
    )
  results = Results(args.out)
  same = {'device': kind or 'cpu', 'small': args.small, 'commit': commit()}
  end = time.monotonic() + args.budget
  for row in chosen:
    if (known := results.last(row.name, **same)) and known['status'] == MEASURED:
      say(f'{row.name}: is measured already, in {results.file}')
      continue
    left = end - time.monotonic()
    if reason := row.missing(args.small):
      found = {'status': 'skipped', 'reason': reason}
    elif left < LEAST_S:
      found = {'status': 'skipped', 'reason': f'the budget of {args.budget} s is used up'}
    else:
      say(f'{row.name}: {row.what} ({clock(left)} left)')
      found = run(row, args.out.absolute() / row.name, args.small, min(row.limit_s, left))
    when = datetime.datetime.now(datetime.UTC).date().isoformat()
    results.add({'row': row.name, 'date': when} | same | found)
    if found['status'] != MEASURED:
      say(f'{row.name}: {found["status"]}: {found["reason"]}')
  records = {row.name: results.last(row.name, **same) for row in chosen}
  print(_accelerator_table.text(chosen, records))
