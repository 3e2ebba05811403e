"""Orbax checkpoints of a stage: trained parameters, optimizer state, the place in the data.

Each step has two checkpointables, `params` and `train`, so that the next stage reads `params` only.
Frozen parameters are not saved: they come from where the stage got them. Everything is arrays on
the mesh, so any number of processes can continue from what any other number wrote.

Once a step is complete, checksums of its files are written beside them and compared before it is
read. The format detects damage to its indices, but most flipped bits are in data, which it loads as
any other numbers. Each process reads its share of the files back, in the background.
"""

import concurrent.futures
import functools
import json
import shutil
import zlib
from pathlib import Path

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from disranker_jax import disks
from disranker_jax.devices import processes, sharding
from disranker_jax.errors import UserError, first_line
from disranker_jax.models import tree
from disranker_jax.pipeline import manifest

SUMS = 'checksums'
TRAIN = 'train'  # the checkpointable that only its own stage reads


def context() -> ocp.Context:
  """How checkpoints are written: a folder that cannot be created is an error at once.

  Creation in the background leaves threads that wait minutes for it, and the process does not end
  before them.
  """
  made = ocp.Context()
  made.asynchronous.create_directories_asynchronously = False
  return made


class Newest:
  """The policy which checkpoints stay: the two newest, and the best one if a stage keeps it."""

  def __init__(self, validation):
    self._validation = validation

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    best = self._validation.best if self._validation and self._validation.keeps_best else 0
    newest = sorted(c.step for c in checkpoints)[-2:]
    return [c.step in newest or c.step == best for c in checkpoints]


