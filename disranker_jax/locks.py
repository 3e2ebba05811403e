"""Locks, so that two processes never write the same folder or file."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from disranker_jax.errors import UserError


def locked(folder: Path) -> IO[str]:
  """An open file that holds a folder's lock until it is closed or the process ends, in any way.

  Raises: UserError if another process has it.
  """
  return _locked(folder / '.lock', f'{folder}: another process is running in it')


@contextlib.contextmanager
def beside(path: Path) -> Iterator[None]:
  """Holds the lock of a file or folder that is to be written, in a hidden file beside it.

  Raises: UserError if another process has it.
  """
  file = path.with_name(f'.{path.name}.lock')
  with _locked(file, f'{path}: another process is writing it'):
    try:
      yield
    finally:
      file.unlink(missing_ok=True)


def _locked(file: Path, held: str) -> IO[str]:
  """`file`, open and locked; `held` says what it means if it is locked already."""
  # To lock a file it is enough to read it, so only those may who write to the folder.
  mode = 0o660 if file.parent.stat().st_mode & 0o020 else 0o600
  while True:
    opened = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, mode), 'a+')
    with contextlib.suppress(OSError):  # it is somebody else's, or on a file system without modes
      os.fchmod(opened.fileno(), mode)
    try:
      fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      opened.close()
      raise UserError(f'{held}; wait for it, or stop it') from e
    except OSError:  # a file system without locks, as some mounted buckets are
      return opened
    if _is_at(opened, file):
      return opened
    opened.close()  # its holder has removed it since it was opened here, so another one counts


def _is_at(opened: IO[str], file: Path) -> bool:
  try:
    return os.path.samestat(os.fstat(opened.fileno()), file.stat())
  except FileNotFoundError:
    return False
