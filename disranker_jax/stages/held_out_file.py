"""Which records a stage holds out, on disk for its later starts: to read all records takes minutes.

The file is good for one beginning of a stage: `--rerun` begins the stage again, maybe with other
records, and looks at them again.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from disranker_jax.pipeline import manifest
from disranker_jax.rankers.shards import put

FILE = 'held_out.npz'
RECORD, OTHERS = 8, 10_000  # bytes of a record at most, and of all else in the file
Arrays = dict[str, np.ndarray]


def kept(run, stage: str, count: int, look: Callable[[], Arrays]) -> Arrays:
  """The arrays that `look` returns, by the process that writes: from an earlier start if it can.

  Args:
    count: of the records.
  """
  key = key_of(run, stage, count)
  if not key:
    return look()
  file = run.folder(stage) / FILE
  found = read(file, key, count)
  if found is None:
    found = look()
    write(file, key, found)
  return found


def key_of(run, stage: str, count: int) -> str:
  """What the arrays depend on; '' for a stage that no run has started, as in benchmarks."""
  started = manifest.read(run.folder(stage))
  if not started:
    return ''
  by, labels = run.config.data.holdout_by, None
  if by:  # the places of clicks follow from the labelled queries, see held_out.placer
    prepared = (manifest.read(run.folder('prepare')) or {}).get('results', {})
    labels = prepared.get('judgements', {}).get('fingerprint')
  origin = [started[name] for name in ('started', 'config', 'inputs')]
  return manifest.digest([origin, run.config.validation.to_dict(), by, labels, count])


def read(file: Path, key: str, count: int) -> Arrays | None:
  """The arrays of a file that is whole and has this key; None for any other, or without one.

  Args:
    count: of the records, which bounds what is read: the file may be somebody else's.
  """
  try:
    with np.load(file) as arrays:
      if sum(part.file_size for part in arrays.zip.infolist()) > RECORD * count + OTHERS:
        return None
      found = dict(arrays)
  except Exception:  # numpy raises many types for damaged files
    return None
  return found if str(found.pop('key', '')) == key else None


def write(file: Path, key: str, found: Arrays) -> None:
  """Writes the arrays with their key, atomically."""
  content = io.BytesIO()
  np.savez(content, key=np.array(key), **found)
  put(file, content.getvalue())
