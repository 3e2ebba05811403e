"""Orbax checkpoints of a stage: what was trained, the optimizer's state, the place in the data.

Two checkpointables a step, `params` | `train`, so that the next stage reads `params` alone. Frozen
parameters are in none: they come from where the stage got them. All of it is arrays on the mesh,
so that any number of processes may go on from what any other number wrote.
"""

import functools
import shutil
from pathlib import Path

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from disranker_jax import processes, sharding
from disranker_jax.errors import UserError


class Checkpoints:
  """The checkpoints of one training stage, newest two kept; a context manager."""

  def __init__(self, folder: Path):
    self._folder = folder.absolute()
    self._orbax = ocp.training.Checkpointer(
      self._folder,
      save_decision_policy=ocp.training.save_decision_policies.InitialSavePolicy(),
      preservation_policy=ocp.training.preservation_policies.LatestN(2),
      cleanup_tmp_directories=True,
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._orbax.close()

  def steps(self) -> list[int]:
    """Committed steps, newest first."""
    return sorted((c.step for c in self._orbax.checkpoints), reverse=True)

  def save(self, step: int, params, train) -> None:
    """Starts writing in the background; a step that is already there is left alone."""
    if step not in self.steps():
      items = {'params': params, 'train': train}
      self._orbax.save_checkpointables_async(step, items, force=True)

  def restore(self, params, train) -> tuple[int, object, object]:
    """(step, params, train) of the newest step that can be read, placed as the shapes given say.

    A step that cannot be read is reported, set aside, and the one before it is used; (0, None,
    None) where there is none. On several processes all of them must be able to read it.
    """
    for step in self.steps():
      out, error = None, None
      try:
        out = self._orbax.load_checkpointables(step, {'params': params, 'train': train})
      except Exception as e:  # Orbax raises bare Exceptions for broken files
        error = e
        logging.warning('checkpoint %s/%d cannot be read (%s)', self._folder, step, first_line(e))
      if not processes.any_of(error is not None):
        return step, out['params'], out['train']
      aside = functools.partial(self._set_aside, step)
      processes.first_alone(f'step {step} is set aside', aside)
      self._orbax.reload()
    return 0, None, None

  def _set_aside(self, step: int) -> None:
    """Moves a step that cannot be read to `unreadable/`, so that it is written anew in its turn."""
    aside = self._folder.parent / 'unreadable'
    aside.mkdir(exist_ok=True)
    shutil.rmtree(aside / str(step), ignore_errors=True)
    (self._folder / str(step)).rename(aside / str(step))

  def wait(self) -> None:
    """Until everything that was started is on disk."""
    self._orbax.wait()


def load_params(folder: Path, mesh):
  """The parameters that a stage's last readable checkpoint holds, placed by the sharding table."""
  folder = folder.absolute()
  steps = sorted((int(p.name) for p in folder.glob('*') if p.name.isdigit()), reverse=True)
  error = None
  for step in steps:
    try:
      found = ocp.metadata(folder / str(step), checkpointable_name='params').metadata
      shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found)
      wanted = sharding.abstract(shapes, mesh)
      return ocp.load(folder / str(step), wanted, checkpointable_name='params')
    except Exception as e:  # see restore
      error = e
      logging.warning('checkpoint %s/%d cannot be read (%s)', folder, step, first_line(e))
  why = f'no checkpoint can be read ({first_line(error)})' if error else 'no checkpoint'
  raise UserError(f'{folder}: {why}; do its stage again with --rerun={folder.parent.name}')


def first_line(error: Exception) -> str:
  """The first line of an error's text, for a log."""
  return (str(error).splitlines() or [type(error).__name__])[0][:200]
