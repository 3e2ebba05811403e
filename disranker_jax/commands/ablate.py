"""A table of runs that differ in a few settings: `disranker ablate FILE`.

FILE is Python: its docstring says what the table shows, ROWS = {name: (model, {key: value})} what
its rows are: which model of a run, and which settings differ from the base config's. Every row is
an ordinary `disranker run` in a workdir of its own; stages that an earlier row has done
alike are taken from there, so a teacher is trained once for all its students.
"""

import argparse
import csv
import runpy
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from disranker_jax import config as configs
from disranker_jax.commands.common import Parser, guarded, load_config, one_line
from disranker_jax.commands.compare import minus, scale
from disranker_jax.data.holdout import clusters
from disranker_jax.errors import UserError
from disranker_jax.evaluation import significance
from disranker_jax.pipeline import manifest
from disranker_jax.progress import say
from disranker_jax.report import ablations

METRICS = ('ndcg@5', 'ndcg@10', 'mrr@10', 'pnr')
# The stages whose results a model needs beside data and evaluation.
NEEDED = {
  'random': (),
  'bm25': (),
  'zero_shot': (),
  'teacher': ('cpt', 'sft'),
  'student_sft': ('student_sft',),
  'student': ('cpt', 'sft', 'score', 'student_sft', 'distill'),
}
SEEDED = ('student_sft', 'student')  # the others are the same whatever the student's seed


@dataclass(frozen=True)
class Row:
  """A line of the table: one model of runs with some changed settings."""

  name: str
  model: str
  changes: Mapping[str, object]


@dataclass(frozen=True)
class Table:
  """What an ablation file says."""

  title: str
  text: str
  rows: tuple[Row, ...]
  against: str  # the row that the others are compared with


@dataclass
class Found:
  """What a row's runs gave: {metric: {query: [top, bottom] summed over seeds}}, and by seed."""

  sums: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
  by_seed: dict[int, dict[str, float]] = field(default_factory=dict)
  device: str = ''


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser('ablate', __doc__, 'configs/ablations/losses.py --seeds 0,1,2')
  parser.add_config('configs/quickstart.py')
  add = parser.add_argument_group('table').add_argument
  add('file', type=Path, metavar='FILE', help='what to compare, e.g. configs/ablations/losses.py')
  add('--row', action='append', default=[], metavar='NAME', help='only this row; may be repeated')
  add('--seeds', default='0', help="comma-separated seeds of the student's stages")
  add('--folds', default='0', help='comma-separated folds, where data.holdout splits the queries')
  add(
    '--workdir', type=Path, metavar='DIR', help='of all runs; default: runs/ablations/FILE-CONFIG'
  )
  add('--reuse', action='append', default=[], metavar='DIR', help='another run to copy stages from')
  add('--out', type=Path, default=Path('experiments'), metavar='DIR', help=(
    'where FILE-CONFIG.json, .md and .svg are written'))  # fmt: skip
  add('--dry-run', action='store_true', help='print the commands and run nothing')
  args = parser.parse_args(argv)
  args.base = load_config(args.config, args.overrides)
  return args


def load(file: Path, wanted: Sequence[str] = ()) -> Table:
  """What an ablation file says: all rows, or the wanted ones and what they are compared with."""
  if not file.is_file():
    raise UserError(f'{file}: no such file; there are some in configs/ablations')
  try:
    content = runpy.run_path(str(file))
  except Exception as e:  # whatever the file itself raises
    raise UserError(f'{file}: cannot be run: {type(e).__name__}: {one_line(e)}') from e
  rows = tuple(Row(name, *row) for name, row in content.get('ROWS', {}).items())
  if not rows or not content.get('__doc__'):
    raise UserError(f'{file}: needs a docstring and ROWS = {{name: (model, {{key: value}})}}')
  for row in rows:
    if row.model not in NEEDED:
      raise UserError(f'{file}: {row.name}: model {row.model!r}: there are {", ".join(NEEDED)}')
  against = content.get('AGAINST', rows[0].name)
  names = wanted or [row.name for row in rows]
  for name in (against, *names):
    if name not in [row.name for row in rows]:
      raise UserError(f'{file}: no row {name!r}; there are {", ".join(r.name for r in rows)}')
  title, _, text = content['__doc__'].strip().partition('\n')
  kept = tuple(row for row in rows if row.name in (*names, against))
  return Table(title.rstrip('.'), text.strip(), kept, against)


