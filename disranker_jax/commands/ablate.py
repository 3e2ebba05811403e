"""A table of runs that differ in a few settings: `disranker ablate FILE`.

FILE is Python. Its docstring says what the table shows. ROWS = {name: (model, {key: value})} names
the model of each row and the settings that differ from the base config. The model is one of
evaluate.models, of the methods of evaluate.rankers, or of the names of evaluate.runs. A third entry
is a key without which there is no such row; where rows depend on the base config, get_rows(config)
returns them. Rows that the config or the model cannot have are left out, with the reason. Rows are
ordinary runs of `disranker_jax.main`; those with equal settings share one. Stages that an earlier
run has done with equal settings are reused, so one teacher serves all its students. After Ctrl-C
the same command continues the run that it stopped.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax import config as configs
from disranker_jax.commands import ablation_runs, child_process
from disranker_jax.commands.ablation import (
  Ablation,
  available,
  load,
)
from disranker_jax.commands.common import Parser, load_config
from disranker_jax.data.records import Group
from disranker_jax.errors import Stopped, UserError
from disranker_jax.evaluation.runs import read_per_query
from disranker_jax.evaluation.table import Table, statistic, sums
from disranker_jax.evaluation.units import Units
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run
from disranker_jax.progress import say
from disranker_jax.report import ablations, facts, tables
from disranker_jax.report.results import COSTS

ROUNDING = 1e-9
COSTS_OF_QUERIES = [key for key in COSTS if key not in ('parameters', 'ms_per_pair')]


@dataclass
class Results:
  """The metrics per query of a row's runs: {seed: {query_id: {metric: value}}}, over all folds."""

  by_seed: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
  costs: list[dict[str, float]] = field(default_factory=list)  # per query, of every run
  workdirs: list[Path] = field(default_factory=list)
  device: str = ''


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser('ablate', __doc__, 'configs/ablations/losses.py --seeds 0,1,2')
  parser.add_config('configs/quickstart.py')
  add = parser.add_argument_group('table').add_argument
  add('file', type=Path, metavar='FILE', help='what to compare, e.g. configs/ablations/losses.py')
  add('--row', action='append', default=[], metavar='NAME', help='only this row; may be repeated')
  add(
    '--seeds',
    default='0',
    help="comma-separated seeds of the student, or of another system's model",
  )
  add('--folds', default='0', help='comma-separated folds, where data.holdout splits the queries')
  add(
    '--workdir', type=Path, metavar='DIR', help='of all runs; default: runs/ablations/FILE-CONFIG'
  )
  add('--reuse', action='append', default=[], metavar='DIR', help=(
    'another run, or the workdir of another ablation, to copy stages from'))  # fmt: skip
  add('--out', type=Path, default=Path('experiments'), metavar='DIR', help=(
    'where FILE-CONFIG.json, .md and .svg are written'))  # fmt: skip
  add('--dry-run', action='store_true', help=(
    'print the commands, and run nothing; the models are not opened'))  # fmt: skip
  args = parser.parse_args(argv)
  # A setting can be for some rows alone, so it is the config of each row that has to be whole.
  args.base = load_config(args.config, args.overrides, whole=False)
  return args


def check_folds(args: argparse.Namespace) -> None:
  """Raises: UserError if two folds test the same queries, of which one fold's would be lost."""
  folds, share = numbers('--folds', args.folds), args.base.data.holdout
  for fold, other in itertools.combinations(folds, 2):
    apart = (fold - other) * share % 1  # of the two folds' places, see holdout.Holdout
    if not share or not share - ROUNDING <= apart <= 1 - share + ROUNDING:
      raise UserError(
        f'--folds={args.folds}: folds {fold} and {other} have test queries in common, as '
        f'config.data.holdout={share:g}; name folds of different queries, each once'
      )


