"""How much memory the rows of a Parquet file need, from the headers of its pages.

A page of kilobytes may hold gigabytes, and a few bytes may repeat one value of a dictionary in a
million rows. The sizes in the file's footer are what its writer claims; the headers of the pages
are what the decoder uses. PyArrow's own object of a column is not used: where the footer is damaged
it ends the process. Source: parquet.thrift of the format, in Thrift's compact protocol.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from disranker_jax.data import thrift

BATCH_ROWS = 1024
BATCH_BYTES = 64 << 20  # decoded bytes of a batch
# One decoded page of each column that is read: they are in memory together. A page of a writer that
# counts rows only, 1024 documents of 250 KB, fits.
PAGES_BYTES = 256 << 20
# Of a column with lists in a row group, because one row may have all of them: the number of values,
# and how far more than PAGES_BYTES may be compressed.
LIST_VALUES = 16 << 20
LIST_RATIO = 100
HEADER = 8 << 10  # bytes that hold most headers
MAX_HEADER = 16 << 20  # headers contain the smallest and the largest value
STREAK = 16
DICTIONARY_PAGE = 2
# Headers of data pages of version 1 and 2: the field in a page's header -> their field `encoding`.
DATA_PAGES = {5: 2, 8: 4}
PLAIN = 0


# By their numbers in the format; LZ4 of Hadoop is read as raw, which fails if it is not.
CODECS = (None, 'snappy', 'gzip', 'lzo', 'brotli', 'lz4_raw', 'zstd', 'lz4_raw')
TEXT = 6  # the physical type BYTE_ARRAY


class Chunk(NamedTuple):
  """A column in a row group: its physical type, codec, and the bytes of its pages in the file."""

  type: int
  codec: str | None
  start: int
  end: int


class Plan(NamedTuple):
  """How a row group is read: rows per batch, and whether values stay in their dictionary."""

  rows: int
  encoded: bool


class Pages(NamedTuple):
  """What the pages of a column in a row group say.

  largest   decoded bytes of the largest page
  entry     bytes of the largest value in the dictionary
  repeated  number of values that are encoded by the dictionary
  values    number of all values
  mean      mean bytes of a value in the plain page where it is largest
  decoded   bytes of all pages, and `stored` the same in the file
  """

  largest: int = 0
  entry: int = 0
  repeated: int = 0
  values: int = 0
  mean: float = 0.0
  decoded: int = 0
  stored: int = 0


def chunks(file: Path) -> list[list[Chunk]]:
  """The columns of each row group, from the file's footer. Raises: ValueError if damaged."""
  with file.open('rb') as opened:
    opened.seek(-8, os.SEEK_END)
    (length,) = struct.unpack('<I4x', opened.read())
    opened.seek(-8 - length, os.SEEK_END)
    data = opened.read(length)
  try:
    footer, _ = thrift.struct(data, 0)
    return [[_chunk(column) for column in group[1]] for group in footer[4]]
  except (IndexError, KeyError, TypeError):
    raise ValueError("the file's footer is damaged") from None


def _chunk(column: dict[int, Any]) -> Chunk:
  about = column[3]  # ColumnMetaData
  kind, codec, size, start = about[1], about[4], about[7], about[9]
  if 0 < about.get(11, 0) < start:  # the dictionary's page
    start = about[11]
  if codec not in range(len(CODECS)):
    raise ValueError(f'a column has the unknown codec {codec}')
  return Chunk(kind, CODECS[codec], start, start + size)


def plan(
  file: Path,
  source: pq.ParquetFile,
  group: int,
  names: list[str] | None,
  columns: list[Chunk],
) -> Plan:
  """How to read some top-level columns (None: all) of a row group in bounded memory.

  `columns` are the `chunks` of the row group.

  Raises: ValueError if that is not possible, or if the pages are damaged.
  """
  metadata, schema = source.metadata.row_group(group), source.schema
  mean = repeated = 0.0
  largest: dict[str, int] = {}
  with file.open('rb', buffering=0) as opened:
    for leaf, chunk in zip(range(len(schema)), columns, strict=True):
      column = schema.column(leaf)
      if names is not None and column.path.split('.')[0] not in names:
        continue
      pages = of_chunk(opened, chunk)
      largest[column.path] = pages.largest
      if column.max_repetition_level:
        _check_list(group, column.path, pages)
        mean += pages.mean * pages.values / max(metadata.num_rows, 1)
        repeated += pages.entry * pages.repeated
      else:
        mean += pages.mean
        repeated += pages.entry * min(pages.repeated, BATCH_ROWS)
  if sum(largest.values()) > PAGES_BYTES:
    path = max(largest, key=lambda path: largest[path])
    raise ValueError(
      f'row group {group + 1} has pages of more than {PAGES_BYTES >> 20} MiB together, such as '
      f'{largest[path] / 2**20:,.0f} MiB in the column {path}; write smaller pages'
    )
  rows = int(min(max(BATCH_BYTES / max(mean, 1), 1), BATCH_ROWS))
  return Plan(rows, repeated > BATCH_BYTES)


