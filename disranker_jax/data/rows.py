"""Reads the raw rows of JSON-lines and Parquet files, each with its place (file, row number).

A row is bytes (a JSON line), a dict (a row of Parquet), or a BadRow if it cannot be read. `decode`
turns it into a dict or raises the BadRow. Rows are decoded late, so that skipping rows is cheap.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from disranker_jax.data import lines, parquet_pages
from disranker_jax.data.records import BadRow
from disranker_jax.errors import UserError, reason
from disranker_jax.progress import say

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
TEXTS = (
  pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary,
)  # fmt: skip

Place = tuple[Path, int, Any]  # file, number of the line or row from 1, the row itself


def read(file: Path, columns: tuple[str, ...] | None = None) -> Iterator[tuple[int, Any]]:
  """(number from 1, row) of a file: Parquet if the name ends in .parquet, else JSON lines.

  Only `columns` of Parquet are read. Raises: UserError if the file cannot be read.
  """
  return parquet(file, columns) if file.suffix == '.parquet' else lines.read(file)


def of_files(
  files: list[Path], read: Callable[[Path], Iterator[tuple[int, Any]]], start: int = 0
) -> Iterator[Place]:
  """All rows of the files in order, except the first `start`.

  A file without rows is skipped and reported. Raises: UserError if all files are without rows.
  """
  return itertools.islice(_rows(files, read), start, None)


def _rows(files: list[Path], read: Callable[[Path], Iterator[tuple[int, Any]]]) -> Iterator[Place]:
  skipped = 0
  for file in files:
    try:
      for number, row in read(file):
        yield file, number, row
    except lines.NoRows:
      skipped += 1
      if skipped == len(files):
        raise
      say(f'{file}: has no rows; skipped')


def decode(row: Any) -> Any:
  """The fields of a row. Raises: BadRow."""
  if isinstance(row, BadRow):
    raise row
  return lines.from_json(row) if isinstance(row, bytes) else row


def parquet(file: Path, columns: tuple[str, ...] | None = None) -> Iterator[tuple[int, Any]]:
  """(number from 1, row) of a Parquet file, read in batches.

  Raises: UserError if the file cannot be read, or not in bounded memory.
  """
  count = 0
  if file.is_dir():
    raise UserError(f'{file}: is a folder; name the files in it, such as {file}/*.parquet')
  if lines.is_pipe(file):
    raise UserError(f'{file}: is a pipe, and Parquet is not read in order; write it to a file')
  try:
    if file.is_file() and not file.stat().st_size:
      raise lines.NoRows(f'{file}: is empty and cannot be read as Parquet; write it again')
    with pq.ParquetFile(file) as source:
      if not source.metadata.num_rows:
        raise lines.NoRows(f'{file}: has no rows; write it again or remove it from the address')
      names = source.schema_arrow.names
      chosen = None if columns is None else [name for name in names if name in columns]
      for batch, encoded in _batches(file, source, chosen):
        yield from enumerate(_to_rows(batch, encoded), count + 1)
        count += len(batch)
  except FileNotFoundError:
    raise UserError(f'{file}: does not exist; check the path') from None
  except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
    where = f' after row {count}' if count else ''
    what = f'cannot be read as Parquet{where} ({reason(error, 300)}); write it again'
    raise UserError(f'{file}: {what}') from None


def _batches(
  file: Path, source: pq.ParquetFile, names: list[str] | None
) -> Iterator[tuple[pa.RecordBatch, bool]]:
  """(batch, whether values are in a dictionary); small in Arrow, `_to_rows` keeps them small."""
  has_dictionary = 'dictionary<' in str(source.schema_arrow)  # as its writer had them
  for group, columns in enumerate(parquet_pages.chunks(file)):
    plan = parquet_pages.plan(file, source, group, names, columns)
    # Encoded reading is slower where only a part of the pages uses the dictionary.
    options = {'read_dictionary': _texts(source)} if plan.encoded else {}
    with pq.ParquetFile(file, metadata=source.metadata, **options) as reader:
      for batch in reader.iter_batches(plan.rows, row_groups=[group], columns=names):
        yield batch, plan.encoded or has_dictionary


def _texts(source: pq.ParquetFile) -> list[str]:
  """The paths of all columns of text, also those within lists."""
  leaves = map(source.schema.column, range(len(source.schema)))
  return [leaf.path for leaf in leaves if leaf.physical_type == 'BYTE_ARRAY']


def _size(column: pa.Array) -> int:
  """About the bytes that a column takes as Python objects."""
  kind = column.type
  if pa.types.is_struct(kind):
    return len(column) * lines.VALUE_BYTES + sum(map(_size, column.flatten()))
  if pa.types.is_map(kind) or any(is_list(kind) for is_list in LISTS):
    inner = column.values if pa.types.is_map(kind) else column.flatten()
    return len(column) * lines.VALUE_BYTES + _size(inner)
  if pa.types.is_dictionary(kind) and any(is_text(kind.value_type) for is_text in TEXTS):
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    return len(column) * lines.VALUE_BYTES + (pc.sum(lengths).as_py() or 0)
  return len(column) * lines.VALUE_BYTES + column.nbytes


def _to_rows(batch: pa.RecordBatch, encoded: bool) -> Iterable[Any]:
  """The rows as dicts, converted in parts of at most lines.ROW_BYTES; a larger row is a BadRow."""
  # In Arrow a value takes a byte or more, unless Python has it once: None, True, False.
  most = batch.get_total_buffer_size() * (1 + lines.VALUE_BYTES)
  if not encoded and most <= lines.ROW_BYTES:
    return _decoded(batch)
  if sum(map(_size, batch.columns)) <= lines.ROW_BYTES:
    return _decoded(batch)
  if len(batch) == 1:
    return [lines.too_large()]
  half = len(batch) // 2
  parts = batch.slice(0, half), batch.slice(half)
  return itertools.chain.from_iterable(_to_rows(part, encoded) for part in parts)


def _decoded(batch: pa.RecordBatch) -> list[Any]:
  try:
    columns = map(_plain, batch.columns)
    return pa.RecordBatch.from_arrays(list(columns), batch.schema.names).to_pylist()
  except (UnicodeDecodeError, ValueError, OverflowError):
    return [_to_row(batch.slice(i, 1)) for i in range(len(batch))]


def _to_row(batch: pa.RecordBatch) -> Any:
  """One row, or a BadRow: Parquet files may hold text that is not UTF-8."""
  row = {}
  for name, column in zip(batch.schema.names, batch.columns, strict=True):
    try:
      row[name] = _plain(column)[0].as_py()
    except UnicodeDecodeError:
      return BadRow(name, 'is not UTF-8', 'write the text as UTF-8')
    except (ValueError, OverflowError) as error:  # such as a date that Python cannot represent
      return BadRow(name, f'cannot be read ({error})'[:200], 'write text and plain numbers')
  return row


def _plain(column: pa.Array) -> pa.Array:
  """The column in types that JSON has too, and times in microseconds."""
  kind = _plain_type(column.type)
  if kind == column.type:
    return column
  return pc.cast(column, options=pc.CastOptions(kind, allow_time_truncate=True))


def _plain_type(kind: pa.DataType) -> pa.DataType:
  """Decimals are numbers; Python's own times have no nanoseconds; text leaves its dictionary."""
  if pa.types.is_dictionary(kind):
    return kind.value_type
  if pa.types.is_decimal(kind):
    return pa.float64() if kind.scale > 0 else pa.int64()
  if pa.types.is_timestamp(kind) and kind.unit == 'ns':
    return pa.timestamp('us', kind.tz)
  if kind in (pa.time64('ns'), pa.duration('ns')):
    return pa.time64('us') if kind == pa.time64('ns') else pa.duration('us')
  if pa.types.is_struct(kind):
    return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
  for is_list, list_of in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
    if is_list(kind):
      return list_of(kind.value_field.with_type(_plain_type(kind.value_type)))
  return kind