def run_all(args: argparse.Namespace, ablation: Ablation) -> dict[str, Results]:
  """Executes the runs of every row that are not done yet, and reads their metrics."""
  results = {row.name: Results() for row in ablation.rows}
  donors = ablation_runs.donors_of(map(Path, args.reuse))
  # Of a call with other rows, which make other runs.
  donors += ablation_runs.below(args.workdir)
  seeds, folds = numbers('--seeds', args.seeds), numbers('--folds', args.folds)
  plan = ablation_runs.planned(args, ablation, seeds, folds)
  if not args.dry_run:
    ablation_runs.refuse_stale(args, plan)
  for i, run in enumerate(plan, 1):
    names, workdir = run.names, run.workdir
    say(f'run {i} of {len(plan)}, seed {run.seed}, fold {run.fold}: {names}')
    others = [d for d in donors if d != workdir]
    typed = ablation_runs.command(args, run.changes, workdir, others)
    if args.dry_run:
      print(shlex.join(['disranker', 'run', *typed]))
      continue
    status = child_process.run([sys.executable, '-m', 'disranker_jax.main', *typed])
    if status:
      raise UserError(f'{names}: the run ended with status {status}; see above')
    if not manifest.is_done(workdir / ablation.table.stage):  # SIGTERM is a clean stop
      raise UserError(f'{names}: the run was stopped; the same command continues from there')
    donors = [*others, workdir]
    for row in run.rows:
      read(results[row.name], workdir / ablation.table.stage, row.model, run.seed)
  return results


def read(results: Results, folder: Path, model: str, seed: int) -> None:
  """Adds the metrics per query of a run, whose rows are in the folder.

  Raises: UserError if it has none of the model.
  """
  done = manifest.read(folder)
  if model not in done['results']:
    raise UserError(
      f'{folder}: has no row {model!r}, because the config has no such row or the test lacks what '
      'it needs (the output of the run says which); take it out of ROWS'
    )
  rows = read_per_query(folder / 'per_query.csv')[model]
  results.by_seed.setdefault(seed, {}).update(rows)
  results.device = done['device']
  results.workdirs.append(folder.parent)
  results.costs.append(costs(done['results'][model]))


def costs(facts: Mapping[str, float]) -> dict[str, float]:
  """What a row's ranking of a query costs; a model reads each document once."""
  found = {key: facts[key] for key in COSTS_OF_QUERIES if key in facts}
  if 'ms_per_pair' in facts and 'prompts_per_query' not in found:
    documents = facts['pairs'] / facts['queries']
    found |= {'prompts_per_query': documents, 'ms_per_query': documents * facts['ms_per_pair']}
  return found


def mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """The mean of each cost over the runs that have it: one without a comparison has no conflicts."""
  by_key: dict[str, list[float]] = {}
  for run in found:
    for key, value in run.items():
      by_key.setdefault(key, []).append(value)
  return {key: sum(values) / len(values) for key, values in by_key.items()}


def drawn(config: ConfigDict, queries: Sequence[str], row: Results) -> Units:
  """What intervals and tests draw, as the runs' own reports draw it.

  Raises: UserError if all queries are one cluster.
  """
  by, tests = configs.cluster(config) or None, dict[str, Group]()
  for workdir in row.workdirs if by is None else ():
    if not tests.keys() >= set(queries):  # other folds have other queries
      tests |= facts.read_tests(Run(config, workdir, None))
  grades = {query: tests[query].grades for query in queries if query in tests}
  units = Units(grades, queries, by)
  if units.are_one:
    why = 'all queries share their judgements, so they are one cluster'
    why = f'{by!r} puts all queries into one cluster' if by else why
    raise UserError(
      f'{why}; intervals need two or more: name another expression, or --config.report.cluster=.+, '
      'which draws every query by itself'
    )
  return units


