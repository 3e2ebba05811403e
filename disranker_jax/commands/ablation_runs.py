"""The runs of an ablation: which rows share one, its folder, and whether it still fits."""

import argparse
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from disranker_jax.commands.ablation import Ablation, Row, is_seeded, settings
from disranker_jax.commands.common import load_config
from disranker_jax.errors import UserError
from disranker_jax.pipeline import inputs, manifest, runner
from disranker_jax.pipeline.stage import Run
from disranker_jax.progress import amount

LONGEST = 80  # characters of a folder's name


@dataclass(frozen=True)
class Planned:
  """A run of some rows with one seed and fold; `changes` are those to the base config."""

  rows: tuple[Row, ...]
  seed: int
  fold: int
  changes: dict[str, object]
  workdir: Path

  @property
  def names(self) -> str:
    return ', '.join(row.name for row in self.rows)


def planned(
  args: argparse.Namespace, ablation: Ablation, seeds: Sequence[int], folds: Sequence[int]
) -> list[Planned]:
  """All runs, in order. Raises: UserError for settings that there are not."""
  found = []
  for (rows, seed), fold in itertools.product(runs(ablation, seeds), folds):
    workdir = args.workdir / folder_of(rows, ablation.names) / f'seed{seed}-fold{fold}'
    changes = settings(args, rows, seed, fold)
    found.append(Planned(tuple(rows), seed, fold, changes, workdir))
  return found


def runs(ablation: Ablation, seeds: Sequence[int]) -> list[tuple[list[Row], int]]:
  """(the rows, the seed) of each run; rows without a seed belong to the run of seed 0."""
  found: dict[tuple[str, int], list[Row]] = {}
  for row in ablation.rows:
    for seed in seeds if is_seeded(ablation.table, row.model) else (0,):
      found.setdefault((row.alike, seed), []).append(row)
  return [(rows, seed) for (_, seed), rows in found.items()]


def folder_of(rows: Sequence[Row], names: Iterable[str] = ()) -> str:
  """A folder name for the runs of some rows: their names, or their start and a digest.

  Args:
    names: of all rows of the file. Characters that a name may not have become `_`; where two names
      would be the same, as of `k<5` and `k>5`, a digest tells them apart.
  """
  name = '+'.join(part_of(row.name, names) for row in rows)
  if len(name) <= LONGEST:
    return name
  return f'{name[: LONGEST - 9]}-{manifest.digest([row.name for row in rows])[:8]}'


def part_of(name: str, names: Iterable[str]) -> str:
  """What a row adds to the name of a folder."""
  plain = plain_name(name)
  if plain == name or not any(plain_name(n) == plain for n in names if n != name):
    return plain
  return f'{plain}-{manifest.digest(name)[:8]}'


def plain_name(name: str) -> str:
  return ''.join(c if c.isalnum() or c in '.-' else '_' for c in name)


def flags_of(args: argparse.Namespace, changes: dict) -> list[str]:
  """The config's flags of a run; its changes replace the base's."""
  # A second flag of a list would add to the first one.
  flags = [f for f in args.overrides
           if f.partition('=')[0].removeprefix('--config.') not in changes]  # fmt: skip
  for key, value in changes.items():
    plain = value and (key == 'stages' or key.endswith('.models'))  # lists of words
    flags.append(f'--config.{key}={",".join(value) if plain else value}')
  return flags


def command(args: argparse.Namespace, changes: dict, workdir: Path, donors: list[Path]) -> list:
  """The arguments of `disranker run`."""
  reuse = [f'--reuse={",".join(map(str, donors))}'] if donors else []
  where = [f'--config={args.config}', f'--workdir={workdir}']
  return [*where, *flags_of(args, changes), *reuse]


def donors_of(folders: Iterable[Path]) -> list[Path]:
  """The runs in some folders, each of which is a run or the workdir of an ablation."""
  found = []
  for folder in folders:
    inside = [] if (folder / 'config.json').is_file() else below(folder)
    found += inside or [folder]  # the run says what is wrong with another folder
  return found


def below(workdir: Path) -> list[Path]:
  """The runs in the workdir of an ablation."""
  return sorted(file.parent for file in workdir.glob('*/seed*-fold*/config.json'))


def refuse_stale(args: argparse.Namespace, plan: Sequence[Planned]) -> None:
  """Raises: UserError that says which runs have stages from other settings or inputs than now."""
  stale = [(run, found) for run in plan if (found := changed(args, run))]
  if not stale:
    return
  run, found = stale[0]
  more = len(stale) - 1
  verb = 'is' if more == 1 else 'are'
  others = f', and so {verb} {amount(more, "other run")}' if more else ''
  raise UserError(
    f'{run.names}: {found}{others}. Give another --workdir; with --reuse={args.workdir} it takes '
    'the stages that have not changed'
  )


def changed(args: argparse.Namespace, run: Planned) -> str:
  """What has changed since a run was begun, by its first stale stage; '' if there is none.

  It looks at manifests and inputs alone, and starts no backend.
  """
  if not (run.workdir / 'config.json').is_file():
    return ''
  config = load_config(args.config, flags_of(args, run.changes))
  pipeline = runner.Pipeline(Run(config, run.workdir.absolute(), None))
  for stage in pipeline.listed:
    folder = pipeline.run.folder(stage.name)
    if before := manifest.read(folder):
      wanted = manifest.settings_of(config, stage.sections(config))
      if found := inputs.changes(before, wanted, pipeline.inputs(stage)):
        return f'{run.workdir / folder.name} is stale: {"; ".join(found[:3])}'
  return ''
