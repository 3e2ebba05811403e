"""The file that a flag such as --out names: where it is, what it may not be, how it is replaced."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from disranker_jax.data import lines
from disranker_jax.errors import UserError


def target(out: Path, inputs: Mapping[str, Path] | None = None, flag: str = '--out') -> Path:
  """The file to write: `out`, or where its links lead. Nothing is read or written yet.

  Args:
    inputs: {what it is: file} of the files that are read; none of them may be the output.

  Raises: UserError if it is a folder, a pipe, a device or an input, or cannot be created.
  """
  if out.is_dir():
    raise UserError(f'{flag} {out}: is a folder; name a file in it')
  if lines.is_pipe(out):
    raise UserError(f'{flag} {out}: is a pipe or a device; name a file')
  file = resolved(out, flag)
  if not file.parent.is_dir():
    raise UserError(f'{flag} {out}: its folder does not exist; create it')
  if not os.access(file.parent, os.W_OK | os.X_OK):
    raise UserError(f'{flag} {out}: {file.parent} cannot be written; name a file elsewhere')
  for what, given in (inputs or {}).items():
    if file.exists() and given.exists() and file.samefile(given):
      raise UserError(f'{flag} {out}: is {what}; name another file')
  return file


def resolved(out: Path, flag: str = '--out') -> Path:
  """Where a name and its links lead, which is what is locked and replaced. Raises: UserError."""
  try:
    return out.resolve()
  except (OSError, RuntimeError):  # links in a circle; which of the two depends on the Python
    raise UserError(f'{flag} {out}: its links lead nowhere; give another name') from None


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
  """A file beside the target that replaces it if the body succeeds, and is deleted if it fails.

  A kill leaves the old file or the new one. A link stays, and the file that it names is replaced.
  """
  file = out.resolve()
  partial = file.with_name(f'.{file.name}.new')
  try:
    yield partial
    os.replace(partial, file)
  finally:
    partial.unlink(missing_ok=True)
