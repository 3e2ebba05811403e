"""The stages of each system, in order. A stage names those that it reads in `reads_stages`."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from disranker_jax.config.settings import Section
from disranker_jax.errors import UserError
from disranker_jax.models.settings import model
from disranker_jax.pipeline.stage import Stage
from disranker_jax.stages import (
  cpt,
  distill,
  evaluate,
  export,
  generate,
  prepare,
  report,
  score,
  sft,
  student_sft,
  teacher,
)

SYSTEMS: dict[str, tuple[Stage, ...]] = {
  'disranker': (
    prepare.STAGE, cpt.STAGE, sft.STAGE, generate.STAGE, score.STAGE, student_sft.STAGE,
    distill.STAGE, evaluate.STAGE, export.STAGE, report.STAGE,
  ),
}  # fmt: skip
# The models of each system: sections of the config.
ROLES: dict[str, dict[str, Section]] = {
  'disranker': {
    'teacher': {
      **model(model='mistralai/Mistral-7B-v0.1', remat='full'),
      **teacher.SETTINGS,
    },
    'student': model(model='google-bert/bert-base-multilingual-cased', scan_layers=False),
  },
}  # fmt: skip


def stages(config: ConfigDict) -> tuple[Stage, ...]:
  """All stages of the config's system."""
  return SYSTEMS[config.system]


def listed(config: ConfigDict) -> list[Stage]:
  """The stages that the config lists, in order."""
  return [stage for stage in stages(config) if stage.name in config.stages]


def find(name: str, system: str = 'disranker') -> Stage:
  """The stage of a name. Raises: KeyError."""
  return {stage.name: stage for stage in SYSTEMS[system]}[name]


def training_stages(system: str = 'disranker') -> list[str]:
  """Names of the stages that train."""
  return [stage.name for stage in SYSTEMS[system] if stage.task]


def model_settings(config: ConfigDict, stage: str) -> ConfigDict:
  """The settings of the model that a stage trains or runs."""
  return config[find(stage, config.system).role]


def preceding(all_stages: Iterable[Stage], names: Iterable[str]) -> list[Stage]:
  """The named stages and, transitively, those whose folders they read, in order."""
  wanted, every = set(names), list(all_stages)
  for stage in reversed(every):
    if stage.name in wanted:
      wanted |= set(stage.reads_stages)
  return [stage for stage in every if stage.name in wanted]


def following(all_stages: Iterable[Stage], names: Iterable[str]) -> list[str]:
  """The named stages and, transitively, those that read what they write."""
  again, every = set(names), list(all_stages)
  for stage in every:
    if again & set(stage.reads_stages):
      again.add(stage.name)
  return [stage.name for stage in every if stage.name in again] if names else []


def check_required(config: ConfigDict) -> None:
  """Raises: UserError where a listed stage cannot run without one that is not listed."""
  for stage in listed(config):
    for what, required in stage.requires(config).items():
      if missing := [name for name in required if name not in config.stages]:
        raise UserError(f'config.stages: {what} needs {", ".join(missing)}, which is not listed')
