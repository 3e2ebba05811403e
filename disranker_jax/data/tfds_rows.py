"""Reads rows of TFDS datasets: prepared data, or any dataset with the fields of row_formats.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from disranker_jax.data import store
from disranker_jax.errors import UserError

OPTIONS = ('split',)


def read(name: str, options: dict[str, str]) -> Iterator[tuple[str, int, dict[str, Any]]]:
  """(name, number from 1, row) of a prepared folder, or of a dataset by its TFDS name."""
  place = f'tfds:{name}'
  try:
    with store.quiet():
      folder = Path(name).expanduser()
      builder = tfds.builder_from_directory(folder) if folder.is_dir() else tfds.builder(name)
      split = options.get('split') or _only(place, list(builder.info.splits))
      source = builder.as_data_source(split)
      size = len(source)
  except UserError:
    raise
  except (Exception, SystemExit) as error:  # TFDS raises many types if something is missing
    what = ' '.join(str(error).split())[:200] or type(error).__name__
    raise UserError(
      f'{place}: cannot be opened ({what}); give a folder of prepared data, or the name of a '
      'dataset in the format array_record'
    ) from error
  return _rows(place, source, size)


def _rows(place: str, source: Any, size: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
  for i in range(size):
    try:
      row = source[i]
    except Exception as error:
      what = ' '.join(str(error).split())[:200]
      raise UserError(f'{place}: row {i + 1} is damaged ({what}); prepare it again') from error
    yield place, i + 1, {key: _plain(value) for key, value in row.items()}


def _only(place: str, splits: list[str]) -> str:
  if len(splits) != 1:
    raise UserError(f'{place}: has the splits {", ".join(splits)}; choose with ?split=NAME')
  return splits[0]


def _plain(value: Any) -> Any:
  """Converts bytes to text and numpy values to Python values, as in JSON."""
  if isinstance(value, bytes):
    return value.decode('utf-8', 'surrogateescape')  # the check of the row reports it
  if isinstance(value, dict):
    return {key: _plain(inner) for key, inner in value.items()}
  if isinstance(value, np.generic):
    return _plain(value.item())
  if isinstance(value, list | np.ndarray):
    return [_plain(inner) for inner in value]
  return value