def analyse(ablation: Ablation, results: dict[str, Results], of_Q: Sequence[str]) -> list[dict]:
  """Per row: every metric with its interval, its difference to `against`, and p-values.

  Seeds are averaged within each query. Queries of one cluster are drawn together (drawn).
  Holm's correction is over the rows of a metric.
  """
  queries = queries_of(ablation, results)
  rows = [{'name': r.name, 'model': r.model, 'metrics': {}} for r in ablation.rows]
  for metric in ablation.metrics:
    by_seed = {
      name: {seed: sums(values, metric, queries) for seed, values in of_row.by_seed.items()}
      for name, of_row in results.items()
    }
    # Not their sum: the test swaps queries of two rows, so rows of any number of seeds weigh alike.
    means = {(name, metric): sum(each.values()) / len(each) for name, each in by_seed.items()}
    table = Table(means, of_Q)
    against = (ablation.against, metric)
    others = [name for name in results if name != ablation.against]
    differences = table.differences({name: ((name, metric), against) for name in others})
    for row in rows:
      name = row['name']
      cell = table.mean((name, metric))
      cell['by_seed'] = {s: float(statistic(metric, x.sum(0))) for s, x in by_seed[name].items()}
      if name in differences:
        cell['difference'] = differences[name]
      row['metrics'][metric] = cell
  return rows


def queries_of(ablation: Ablation, results: dict[str, Results]) -> list[str]:
  """The test queries, which must be those of every row and seed."""
  queries = list(next(iter(results[ablation.against].by_seed.values())))
  for name, row in results.items():
    if any(set(of_seed) != set(queries) for of_seed in row.by_seed.values()):
      raise UserError(f'{name}: was evaluated on other queries than {ablation.against}')
  return queries


def other_documents(ablation: Ablation, results: dict[str, Results]) -> str:
  """A warning if the table has PNR, and rows rank different numbers of documents of a query."""
  if 'pnr' not in ablation.metrics:
    return ''
  queries = queries_of(ablation, results)
  counts = {
    name: [next(iter(row.by_seed.values()))[query].get('documents', 0) for query in queries]
    for name, row in results.items()
  }
  if all(of_Q == counts[ablation.against] for of_Q in counts.values()):
    return ''
  pairs = ', '.join(f'{name} {sum(of_Q):,.0f}' for name, of_Q in counts.items())
  return (
    f'The rows rank different documents (query-document pairs: {pairs}), so their PNR is of '
    'different pairs and does not compare them.'
  )


def numbers(flag: str, text: str) -> tuple[int, ...]:
  try:
    return tuple(int(n) for n in text.split(','))
  except ValueError as e:
    raise UserError(f'{flag}={text}: write numbers with commas, such as 0,1,2') from e


def main(argv=None) -> None:
  args = parse_args(argv)
  check_folds(args)
  ablation = available(load(args.file, args.base, args.row), args)
  label = f'{args.file.stem}-{Path(args.config).stem}'
  args.workdir = args.workdir or Path('runs/ablations') / label
  try:
    results = run_all(args, ablation)
  except Stopped as e:
    print(e, file=sys.stderr)
    sys.exit(130 if e.interrupted else 0)
  if args.dry_run:
    return
  queries = queries_of(ablation, results)
  units = drawn(args.base, queries, results[ablation.against])
  rows = analyse(ablation, results, units.of_Q)
  if warning := other_documents(ablation, results):
    say(f'warning: {warning}')
  for row, wanted in zip(rows, ablation.rows, strict=True):
    of_row = results[wanted.name]
    row |= {'changes': dict(wanted.changes), 'seeds': sorted(of_row.by_seed)}
    row |= {'costs': mean(of_row.costs)}
  result = {
    'title': ablation.title,
    'text': '\n\n'.join(part for part in (ablation.text, warning) if part),
    'file': str(args.file),
    'config': args.config,
    'set': [word.removeprefix('--config.') for word in args.overrides],
    'row': args.row,
    'folds': args.folds,
    'against': ablation.against,
    'queries': len(queries),
    'clusters': units.count,
    'cluster': configs.cluster(args.base),
    'device': results[ablation.against].device,
    'versions': manifest.versions(),
    'date': manifest.now()[:10],
    'rows': rows,
    'base': configs.flatten(args.base),
  }
  result = tables.plain(result)
  print(ablations.text(result))
  ablations.save(args.out, label, result)
