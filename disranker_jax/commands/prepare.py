"""Converts any source to sharded ArrayRecord: `disranker prepare`.

Rows are streamed, so memory does not grow with the data. The same command continues an interrupted
one. The folder is a TFDS dataset, and the address `tfds:DIR` of a config's data.
"""

import argparse
import resource
import sys
from pathlib import Path

from disranker_jax import escaping, outputs
from disranker_jax.commands.common import Parser
from disranker_jax.errors import UserError


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
  add('--limit', type=int, default=0, help='clicks or queries to keep; 0 keeps all')
  add('--on-bad-row', default='error', choices=('error', 'quarantine'), help=(
    'quarantine writes bad rows, with reasons, to DIR.quarantine.jsonl'))  # fmt: skip
  add = parser.add_argument_group('teacher scores and hard negatives').add_argument
  add('--teacher', action='append', default=[], metavar='ADDRESS', help=(
    'scores of another teacher; repeated: the mean of the standardised scores'))  # fmt: skip
  add('--negatives', type=int, default=0, metavar='N', help='hard negatives per query')
  add('--ranks', metavar='A-B', help='first-stage ranks to draw them from; default: 1-100')
  add('--guard', type=float, metavar='MARGIN', help=(
    'keep only negatives that the teacher scores this far below every positive'))  # fmt: skip
  add = parser.add_argument_group('many machines').add_argument
  add('--beam-runner', metavar='NAME', help=(
    'run with Apache Beam: DataflowRunner, FlinkRunner, SparkRunner, or DirectRunner to try it '
    'here; all unknown flags are passed to Beam'))  # fmt: skip
  args, rest = parser.parse_some(argv)
  if rest and not args.beam_runner:
    parser.refuse(rest)
  return args, rest


def job_of(args: argparse.Namespace):
  """The preparing.Job that the flags describe. Raises: UserError."""
  from disranker_jax.data import sources
  from disranker_jax.data.negatives import Negatives
  from disranker_jax.data.preparing import Job
  from disranker_jax.data.teacher_scores import Teachers

  if args.limit < 0 or args.negatives < 0:
    raise UserError('--limit and --negatives: must be 0 or more')
  if not args.negatives and (args.ranks or args.guard is not None):
    raise UserError('--ranks and --guard: need --negatives N')
  if args.depth < 0:
    raise UserError('--depth: must be 0 (the default of the source) or more')
  changes, depth, read_as = [], args.depth or sources.open(args.source).default_depth, ''
  if args.teacher:
    changes.append(Teachers(args.teacher, drop=args.kind == 'candidates'))
  if args.negatives:
    first, last = ranks(args.ranks or '1-100')
    if args.kind != 'judgements':
      raise UserError(f'--negatives: needs --kind judgements, not {args.kind}')
    if args.guard is not None and not args.teacher:
      raise UserError('--guard: needs the scores of a --teacher')
    guard = args.guard is not None
    changes.append(Negatives(args.negatives, first, last, guard, args.guard or 0.0))
    depth, read_as = depth and max(depth, last), sources.POOLED  # 0 keeps all
  settings = [sources.fingerprint(a) for a in args.teacher]
  settings += [repr(change) for change in changes if isinstance(change, Negatives)]
  out = outputs.resolved(args.out.expanduser())
  return Job(
    args.source, args.kind, out, out.with_name(f'{out.name}.quarantine.jsonl'), depth=depth,
    on_bad_row=args.on_bad_row, limit=args.limit, changes=tuple(changes),
    change_settings=repr(settings), read_as=read_as,
  )  # fmt: skip


def ranks(text: str) -> tuple[int, int]:
  """'11-100' -> (11, 100)."""
  first, dash, last = text.partition('-')
  if not (dash and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
    raise UserError(f'--ranks {text}: must be two ranks from 1, such as 11-100')
  return int(first), int(last)


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
  print(f'{job.folder}: {done.records:,} {unit} of {done.rows:,} rows, {done.quarantined:,} bad')
  for note in listed(done.notes):
    print(escaping.line(note))
  if done.quarantined:
    print(f'bad rows: {job.quarantine}')
  if done.wall_s:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = done.rows / done.wall_s
    print(f'{clock(done.wall_s)}, {rate:,.0f} rows/s, {memory:,.0f} MB peak', file=sys.stderr)