def settings(args: argparse.Namespace, row: Row, seed: int, fold: int) -> dict[str, object]:
  """What one run changes of the base config; UserError for an unknown key."""
  changes = dict(row.changes) | {'evaluate.models': (row.model,), 'data.fold': fold}
  if row.model in SEEDED:
    changes['student.seed'] = seed
  needed = ('prepare', *NEEDED[row.model], 'evaluate')
  changes.setdefault('stages', tuple(s for s in args.base.stages if s in needed))
  known = configs.flatten(args.base)
  for key in changes:
    if key not in known:
      raise UserError(f'{args.file}: {row.name}: config.{key}: there is no such key')
  return changes


def command(args: argparse.Namespace, changes: dict, workdir: Path, donors: list[Path]) -> list:
  """The arguments of `disranker run`; a row's changes come last, so they override the base's."""
  flags = list(args.overrides)
  for key, value in changes.items():
    plain = key in ('stages', 'evaluate.models', 'export.models')  # lists of words
    flags.append(f'--config.{key}={",".join(value) if plain else value}')
  reuse = [f'--reuse={",".join(map(str, donors))}'] if donors else []
  where = [f'--config={args.config}', f'--workdir={workdir}']
  return [*where, *flags, *reuse]


def run_all(args: argparse.Namespace, table: Table) -> dict[str, Found]:
  """Does what is not done of every row's runs, and reads what they found."""
  folds = numbers('--folds', args.folds)
  found = {row.name: Found() for row in table.rows}
  donors = [Path(folder) for folder in args.reuse]
  for i, row in enumerate(table.rows, 1):
    seeds = numbers('--seeds', args.seeds) if row.model in SEEDED else (0,)
    for seed in seeds:
      for fold in folds:
        workdir = args.workdir / slug(row.name) / f'seed{seed}-fold{fold}'
        changes = settings(args, row, seed, fold)
        say(f'row {i} of {len(table.rows)}: {row.name}, seed {seed}, fold {fold}')
        typed = command(args, changes, workdir, [d for d in donors if d != workdir])
        if args.dry_run:
          print(shlex.join(['disranker', 'run', *typed]))
          continue
        run = [sys.executable, '-m', 'disranker_jax.main', *typed]
        done = subprocess.run(run, stdout=subprocess.DEVNULL)
        if done.returncode:
          raise UserError(f'{row.name}: its run ended with status {done.returncode}; see above')
        donors.append(workdir)
        read(found[row.name], workdir, row.model, seed)
  return found


def read(found: Found, workdir: Path, model: str, seed: int) -> None:
  """Adds a run's metrics by query."""
  with (workdir / 'evaluate' / 'per_query.csv').open(newline='') as f:
    rows = [row for row in csv.DictReader(f) if row['model'] == model]
  found.device = manifest.read(workdir / 'evaluate')['device']
  for row in rows:
    for metric in METRICS:
      if metric == 'pnr':
        pairs = np.array([float(row['concordant']), float(row['discordant'])])
        sums = np.array([pairs[0], pairs.sum()])
      else:
        sums = np.array([float(row[metric]), 1.0])
      queries = found.sums.setdefault(metric, {})
      queries[row['query_id']] = queries.get(row['query_id'], 0) + sums
      of_seed = found.by_seed.setdefault(seed, {})
      of_seed[metric] = of_seed.get(metric, 0) + sums


