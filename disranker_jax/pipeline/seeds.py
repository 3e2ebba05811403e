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


def run(config: ConfigDict, workdir: Path, seeds: Sequence[int], rerun: Sequence[str] = ()) -> None:
  """Trains and evaluates the rows with each seed, then writes the report with all of them.

  rerun  stages to run again where they are stale, with all that follow from them

  Raises: as `runner.run`.
  """
  others = other(config, seeds)
  for i, seed in enumerate(others, 1):
    say(f'seed {seed} ({i}/{len(others)} more)')
    changed, place = with_seed(config, seed), folder(workdir, seed)
    # The run of the first seed has said what the models do not read.
    runner.run(changed, place, rerun=again(changed, place, rerun), reuse=[workdir], warn=False)
  if 'report' in config.stages:
    runner.run(config, workdir, ['report'])
  if processes.is_first():
    reruns.finish(Run(config, workdir, None))


def check(
  config: ConfigDict, workdir: Path, seeds: Sequence[int], rerun: Sequence[str] = ()
) -> None:
  """Raises: UserError for a seed that `run` would refuse; to be known before the first one trains.

  It looks at manifests and inputs alone.
  """
  for seed in other(config, seeds):
    again(with_seed(config, seed), folder(workdir, seed), rerun)


def other(config: ConfigDict, seeds: Sequence[int]) -> list[int]:
  """The seeds beside the config's own."""
  return [seed for seed in seeds if seed != config[systems.of(config).table.role].seed]


def again(config: ConfigDict, place: Path, rerun: Sequence[str]) -> list[str]:
  """The stages of `rerun` that are stale in a seed's run, or will be; others are kept.

  A stage that is done but not complete works again, maybe with another result. So those that read
  it will be stale.

  Raises: UserError for a stale one that is not of `rerun` and does not follow from them.
  """
  pipeline = runner.Pipeline(Run(config, place.absolute(), None))
  states = {stage.name: pipeline.state(stage) for stage in pipeline.listed}
  stale = {name: state.changes for name, state in states.items() if state.changes}
  repeated = systems.following(pipeline.listed, rerun)
  for name in [name for name in stale if name not in repeated]:
    raise UserError(
      f'{pipeline.run.folder(name)} is stale: {"; ".join(stale[name][:3])}. Repeat the stage with '
      f'--rerun={name}, also in the run itself; or delete {place}, and this seed alone is trained '
      'again'
    )
  finished = {name for name, s in states.items() if s.before and s.before['status'] == 'done'}
  incomplete = {name for name in finished if not states[name].is_done}
  readers = [s.name for s in pipeline.listed if incomplete & {*s.reads_stages}]
  return [name for name in states if name in stale or (name in readers and name in repeated)]


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
