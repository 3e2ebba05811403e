"""Rows of files as they stand there, with their places: JSON lines and Parquet, one by one.

A row is bytes (a JSON line), a dict (a row of Parquet), or a BadRow where not even that could be
read. `decode` makes a dict of it, or raises the BadRow; until then a row costs next to nothing,
which is what makes skipping rows cheap.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from disranker_jax.data import lines
from disranker_jax.data.records import BadRow
from disranker_jax.errors import UserError

BATCH_ROWS = 1024  # Rows of Parquet that are read at once.

Place = tuple[Path, int, Any]  # File, line or row from 1, the row itself.


def read(file: Path, columns: tuple[str, ...] | None = None) -> Iterator[tuple[int, Any]]:
  """(number from 1, row) of a file, Parquet if its name says so, else JSON lines.

  `columns` are the only ones read of Parquet. Raises: UserError if the file cannot be read.
  """
  return parquet(file, columns) if file.suffix == '.parquet' else lines.read(file)


def of_files(
  files: list[Path], read: Callable[[Path], Iterator[tuple[int, Any]]], start: int = 0
) -> Iterator[Place]:
  """All rows of files in order, without the first `start` of them."""
  rows = ((file, number, row) for file in files for number, row in read(file))
  return itertools.islice(rows, start, None)


def decode(row: Any) -> Any:
  """A row's fields. Raises: BadRow."""
  if isinstance(row, BadRow):
    raise row
  return lines.from_json(row) if isinstance(row, bytes) else row


def parquet(file: Path, columns: tuple[str, ...] | None = None) -> Iterator[tuple[int, Any]]:
  """(number from 1, row) of a Parquet file, in batches: it is never whole in memory."""
  count = 0
  if file.is_dir():
    what = f'is a folder; name the files in it, such as {file}/*.parquet'
    raise UserError(f'{file}: {what}')
  try:
    with pq.ParquetFile(file) as source:
      if not source.metadata.num_rows:
        raise UserError(f'{file}: has no rows; write it again or take it out of the address')
      names = source.schema_arrow.names
      chosen = None if columns is None else [name for name in names if name in columns]
      for batch in source.iter_batches(BATCH_ROWS, columns=chosen):
        yield from enumerate(_to_rows(batch), count + 1)
        count += len(batch)
  except FileNotFoundError:
    raise UserError(f'{file}: does not exist; check the path') from None
  except (pa.ArrowException, OSError, ValueError) as error:
    what = ' '.join(str(error).split())[:200]
    where = f' after row {count}' if count else ''
    raise UserError(f'{file}: cannot be read as Parquet{where} ({what}); write it again') from None


def _to_rows(batch: pa.RecordBatch) -> list[Any]:
  try:
    return batch.to_pylist()
  except (UnicodeDecodeError, ValueError, OverflowError):
    return [_to_row(batch.slice(i, 1)) for i in range(len(batch))]


def _to_row(batch: pa.RecordBatch) -> Any:
  """One row, or what is wrong with it: Parquet files may hold text that is not UTF-8."""
  row = {}
  for name, column in zip(batch.schema.names, batch.columns, strict=True):
    try:
      row[name] = column[0].as_py()
    except UnicodeDecodeError:
      return BadRow(name, 'is not UTF-8', 'write the text as UTF-8')
    except (ValueError, OverflowError) as error:  # A date beyond Python's, for instance.
      return BadRow(name, f'cannot be read ({error})'[:200], 'write text and plain numbers')
  return row
