"""The means of a metric over runs, one test set each: `disranker average RUN...`.

BEIR and BRIGHT report such means over their tasks. Rows are those of the runs' result tables, each
run counts alike. With intervals, and with differences to the table's first stage and their p.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from disranker_jax import config as configs
from disranker_jax import escaping
from disranker_jax.commands.common import Parser
from disranker_jax.commands.comparison import named
from disranker_jax.commands.finished_run import FinishedRun
from disranker_jax.config import settings
from disranker_jax.data.holdout import normalized
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.evaluation.average import Average
from disranker_jax.evaluation.table import sums
from disranker_jax.pipeline import systems
from disranker_jax.report import averages


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser('average', __doc__, 'runs/bright/* --out bright.md')
  add = parser.add_argument
  add('runs', nargs='+', metavar='RUN', help=(
    'the workdir of a finished run; NAME=RUN to name its column'))  # fmt: skip
  add('--metric', default='', metavar='NAME', help=(
    'such as ndcg@10; default: the main metric of the result table'))  # fmt: skip
  add('--against', default='', metavar='ROW', help=(
    'the row that the others are compared with; default: the first stage'))  # fmt: skip
  add('--out', type=Path, metavar='FILE.md', help='writes the table here too, as Markdown')
  add('--json', action='store_true', help='prints the JSON instead of the table')
  return parser.parse_args(argv)


def open_runs(arguments: Sequence[str]) -> list[FinishedRun]:
  """The runs, each with a name of its own. Raises: UserError for one that cannot be averaged."""
  pairs = [named(argument) for argument in arguments]
  at: dict[Path, Path] = {}
  for _, folder in pairs:
    if (other := at.setdefault(folder.resolve(), folder)) is not folder:
      raise UserError(f'{folder}: is the same run as {other}; name each run once')
  if len(pairs) < 2:
    raise UserError(f'{pairs[0][1]}: is one run; name two or more, a run for each test set')
  names = [name for name, _ in pairs]
  for i, (name, folder) in enumerate(pairs):
    if name in names[:i] and arguments[i].startswith(f'{name}='):
      raise UserError(
        f'{folder}: is named {name!r}, as another run is; give each a name of its own'
      )
  runs = [
    FinishedRun(name if names.count(name) == 1 else str(folder), folder) for name, folder in pairs
  ]
  first = runs[0]
  for run in runs[1:]:
    if run.table is not first.table:
      ours, theirs = (each.config.get('system', systems.DEFAULT) for each in (run, first))
      raise UserError(
        f'{run.folder}: is a run of the system {ours!r}, and {first.folder} of {theirs!r}, whose '
        'rows are others; average them apart'
      )
  return runs


def check_metric(runs: Sequence[FinishedRun], metric: str) -> None:
  """Raises: UserError for a metric that cannot be averaged over the runs."""
  kind = metric.partition('@')[0]
  if kind.startswith('pnr'):
    raise UserError(
      f'--metric {metric}: is a ratio of pairs and no mean over queries; name another one: '
      f'{", ".join(known(runs[0]))}'
    )
  for run in runs:
    if metric not in known(run):
      raise UserError(
        f'--metric {metric}: is not in the table of {run.folder}; there are {", ".join(known(run))}'
      )
  least = {run.name: run.config[run.table.stage].min_relevance for run in runs}
  if metrics.METRICS[kind].has_threshold and len(set(least.values())) > 1:
    of_runs = ', '.join(f'{name} {grade}' for name, grade in least.items())
    key = f'{runs[0].table.stage}.min_relevance'
    raise UserError(
      f'--metric {metric}: the runs count other grades as relevant (config.{key}: {of_runs}); '
      f'run them with the same --config.{key}, or average nDCG, which has no such grade'
    )


def known(run: FinishedRun) -> list[str]:
  """The metrics of a run that can be averaged."""
  return [name for name in run.metrics if name != 'pnr']


def common_rows(runs: Sequence[FinishedRun], against: str) -> tuple[list[str], list[str]]:
  """(the rows that all runs have, a warning for each other one).

  Raises: UserError if the row that the others are compared with is not in all runs.
  """
  every = dict.fromkeys(name for run in runs for name in run.rows)
  lacking = {name: [run.name for run in runs if name not in run.rows] for name in every}
  rows = [name for name, lack in lacking.items() if not lack]
  if against not in rows:
    lack = ', '.join(lacking.get(against, ['any run']))
    there = f'name one that all runs have with --against: {", ".join(rows)}' if rows else (
      'the runs have no row in common; run them with the same rows')  # fmt: skip
    raise UserError(
      f'the row {against!r}, with which the others are compared, is not in the table of {lack}; '
      f'{there}'
    )
  left_out = [
    f'{name}: left out, because {", ".join(lack)} {"have" if len(lack) > 1 else "has"} no such row'
    for name, lack in lacking.items()
    if lack
  ]
  return rows, left_out


def differing(runs: Sequence[FinishedRun]) -> list[str]:
  """A warning for each setting of models and stages, beside the data, that is not the same."""
  config, table = runs[0].config, runs[0].table
  system, flat = systems.of(config), [configs.flatten(run.config) for run in runs]
  sections = {*system.roles, *(stage.section for stage in system.stages)}
  sections -= {'data', 'report', 'export'}
  known = settings.flatten(configs.sections(config.get('system', systems.DEFAULT)))
  found = []
  for key, declared in known.items():
    section, _, last = key.partition('.')
    of_table = section == table.stage and last in table.settings
    if section not in sections or not (declared.affects_results or of_table):
      continue
    if key == f'{table.stage}.min_relevance':  # see check_metric
      continue
    names: dict[str, list[str]] = {}
    for run, values in zip(runs, flat, strict=True):
      names.setdefault(repr(values.get(key)), []).append(run.name)
    if len(names) > 1:
      values = '; '.join(f'{value}: {", ".join(of_value)}' for value, of_value in names.items())
      found.append(f'the runs differ in config.{key} ({values})')
  return found


def shared(runs: Sequence[FinishedRun]) -> list[str]:
  """A warning if runs have test queries in common, which are drawn as if they were others."""
  at: dict[str, set[str]] = {}
  for run in runs:
    for group in run.tests.values():
      at.setdefault(normalized(group.query), set()).add(run.name)
  common = [names for names in at.values() if len(names) > 1]
  if not common:
    return []
  where = [run.name for run in runs if any(run.name in names for names in common)]
  return [
    f'{len(common):,} {"query is" if len(common) == 1 else "queries are"} in more than one run '
    f'({", ".join(where)}) and drawn in each by itself, so intervals are too narrow and p is too '
    'small'
  ]


def average(args: argparse.Namespace) -> dict:
  """The result that `--json` prints. Raises: UserError."""
  runs = open_runs(args.runs)
  table = runs[0].table
  metric = metrics.canonical(args.metric) or table.main
  check_metric(runs, metric)
  against = args.against or table.first_stage
  rows, left_out = common_rows(runs, against)
  for run in runs:
    if run.drawn.count < 2:
      raise UserError(
        f'{run.folder}: has only one test query, or one cluster of queries; an interval needs two'
      )
  cells = [{(row, metric): sums(r.rows[row], metric, r.queries) for row in rows} for r in runs]
  means = Average(cells, [run.drawn.of_Q for run in runs])
  tested = [row for row in rows if row != against and not table.is_floor(row)]
  differences = means.differences({row: ((row, metric), (against, metric)) for row in tested})
  found = []
  for row in rows:
    titles = dict.fromkeys(table.row_title(row, run.results) for run in runs)
    values = means.values((row, metric))
    found.append(
      {
        'name': row,
        'title': ' or '.join(titles),
        **means.mean((row, metric)),
        'runs': dict(zip([run.name for run in runs], values, strict=True)),
        **({'difference': differences[row]} if row in differences else {}),
      }
    )
  return {
    'metric': metric,
    'against': against,
    'runs': [
      {
        'name': run.name,
        'folder': str(run.folder),
        'test': run.config.data.test,
        'queries': len(run.queries),
        'clusters': run.drawn.count,
      }
      for run in runs
    ],
    'rows': found,
    'warnings': [*left_out, *differing(runs), *shared(runs)],
  }


def main(argv=None) -> None:
  args = parse_args(argv)
  result = average(args)
  for warning in result['warnings']:
    print(f'warning: {escaping.line(warning)}', file=sys.stderr)
  print(json.dumps(result, indent=2) if args.json else averages.text(result))
  if not args.out:
    return
  words = [*args.runs, *(['--metric', args.metric] if args.metric else [])]
  words += ['--against', args.against] if args.against else []
  try:
    args.out.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(['disranker', 'average', *words])
    args.out.write_text(averages.markdown(result, command), encoding='utf-8')
  except OSError as error:
    raise UserError(f'--out={args.out}: cannot be written ({error.strerror})') from None
  print(f'saved as {args.out}', file=sys.stderr)