def analyse(table: Table, found: dict[str, Found], by: str = '') -> list[dict]:
  """Per row: every metric with its interval, its difference to `against`, and Holm's p-value.

  Queries are drawn, those whose ids `by` matches alike together; seeds are averaged within each;
  Holm corrects over the rows of a metric.
  """
  queries = list(found[table.against].sums[METRICS[0]])
  for name, row in found.items():
    if set(row.sums[METRICS[0]]) != set(queries):
      raise UserError(f'{name}: was evaluated on other queries than {table.against}')
  of_Q = clusters(queries, by)
  if len(set(of_Q)) == 1 < len(queries):
    raise UserError(f'{by!r} matches all queries alike, so nothing is left to draw for intervals')
  rows = [{'name': r.name, 'model': r.model, 'metrics': {}} for r in table.rows]
  base = [r.name for r in table.rows].index(table.against)
  for metric in METRICS:
    every = [found[r.name].sums[metric] for r in table.rows]
    sums_QK2 = np.stack([[of_row[q] for of_row in every] for q in queries])
    sums_CK2 = significance.clustered(sums_QK2, of_Q)
    draws_SK = significance.bootstrap(sums_CK2)
    shares_K = significance.ratio(sums_CK2.sum(0))
    others = [k for k in range(len(rows)) if k != base]
    same_CK2 = np.repeat(sums_CK2[:, [base]], len(others), 1)
    p_K = significance.randomisation_p(sums_CK2[:, others], same_CK2) if others else []
    p_holm = dict(zip(others, significance.holm(p_K), strict=True))
    p_plain = dict(zip(others, p_K, strict=True))
    for k, row in enumerate(rows):
      value = float(scale(metric, shares_K[k]))
      low, high = significance.interval(scale(metric, draws_SK[:, k]))
      by_seed = found[row['name']].by_seed
      cell = {'value': value, 'low': low, 'high': high}
      cell['by_seed'] = {
        s: float(scale(metric, significance.ratio(v[metric]))) for s, v in by_seed.items()
      }
      if k != base:
        away_S = minus(scale(metric, draws_SK[:, k]), scale(metric, draws_SK[:, base]))
        low, high = significance.interval(away_S)
        away = value - float(scale(metric, shares_K[base]))
        cell['difference'] = {'value': away, 'low': low, 'high': high}
        cell['difference'] |= {'p': float(p_plain[k]), 'p_holm': float(p_holm[k])}
      row['metrics'][metric] = cell
  return rows


def numbers(flag: str, text: str) -> tuple[int, ...]:
  try:
    return tuple(int(n) for n in text.split(','))
  except ValueError as e:
    raise UserError(f'{flag}={text}: write numbers with commas, such as 0,1,2') from e


def slug(name: str) -> str:
  """A row's name as a folder's."""
  return ''.join(c if c.isalnum() or c in '.-' else '_' for c in name)


def main(argv=None) -> None:
  args = parse_args(argv)
  table = load(args.file, args.row)
  label = f'{args.file.stem}-{Path(args.config).stem}'
  args.workdir = args.workdir or Path('runs/ablations') / label
  found = run_all(args, table)
  if args.dry_run:
    return
  by, queries = configs.cluster(args.base), list(found[table.against].sums[METRICS[0]])
  rows = analyse(table, found, by)
  for row, asked in zip(rows, table.rows, strict=True):
    row |= {'changes': dict(asked.changes), 'seeds': sorted(found[asked.name].by_seed)}
  result = {
    'title': table.title,
    'text': table.text,
    'file': str(args.file),
    'config': args.config,
    'set': [word.removeprefix('--config.') for word in args.overrides],
    'row': args.row,
    'folds': args.folds,
    'against': table.against,
    'queries': len(queries),
    'clusters': len(set(clusters(queries, by))),
    'device': found[table.against].device,
    'versions': manifest.versions(),
    'date': manifest.now()[:10],
    'rows': rows,
    'base': configs.flatten(args.base),
  }
  print(ablations.text(result))
  ablations.save(args.out, label, result)


if __name__ == '__main__':
  with guarded():
    main()
