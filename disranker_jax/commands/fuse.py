"""Fuses TREC runs into one ranking: `disranker fuse RUN RUN... --out FILE`.

A document's fused score is a weighted sum over the runs, per query. --method says what is added up:
  ranks    1 / (60 + rank): reciprocal rank fusion (Cormack et al., 2009), for any score scales
  scores   the score, scaled to 0..1 over the query's documents (min-max)
  zscores  the score, scaled to mean 0 and standard deviation 1 over the query's documents

--choose-on QRELS takes the weights of two runs that rank the judged queries best (nDCG@5): use the
judgements of training queries, never those of the queries on which you report results.

A document that a run lacks counts as its last one, by ranks as 0, and is counted in a message.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from disranker_jax.commands.common import Parser
from disranker_jax.data.records import BadRows, listed
from disranker_jax.errors import UserError
from disranker_jax.evaluation import fusion, metrics
from disranker_jax.evaluation.metrics import Run
from disranker_jax.evaluation.runs import read_qrels, read_run, write_run
from disranker_jax.progress import amount, say


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser('fuse', __doc__, 'bm25.run student.run --out fused.run --weights 1,2')
  add = parser.add_argument
  add('runs', nargs='+', type=Path, metavar='RUN', help='two or more TREC runs, plain or gzip')
  add('--out', required=True, type=Path, metavar='FILE', help='the fused run; gzip if FILE.gz')
  add('--method', choices=fusion.METHODS, default='ranks', help='what is added up')
  add('--weights', metavar='W,W,...', help='a weight per run, such as 2,1 (default: 1 each)')
  add('--choose-on', type=Path, metavar='QRELS', help=(
    'choose the weights of two runs by judgements of training queries'))  # fmt: skip
  args = parser.parse_args(argv)
  if len(args.runs) < 2:
    raise UserError('nothing to fuse: name two or more runs')
  if args.choose_on and args.weights:
    raise UserError('--choose-on: chooses the weights; leave --weights out')
  if args.choose_on and len(args.runs) > 2:
    raise UserError('--choose-on: chooses the weights of two runs; name two, or give --weights')
  args.weights = parse_weights(args.weights, len(args.runs))
  return args


def parse_weights(text: str | None, runs: int) -> list[float]:
  if text is None:
    return [1.0] * runs
  try:
    weights = [float(word) for word in text.split(',')]
  except ValueError:
    raise UserError(f'--weights={text}: write numbers with commas, such as 2,1') from None
  if len(weights) != runs:
    raise UserError(
      f'--weights={text}: has {amount(len(weights), "weight")} for {amount(runs, "run")}'
    )
  if not all(0 < weight < float('inf') for weight in weights):
    raise UserError(f'--weights={text}: weights must be above 0')
  return weights


def report_lacking(files: Sequence[Path], runs: Sequence[Run]) -> None:
  """Prints what each run lacks of the others. Raises: UserError if runs share no query."""
  every: dict[str, set[str]] = {}
  for run in runs:
    for query, docs in run.items():
      every.setdefault(query, set()).update(docs)
  for file, run in zip(files, runs, strict=True):
    if not any(query in other for other in runs if other is not run for query in run):
      raise UserError(f'{file}: shares no query with the other runs; fuse runs of the same queries')
    queries = sum(query not in run for query in every)
    docs = sum(len(every[query]) - len(of_query) for query, of_query in run.items())
    if queries:
      say(
        f'{file}: lacks {queries:,} of {amount(len(every), "query", "queries")}, which the other '
        'runs rank alone'
      )
    if docs:
      total = sum(len(every[query]) for query in run)
      say(
        f'{file}: lacks {docs:,} of {amount(total, "document")} of its queries; they count as its '
        'last'
      )


def chosen(
  qrels_file: Path, files: Sequence[Path], runs: Sequence[Run], method: str
) -> list[float]:
  """The weights of two runs that rank the judged queries best. Raises: UserError without any."""
  bad_rows = BadRows()
  qrels = read_qrels(qrels_file, bad_rows)
  for note in listed(bad_rows.notes):
    say(f'{qrels_file}: {note}')
  found = {q: grades for q, grades in qrels.items() if any(q in run for run in runs)}
  found = {q: grades for q, grades in found.items() if metrics.count_relevant(grades, 1)}
  if not found:
    raise UserError(
      f'--choose-on={qrels_file}: has no query of the runs with a relevant document; the runs must '
      'rank the judged training queries too'
    )
  weight, values = fusion.choose(*runs, found, method)
  say(
    f'{files[0]} has weight {weight:g}, {files[1]} {1 - weight:.2g}: '
    f'{metrics.title(fusion.METRIC)} {values[weight]:.3f} on '
    f'{amount(len(found), "query", "queries")} of {qrels_file} (alone {values[1.0]:.3f} and '
    f'{values[0.0]:.3f}); report results on other queries'
  )
  return [weight, 1 - weight]


def main(argv=None) -> None:
  args = parse_args(argv)
  runs = []
  for file in args.runs:
    bad_rows = BadRows()
    runs.append(read_run(file, bad_rows))
    for note in listed(bad_rows.notes):
      say(f'{file}: {note}')
  report_lacking(args.runs, runs)
  if args.choose_on:
    args.weights = chosen(args.choose_on, args.runs, runs, args.method)
  fused = fusion.fuse_runs(runs, args.weights, args.method)
  try:
    write_run(args.out, fused, 'fused')
  except OSError as error:
    raise UserError(f'--out={args.out}: cannot be written ({error.strerror})') from None
