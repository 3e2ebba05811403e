"""Converts any source to sharded ArrayRecord: `disranker prepare`.

Rows are streamed, so memory does not grow with the data. The same command continues an interrupted
one. The folder is a TFDS dataset, and the address `tfds:DIR` of a config's data.
"""

import argparse
import math
import resource
import sys
from pathlib import Path

from disranker_jax import escaping, outputs
from disranker_jax.commands.common import Parser
from disranker_jax.errors import UserError
from disranker_jax.progress import amount

# The flags of data.negatives beside the number, and their defaults.
OF_NEGATIVES = {'min_rank': 1, 'max_rank': 100, 'filter_false_negatives': False, 'margin': 0.0}


def parse_args(argv=None) -> tuple[argparse.Namespace, list[str]]:
  """(arguments, Beam's own flags)."""
  parser = Parser(
    'prepare', __doc__,
    "--source 'parquet:logs/*.parquet' --kind candidates --out data/candidates",
  )  # fmt: skip
  add = parser.add_argument_group('source and output').add_argument
  add('--source', required=True, metavar='ADDRESS', help=(
    'jsonl:, parquet: (globs, .gz), trec:, ir_datasets:, tfds:, python_docs:'))  # fmt: skip
  add('--out', required=True, type=Path, metavar='DIR', help='the folder to write')
  kinds = ('clicks', 'judgements', 'candidates', 'test')
  add('--kind', default='candidates', choices=kinds, help='what the rows are')
  add('--depth', type=int, default=0, metavar='N', help=(
    'first-stage documents per query; 0: 20 of a run or BM25, all documents of rows'))  # fmt: skip
  add('--limit', type=int, default=0, help='the first clicks or queries to keep; 0 keeps all')
  add('--on-bad-row', default='error', choices=('error', 'quarantine'), help=(
    'quarantine writes bad rows, with reasons, to DIR.quarantine.jsonl'))  # fmt: skip
  add = parser.add_argument_group('teacher scores and hard negatives').add_argument
  add('--teachers', nargs='+', action='extend', default=[], metavar='ADDRESS', help=(
    'scores of other teachers; of several: the mean of the standardised scores'))  # fmt: skip
  add('--negatives', type=int, default=0, metavar='N', help='hard negatives per query')
  add('--min-rank', type=int, default=1, help='they are drawn from the first-stage ranks from here')
  add('--max-rank', type=int, default=100, help='up to here')
  add('--filter-false-negatives', action='store_true', help=(
    'only those that the teachers score at least MARGIN below every positive'))  # fmt: skip
  add('--margin', type=float, default=0.0, help='see --filter-false-negatives')
  add = parser.add_argument_group('many machines').add_argument
  add('--beam-runner', metavar='NAME', help=(
    'run with Apache Beam: DataflowRunner, FlinkRunner, SparkRunner, or DirectRunner to try it '
    'here; all unknown flags are passed to Beam'))  # fmt: skip
  args, rest = parser.parse_some(argv)
  if rest and not args.beam_runner:
    parser.refuse(rest)
  return args, rest


def job_of(args: argparse.Namespace):
  """The preparation.Job that the flags describe. Raises: UserError."""
  from disranker_jax.data import preparation
  from disranker_jax.data.negatives import Negatives

  check(args)
  settings = {'count': args.negatives} | {name: getattr(args, name) for name in OF_NEGATIVES}
  return preparation.job(
    args.source, args.kind, outputs.resolved(args.out.expanduser()), teachers=args.teachers,
    negatives=Negatives(**settings) if args.negatives else None, depth=args.depth,
    limit=args.limit, on_bad_row=args.on_bad_row,
  )  # fmt: skip


def check(args: argparse.Namespace) -> None:
  """Raises: UserError for flags that contradict each other."""
  if args.limit < 0 or args.negatives < 0:
    raise UserError('--limit and --negatives: must be 0 or more')
  if args.depth < 0:
    raise UserError('--depth: must be 0 (the default of the source) or more')
  if args.teachers and args.kind == 'clicks':
    raise UserError('--teachers: score documents by their ids, and clicks have none; leave it out')
  given = [name for name, default in OF_NEGATIVES.items() if getattr(args, name) != default]
  if given and not args.negatives:
    raise UserError(f'--{given[0].replace("_", "-")}: needs --negatives N')
  if args.negatives and args.kind != 'judgements':
    raise UserError(f'--negatives: needs --kind judgements, not {args.kind}')
  if not 1 <= args.min_rank <= args.max_rank:
    raise UserError(
      f'--min-rank {args.min_rank} --max-rank {args.max_rank}: must be two ranks from 1, such as '
      '11 and 100'
    )
  if not math.isfinite(args.margin):
    raise UserError(f'--margin {args.margin}: must be a finite number')
  if args.margin and not args.filter_false_negatives:
    raise UserError('--margin: needs --filter-false-negatives')
  if args.filter_false_negatives and not args.teachers:
    raise UserError('--filter-false-negatives: needs the scores of --teachers')


def main(argv=None) -> None:
  args, beam_flags = parse_args(argv)
  from disranker_jax.data import preparing
  from disranker_jax.data.records import listed
  from disranker_jax.progress import clock

  job = job_of(args)
  if args.beam_runner:
    from disranker_jax.data import beam

    done = beam.prepare(job, args.beam_runner, beam_flags)
  else:
    done = preparing.prepare(job)
  unit = 'clicks' if args.kind == 'clicks' else 'queries'
  count = done.described(unit, '--limit')
  print(f'{job.folder}: {count} of {amount(done.rows, "row")}, {done.quarantined:,} bad')
  for note in listed(done.notes):
    print(escaping.line(note))
  if done.quarantined:
    print(f'bad rows: {job.quarantine}')
  if done.wall_s:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = done.rows / done.wall_s
    print(f'{clock(done.wall_s)}, {rate:,.0f} rows/s, {memory:,.0f} MB peak', file=sys.stderr)
