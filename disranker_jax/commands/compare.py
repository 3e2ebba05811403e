"""Compares TREC runs on judged queries: `disranker compare RUN... --qrels FILE`.

Means with intervals, differences to a baseline with Holm-corrected p-values, delta-GSB.
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from disranker_jax import escaping
from disranker_jax.commands.common import Parser
from disranker_jax.data.holdout import check_by, clusters
from disranker_jax.data.records import BadRows, listed
from disranker_jax.errors import UserError
from disranker_jax.evaluation import gsb, metrics, significance
from disranker_jax.evaluation.runs import read_qrels, read_run
from disranker_jax.evaluation.table import TESTS, Cell, Table, sums
from disranker_jax.report import comparison

SUFFIXES = ('.gz', '.run', '.txt', '.trec')
SPECIAL = ('pnr', 'pnr_per_query', 'tau')  # not a function of one query's ranking and grades
NAMED = 5  # query ids that a warning shows


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
    'ndcg_linear@K, mrr@K, map@K, recall@K, judged@K and gsb@K (delta-GSB by nDCG@K)',
  )  # fmt: skip
  add('--relevant', type=int, default=1, help='lowest grade that MRR, MAP, recall count')
  add('--same', type=float, default=0.0, help='gsb: the same if nDCG is at most this apart')
  add('--verdicts', type=Path, help='human verdicts: CSV or JSONL of query_id, good|same|bad')
  add('--test', choices=TESTS, default='randomisation', help='over queries, paired (%(default)s)')
  add(
    '--cluster', default='', metavar='REGEX',
    help="queries whose ids match it alike are drawn together: '^[^-]+' for SESSION-3",
  )  # fmt: skip
  add('--level', type=float, default=significance.LEVEL, help='of the intervals (%(default)s)')
  add('--samples', type=int, default=significance.SAMPLES, help='to draw (%(default)s)')
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
  check_by('--cluster', args.cluster)
  if args.samples < 100:
    raise UserError(f'--samples={args.samples}: must be 100 or more; 10000 is usual')
  if not args.same >= 0:
    raise UserError(f'--same={args.same}: must be 0 or more, on the scale of nDCG')


def named(argument: str) -> tuple[str, Path]:
  """The name and file of NAME=FILE or FILE, whose name is that of the file."""
  name, equals, rest = argument.partition('=')
  if equals and name and not Path(argument).exists():
    return name, Path(rest)
  name = Path(argument).name
  while (suffix := Path(name).suffix) in SUFFIXES:
    name = name.removesuffix(suffix)
  return name or argument, Path(argument)


def files(arguments: list[str], baseline: str | None) -> tuple[dict[str, Path], str | None]:
  """Runs by name, the baseline first, and the baseline's name (None: nothing to compare with).

  Runs with the same file name, such as student.run of two folders, are named by their paths.
  """
  pairs = [named(argument) for argument in arguments]
  first = None
  if baseline is not None:
    matches = [pair for pair in pairs if baseline in (pair[0], str(pair[1]))]
    first = matches[0] if matches else named(baseline)
    pairs = [first, *(pair for pair in pairs if pair != first)]
  names = [name for name, _ in pairs]
  runs = {name if names.count(name) == 1 else str(file): file for name, file in pairs}
  if len(runs) < len(pairs):
    raise UserError('two runs have the same name; name each one: NAME=FILE')
  return runs, next(iter(runs)) if first or len(runs) > 1 else None


class Comparison:
  """The runs, their metrics per query, and warnings about them."""

  def __init__(self, args: argparse.Namespace):
    self.args = args
    self.files, self.baseline = files(args.runs, args.baseline)
    names = [name.strip() for name in args.metrics.split(',') if name.strip()]
    if args.teacher:
      names.append('tau')
    self.names = list(dict.fromkeys(map(metrics.canonical, names)))
    self.check_names()
    self.warnings: list[str] = []
    self.qrels = self.read(read_qrels, args.qrels)
    self.clusters = clusters(self.qrels, args.cluster)
    if len(self.qrels) > 1 and len(set(self.clusters)) == 1:
      raise UserError(
        f'--cluster={args.cluster}: finds {self.clusters[0]!r} in every query_id of {args.qrels}, '
        'so all queries are one cluster; match what differs between topics'
      )
    self.runs = {name: self.read(read_run, file) for name, file in self.files.items()}
    self.teacher = self.reference(args.teacher) if args.teacher else None
    self.warnings += self.check_queries()
    self.rows = {name: self.per_query(run) for name, run in self.runs.items()}

  def read(self, reader: Callable[[Path, BadRows], Any], file: Path) -> Any:
    """The table of a file; what was read differently from how it is written is a warning."""
    bad_rows = BadRows()
    table = reader(file, bad_rows)
    self.warnings += [f'{file}: {note}' for note in listed(bad_rows.notes)]
    return table

  def reference(self, argument: str) -> metrics.Run:
    """The teacher's run: one of the compared runs, by its name, or another file."""
    return self.runs[argument] if argument in self.runs else self.read(read_run, named(argument)[1])

  def check_names(self) -> None:
    for name in self.names:
      if name.startswith('gsb'):
        metrics.formula('ndcg' + name.removeprefix('gsb'))
        if not self.baseline:
          raise UserError(f'metric {name!r}: needs a second run to compare with')
      elif name not in SPECIAL:
        metrics.formula(name)
    if 'tau' in self.names and not self.args.teacher:
      raise UserError("metric 'tau': needs --teacher RUN to compare the order with")
    if not self.names:
      raise UserError('--metrics: is empty; for instance pnr,ndcg@5')

  def check_queries(self) -> list[str]:
    """Warnings. Raises: UserError for a run without any judged query."""
    judged = self.qrels.keys()
    warnings = []
    if barren := [q for q, docs in self.qrels.items() if max(docs.values()) < self.args.relevant]:
      warnings.append(
        f'{self.args.qrels}: no document reaches grade {self.args.relevant} for '
        + some(barren, len(judged))
      )
    common: dict[str, list[str]] = {}
    for name, run in self.runs.items():
      if not judged & run.keys():
        raise UserError(
          f'{self.files[name]}: has none of the queries of {self.args.qrels} (query_id '
          f'{next(iter(run))!r} here, {next(iter(judged))!r} there); name the run of these queries'
        )
      if missing := [q for q in judged if q not in run]:
        what = f'no documents for {some(missing, len(judged))}, which count as 0'
        common.setdefault(what, []).append(name)
      if extra := [q for q in run if q not in judged]:
        what = f'no judgements for {some(extra, len(run))}, which do not count'
        common.setdefault(what, []).append(name)
    return warnings + [f'{", ".join(names)}: {what}' for what, names in common.items()]

  def per_query(self, run: metrics.Run) -> dict[str, dict[str, float]]:
    names = [n.replace('gsb', 'ndcg') for n in self.names if n not in SPECIAL]
    rows = metrics.per_query(run, self.qrels, self.args.relevant, tuple(dict.fromkeys(names)))
    if self.teacher is not None:
      for query, row in rows.items():
        row['tau'] = metrics.tau(run.get(query, {}), self.teacher.get(query, {}))
    return rows

  def verdicts(self, metric: str, name: str) -> dict[str, list[int]]:
    key = metric.replace('gsb', 'ndcg')
    ours, theirs = self.rows[name], self.rows[self.baseline]
    return {q: [gsb.verdict(ours[q][key] - theirs[q][key], self.args.same)] for q in self.qrels}

  def is_tested(self, metric: str, name: str) -> bool:
    """Whether a difference to the baseline means something; `judged` is a property of the pool."""
    if self.baseline is None or name == self.baseline or metric.startswith('judged'):
      return False
    return metric != 'tau' or self.teacher not in (self.runs[name], self.runs[self.baseline])

  def statistics(self) -> tuple[dict[Cell, dict], dict[Cell, dict]]:
    """Means and differences to the baseline by (run, metric); delta-GSB is a difference only."""
    args = self.args
    every = [(name, metric) for metric in self.names for name in self.runs]
    plain = [cell for cell in every if not cell[1].startswith('gsb')]
    cells = {cell: sums(self.rows[cell[0]], cell[1], list(self.qrels)) for cell in plain}
    pairs = {}
    for name, metric in every:
      if not self.is_tested(metric, name):
        continue
      theirs = (self.baseline, metric)
      if metric.startswith('gsb'):
        # Half a verdict minus its opposite is the verdict.
        theirs = (name, f'-{metric}')
        halves = [verdict / 2 for [verdict] in self.verdicts(metric, name).values()]
        cells[name, metric] = significance.mean_of(halves)
        cells[theirs] = cells[name, metric] * [-1, 1]
      pairs[name, metric] = ((name, metric), theirs)
    table = Table(cells, self.clusters, args.samples, args.seed, args.level)
    differences = table.differences(pairs, args.test)
    for name, metric in pairs:
      if metric.startswith('gsb'):
        counts = gsb.count(self.verdicts(metric, name))
        differences[name, metric] |= counts._asdict()
    return {cell: table.mean(cell) for cell in plain}, differences

  def result(self) -> dict[str, Any]:
    """The part of the JSON that is about runs."""
    means, differences = self.statistics()
    return {
      'qrels': str(self.args.qrels),
      'queries': len(self.qrels),
      'clusters': len(set(self.clusters)),
      'metrics': self.names,
      'teacher': self.args.teacher,
      'baseline': self.baseline,
      'tests': len(differences),
      'warnings': self.warnings,
      'runs': {
        name: {
          'file': str(self.files[name]),
          'missing': sum(q not in run for q in self.qrels),
          'without_judgements': sum(q not in self.qrels for q in run),
          'metrics': {m: means[name, m] for m in self.names if (name, m) in means},
          'differences': {m: differences[name, m] for m in self.names if (name, m) in differences},
        }
        for name, run in self.runs.items()
      },
    }


