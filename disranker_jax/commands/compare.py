"""Compares TREC runs on judged queries: `disranker compare RUN... --qrels FILE`.

Means with intervals, differences to a baseline with Holm-corrected p-values, delta-GSB.
"""

import argparse
import csv
import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from disranker_jax.commands.common import Parser, guarded
from disranker_jax.data import lines, trec
from disranker_jax.data.holdout import check_by, clusters
from disranker_jax.data.records import BadRow, BadRows
from disranker_jax.errors import UserError
from disranker_jax.evaluation import gsb, metrics, significance
from disranker_jax.report import comparison

SUFFIXES = ('.gz', '.run', '.txt', '.trec')
LARGEST_GRADE = 1000  # 2^y is beyond floating point soon after
TESTS = ('randomisation', 'bootstrap')
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
  add('--relevant', type=int, default=1, help='lowest grade that MRR, MAP, recall count (1)')
  add('--same', type=float, default=0.0, help='gsb: the same if nDCG is at most this apart (0)')
  add('--verdicts', type=Path, help='human verdicts: CSV or JSONL of query_id, good|same|bad')
  add('--test', choices=TESTS, default='randomisation', help='over queries, paired (%(default)s)')
  add(
    '--cluster', default='', metavar='REGEX',
    help="queries whose ids match it alike are drawn together: '^[^-]+' for SESSION-3",
  )  # fmt: skip
  add('--level', type=float, default=significance.LEVEL, help='of the intervals (%(default)s)')
  add('--samples', type=int, default=significance.SAMPLES, help='to draw (%(default)s)')
  add('--seed', type=int, default=0, help='of the draws (0)')
  add('--out', type=Path, metavar='DIR', help='saves compare.md, compare.json, per_query.csv here')
  add('--json', action='store_true', help='prints the JSON instead of the table')
  args = parser.parse_args(argv)
  check(args)
  return args


def check(args: argparse.Namespace) -> None:
  """Refuses what cannot be before any file is read."""
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


def read_run(file: Path) -> dict[str, dict[str, float]]:
  """{query_id: {doc_id: score}} of a TREC run; its ranks are not read, as in trec_eval."""

  def value(columns: list[str]) -> float:
    score = trec.parse_number(float, 'score', columns[4])
    if not math.isfinite(score):
      raise BadRow('score', f'is {columns[4]}', 'write a finite number')
    return score

  return table(file, 'query_id Q0 doc_id rank score tag', value)


def read_qrels(file: Path) -> dict[str, dict[str, int]]:
  """{query_id: {doc_id: grade}} of TREC qrels; grades may be negative."""

  def value(columns: list[str]) -> int:
    grade = trec.parse_number(int, 'grade', columns[3])
    if abs(grade) > LARGEST_GRADE:
      raise BadRow('grade', f'is {grade}', f'write at most {LARGEST_GRADE}; 0 to 4 is usual')
    return grade

  return table(file, 'query_id 0 doc_id grade', value)


def table(file: Path, layout: str, value: Callable[[list[str]], Any]) -> dict[str, dict[str, Any]]:
  """Rows of whitespace-separated columns, query first and document third."""
  found: dict[str, dict[str, Any]] = {}
  expected, bad_rows = len(layout.split()), BadRows()

  def add(raw: bytes) -> None:
    lines.text(raw)
    # Split as bytes: text would also be split at a no-break space inside an id.
    columns = [column.decode() for column in raw.split()]
    if len(columns) != expected:
      raise BadRow('row', f'has {len(columns)} columns, not {expected}', f'write {layout}')
    query, doc = columns[0], columns[2]
    docs = found.setdefault(query, {})
    if doc in docs:
      what = f'{doc!r} is there twice for query_id {query!r}'
      raise BadRow('doc_id', what, 'keep one of the rows')
    docs[doc] = value(columns)

  for line, raw in lines.read(file):
    bad_rows.parse(file, line, raw, add)
  return found


def named(argument: str) -> tuple[str, Path]:
  """NAME=FILE, or FILE, which is called after itself."""
  name, equals, rest = argument.partition('=')
  if equals and name and not Path(argument).exists():
    return name, Path(rest)
  name = Path(argument).name
  while (suffix := Path(name).suffix) in SUFFIXES:
    name = name.removesuffix(suffix)
  return name or argument, Path(argument)


def files(arguments: list[str], baseline: str | None) -> tuple[dict[str, Path], str | None]:
  """Runs by name, the baseline first, and the baseline's name (None: nothing to compare with).

  Runs of one file name, such as two folders' student.run, are called by their paths.
  """
  found = [named(argument) for argument in arguments]
  first = None
  if baseline is not None:
    by_name = [pair for pair in found if baseline in (pair[0], str(pair[1]))]
    first = by_name[0] if by_name else named(baseline)
    found = [first, *(pair for pair in found if pair != first)]
  names = [name for name, _ in found]
  runs = {name if names.count(name) == 1 else str(file): file for name, file in found}
  if len(runs) < len(found):
    raise UserError('two runs have one name; give each its own: NAME=FILE')
  return runs, next(iter(runs)) if first or len(runs) > 1 else None


