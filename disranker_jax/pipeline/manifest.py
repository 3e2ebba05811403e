"""manifest.json of a stage: its settings, its inputs, and whether it is done.

A stage is stale when its part of the config, or something it was made from, has changed since.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from disranker_jax import config as configs
from disranker_jax import disks
from disranker_jax.config import settings
from disranker_jax.data import contents
from disranker_jax.devices import processes, processor
from disranker_jax.errors import UserError

FILE = 'manifest.json'
TIMED_S = 60.0  # so often the time that a stage has spent is written: a kill loses no more
PACKAGES = ('disranker_jax', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'transformers', 'grain')


def digest(value) -> str:
  """A short, stable name for a JSON value."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def files(paths: Sequence[Path]) -> str:
  """A fingerprint of the names and contents of files."""
  return digest([(p.name, contents.digest(p)) for p in paths if p.is_file()])


def write_json(file: Path, value) -> None:
  """Writes to a temporary name first, so that a kill leaves the old file or the new one."""
  partial = file.with_suffix('.partial')
  with disks.writing(file):
    partial.write_text(json.dumps(value, indent=2) + '\n')
  os.replace(partial, file)


def read(folder: Path) -> dict | None:
  """The manifest in a stage's folder; None if the stage has not started."""
  file = folder / FILE
  if not file.exists():
    return None
  try:
    return json.loads(file.read_text())
  except ValueError as e:
    raise UserError(f'{file}: is not JSON ({e}); delete {folder} to run the stage again') from e


def is_done(folder: Path) -> bool:
  """Whether the stage of a folder is finished."""
  return (read(folder) or {}).get('status') == 'done'


def settings_of(config, sections: tuple[str, ...]) -> dict:
  """The settings that a stage's result depends on, by dotted keys.

  Settings that only change how a stage runs (`Key.affects_results`) are left out.
  """
  known = settings.flatten(configs.sections(config.system))
  return {
    path: value
    for path, value in configs.flatten(config).items()
    if (path in sections or path.split('.')[0] in sections) and known[path].affects_results
  }


class Manifest:
  """The manifest of a stage that is running: started, then finished with its results.

  A context manager around the work, in which the time spent is written again and again. Work that
  is killed, or ends by a traceback, has no chance to call `stopped`.
  """

  def __init__(self, folder: Path, stage: str, wanted: dict, inputs: dict):
    before = read(folder) or {}
    self._folder = folder
    self._begin = time.monotonic()
    self._spent = before.get('wall_s', 0.0)
    self.value = {
      'stage': stage,
      'status': 'running',
      'config': wanted,
      'inputs': inputs,
      'versions': versions(),
      'device': device(),
      'started': before.get('started', now()),
      'wall_s': self._spent,
    }
    folder.mkdir(parents=True, exist_ok=True)
    self._write()

  def _write(self) -> None:
    if processes.is_first():
      write_json(self._folder / FILE, self.value)

  def __enter__(self):
    self._over = threading.Event()
    self._timer = threading.Thread(target=self._keep_time, daemon=True)
    if processes.is_first():
      self._timer.start()
    return self

  def __exit__(self, *_):
    self._over.set()
    if self._timer.is_alive():
      self._timer.join()

  def _keep_time(self) -> None:
    while not self._over.wait(TIMED_S):
      # A full disk stops the work too, with a message.
      with contextlib.suppress(OSError):
        self.stopped()

  def stopped(self) -> None:
    """Records the time spent so far."""
    self.value['wall_s'] = self._spent + time.monotonic() - self._begin
    self._write()

  def finished(self, results: dict) -> None:
    """Marks the stage done; its fingerprint is what later stages depend on."""
    data = {k: v['fingerprint'] for k, v in results.items() if isinstance(v, dict) and
            'fingerprint' in v}  # fmt: skip
    self.value |= {
      'status': 'done',
      'finished': now(),
      'results': results,
      'fingerprint': digest([self.value['config'], self.value['inputs'], data]),
    }
    self.stopped()


def changes(manifest: dict, wanted: dict, inputs: dict) -> list[str]:
  """What has changed since the stage was started; unknown inputs (None) are ignored."""
  lines = [f'config.{line}' for line in configs.differing(manifest['config'], wanted)]
  before = manifest['inputs']
  for name in sorted(before.keys() | inputs.keys()):
    if name not in inputs:
      lines.append(f'its input {name} is no longer in the config')
    elif name not in before:
      lines.append(f'its input {name} is new in the config')
    elif inputs[name] is not None and inputs[name] != before[name]:
      lines.append(f'its input {name} has changed')
  return lines


def device() -> str:
  """What this runs on, for tables: '8 x NVIDIA H100', 'AMD EPYC, 2 cores, ...'."""
  if jax.default_backend() == 'cpu':
    return processor.described()
  return f'{jax.device_count()} x {jax.devices()[0].device_kind}'


def versions() -> dict[str, str]:
  """Versions of the packages that a result depends on."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = 'unknown'
  return found


def now() -> str:
  return time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