class Checkpoints:
  """The two newest checkpoints of a training stage, and its best one; a context manager.

  `validation` says which is the best one, if it is kept; see training/validation.py.
  """

  def __init__(self, folder: Path, validation=None):
    self._folder = folder.absolute()
    self._sealer = concurrent.futures.ThreadPoolExecutor(1)
    self._sealed = None
    self._orbax = ocp.training.Checkpointer(
      self._folder,
      context=context(),
      save_decision_policy=ocp.training.save_decision_policies.InitialSavePolicy(),
      preservation_policy=Newest(validation),
      cleanup_tmp_directories=True,
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    try:
      with disks.writing(self._folder):
        self._orbax.close()
    finally:
      self._sealer.shutdown()

  def steps(self) -> list[int]:
    """Committed steps, newest first."""
    return sorted((c.step for c in self._orbax.checkpoints), reverse=True)

  def save(self, step: int, params, train) -> None:
    """Starts writing in the background; does nothing if the step exists.

    Raises: the error of the previous save, if it failed; OSError for a full disk.
    """
    with disks.writing(self._folder):
      self._wait_for_seal()
      if step not in self.steps():
        items = {'params': params, TRAIN: train}
        saved = self._orbax.save_checkpointables_async(step, items, force=True)
        self._sealed = self._sealer.submit(self._seal, step, saved)

  def _seal(self, step: int, saved) -> None:
    saved.result()
    write_sums(self._folder / str(step))

  def _wait_for_seal(self) -> None:
    sealed, self._sealed = self._sealed, None
    if sealed:
      sealed.result()

  def restore(self, params, train) -> tuple[int, object, object]:
    """(step, params, train) of the newest readable step, placed as the given shapes are.

    A step that cannot be read is reported and set aside, and the previous one is used; (0, None,
    None) if there is none. On several processes all of them must be able to read it.
    """
    for step in self.steps():
      items = {'params': params, TRAIN: train}
      load = functools.partial(self._orbax.load_checkpointables, step, items)
      out, _ = attempt(load, self._folder / str(step))
      if out:
        return step, out['params'], out[TRAIN]
      aside = functools.partial(self._set_aside, step)
      processes.first_alone(f'step {step} is set aside', aside)
      self._orbax.reload()
    return 0, None, None

  def load(self, step: int, mesh):
    """The parameters of one step; None if any process cannot read them."""
    folder = self._folder / str(step)
    return attempt(functools.partial(load_step, folder, mesh), folder, 'params/')[0]

  def _set_aside(self, step: int) -> None:
    """Moves a step that cannot be read to `unreadable/`, so that it can be written again."""
    aside = self._folder.parent / 'unreadable'
    aside.mkdir(exist_ok=True)
    shutil.rmtree(aside / str(step), ignore_errors=True)
    (self._folder / str(step)).rename(aside / str(step))

  def wait(self) -> None:
    """Waits until all saves are on disk. Raises: as `save`."""
    with disks.writing(self._folder):
      self._orbax.wait()
      self._wait_for_seal()


def attempt(load, folder: Path, part: str = ''):
  """(result of `load`, None), or (None, the error) if any process cannot read the step.

  Logged and not raised: there may be other checkpoints.
  """
  out, error = None, None
  for work in (functools.partial(check_sums, folder, part), load):
    try:
      out = work()
    except Exception as e:  # Orbax raises bare Exceptions for broken files
      error = e
      logging.warning('checkpoint %s cannot be read (%s)', folder, first_line(e))
    if processes.any_of(error is not None):
      return None, error or 'not in another process; see its message'
  return out, None


def write_sums(folder: Path) -> None:
  """checksums.<process>.json: {file: [bytes, CRC-32]} of this process's share of a step."""
  files = [f for f in folder.glob('*/**/*') if f.is_file()]  # top-level files are metadata
  files.sort(key=lambda f: (-f.stat().st_size, f))  # for equal shares
  own = files[jax.process_index() :: jax.process_count()]
  sums = {str(f.relative_to(folder)): checksum(f) for f in own}
  manifest.write_json(folder / f'{SUMS}.{jax.process_index()}.json', sums)


def check_sums(folder: Path, part: str = '') -> None:
  """Raises: ValueError unless this process's share of files under `part` is as written."""
  sums = {}
  for file in sorted(folder.glob(f'{SUMS}.*.json')):
    sums |= json.loads(file.read_text())
  if outside := [n for n in sums if Path(n).is_absolute() or '..' in Path(n).parts]:
    raise ValueError(f'the checksums name {outside[0]!r:.200}, which is not in the checkpoint')
  names = sorted((n for n in sums if n.startswith(part)), key=lambda n: (-sums[n][0], n))
  for name in names[jax.process_index() :: jax.process_count()]:
    if not (folder / name).exists():
      raise ValueError(f'{name} is missing')
    if checksum(folder / name) != sums[name]:
      raise ValueError(f'{name} is not what was written: its checksum differs')


def checksum(file: Path) -> list[int]:
  """[bytes, CRC-32]: detects the errors of disks and networks, at 4 GB/s per core."""
  size = crc = 0
  with file.open('rb') as f:
    while chunk := f.read(1 << 24):
      size, crc = size + len(chunk), zlib.crc32(chunk, crc)
  return [size, crc]


def load_params(folder: Path, mesh):
  """The parameters in a stage's last readable checkpoint, placed by the sharding table.

  Raises: UserError if there is none.
  """
  folder = folder.absolute()
  steps = sorted((int(p.name) for p in folder.glob('*') if p.name.isdigit()), reverse=True)
  error = None
  for step in steps:
    load = functools.partial(load_step, folder / str(step), mesh)
    out, error = attempt(load, folder / str(step), 'params/')
    if out:
      return out
  why = f'no checkpoint can be read ({first_line(error)})' if error else 'no checkpoint'
  raise UserError(f'{folder}: {why}; do its stage again with --rerun={folder.parent.name}')


def names(folder: Path) -> set[str]:
  """The paths of the parameters in a stage's last checkpoint; needs no devices."""
  steps = sorted((int(p.name) for p in folder.glob('*') if p.name.isdigit()), reverse=True)
  if not steps:
    raise UserError(
      f'{folder}: no checkpoint; do its stage again with --rerun={folder.parent.name}'
    )
  saved = ocp.metadata(folder.absolute() / str(steps[0]), checkpointable_name='params').metadata
  return set(tree.flatten(saved))


def load_step(folder: Path, mesh):
  """One step's parameters."""
  saved = ocp.metadata(folder, checkpointable_name='params').metadata
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
  return ocp.load(folder, sharding.abstract(shapes, mesh), checkpointable_name='params')
