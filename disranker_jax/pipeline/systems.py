"""A system that the program trains, and the systems and their stages by name.

`config.system` names one; `all_systems.py` has them. This module imports no stage, so that every
stage can import it, and no JAX, so that every command can.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from disranker_jax.errors import UserError

if TYPE_CHECKING:
  from disranker_jax.pipeline.stage import Role, Stage
  from disranker_jax.stages.result_table import Table

DEFAULT = 'disranker'  # of a config that names none


@dataclasses.dataclass(frozen=True)
class System:
  """A system: its stages in order, its models by their sections of the config, its table."""

  stages: tuple['Stage', ...]
  roles: Mapping[str, 'Role']
  table: 'Table'


def every() -> dict[str, System]:
  """The systems by name."""
  from disranker_jax.pipeline import all_systems  # it imports the stages, which import this module

  return all_systems.SYSTEMS


def get(name: str) -> System:
  """The system of a name. Raises: UserError."""
  known = every()
  if name not in known:
    raise UserError(f'config.system={name!r}: must be {" or ".join(map(repr, known))}')
  return known[name]


def of(config: ConfigDict) -> System:
  """The system of a config. Raises: UserError."""
  return get(config.get('system', DEFAULT))


def listed(config: ConfigDict) -> list['Stage']:
  """The stages that the config lists, in order."""
  return [stage for stage in of(config).stages if stage.name in config.stages]


def find(config: ConfigDict, name: str) -> 'Stage':
  """The stage of a name in the config's system. Raises: UserError."""
  known = {stage.name: stage for stage in of(config).stages}
  if name not in known:
    raise UserError(
      f'stage {name!r}: the system {config.system!r} has the stages {", ".join(known)}'
    )
  return known[name]


def training_stages(system: str) -> list[str]:
  """Names of the stages that train."""
  return [stage.name for stage in get(system).stages if stage.task]


def model_settings(config: ConfigDict, stage: str) -> ConfigDict:
  """The settings of the model that a stage trains or runs."""
  return config[find(config, stage).role]


def trained_stages(config: ConfigDict, role: str) -> list[str]:
  """The listed stages that train a role's model, in order."""
  return [name for name in of(config).roles[role].stages(config) if name in config.stages]


def preceding(all_stages: Iterable['Stage'], names: Iterable[str]) -> list['Stage']:
  """The named stages and, transitively, those whose folders they read, in order."""
  wanted, every = set(names), list(all_stages)
  for stage in reversed(every):
    if stage.name in wanted:
      wanted |= set(stage.reads_stages)
  return [stage for stage in every if stage.name in wanted]


def following(all_stages: Iterable['Stage'], names: Iterable[str]) -> list[str]:
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
