"""The student's stages again with other seeds: how much of a result is the luck of one training.

Each seed is a run of its own in WORKDIR/seeds/SEED, which takes the teacher from WORKDIR.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax import config as configs
from disranker_jax.errors import UserError
from disranker_jax.pipeline import runner, systems
from disranker_jax.progress import say
from disranker_jax.stages import result_rows


def run(config: ConfigDict, workdir: Path, seeds: Sequence[int]) -> None:
  """Trains and evaluates the students with each seed, then writes the report with all of them.

  Raises: as `runner.run`.
  """
  others = [seed for seed in seeds if seed != config.student.seed]
  for i, seed in enumerate(others, 1):
    say(f'seed {seed} ({i}/{len(others)} more)')
    runner.run(with_seed(config, seed), folder(workdir, seed), reuse=[workdir])
  if 'report' in config.stages:
    runner.run(config, workdir, ['report'])


def folder(workdir: Path, seed: int) -> Path:
  return workdir / 'seeds' / str(seed)


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
  """The config of the run that differs in the student's seed and ends with the student's rows."""
  rows = [r for r in students() if r in config.evaluate.models]
  if not rows or 'evaluate' not in config.stages:
    raise UserError('--seeds: the config evaluates no student; add one to config.evaluate.models')
  changed = config.copy_and_resolve_references()
  trained = [result_rows.ROWS[row].trained_by for row in rows]
  stages = systems.preceding(systems.listed(config), [*trained, 'evaluate'])
  changed.update({'stages': tuple(s.name for s in stages)})
  changed.student.seed = seed
  # Rows that do not depend on the seed are those of WORKDIR; LLM rankers take the longest.
  changed.evaluate.models, changed.evaluate.rankers = tuple(rows), ()
  changed.evaluate.runs = {}
  configs.check(changed)
  return changed


def students() -> list[str]:
  """The rows whose model is a student that the run trains."""
  rows = result_rows.ROWS.values()
  return [row.name for row in rows if row.role == 'student' and row.trained_by]
