"""Files by content: digests, of large files kept in the cache, and second names of files.

Also JSON files that others wrote, and whether a name that one file gives to another is that of a
file beside it.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from disranker_jax.errors import UserError

SMALL = 1 << 20  # bytes; smaller files are read each time, which costs less than a cache's entry


def cache() -> Path:
  """$DISRANKER_CACHE, else ~/.cache/disranker_jax; it may be impossible to create."""
  folder = os.path.expanduser(os.environ.get('DISRANKER_CACHE') or '~/.cache/disranker_jax')
  # Not a folder named ~ in the current one.
  return Path(os.devnull, 'no-home-directory') if folder.startswith('~') else Path(folder)


def read_json(file: Path, kind: type, fix: str) -> Any:
  """A JSON file that holds a `dict` or a `list`; `fix` is what to do where it is missing.

  Raises: UserError for a missing, broken or another one.
  """
  try:
    value = json.loads(file.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise UserError(f'{file} is missing: {fix}') from None
  except (ValueError, OSError, RecursionError) as error:
    raise UserError(f'{file} cannot be read: {error}') from None
  if not isinstance(value, kind):
    raise UserError(f'{file} is not a {"list" if kind is list else "set of named values"}')
  return value


def is_name(value: Any) -> bool:
  """Whether a value of an index or journal names a file in a folder: text without separators."""
  return isinstance(value, str) and value not in ('', '..') and Path(value).name == value


def digest(file: Path) -> str:
  """The sha256 of a file's content; a large file is read again only if its size or time changed."""
  stat = file.stat()
  if stat.st_size < SMALL:
    return _read(file)
  return _large(file.absolute(), f'{stat.st_size} {stat.st_mtime_ns}')


@functools.cache
def _large(file: Path, version: str) -> str:
  kept = cache() / 'digests' / hashlib.sha256(os.fsencode(file)).hexdigest()[:32]
  with contextlib.suppress(OSError, ValueError):
    before, value = kept.read_text().rsplit(' ', 1)
    if before == version and len(value) == 64:
      return value
  value = _read(file)
  partial = kept.with_name(f'{kept.name}.{os.getpid()}')
  with contextlib.suppress(OSError):  # without a cache, the next command reads the file again
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(f'{version} {value}')
    os.replace(partial, kept)
  return value


def _read(file: Path) -> str:
  with file.open('rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()


def link(source: str | Path, target: str | Path) -> None:
  """One file under two names where the file system can: finished files are never written to."""
  try:
    if os.path.islink(source):  # else a file outside of the folder would get a second name
      raise OSError(errno.ELOOP, 'is a link')
    os.link(source, target)
  except OSError:
    shutil.copy2(source, target)
