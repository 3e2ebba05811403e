"""Sorts more rows than memory holds: sorted runs on disk, merged on the way out.

Grouping by query and joining with documents are both "sort by a key, then read in order", so this
is all that sources of any size need.
"""

import heapq
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MEMORY = 32 << 20  # Bytes of rows that are held before they are written as a run.
FAN_IN = 64  # Runs that are merged at once; each has a block of its rows in memory.
BLOCK = 128 << 10
OVERHEAD = 200  # What Python adds to a row of bytes: a tuple, a key, a number.


class Spool:
  """Rows in, the same rows out in the order of their keys; equal keys stay in the order they came.

  Keys of one spool are all text, all numbers or all tuples of such. Nothing is written unless the
  rows exceed `memory` bytes, or `flush` is called. Without a folder runs go to a temporary one.
  """

  def __init__(self, folder: Path | None = None, memory: int = MEMORY):
    self._folder, self._memory = folder, memory
    self._temporary = None
    self._rows: list[tuple[Any, int, bytes]] = []
    self._bytes = 0
    self._count = 0
    self.runs: list[Path] = []

  def add(self, key: Any, value: Any) -> None:
    # As bytes at once: their size is what they cost, whatever the value is.
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    self._rows.append((key, self._count, data))
    self._count += 1
    self._bytes += len(data) + OVERHEAD
    if self._bytes >= self._memory:
      self.flush()

  def flush(self) -> None:
    """Writes what is in memory as a run."""
    if self._rows:
      self._rows.sort()
      self.runs.append(self._write(f'run-{self._count:012d}', self._rows))
      self._rows, self._bytes = [], 0

  def mark(self) -> dict[str, Any]:
    """What is on disk, for `rewind` in a later process; call `flush` before."""
    return {'count': self._count, 'runs': [run.name for run in self.runs]}

  def rewind(self, mark: dict[str, Any]) -> None:
    """Goes back to a mark: the runs in the folder that it names, and nothing else."""
    self._count = mark['count']
    self.runs = [self._folder / name for name in mark['runs']]

  def compact(self) -> list[Path]:
    """Merges runs until they can be read at once; returns the files that are no longer needed."""
    obsolete = []
    while len(self.runs) > FAN_IN:
      # Rows carry their number, so equal keys keep their order whichever runs are merged first.
      merged, self.runs = self.runs[:FAN_IN], self.runs[FAN_IN:]
      self.runs.append(self._write(f'{merged[0].stem}+', _merged(merged)))
      obsolete += merged
    return obsolete

  def __iter__(self) -> Iterator[tuple[Any, Any]]:
    """(key, value) in order; can be read as often as wanted."""
    if not self.runs:
      self._rows.sort()
      rows: Iterable = self._rows
    else:
      self.flush()
      for run in self.compact():
        run.unlink()
      rows = _merged(self.runs)
    return ((key, pickle.loads(data)) for key, _, data in rows)

  def _write(self, name: str, rows: Iterable[tuple[Any, int, bytes]]) -> Path:
    if self._folder is None:
      self._temporary = tempfile.TemporaryDirectory(prefix='disranker.')
      self._folder = Path(self._temporary.name)
    self._folder.mkdir(parents=True, exist_ok=True)
    path = self._folder / f'{name}.rows'
    partial = path.with_suffix('.partial')
    with partial.open('wb') as file:
      block, size = [], 0
      for row in rows:
        block.append(row)
        size += len(row[2]) + OVERHEAD
        if size >= BLOCK:
          pickle.dump(block, file, pickle.HIGHEST_PROTOCOL)
          block, size = [], 0
      pickle.dump(block, file, pickle.HIGHEST_PROTOCOL)
    os.replace(partial, path)  # under its name only once it is whole
    return path


def _merged(runs: list[Path]) -> Iterator[tuple[Any, int, bytes]]:
  return heapq.merge(*map(_read, runs))


def _read(run: Path) -> Iterator[tuple[Any, int, bytes]]:
  with run.open('rb') as file:
    while True:
      try:
        block = pickle.load(file)
      except EOFError:
        return
      yield from block
