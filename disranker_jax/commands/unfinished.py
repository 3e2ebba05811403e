"""The unfinished work of a command: a hidden folder beside its output, until all is done.

The note says what the work was made from and how much of it is good. It goes first when the folder
is removed, so that a kill leaves no note of work that is gone.
"""

import contextlib
import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from disranker_jax.errors import Stopped
from disranker_jax.pipeline import manifest
from disranker_jax.progress import amount, say

NOTE = 'note.json'


def folder_of(out: Path) -> Path:
  """The folder of the work on a file."""
  return out.with_name(f'.{out.name}.partial')


def note(folder: Path) -> dict:
  """What was noted of the work; {} if there is nothing that can be read."""
  try:
    found = json.loads((folder / NOTE).read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def write_note(folder: Path, **values) -> None:
  manifest.write_json(folder / NOTE, values)


def remove(folder: Path) -> None:
  """Removes the work, also what a kill left of an earlier removal."""
  (folder / NOTE).unlink(missing_ok=True)
  shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ending():
  """Ends a command that was stopped with a line and the status of a shell."""
  try:
    yield
  except (Stopped, KeyboardInterrupt) as e:
    print('stopped; the same command continues from there', file=sys.stderr)
    sys.exit(0 if isinstance(e, Stopped) and not e.interrupted else 130)


class Lines:
  """The lines of finished queries, on disk beside the output until all are done.

  queries  how many are finished

  Args:
    label: the command, for messages.
    out: the file that they become, see outputs.resolved.
    digest: identifies the work: other work that was begun is deleted.
    is_packed: whether the output is gzip.
  """

  def __init__(self, label: str, out: Path, digest: str, is_packed: bool):
    self.folder = folder_of(out)
    self._label, self._out, self._digest, self._is_packed = label, out, digest, is_packed
    self._lines = self.folder / 'lines'
    self.queries, size = self._before()
    self.folder.mkdir(exist_ok=True)
    with self._lines.open('ab') as file:
      file.truncate(size)
    if not self.queries:  # a kill before the first part leaves work that is not broken
      self._note(size)

  def _before(self) -> tuple[int, int]:
    """(queries, bytes) that an earlier call finished."""
    there = self._lines.stat().st_size if self._lines.is_file() else 0
    match note(self.folder):
      case {'digest': self._digest, 'queries': int(queries), 'bytes': int(size)} if size <= there:
        if queries:
          say(f'{self._label}: continues after {amount(queries, "query", "queries")}')
        return queries, size
    if self.folder.exists():
      say(
        f'{self._label}: an input or a setting has changed since {self.folder} was begun, or a '
        'file in it is broken; starts again'
      )
      remove(self.folder)
    return 0, 0

  def add(self, queries: Sequence[bytes]) -> None:
    """Takes the lines of each of some queries."""
    with self._lines.open('ab') as file:
      for lines in queries:
        file.write(lines)
      file.flush()
      os.fsync(file.fileno())
      size = file.tell()
    self.queries += len(queries)
    self._note(size)

  def _note(self, size: int) -> None:
    write_note(self.folder, digest=self._digest, queries=self.queries, bytes=size)

  @contextlib.contextmanager
  def kept(self) -> Iterator[None]:
    """Says what is kept where the body is stopped; however it ends, `leave` follows."""
    try:
      yield
    except (Stopped, KeyboardInterrupt):
      if self.queries:
        say(
          f'{self._label}: {amount(self.queries, "query is", "queries are")} kept in {self.folder}'
        )
      raise
    finally:
      self.leave()

  def leave(self) -> None:
    """Removes what a later call does not need."""
    if not self.queries:
      remove(self.folder)

  def finish(self) -> None:
    """Puts all lines in their place. Equal ones give equal files, also packed."""
    if self._is_packed:
      packed = self.folder / 'lines.gz'
      with (
        self._lines.open('rb') as lines,
        packed.open('wb') as file,
        gzip.GzipFile('', 'wb', fileobj=file, mtime=0) as out,
      ):
        shutil.copyfileobj(lines, out)
      os.replace(packed, self._out)
    else:
      os.replace(self._lines, self._out)
    remove(self.folder)
