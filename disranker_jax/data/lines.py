"""Reads the lines of text files, plain or gzip, and decodes lines of text and JSON.

A small gzip file may hold gigabytes, so everything that is in memory at once has a limit.
"""

import functools
import glob
import gzip
import io
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from disranker_jax.data.records import BadRow
from disranker_jax.errors import UserError

GZIP_MAGIC = b'\x1f\x8b'
BOM = b'\xef\xbb\xbf'
LINE_BYTES = 16 << 20  # the longest line
BLANK_LINES = 1 << 20  # the most blank lines between two others
# The largest row as Python objects, about: its bytes, and VALUE_BYTES for each number, text, list.
ROW_BYTES = 64 << 20
VALUE_BYTES = 50
SHORT_LINE = ROW_BYTES // VALUE_BYTES  # bytes; such a line cannot have too many values


class NoRows(UserError):
  """A file without rows; `rows.of_files` skips it if it is one of several."""


def read(path: str | pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """The lines of a file that are not blank, as (number from 1, bytes without the line end).

  Gzip is detected by its first bytes or by the suffix `.gz`. The file is read once and in order, so
  it may be a pipe. Raises: UserError if the file is missing, a folder, unreadable, cut short, a
  pipe that was read before, has too long a line, or has no lines (NoRows).
  """
  path = pathlib.Path(path)
  number = last = 0  # of the line; of the last one that is not blank
  try:
    with path.open('rb') as file:
      head = file.peek(2)[:2]
      if not head and is_pipe(path):
        what = 'is a pipe without data, or it was read before'
        raise UserError(f'{path}: {what}; write the data to a file and name the file')
      if not head:
        raise NoRows(f'{path}: is empty; write it again or remove it from the address')
      zipped = head == GZIP_MAGIC or path.suffix == '.gz'
      if zipped:
        file = io.BufferedReader(gzip.GzipFile(fileobj=file))
      for number, line in enumerate(iter(functools.partial(file.readline, LINE_BYTES + 1), b''), 1):
        if len(line) > LINE_BYTES:
          what = f'is longer than {LINE_BYTES >> 20} MiB; write one row per line'
          raise UserError(f'{path}:{number}: {what}')
        if number == 1:
          line = line.removeprefix(BOM)
        line = line.rstrip(b'\r\n')
        if line.strip():
          last = number
          yield number, line
        elif number - last > BLANK_LINES:
          raise UserError(f'{path}:{number}: has {BLANK_LINES:,} blank lines before; remove them')
  except EOFError:
    raise UserError(
      f'{path}: the gzip file is cut short after line {number}; copy it again'
    ) from None
  except (gzip.BadGzipFile, zlib.error) as error:
    what = f'is damaged after line {number}' if number else 'is not gzip'
    raise UserError(f'{path}: {what} ({error}); copy it again or rename it') from None
  except FileNotFoundError:
    raise UserError(f'{path}: does not exist; check the path in the address') from None
  except IsADirectoryError:
    raise UserError(f'{path}: is a folder; name the files in it, such as {path}/*.jsonl') from None
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror or error}); check the file') from None
  if not last:
    raise NoRows(f'{path}: has no rows; write it again or remove it from the address')


def is_pipe(path: pathlib.Path) -> bool:
  """Whether the path is a pipe, a terminal or a device: its data can be read once, in order."""
  return path.exists() and not path.is_file() and not path.is_dir()


def matching(pattern: str) -> list[pathlib.Path]:
  """The files that match a path or glob pattern, sorted by name; at least one."""
  files = found(pattern)
  if not files:
    raise UserError(f'{pattern}: matches no file; check the pattern')
  return files


def found(pattern: str) -> list[pathlib.Path]:
  """`matching`, or [] if there is none. A path without a pattern is itself; it may be missing."""
  path = pathlib.Path(pattern).expanduser()
  if path.exists() or not glob.has_magic(pattern):
    return [path]  # `read` reports a missing file
  return list(map(pathlib.Path, sorted(glob.glob(str(path), recursive=True))))


def variants(path: pathlib.Path) -> list[pathlib.Path]:
  """The files that exist of a path as given, without .gz and with .gz."""
  plain = path.with_suffix('') if path.suffix == '.gz' else path
  others = (plain, plain.with_name(plain.name + '.gz'))
  return [each for each in (path, *others) if each.exists()]


def named(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  """The existing files of a name (as given, without .gz, with .gz), in `folder`, else here."""
  path = pathlib.Path(name).expanduser()
  return variants(folder / path) or variants(path)


def check(files: Sequence[pathlib.Path], reader: Callable = read) -> None:
  """Raises: UserError, as `reader` says it, if a file is missing or all of them are empty."""
  no_files = [file for file in files if not file.is_file() and not is_pipe(file)]
  empty = [file for file in files if file.is_file() and not file.stat().st_size]
  for file in no_files or (empty if len(empty) == len(files) else ()):
    next(iter(reader(file)))


def text(line: bytes) -> str:
  """Decodes a line. Raises: BadRow if it is not UTF-8."""
  try:
    return line.decode()
  except UnicodeDecodeError as error:
    what = f'is not UTF-8 (byte {line[error.start]:#04x} at {error.start + 1})'
    raise BadRow('row', what, 'save the file as UTF-8') from None


def from_json(line: bytes) -> Any:
  """Decodes a JSON line. Raises: BadRow if it is invalid, has a field twice or too many values."""
  if len(line) > SHORT_LINE:
    # Commas and colons, also those in texts: a dict or list of one value takes more than a text.
    values = line.count(b',') + line.count(b':')
    if len(line) + VALUE_BYTES * values > ROW_BYTES:
      raise too_large()
  try:
    return DECODER.decode(text(line))
  except json.JSONDecodeError as error:
    what = f'is invalid JSON ({error.msg} at column {error.colno})'
    raise BadRow('row', what, 'write one JSON object per line') from None
  except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
    what = 'is JSON with too long numbers or too deep nesting'
    raise BadRow('row', what, 'write one JSON object per line') from None


def too_large() -> BadRow:
  """What is wrong with a row of more than ROW_BYTES."""
  what = f'takes more than {ROW_BYTES >> 20} MiB of memory'
  return BadRow('row', what, 'split it, or shorten its texts and lists')


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    seen: set[str] = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))
    raise BadRow(ascii(twice)[1:-1][:200], 'appears twice in one row', 'keep one of them')
  return fields


DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)  # one for all lines: it is costly
