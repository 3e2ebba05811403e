"""The trained rows again with other seeds: how much of a result is the luck of one training.

The seed is that of the model that the result table is about, such as the student. Each seed is a
run of its own in WORKDIR/seeds/SEED, which takes what does not depend on it from WORKDIR.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax import config as configs
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.pipeline import reruns, runner, systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.progress import say
from disranker_jax.stages.result_table import Row, Table


def run(config: ConfigDict, workdir: Path, seeds: Sequence[int]) -> None:
  """Trains and evaluates the rows with each seed, then writes the report with all of them.

  Raises: as `runner.run`.
  """
  role = systems.of(config).table.role
  others = [seed for seed in seeds if seed != config[role].seed]
  for i, seed in enumerate(others, 1):
    say(f'seed {seed} ({i}/{len(others)} more)')
    # The run of the first seed has said what the models do not read.
    runner.run(with_seed(config, seed), folder(workdir, seed), reuse=[workdir], warn=False)
  if 'report' in config.stages:
    runner.run(config, workdir, ['report'])
  if processes.is_first():
    reruns.finish(Run(config, workdir, None))


def folder(workdir: Path, seed: int) -> Path:
  return workdir / 'seeds' / str(seed)


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
  """The config of the run that differs in the seed and ends with the rows that depend on it."""
  table = systems.of(config).table
  named = config[table.stage].models
  rows = [row for row in seeded(table) if row.name in named and row.is_available(config)]
  if not rows or table.stage not in config.stages:
    raise UserError(
      f'--seeds: the config evaluates no trained {table.role}; add one to '
      f'config.{table.stage}.models'
    )
  changed = config.copy_and_resolve_references()
  stages = systems.preceding(systems.listed(config), [*(r.trained_by for r in rows), table.stage])
  changed.update({'stages': tuple(s.name for s in stages)})
  changed[table.role].seed = seed
  # Rows that do not depend on the seed are those of WORKDIR; LLM rankers take the longest.
  section = changed[table.stage]
  section.models, section.runs = tuple(row.name for row in rows), {}
  if 'rankers' in section:
    section.rankers = ()
  configs.check(changed)
  return changed


def seeded(table: Table) -> list[Row]:
  """The rows of one model that a training with the seed decides, re-ranked ones too."""
  return [row for row in table.rows.values() if row.trained_by and table.depends_on_seed(row)]
