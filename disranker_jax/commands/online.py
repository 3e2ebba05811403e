"""Compares the buckets of an online test: `disranker online EVENTS...`.

The log's fields and the metrics are described in disranker_jax/evaluation/online/__init__.py.
"""

import argparse
import contextlib
import math
import time
from pathlib import Path

from disranker_jax import escaping, progress
from disranker_jax.commands.common import Parser
from disranker_jax.data.records import BadRows
from disranker_jax.errors import UserError
from disranker_jax.evaluation import online
from disranker_jax.evaluation.online import analysis, events
from disranker_jax.evaluation.online.stats import METRICS
from disranker_jax.progress import amount
from disranker_jax.report import online as tables


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser('online', online.__doc__, "'logs/*.jsonl.gz' --control base --holm")
  add = parser.add_argument
  add('events', nargs='+', metavar='EVENTS', help='JSON lines (.gz or not) or .parquet; globs work')
  add('--control', metavar='NAME', help="the bucket to compare with (default: 'control')")
  add('--split', metavar='NAME=N,...', help='intended shares, base=90,new=10 (default: equal)')
  add('--alpha', default='5%', help='level of tests; intervals cover the rest (5%%)')
  add('--holm', action='store_true', help='verdicts corrected for all metrics and buckets')
  add('--bootstrap', type=int, nargs='?', const=2000, default=0, metavar='N', help=(
    'resample users N times (2000) for intervals and p, instead of the delta method'))  # fmt: skip
  add('--seed', type=int, default=0, help="the bootstrap's random numbers (0)")
  add('--max-dwell', type=float, default=math.inf, metavar='S', help="cap on a click's dwell time")
  add('--quarantine', type=Path, metavar='FILE', help='write bad rows here; default: stop')
  add('--size', action='store_true', help='print how many users and days a gain needs; with --gain')
  add('--gain', help='the relative gain to find, 0.5%% or 0.005')
  add('--metric', choices=list(METRICS), help='size for this metric only')
  add('--power', default='80%', help='the probability of finding it (80%%)')
  add('--json', action='store_true', help='print JSON instead of the table')
  add('--out', type=Path, metavar='DIR', help='also write DIR/online.json and DIR/online.md')
  return parser.parse_args(argv)


def share(flag: str, text: str, low: float, high: float) -> float:
  """'0.5%' -> 0.005; must be between low and high, exclusive, and not 0."""
  with contextlib.suppress(ValueError):
    value = float(text.removesuffix('%')) / (100 if text.endswith('%') else 1)
    if low < value < high and value:
      return value
  limits = f'between {100 * low:g}% and {100 * high:g}%, and not 0'
  raise UserError(f'{flag} {text}: must be a share {limits}, such as 0.5% or 0.005')


def split(text: str | None) -> dict[str, float] | None:
  """'base=90,new=10' -> {'base': 90, 'new': 10}."""
  if text is None:
    return None
  shares = {}
  for part in text.split(','):
    name, _, number = part.rpartition('=')
    try:
      shares[name] = float(number)
    except ValueError:
      raise UserError(f'--split: cannot read {part!r}; write it as base=90,new=10') from None
  return shares


def check(args: argparse.Namespace) -> None:
  """Parses the flags before a long log is read. Raises: UserError."""
  args.alpha = share('--alpha', args.alpha, 0, 0.5)
  args.power = share('--power', args.power, 0.05, 1)
  args.split = split(args.split)
  if args.size and args.gain is None:
    raise UserError('--size: which gain should be found? add --gain 0.5%')
  if not args.size and (args.gain or args.metric):
    raise UserError('--gain and --metric belong to --size; add it')
  if args.gain is not None:
    args.gain = share('--gain', args.gain, -1, 10)
  if args.bootstrap and args.bootstrap < 1000:
    raise UserError(f'--bootstrap {args.bootstrap}: too few for a p-value; take 1000 or more')
  if not args.max_dwell > 0:
    raise UserError(f'--max-dwell {args.max_dwell:g}: must be more than 0 seconds')


def read(args: argparse.Namespace):
  """Reads the log, with a progress line every few seconds."""
  begin = shown = time.monotonic()

  def say(rows: int) -> None:
    nonlocal shown
    if time.monotonic() - shown >= progress.LINE_SECONDS:
      shown = time.monotonic()
      progress.say(f'{amount(rows, "row")}, {rows / (shown - begin):,.0f} per second')

  bad_rows = BadRows('quarantine', args.quarantine) if args.quarantine else BadRows()
  return events.read(args.events, max_dwell=args.max_dwell, bad_rows=bad_rows, progress=say)


def main(argv=None) -> None:
  args = parse_args(argv)
  check(args)
  log = read(args)
  result = analysis.analyse(
    log,
    control=args.control,
    shares=args.split,
    alpha=args.alpha,
    replicates=args.bootstrap,
    seed=args.seed,
  )
  if args.size:
    result['size'] = analysis.size(
      log,
      args.gain,
      control=args.control,
      metrics=[args.metric] if args.metric else list(METRICS),
      alpha=args.alpha,
      power=args.power,
    )
  as_json = escaping.json(result)
  if args.out:
    try:
      args.out.mkdir(parents=True, exist_ok=True)
      (args.out / 'online.json').write_text(as_json + '\n', encoding='utf-8')
      (args.out / 'online.md').write_text(tables.as_markdown(result, args.holm), encoding='utf-8')
    except OSError as error:
      raise UserError(f'--out {args.out}: cannot be written ({error.strerror})') from None
  print(as_json if args.json else escaping.terminal(tables.text(result, args.holm)))
