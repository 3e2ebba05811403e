"""What a stage leaves that ended before it was done, by a signal or by bad input."""

import shutil

from disranker_jax.errors import UserError
from disranker_jax.pipeline import manifest, reruns
from disranker_jax.pipeline.stage import Run, Stage
from disranker_jax.training import logs


def said(stage: Stage, run: Run) -> str:
  """The message of a stage that was asked to stop: what is on disk, and how to continue."""
  try:
    kept = stage.kept(run)
  except UserError as error:
    return f'{stage.name}: stopped; what of it is saved cannot be read: {error}'
  if not kept:
    return f'{stage.name}: stopped with nothing to continue from; the same command starts it again'
  return f'{stage.name}: stopped; {kept}; the same command continues from there'


def remove_if_empty(run: Run, stage: Stage) -> None:
  """Removes what a stage wrote before it met bad input, unless there is work to continue from.

  Fixing the input may change the stage's inputs, which must not make it stale.
  """
  folder = run.folder(stage.name)
  written = {path.name for path in folder.iterdir()} - {manifest.FILE}
  if written and stage.is_reusable(run):
    (folder / manifest.FILE).unlink(missing_ok=True)
  # A training that had begun leaves its logs, which may tell what was wrong. Trainings of which the
  # best one is kept have folders of their own.
  elif not written or not (any(folder.glob(f'**/{logs.FILE}')) or has_kept(run, stage)):
    shutil.rmtree(folder, ignore_errors=True)
  if {p.name for p in folder.parent.iterdir()} <= {'config.json', '.lock', reruns.FILE}:
    shutil.rmtree(folder.parent)


def has_kept(run: Run, stage: Stage) -> bool:
  """Whether there is work to continue from; where that cannot be read, nothing is to be removed.

  It runs while another error ends the stage, and the user needs that one.
  """
  try:
    return bool(stage.kept(run))
  except UserError:
    return True
