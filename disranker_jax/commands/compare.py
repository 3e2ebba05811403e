"""Compares TREC runs on judged queries: `disranker compare RUN... --qrels FILE`.

Means with intervals, differences to a baseline with Holm-corrected p-values, delta-GSB.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disranker_jax import escaping
from disranker_jax.commands.common import Parser
from disranker_jax.commands.comparison import Comparison
from disranker_jax.data.holdout import check_by
from disranker_jax.errors import UserError
from disranker_jax.evaluation import documents, gsb, metrics, significance
from disranker_jax.evaluation.table import TESTS
from disranker_jax.evaluation.units import Units
from disranker_jax.report import comparison, tables


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser('compare', __doc__, 'bm25.run student.run --qrels qrels.txt')
  add = parser.add_argument
  add('runs', nargs='*', metavar='RUN', help='a TREC run, plain or gzip; NAME=FILE to name it')
  add('--qrels', type=Path, help='the judgements: query_id 0 doc_id grade')
  add('--baseline', metavar='RUN', help='what to compare with, by name or file; default: the first')
  add('--teacher', metavar='RUN', help="adds Kendall's tau between each run and this one")
  add(
    '--metrics', default=','.join(metrics.COLUMNS),
    help='comma-separated (%(default)s); there are pnr (pooled), pnr_per_query, ndcg@K, '
    'ndcg_linear@K, mrr@K, map@K, recall@K, hits@K, judged@K and gsb@K (delta-GSB by nDCG@K)',
  )  # fmt: skip
  add('--relevant', type=int, default=1, help='lowest grade that MRR, MAP, recall, hits count')
  add('--same', type=float, default=0.0, help='gsb: the same if nDCG is at most this apart')
  add('--verdicts', type=Path, help='human verdicts: CSV or JSONL of query_id, good|same|bad')
  add('--test', choices=TESTS, default='randomisation', help='over queries, paired (%(default)s)')
  add(
    '--documents', choices=documents.RULES, default='all',
    help='which count: all (PNR ranks those that a run lacks last), common (in all runs), '
    'judged (others are removed from the runs); default: %(default)s',
  )  # fmt: skip
  add(
    '--cluster', metavar='REGEX',
    help="queries whose ids match it alike are drawn together: '^[^-]+' for SESSION-3, '' for no "
    'clusters; default: queries that share their judgements',
  )  # fmt: skip
  add('--level', type=float, default=significance.LEVEL, help='of intervals (%(default)s)')
  add('--samples', type=int, default=significance.SAMPLES, help='how many are drawn (%(default)s)')
  add('--seed', type=int, default=0, help='of the draws')
  add('--out', type=Path, metavar='DIR', help='saves compare.md, compare.json, per_query.csv here')
  add('--json', action='store_true', help='prints the JSON instead of the table')
  args = parser.parse_args(argv)
  check(args)
  return args


def check(args: argparse.Namespace) -> None:
  """Checks the arguments before any file is read. Raises: UserError."""
  if not args.runs and not args.verdicts:
    raise UserError('nothing to compare: name one or more run files, or --verdicts FILE')
  if args.runs and not args.qrels:
    raise UserError('--qrels is missing: name the file of judgements')
  if not 0 < args.level < 1:
    raise UserError(f'--level={args.level}: must be between 0 and 1, for instance 0.95')
  check_by('--cluster', args.cluster or '')
  if args.samples < 100:
    raise UserError(f'--samples={args.samples}: must be 100 or more; 10000 is usual')
  if not args.same >= 0:
    raise UserError(f'--same={args.same}: must be 0 or more, on the scale of nDCG')


def compare(args: argparse.Namespace) -> tuple[dict, Mapping[str, Any]]:
  """The result that is saved as JSON, and the metrics per query of every run."""
  settings = {k: getattr(args, k) for k in ('level', 'samples', 'seed', 'test', 'relevant', 'same')}
  result: dict[str, Any] = {**settings, 'warnings': []}
  rows: Mapping[str, Any] = {}
  units = Units({}, (), args.cluster)
  if args.runs:
    comparison = Comparison(args)
    rows, units = comparison.rows, comparison.units
    result |= comparison.result()
  if args.verdicts:
    verdicts = gsb.read(args.verdicts)
    of_Q = units.clusters(verdicts)
    counts = gsb.analyse(verdicts, args.samples, args.seed, args.level, of_Q)
    result['verdicts'] = {'file': str(args.verdicts), **counts}
  return result, rows


def save(folder: Path, result: dict, rows: Mapping[str, Any]) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'compare.json').write_text(json.dumps(tables.plain(result), indent=2) + '\n')
    (folder / 'compare.md').write_text(comparison.markdown(result), encoding='utf-8')
    if not rows:
      return
    with (folder / 'per_query.csv').open('w', newline='', encoding='utf-8') as f:
      writer = csv.writer(f)
      first = next(iter(next(iter(rows.values())).values()))
      writer.writerow(['query_id', 'run', *first])
      for name, of_run in rows.items():
        label = escaping.cell(name)
        writer.writerows(
          [escaping.cell(query), label, *row.values()] for query, row in of_run.items()
        )
  except OSError as error:
    raise UserError(f'--out={folder}: cannot be written ({error.strerror})') from None


def main(argv=None) -> None:
  args = parse_args(argv)
  result, rows = compare(args)
  for warning in result['warnings']:
    print(f'warning: {escaping.line(warning)}', file=sys.stderr)
  as_text = escaping.terminal(comparison.text(result))
  print(json.dumps(tables.plain(result), indent=2) if args.json else as_text)
  if args.out:
    save(args.out, result, rows)
    print(f'saved in {args.out}', file=sys.stderr)
