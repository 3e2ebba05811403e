"""Opens a run for commands that use a model of it."""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run
from disranker_jax.progress import say


def open_run(folder: Path, role: str) -> Run:
  """The run in a workdir. Raises: UserError if there is none, or none with a model of this role."""
  file = folder / 'config.json'
  if not file.is_file():
    raise UserError(f'--run {folder}: is not the workdir of a run (it has no config.json)')
  config = ConfigDict(json.loads(file.read_text()))
  if role not in config:
    raise UserError(f'--run {folder}: is a run of {config.system}, which has no {role}')
  return Run(config, folder.absolute(), mesh_of(config))


def mesh_of(config: ConfigDict):
  """The mesh of the run, or one of the devices that are here; config.mesh has its sizes then.

  Raises: UserError if the sizes are not positive.
  """
  count, model = jax.device_count(), config.mesh.model
  if said := sharding.misfit(config.mesh, count):
    model = model if model > 0 and count % model == 0 else 1
    config.mesh.update(data=1, fsdp=count // model, model=model)
    sizes = ', '.join(f'{axis}={config.mesh[axis]}' for axis in sharding.AXES)
    say(f'{said}, and here {"are" if count > 1 else "is"} {count}: takes {sizes}')
  return sharding.make_mesh(config.mesh)


def lacking(run: Run, stage: str) -> str:
  """Why a command cannot use what a stage of the run made; '' if it can.

  The parameters of a stage that config.stages lacks are not used, see roles.trained.
  """
  if not manifest.is_done(run.folder(stage)):
    return f'{stage} is not done; continue the run first'
  if stage not in run.config.stages:
    return (
      f'{stage} is done, but the last call of the run had a config.stages without it, so its '
      'result is not used; call the run again with it'
    )
  return ''