class Table:
  """The sums by query of every metric of every run, and what the readers should know of them."""

  def __init__(self, args: argparse.Namespace):
    self.args = args
    self.files, self.baseline = files(args.runs, args.baseline)
    self.names = [name.strip() for name in args.metrics.split(',') if name.strip()]
    if args.teacher and 'tau' not in self.names:
      self.names.append('tau')
    self.check_names()
    self.qrels = read_qrels(args.qrels)
    self.clusters = clusters(self.qrels, args.cluster)
    if len(self.qrels) > 1 and len(set(self.clusters)) == 1:
      raise UserError(
        f'--cluster={args.cluster}: finds {self.clusters[0]!r} in every query_id of {args.qrels}, '
        'so nothing is left to draw; match what differs between topics'
      )
    self.runs = {name: read_run(file) for name, file in self.files.items()}
    self.teacher = self.reference(args.teacher) if args.teacher else None
    self.warnings: list[str] = []
    self.look()
    self.rows = {name: self.per_query(run) for name, run in self.runs.items()}

  def reference(self, argument: str) -> metrics.Run:
    """The run to order by: one of the table's, by its name, or another file."""
    return self.runs[argument] if argument in self.runs else read_run(named(argument)[1])

  def check_names(self) -> None:
    for name in self.names:
      if name.startswith('gsb'):
        metrics.formula('ndcg' + name.removeprefix('gsb'))
        if not self.baseline:
          raise UserError(f'metric {name!r}: needs a second run to stand beside')
      elif name not in SPECIAL:
        metrics.formula(name)
    if 'tau' in self.names and not self.args.teacher:
      raise UserError("metric 'tau': needs --teacher RUN to compare the order with")
    if not self.names:
      raise UserError('--metrics: is empty; for instance pnr,ndcg@5')

  def look(self) -> None:
    """Collects warnings. Raises: UserError for a run without any judged query."""
    judged = self.qrels.keys()
    if barren := [q for q, docs in self.qrels.items() if max(docs.values()) < self.args.relevant]:
      self.warnings.append(
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
    self.warnings += [f'{", ".join(names)}: {what}' for what, names in common.items()]

  def per_query(self, run: metrics.Run) -> dict[str, dict[str, float]]:
    names = [n.replace('gsb', 'ndcg') for n in self.names if n not in SPECIAL]
    rows = metrics.per_query(run, self.qrels, self.args.relevant, tuple(dict.fromkeys(names)))
    if self.teacher is not None:
      for query, row in rows.items():
        row['tau'] = metrics.tau(run.get(query, {}), self.teacher.get(query, {}))
    return rows

  def sums(self, metric: str, name: str) -> np.ndarray:
    """Sums_Q2 of a metric of a run; PNR's is the share of concordant pairs, which is finite."""
    rows = self.rows[name].values()
    if metric == 'pnr':
      pairs = [(r['concordant'], r['concordant'] + r['discordant']) for r in rows]
      return np.array(pairs, np.float64)
    if metric.startswith('gsb'):
      # Half of the verdict for us and half against the baseline: their difference is the verdict.
      return significance.mean_of([v / 2 for [v] in self.verdicts(metric, name).values()])
    key = 'pnr' if metric == 'pnr_per_query' else metric
    return significance.mean_of([r[key] for r in rows])

  def verdicts(self, metric: str, name: str) -> dict[str, list[int]]:
    key = metric.replace('gsb', 'ndcg')
    ours, theirs = self.rows[name], self.rows[self.baseline]
    return {q: [gsb.verdict(ours[q][key] - theirs[q][key], self.args.same)] for q in self.qrels}

  def is_tested(self, metric: str, name: str) -> bool:
    """Whether a difference to the baseline says something; judgements are nobody's merit."""
    if self.baseline is None or name == self.baseline or metric.startswith('judged'):
      return False
    return metric != 'tau' or self.teacher not in (self.runs[name], self.runs[self.baseline])

  def sides(self, metric: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What is compared: sums_Q2 of the run and of the baseline."""
    ours = self.sums(metric, name)
    if metric.startswith('gsb'):
      return ours, ours * [-1, 1]
    return ours, self.sums(metric, self.baseline)


def some(queries: list[str], of: int) -> str:
  shown = ', '.join(queries[:NAMED]) + (', ...' if len(queries) > NAMED else '')
  return f'{len(queries)} of {of} queries ({shown})'


def scale(metric: str, share):
  """A statistic as people know it: PNR is concordant / discordant, not concordant / both."""
  if metric != 'pnr':
    return share
  with np.errstate(divide='ignore'):
    return np.asarray(share, np.float64) / (1 - np.asarray(share, np.float64))


def minus(ours, theirs):
  """ours - theirs; two infinite PNRs are 0 apart."""
  with np.errstate(invalid='ignore'):
    return np.where(ours == theirs, 0.0, np.subtract(ours, theirs))


def values(table: Table) -> dict[tuple[str, str], dict]:
  """{(metric, run): value, low, high} of all but GSB, which no run has by itself."""
  args = table.args
  cells = [(m, name) for m in table.names if not m.startswith('gsb') for name in table.runs]
  if not cells:
    return {}
  sums_QK2 = np.stack([table.sums(*cell) for cell in cells], 1)
  sums_CK2 = significance.clustered(sums_QK2, table.clusters)
  draws_SK = significance.bootstrap(sums_CK2, args.samples, args.seed)
  found = {}
  for k, (metric, name) in enumerate(cells):
    low, high = significance.interval(scale(metric, draws_SK[:, k]), args.level)
    value = scale(metric, significance.ratio(sums_CK2[:, k].sum(0)))
    found[metric, name] = {'value': float(value), 'low': low, 'high': high}
  return found


def differences(table: Table) -> dict[tuple[str, str], dict]:
  """{(metric, run): value, low, high, p, p_holm} of all runs but the baseline."""
  args = table.args
  cells = [cell for cell in itertools.product(table.names, table.runs) if table.is_tested(*cell)]
  if not cells:
    return {}
  ours_CK2, theirs_CK2 = (
    significance.clustered(np.stack(side, 1), table.clusters)
    for side in zip(*(table.sides(*cell) for cell in cells), strict=True)
  )
  both_CJ2 = np.concatenate([ours_CK2, theirs_CK2], 1)
  ours_SK, theirs_SK = np.split(significance.bootstrap(both_CJ2, args.samples, args.seed), 2, 1)
  ours_K, theirs_K = (significance.ratio(side.sum(0)) for side in (ours_CK2, theirs_CK2))
  if args.test == 'bootstrap':
    draws = zip((ours_SK - theirs_SK).T, ours_K - theirs_K, strict=True)
    p_K = np.array([significance.bootstrap_p(*draw) for draw in draws])
  else:
    p_K = significance.randomisation_p(ours_CK2, theirs_CK2, args.samples, args.seed)
  found = {}
  for k, (metric, name) in enumerate(cells):
    draws_S = minus(scale(metric, ours_SK[:, k]), scale(metric, theirs_SK[:, k]))
    low, high = significance.interval(draws_S, args.level)
    value = float(minus(scale(metric, ours_K[k]), scale(metric, theirs_K[k])))
    found[metric, name] = {'value': value, 'low': low, 'high': high, 'p': float(p_K[k])}
    if metric.startswith('gsb'):
      found[metric, name] |= gsb.count(table.verdicts(metric, name))._asdict()
  for cell, p in zip(found.values(), significance.holm(p_K), strict=True):
    cell['p_holm'] = float(p)
  return found


def compare(args: argparse.Namespace) -> tuple[dict, Mapping[str, Any]]:
  """The result that is saved as JSON, and every run's rows by query."""
  settings = {k: getattr(args, k) for k in ('level', 'samples', 'seed', 'test', 'relevant', 'same')}
  result: dict[str, Any] = {**settings, 'warnings': []}
  rows: Mapping[str, Any] = {}
  if args.runs:
    table = Table(args)
    means, against = values(table), differences(table)
    rows = table.rows
    result |= {
      'qrels': str(args.qrels),
      'queries': len(table.qrels),
      'clusters': len(set(table.clusters)),
      'metrics': table.names,
      'teacher': args.teacher,
      'baseline': table.baseline,
      'tests': len(against),
      'warnings': table.warnings,
      'runs': {
        name: {
          'file': str(table.files[name]),
          'missing': sum(q not in run for q in table.qrels),
          'without_judgements': sum(q not in table.qrels for q in run),
          'metrics': {m: means[m, name] for m in table.names if (m, name) in means},
          'differences': {m: against[m, name] for m in table.names if (m, name) in against},
        }
        for name, run in table.runs.items()
      },
    }
  if args.verdicts:
    verdicts = gsb.read(args.verdicts)
    found = gsb.analyse(verdicts, args.samples, args.seed, args.level, args.cluster)
    result['verdicts'] = {'file': str(args.verdicts), **found}
  return result, rows


def plain(value):
  """JSON has neither infinity nor nan: both are written as text."""
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def save(folder: Path, result: dict, rows: Mapping[str, Any]) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'compare.json').write_text(json.dumps(plain(result), indent=2) + '\n')
    (folder / 'compare.md').write_text(comparison.markdown(result))
    if not rows:
      return
    with (folder / 'per_query.csv').open('w', newline='') as f:
      writer = csv.writer(f)
      first = next(iter(next(iter(rows.values())).values()))
      writer.writerow(['query_id', 'run', *first])
      for name, of_run in rows.items():
        writer.writerows([query, name, *row.values()] for query, row in of_run.items())
  except OSError as error:
    raise UserError(f'--out={folder}: cannot be written ({error.strerror})') from None


def main(argv=None) -> None:
  args = parse_args(argv)
  result, rows = compare(args)
  for warning in result['warnings']:
    print(f'warning: {warning}', file=sys.stderr)
  print(json.dumps(plain(result), indent=2) if args.json else comparison.text(result))
  if args.out:
    save(args.out, result, rows)
    print(f'saved in {args.out}', file=sys.stderr)


if __name__ == '__main__':
  with guarded():
    main()