def _check_list(group: int, path: str, pages: Pages) -> None:
  if pages.values > LIST_VALUES:
    what, most = f'{pages.values:,} values', f'{LIST_VALUES:,}'
  elif pages.decoded > max(PAGES_BYTES, LIST_RATIO * pages.stored):
    what, most = f'{pages.decoded >> 20:,} MiB', f'{LIST_RATIO} times their compressed size'
  else:
    return
  raise ValueError(
    f'row group {group + 1} has {what} in lists of the column {path}, more than {most}; write '
    'smaller row groups'
  )


def of_chunk(file: BinaryIO, chunk: Chunk) -> Pages:
  """Reads the headers of a column's pages in a row group. Raises: ValueError if damaged."""
  found = Pages()
  for at, header in _headers(file, chunk):
    size, stored = header[2], header[3]
    found = found._replace(
      largest=max(found.largest, size), decoded=found.decoded + size, stored=found.stored + stored
    )
    if header[1] == DICTIONARY_PAGE:
      found = found._replace(entry=_largest_entry(file, chunk, at, header))
    elif part := next((part for part in DATA_PAGES if part in header), None):
      count, encoding = _field(at, header, part, 1), _field(at, header, part, DATA_PAGES[part])
      found = found._replace(values=found.values + count)
      if encoding == PLAIN:
        found = found._replace(mean=max(found.mean, size / max(count, 1)))
      else:  # or an encoding of numbers, whose values are small
        found = found._replace(repeated=found.repeated + count)
  return found


def _field(at: int, header: dict[int, Any], part: int, field: int) -> int:
  """A number in a part of a header. Raises: ValueError if it is not there."""
  fields = header[part] if isinstance(header.get(part), dict) else {}
  if not isinstance(fields.get(field), int):
    raise ValueError(f'the header of the page before byte {at} is damaged')
  return fields[field]


def _largest_entry(file: BinaryIO, chunk: Chunk, at: int, header: dict[int, Any]) -> int:
  """The size of the largest value in a dictionary page."""
  size, stored, count = header[2], header[3], _field(at, header, 7, 1)
  if size > PAGES_BYTES:
    return size  # `plan` refuses it
  if chunk.type != TEXT:
    return size // max(count, 1)
  data = os.pread(file.fileno(), stored, at)
  if chunk.codec is not None:
    try:
      data = pa.decompress(data, size, chunk.codec, asbytes=True)
    except (pa.ArrowException, OSError, ValueError):
      return size  # a codec that only the decoder has, or damage that it will report
  return min(_longest(data), size)


def _longest(data: bytes) -> int:
  """The longest of the texts in a dictionary, each after its length in 4 bytes."""
  longest = place = before = streak = 0
  end, length_at = len(data) - 3, struct.Struct('<I').unpack_from
  while place < end:
    (length,) = length_at(data, place)
    place += 4 + length
    if length > longest:
      longest = length
    streak = streak + 1 if length == before else 0
    before = length
    if streak == STREAK:  # such as ids: numpy finds the next text of another length
      texts = max(len(data) - place, 0) // (4 + length)
      differ = np.ndarray(texts, '<u4', data, place, (4 + length,)) != length
      place += (4 + length) * (int(differ.argmax()) if differ.any() else texts)
      streak = 0
  return longest


def _headers(file: BinaryIO, chunk: Chunk) -> Iterator[tuple[int, dict[int, Any]]]:
  """(position of the content, header) of each page."""
  at = chunk.start
  while at < chunk.end:
    header, length = _header(file, at, chunk.end)
    sizes = [header.get(field) for field in (1, 2, 3)]
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
      raise ValueError(f'the page at byte {at} has no sizes')
    yield at + length, header
    at += length + header[3]


def _header(file: BinaryIO, at: int, end: int) -> tuple[dict[int, Any], int]:
  """(fields of a page's header, its length)."""
  size = HEADER
  while True:
    data = os.pread(file.fileno(), min(size, end - at), at)
    try:
      return thrift.struct(data, 0)
    except IndexError:
      if size >= MAX_HEADER or len(data) < size:
        raise ValueError(f'the header of the page at byte {at} is cut short') from None
    size *= 8
