"""Prepares any source as sharded ArrayRecord: `disranker prepare`.

Streams, so memory does not grow with the data, and resumes: the same command goes on where it was.
The folder is a TFDS dataset and an address of its own, `tfds:DIR`, for a config.
"""

import argparse
import resource
import sys
from pathlib import Path

from disranker_jax.commands.common import guarded
from disranker_jax.errors import UserError


def parse_args(argv=None) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(prog='disranker prepare', description=__doc__)
  parser.add_argument(
    '--source', required=True, metavar='ADDRESS',
    help='jsonl:, parquet: (globs, .gz), trec:, ir_datasets:, tfds:, python_docs:',
  )  # fmt: skip
  parser.add_argument('--out', required=True, type=Path, metavar='DIR', help='the folder to write')
  parser.add_argument(
    '--kind', default='candidates', choices=('clicks', 'judgements', 'candidates', 'test'),
    help='what the rows are (candidates)',
  )  # fmt: skip
  parser.add_argument('--depth', type=int, default=20, help='documents a first stage gives (20)')
  parser.add_argument('--limit', type=int, default=0, help='clicks or queries kept (0: all)')
  parser.add_argument(
    '--on_bad_row', default='error', choices=('error', 'quarantine'),
    help='quarantine: bad rows go to DIR.quarantine.jsonl with their reasons (error)',
  )  # fmt: skip
  parser.add_argument(
    '--teacher', action='append', default=[], metavar='ADDRESS',
    help="another teacher's scores; of several, each standardised, the mean is taken",
  )  # fmt: skip
  parser.add_argument(
    '--negatives', type=int, default=0, metavar='N', help='hard negatives a query'
  )
  parser.add_argument(
    '--ranks', default='1-100', metavar='A-B', help='first-stage ranks that they come from (1-100)'
  )
  parser.add_argument(
    '--guard', type=float, metavar='MARGIN',
    help='only negatives that the teacher puts this far below every positive',
  )  # fmt: skip
  parser.add_argument(
    '--beam_runner', metavar='NAME',
    help='prepare on many machines: DataflowRunner, FlinkRunner, SparkRunner; DirectRunner tries '
    "it here. All further flags are Beam's",
  )  # fmt: skip
  args, rest = parser.parse_known_args(argv)
  if rest and not args.beam_runner:
    parser.error(f'unrecognized arguments: {" ".join(rest)}')
  return args, rest


def job_of(args: argparse.Namespace):
  """The job that the flags ask for. Raises: UserError."""
  from disranker_jax.data import sources
  from disranker_jax.data.negatives import Negatives
  from disranker_jax.data.preparing import Job
  from disranker_jax.data.teacher_scores import Teachers

  if args.limit < 0 or args.negatives < 0:
    raise UserError('--limit and --negatives: must be 0 or more')
  changes, depth, read_as = [], args.depth, ''
  if args.teacher:
    changes.append(Teachers(args.teacher, drop=args.kind == 'candidates'))
  if args.negatives:
    first, last = ranks(args.ranks)
    if args.kind != 'judgements':
      raise UserError(f'--negatives: go with --kind judgements, not {args.kind}')
    if args.guard is not None and not args.teacher:
      raise UserError('--guard: needs the scores of a --teacher')
    guard = args.guard is not None
    changes.append(Negatives(args.negatives, first, last, guard, args.guard or 0.0))
    depth, read_as = max(depth, last), sources.POOLED
  asked = [sources.fingerprint(a) for a in args.teacher]
  asked += [repr(change) for change in changes if isinstance(change, Negatives)]
  out = args.out.expanduser().absolute()
  return Job(
    args.source, args.kind, out, out.with_name(f'{out.name}.quarantine.jsonl'), depth=depth,
    on_bad_row=args.on_bad_row, limit=args.limit, changes=tuple(changes), asked=repr(asked),
    read_as=read_as,
  )  # fmt: skip


def ranks(text: str) -> tuple[int, int]:
  """'11-100' as numbers."""
  first, dash, last = text.partition('-')
  if not (dash and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
    raise UserError(f'--ranks {text}: write two ranks from 1, such as 11-100')
  return int(first), int(last)


def main(argv=None) -> None:
  args, rest = parse_args(argv)
  from disranker_jax.data import preparing
  from disranker_jax.progress import clock

  job = job_of(args)
  if args.beam_runner:
    from disranker_jax.data import beam

    done = beam.prepare(job, args.beam_runner, rest)
  else:
    done = preparing.prepare(job)
  what = 'clicks' if args.kind == 'clicks' else 'queries'
  print(f'{job.folder}: {done.records:,} {what} of {done.rows:,} rows, {done.quarantined:,} bad')
  if done.quarantined:
    print(f'bad rows: {job.quarantine}')
  if done.wall_s:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = done.rows / done.wall_s
    print(f'{clock(done.wall_s)}, {rate:,.0f} rows/s, {memory:,.0f} MB at most', file=sys.stderr)


if __name__ == '__main__':
  with guarded():
    main()
