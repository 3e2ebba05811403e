"""How much memory the rows of a Parquet file need, from the headers of its pages.

A page of kilobytes may hold gigabytes, and a few bytes may repeat one value of a dictionary in a
million rows. The sizes in the file's footer are what its writer claims; the headers of the pages
are what the decoder uses. Source: parquet.thrift of the format, in Thrift's compact protocol.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
PLAIN = 0


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


def plan(file: Path, source: pq.ParquetFile, group: int, names: list[str] | None) -> Plan:
  """How to read some top-level columns (None: all) of a row group in bounded memory.

  Raises: ValueError if that is not possible, or if the pages are damaged.
  """
  metadata, schema = source.metadata.row_group(group), source.schema
  mean = repeated = 0.0
  largest: dict[str, int] = {}
  with file.open('rb', buffering=0) as opened:
    for leaf in range(len(schema)):
      column, chunk = schema.column(leaf), metadata.column(leaf)
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


def of_chunk(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Pages:
  """Reads the headers of a column's pages in a row group. Raises: ValueError if damaged."""
  found = Pages()
  for at, header in _headers(file, chunk):
    size, stored = header[2], header[3]
    found = found._replace(
      largest=max(found.largest, size), decoded=found.decoded + size, stored=found.stored + stored
    )
    if header[1] == DICTIONARY_PAGE:
      found = found._replace(entry=_largest_entry(file, chunk, at, header))
    elif data := header.get(5) or header.get(8):
      count, encoding = data[1], data[2 if 5 in header else 4]
      found = found._replace(values=found.values + count)
      if encoding == PLAIN:
        found = found._replace(mean=max(found.mean, size / max(count, 1)))
      else:  # or an encoding of numbers, whose values are small
        found = found._replace(repeated=found.repeated + count)
  return found


def _largest_entry(
  file: BinaryIO, chunk: pq.ColumnChunkMetaData, at: int, header: dict[int, Any]
) -> int:
  """The size of the largest value in a dictionary page."""
  size, stored, count = header[2], header[3], header[7][1]
  if size > PAGES_BYTES:
    return size  # `plan` refuses it
  if chunk.physical_type != 'BYTE_ARRAY':
    return size // max(count, 1)
  data = os.pread(file.fileno(), stored, at)
  if (codec := chunk.compression.lower()) != 'uncompressed':
    try:
      data = pa.decompress(data, size, 'lz4_raw' if codec == 'lz4' else codec, asbytes=True)
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


def _headers(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Iterator[tuple[int, dict[int, Any]]]:
  """(position of the content, header) of each page."""
  at = chunk.data_page_offset
  if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
    at = chunk.dictionary_page_offset
  end = at + chunk.total_compressed_size
  while at < end:
    header, length = _header(file, at, end)
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
      return _struct(data, 0)
    except IndexError:
      if size >= MAX_HEADER or len(data) < size:
        raise ValueError(f'the header of the page at byte {at} is cut short') from None
    size *= 8


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
  """(fields by number, position after them). Raises: IndexError at the end of the data."""
  fields: dict[int, Any] = {}
  field = 0
  if depth > 8:
    raise ValueError('the header of a page is nested too deeply')
  while kind := data[at]:
    at += 1
    if kind >> 4:
      field += kind >> 4
    else:
      field, at = _number(data, at)
    fields[field], at = _value(data, at, kind & 15, depth)
  return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
  if kind in (1, 2):  # true, false
    return kind == 1, at
  if kind == 3:  # a byte
    return data[at], at + 1
  if kind in (4, 5, 6):
    return _number(data, at)
  if kind == 7:  # a float
    return None, at + 8
  if kind == 8:  # text
    length, at = _varint(data, at)
    return None, at + length
  if kind == 12:
    return _struct(data, at, depth + 1)
  raise ValueError(f'the header of a page has a field of type {kind}')


def _number(data: bytes, at: int) -> tuple[int, int]:
  value, at = _varint(data, at)
  return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
  value = shift = 0
  while shift < 64:
    byte = data[at]
    at += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, at
    shift += 7
  raise ValueError('the header of a page has a number of more than 64 bits')