def some(queries: list[str], of: int) -> str:
  shown = ', '.join(queries[:NAMED]) + (', ...' if len(queries) > NAMED else '')
  return f'{len(queries)} of {of} queries ({shown})'


def compare(args: argparse.Namespace) -> tuple[dict, Mapping[str, Any]]:
  """The result that is saved as JSON, and the metrics per query of every run."""
  settings = {k: getattr(args, k) for k in ('level', 'samples', 'seed', 'test', 'relevant', 'same')}
  result: dict[str, Any] = {**settings, 'warnings': []}
  rows: Mapping[str, Any] = {}
  if args.runs:
    comparison = Comparison(args)
    rows = comparison.rows
    result |= comparison.result()
  if args.verdicts:
    verdicts = gsb.read(args.verdicts)
    counts = gsb.analyse(verdicts, args.samples, args.seed, args.level, args.cluster)
    result['verdicts'] = {'file': str(args.verdicts), **counts}
  return result, rows


def plain(value):
  """JSON has neither infinity nor nan: both become text."""
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def save(folder: Path, result: dict, rows: Mapping[str, Any]) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'compare.json').write_text(json.dumps(plain(result), indent=2) + '\n')
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
  print(json.dumps(plain(result), indent=2) if args.json else as_text)
  if args.out:
    save(args.out, result, rows)
    print(f'saved in {args.out}', file=sys.stderr)
