"""Disks that cannot be written: which error it is, whatever library tells it, and where."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

# Libraries write these reasons as the system words them, in errors of their own types: Orbax in a
# ValueError, ArrayRecord in a RuntimeError, safetensors and tokenizers in others.
WORDED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def error_of(error: BaseException) -> OSError | None:
  """The error of the system that another one is or tells; None if it is about something else."""
  if isinstance(error, OSError):
    return error
  number = next((number for number in WORDED if os.strerror(number) in str(error)), None)
  return number and OSError(number, os.strerror(number))


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
  """Names what is written in the error of a disk that is full or read-only.

  Writing to an open file, or by another library, fails without the name of the file.

  Raises: OSError with `filename`.
  """
  try:
    yield
  except Exception as e:
    found = error_of(e)
    if found is None or found.errno not in WORDED or found.filename:
      raise
    raise OSError(found.errno, os.strerror(found.errno), str(path)) from e
