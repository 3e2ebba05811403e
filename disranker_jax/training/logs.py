"""What a training stage logs per step: metrics.jsonl, TensorBoard event files, Weights & Biases.

metrics.jsonl is the source of truth; the others show the same numbers. A run that resumes from a
checkpoint logs the steps after it again, so their lines are cut off and their events declared void.
Only the first process writes.
"""

import contextlib
import importlib.util
import json
import math
import os
import re
import secrets
import time
from pathlib import Path

from disranker_jax.devices import processes
from disranker_jax.errors import UserError, reason

TENSORBOARD_S = 10.0  # a running TensorBoard sees new events after this long


class Logs(contextlib.ExitStack):
  """All writers of a stage; a context manager.

  Args:
    folder: the stage's folder.
    step: the step that the run resumes from; 0 at the start.
    tensorboard: whether to write event files.
    wandb_project: the Weights & Biases project; '': none.
  """

  def __init__(self, folder: Path, step: int, tensorboard: bool, wandb_project: str):
    super().__init__()
    self._writers = []
    if processes.is_first():
      self._writers.append(MetricsLog(folder, step))
      if tensorboard:
        self._writers.append(TensorBoard(folder, step))
      if wandb_project:
        self._writers.append(WandB(folder, wandb_project))
    for writer in self._writers:
      self.callback(writer.close)

  def write(self, step: int, examples: int, values: dict[str, float]) -> None:
    for writer in self._writers:
      writer.write(step, {'examples': examples, **values})

  def sync(self) -> None:
    """Puts everything on disk, before a checkpoint makes these steps final."""
    for writer in self._writers:
      writer.sync()


FILE = 'metrics.jsonl'


def read(file: Path) -> list[dict]:
  """The rows of a metrics.jsonl, [] without one; a half-written last line is skipped."""
  lines = file.read_text().splitlines() if file.exists() else []
  rows = [json.loads(line) for line in lines if line.endswith('}')]
  return [{k: float(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]


class MetricsLog:
  """metrics.jsonl: one line per step; `seconds` since this process started the stage.

  JSON has no infinity and no NaN: they are text, 'inf' and 'nan'.
  """

  def __init__(self, folder: Path, step: int):
    self._begin = time.monotonic()
    file, kept = folder / FILE, []
    if file.exists():
      lines = file.read_text().splitlines()
      kept = [line for line in lines if line.endswith('}') and json.loads(line)['step'] <= step]
    file.write_text(''.join(line + '\n' for line in kept))
    self._file = file.open('a')

  def write(self, step: int, values: dict[str, float]) -> None:
    seconds = round(time.monotonic() - self._begin, 3)
    values = {k: v if math.isfinite(v) else str(float(v)) for k, v in values.items()}
    row = {'step': step, **values, 'seconds': seconds}
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    self._file.flush()

  def sync(self) -> None:
    """fsync, because a mounted bucket would otherwise upload later than the checkpoint."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    self._file.close()


class TensorBoard:
  """Scalars in an event file beside metrics.jsonl, for `tensorboard --logdir WORKDIR`.

  Written through tensorboardX's event writer and not its SummaryWriter, whose queue may still hold
  events when a checkpoint makes their steps final.
  """

  def __init__(self, folder: Path, step: int):
    from tensorboardX import event_file_writer  # imported late: it imports torch where that is
    from tensorboardX.proto import event_pb2, summary_pb2

    self._protos = event_pb2, summary_pb2
    # A file's name has the second of its start; two starts in one second differ by their step.
    self._writer = event_file_writer.EventsWriter(str(folder / 'events'), f'.{step:09d}')
    # What SummaryWriter's purge_step writes: events from this step on in earlier files are void.
    started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._event(step=step + 1, session_log=started)
    self._flushed = time.monotonic()

  def _event(self, **fields) -> None:
    self._writer.write_event(self._protos[0].Event(wall_time=time.time(), **fields))

  def write(self, step: int, values: dict[str, float]) -> None:
    summary = self._protos[1].Summary
    scalars = [summary.Value(tag=k, simple_value=v) for k, v in values.items()]
    self._event(step=step, summary=summary(value=scalars))
    if time.monotonic() - self._flushed > TENSORBOARD_S:
      self.sync()

  def sync(self) -> None:
    self._writer.flush()
    self._flushed = time.monotonic()

  def close(self) -> None:
    self._writer.close()


class WandB:
  """The same numbers as a Weights & Biases run, which a restart continues.

  The run's id lies in the stage's folder. A stage that is done again has another folder and so
  another run: W&B ignores the steps that a run already has.
  """

  def __init__(self, folder: Path, project: str):
    check_wandb(project)
    import wandb

    folder = folder.absolute()
    name = f'{folder.parent.name}/{folder.name}'
    self._run = wandb.init(
      project=project, name=name, id=_run_id(folder), resume='allow', dir=str(folder)
    )

  def write(self, step: int, values: dict[str, float]) -> None:
    # W&B ignores a step that it already has; a resumed run would log the same values.
    self._run.log(values, step=step)

  def sync(self) -> None:
    """W&B uploads in the background."""

  def close(self) -> None:
    self._run.finish()


def _run_id(folder: Path) -> str:
  """The id of the folder's W&B run: what an earlier start wrote there, else a new one."""
  file = folder / 'wandb_id.txt'
  known = file.read_text(errors='replace').strip() if file.is_file() else ''
  if not re.fullmatch('[0-9a-f]{16}', known):
    known = secrets.token_hex(8)
    file.write_text(known + '\n')
  return known


def check_wandb(project: str) -> None:
  """Raises: UserError if a project is named and wandb is not installed."""
  if project and importlib.util.find_spec('wandb') is None:
    raise UserError(
      f"config.wandb_project={project!r}: wandb is not installed: pip install wandb, or set ''"
    )


def check_login(project: str) -> None:
  """Asks for a Weights & Biases key where it is missing, rather than after hours of work.

  Raises: UserError if there is no terminal to ask at.
  """
  if not project or os.environ.get('WANDB_MODE') in ('offline', 'disabled', 'dryrun'):
    return
  import wandb

  try:
    known = wandb.login()
  except Exception as e:  # wandb's exceptions change between releases
    known, why = False, f' ({reason(e)})'
  else:
    why = ''
  if not known:
    raise UserError(
      f"config.wandb_project={project!r}: not logged in{why}: run 'wandb login', set "
      "WANDB_MODE=offline, or set ''"
    )
