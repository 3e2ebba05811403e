"""Sorts more rows than fit into memory: writes sorted runs to disk and merges them when read.

Grouping by query and joining with documents are both "sort by a key, then read in order". The runs
are in msgpack, which holds data only: a run of an unfinished folder may be somebody else's file.
"""

import errno
import heapq
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from disranker_jax import disks
from disranker_jax.data import contents
from disranker_jax.errors import UserError, reason

MEMORY = 32 << 20  # bytes of rows in memory before they are written as a run
FAN_IN = 64  # runs that are merged at once; each has one block of rows in memory
BLOCK = 128 << 10
OVERHEAD = 200  # bytes that Python adds to the bytes of a row: a tuple, a key, a number
LARGEST = 1 << 30  # bytes of a block on disk: BLOCK and one row


class Spool:
  """Takes rows and returns them sorted by key; the sort is stable.

  The keys of a spool are all text, all bytes, all numbers, or all tuples of these. A value is text,
  bytes, a number, None, or a list, tuple or dict of values; lists and named tuples come back as
  tuples, any other value as its repr. Rows are written to disk only if they exceed `memory` bytes
  or `flush` is called. The default folder is a temporary one.
  """

  def __init__(self, folder: Path | None = None, memory: int = MEMORY):
    self._folder, self._memory = folder, memory
    self._temporary = None
    self._rows: list[tuple[Any, int, bytes]] = []
    self._bytes = 0
    self._count = 0
    self._pack = msgpack.Packer(default=repr, unicode_errors='surrogatepass').pack
    self.runs: list[Path] = []

  def add(self, key: Any, value: Any) -> None:
    # Packed here, so that the size in memory is known.
    data = self._pack(value)
    self._rows.append((key, self._count, data))
    self._count += 1
    self._bytes += len(data) + OVERHEAD
    if self._bytes >= self._memory:
      self.flush()

  def flush(self) -> None:
    """Writes the rows in memory as a run."""
    if self._rows:
      self._rows.sort()
      self.runs.append(self._write(f'run-{self._count:012d}', self._rows))
      self._rows, self._bytes = [], 0

  def mark(self) -> dict[str, Any]:
    """The runs on disk, for `rewind` in a later process; call `flush` before."""
    return {'count': self._count, 'runs': [run.name for run in self.runs]}

  def rewind(self, mark: dict[str, Any]) -> None:
    """Goes back to a mark: uses exactly the runs that it names.

    Raises: ValueError if a name is not that of a file in the folder.
    """
    self._count = int(mark['count'])
    if strange := [name for name in mark['runs'] if not contents.is_name(name)]:
      raise ValueError(f'{strange[0]!r} is not a file of {self._folder}')
    self.runs = [self._folder / name for name in mark['runs']]

  def compact(self) -> list[Path]:
    """Merges runs until at most FAN_IN are left; returns the files that are no longer needed."""
    obsolete = []
    while len(self.runs) > FAN_IN:
      # Rows have numbers, so equal keys keep their order in any order of merges.
      merged, self.runs = self.runs[:FAN_IN], self.runs[FAN_IN:]
      self.runs.append(self._write(f'{merged[0].stem}+', _merged(merged)))
      obsolete += merged
    return obsolete

  def __iter__(self) -> Iterator[tuple[Any, Any]]:
    """(key, value) in order; can be read several times."""
    if not self.runs:
      self._rows.sort()
      rows: Iterable = self._rows
    else:
      self.flush()
      for run in self.compact():
        run.unlink()
      rows = _merged(self.runs)
    return ((key, _unpack(data)) for key, _, data in rows)

  def _write(self, name: str, rows: Iterable[tuple[Any, int, bytes]]) -> Path:
    """Raises: UserError for a full disk, where the folder is a temporary one."""
    if self._folder is None:
      self._temporary = tempfile.TemporaryDirectory(prefix='disranker.')
      self._folder = Path(self._temporary.name)
    self._folder.mkdir(parents=True, exist_ok=True)
    path = self._folder / f'{name}.rows'
    try:
      with disks.writing(self._folder):
        _write_run(path, rows, self._pack)
    except OSError as error:
      if self._temporary is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise
      raise UserError(
        f'{self._folder}: no space is left for rows that are sorted there ({error.strerror}); free '
        'some, or set TMPDIR to a folder with more'
      ) from None
    return path


def _write_run(
  path: Path, rows: Iterable[tuple[Any, int, bytes]], pack: Callable[[Any], bytes]
) -> None:
  partial = path.with_suffix('.partial')
  with partial.open('wb') as file:
    block, size = [], 0
    for row in rows:
      block.append(row)
      size += len(row[2]) + OVERHEAD
      if size >= BLOCK:
        file.write(pack(block))
        block, size = [], 0
    file.write(pack(block))
  os.replace(partial, path)  # a file with the final name is complete


def _unpack(data: bytes) -> Any:
  return msgpack.unpackb(data, use_list=False, strict_map_key=False, unicode_errors='surrogatepass')


def _merged(runs: list[Path]) -> Iterator[tuple[Any, int, bytes]]:
  return heapq.merge(*map(_read, runs))


def _read(run: Path) -> Iterator[tuple[Any, int, bytes]]:
  with run.open('rb') as file:
    blocks = msgpack.Unpacker(
      file, use_list=False, unicode_errors='surrogatepass', max_buffer_size=LARGEST
    )
    try:
      for block in blocks:
        yield from block
    except (ValueError, TypeError, msgpack.UnpackException) as error:
      raise UserError(
        f'{run}: is not a run of sorted rows ({reason(error)}); delete the unfinished work, the '
        f'folder {run.parent.parent}, and start again'
      ) from error
