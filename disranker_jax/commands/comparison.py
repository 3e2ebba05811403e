"""What `disranker compare` compares: runs, judgements and what they do not cover."""

import argparse
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from disranker_jax.data.records import BadRows, listed
from disranker_jax.errors import UserError
from disranker_jax.evaluation import documents, gsb, metrics, significance
from disranker_jax.evaluation.runs import read_qrels, read_run
from disranker_jax.evaluation.table import Cell, Table, sums
from disranker_jax.evaluation.units import Units
from disranker_jax.progress import amount

SUFFIXES = ('.gz', '.run', '.txt', '.trec')
SPECIAL = ('pnr', 'pnr_per_query', 'tau')  # not a function of one query's ranking and grades
NAMED = 5  # query ids that a warning shows


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
    every = self.read(read_qrels, args.qrels)
    runs = {name: self.read(read_run, file) for name, file in self.files.items()}
    teacher = self.reference(args.teacher, runs) if args.teacher else None
    self.check_queries(runs, every)
    self.documents = self.count(runs, every)
    self.runs, self.qrels = self.documents.runs, self.documents.qrels
    self.teacher = None if teacher is None else self.documents.reduced(teacher)
    self.units = Units(every, list(self.qrels), args.cluster)
    self.check_units()
    self.rows = {name: self.per_query(run) for name, run in self.runs.items()}
    self.check_tau()

  def read(self, reader: Callable[[Path, BadRows], Any], file: Path) -> Any:
    """The table of a file; what was read differently from how it is written is a warning."""
    bad_rows = BadRows()
    table = reader(file, bad_rows)
    self.warnings += [f'{file}: {note}' for note in listed(bad_rows.notes)]
    return table

  def reference(self, argument: str, runs: Mapping[str, metrics.Run]) -> metrics.Run:
    """The teacher's run: one of the compared runs, by its name, or another file."""
    return runs[argument] if argument in runs else self.read(read_run, named(argument)[1])

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

  def check_queries(self, runs: Mapping[str, metrics.Run], qrels: metrics.Qrels) -> None:
    """Warns of queries that do not count. Raises: UserError for a run without a judged query."""
    common: dict[str, list[str]] = {}
    self.without_judgements: dict[str, int] = {}
    for name, run in runs.items():
      if not qrels.keys() & run.keys():
        raise UserError(
          f'{self.files[name]}: has none of the queries of {self.args.qrels} (query_id '
          f'{next(iter(run))!r} here, {next(iter(qrels))!r} there); name the run of these queries'
        )
      if missing := [q for q in qrels if q not in run]:
        what = f'no documents for {some(missing, len(qrels))}'
        what += '' if self.args.documents == 'common' else ', which count as 0'
        common.setdefault(what, []).append(name)
      extra = [q for q in run if q not in qrels]
      self.without_judgements[name] = len(extra)
      if extra:
        what = f'no judgements for {some(extra, len(run))}, which do not count'
        common.setdefault(what, []).append(name)
    self.warnings += [f'{", ".join(names)}: {what}' for what, names in common.items()]

  def count(self, runs: Mapping[str, metrics.Run], qrels: metrics.Qrels) -> documents.Counted:
    """The documents that count, with warnings. Raises: UserError if there are none."""
    args = self.args
    counted = documents.counted(runs, qrels, args.documents)
    if not counted.qrels:
      raise UserError(f'--documents={args.documents}: the runs have no document in common')
    if counted.differ:
      every, judged = counted.union
      lacks = ', '.join(
        f'{name} lacks {held.lacks:,} of {every:,} ({held.lacks_judged:,} of {judged:,} judged)'
        for name, held in counted.held.items()
      )
      self.warnings.append(
        f'the runs hold different documents: {lacks}; --documents {args.documents}: '
        f'{documents.RULES[args.documents]}'
      )
    if counted.empty:
      self.warnings.append(
        f'the runs have no document in common for {some(counted.empty, len(qrels))}, which do not '
        'count'
      )
    best = {query: max(docs.values(), default=0) for query, docs in counted.qrels.items()}
    barren = [query for query, grade in best.items() if grade < args.relevant]
    if barren:
      zero = 'MRR, MAP and recall' if args.relevant > 1 else 'nDCG, MRR, MAP and recall'
      self.warnings.append(
        f'{args.qrels}: no document reaches grade {args.relevant} for '
        f'{some(barren, len(counted.qrels))}, whose {zero} are 0 for every run'
      )
    return counted

  def check_units(self) -> None:
    """Warns of queries that share judgements. Raises: UserError if all queries are one cluster."""
    units, shared, by, file = self.units, self.units.shared, self.args.cluster, self.args.qrels
    if units.are_one and by is None:
      raise UserError(
        f'{file}: {units.sharing()}, so they are one cluster; judge more topics, or take the '
        f'queries as independent with {flag("")}'
      )
    if units.are_one:
      raise UserError(
        f'--cluster={by}: finds {units.of_Q[0]!r} in every query_id of {file}, so all queries are '
        'one cluster; match what differs between topics'
      )
    if said := units.together(flag):
      self.warnings.append(
        f'{file}: {said}; {flag("")} draws queries one by one, with p-values that are too small'
      )
    if said := units.separated(flag):
      use = flag(shared.pattern) if shared.pattern else 'the default'
      self.warnings.append(f'{file}: {said}, so p-values are too small; use {use}')
    if said := units.alike():
      use = flag(units.related.pattern)
      self.warnings.append(f'{file}: {said}, p-values are too small without {use}')

  def check_tau(self) -> None:
    """Warns of queries without an order of the teacher."""
    rows = next(iter(self.rows.values()))
    if none := [query for query, row in rows.items() if math.isnan(row.get('tau', 0.0))]:
      self.warnings.append(
        f'{self.args.teacher}: does not order documents for {some(none, len(rows))}, which do not '
        "count in Kendall's tau"
      )

  def per_query(self, run: metrics.Run) -> dict[str, dict[str, float]]:
    names = [n.replace('gsb', 'ndcg') for n in self.names if n not in SPECIAL]
    names = tuple(dict.fromkeys(names))
    pool = self.documents.pool
    rows = metrics.per_query(run, self.qrels, self.args.relevant, names, pool)
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

  def pairs(self, name: str) -> dict[str, float]:
    """PNR's pairs of a run."""
    rows = self.rows[name].values()
    return {kind: sum(row[kind] for row in rows) for kind in ('concordant', 'discordant', 'tied')}

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
    table = Table(cells, self.units.of_Q, args.samples, args.seed, args.level)
    differences = table.differences(pairs, args.test)
    for name, metric in pairs:
      if metric.startswith('gsb'):
        counts = gsb.count(self.verdicts(metric, name))
        differences[name, metric] |= counts._asdict()
    means = {cell: table.mean(cell) | {'counted': table.counted(cell)} for cell in plain}
    return means, differences

  def result(self) -> dict[str, Any]:
    """The part of the JSON that is about runs."""
    means, differences = self.statistics()
    return {
      'qrels': str(self.args.qrels),
      'queries': len(self.qrels),
      'clusters': self.units.count,
      'cluster': self.args.cluster,
      'shared_judgements': {
        'queries': sum(self.units.sharing_sizes),
        'groups': len(self.units.sharing_sizes),
        'pattern': self.units.shared.pattern,
      },
      'documents': {
        'rule': self.documents.rule,
        'differ': self.documents.differ,
        'held': self.documents.union[0],
        'held_judged': self.documents.union[1],
        'judged': sum(map(len, self.qrels.values())),
        'queries_without_common': len(self.documents.empty),
      },
      'metrics': self.names,
      'teacher': self.args.teacher,
      'baseline': self.baseline,
      'tests': len(differences),
      'warnings': self.warnings,
      'runs': {
        name: {
          'file': str(self.files[name]),
          'missing': self.documents.queries - self.documents.held[name].queries,
          'without_judgements': self.without_judgements[name],
          'documents': self.documents.held[name]._asdict(),
          'pairs': self.pairs(name),
          'metrics': {m: means[name, m] for m in self.names if (name, m) in means},
          'differences': {m: differences[name, m] for m in self.names if (name, m) in differences},
        }
        for name, run in self.runs.items()
      },
    }


def flag(by: str) -> str:
  """The words that make `compare` draw queries together by an expression."""
  return f'--cluster {shlex.quote(by)}'


def some(queries: list[str], of: int) -> str:
  shown = ', '.join(queries[:NAMED]) + (', ...' if len(queries) > NAMED else '')
  return f'{len(queries)} of {amount(of, "query", "queries")} ({shown})'
