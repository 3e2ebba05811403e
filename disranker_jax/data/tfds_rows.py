"""Reads rows of TFDS datasets: prepared data, or any dataset with the fields of row_formats.py.

TFDS imports the module of every class that the metadata of a dataset names, so the metadata of a
downloaded dataset could run any module of the current folder. They are checked before.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming
from tensorflow_datasets.core.utils import file_utils

from disranker_jax.data import rows, store
from disranker_jax.data.records import Click, Group
from disranker_jax.data.row_files import Rows
from disranker_jax.data.row_formats import Score
from disranker_jax.data.source import POOLED, Want
from disranker_jax.errors import UserError, reason

OPTIONS = ('split',)
METADATA = ('features.json', 'dataset_info.json')
# The names of the fields with a class: of the protobuf in JSON, of the protobuf, of TFDS 4.0.
CLASS_FIELDS = ('pythonClassName', 'python_class_name', 'type')
FEATURES = 'tensorflow_datasets.core.features.'


class Tfds(Rows):
  """A folder of prepared data, or a dataset by its TFDS name."""

  scheme, example = 'tfds', 'tfds:prepared/candidates'

  def places(self, start: int = 0) -> Iterator[rows.Place]:
    name, options = self.options(OPTIONS)
    if not name:
      raise UserError('tfds: has no dataset; write tfds:NAME, or tfds:FOLDER for prepared data')
    return itertools.islice(read(name, options), start, None)

  def read(self, want: Want) -> Iterator[Click | Group | Score]:
    # Candidates have labels only if the program made them, and then they are to be learned.
    are_candidates = want.kind == 'candidates' and store.kind_of(self._place) == want.kind
    return self.read_as(POOLED if are_candidates else want.kind, want)

  def fingerprint(self) -> list:
    if not self._place.is_dir():
      return self.of_files([self._place])
    # The result of `prepare` says how long it took, which differs for equal records.
    hidden = ('.', store.RESULT)
    inside = sorted(self._place.iterdir())
    return self.of_files(file for file in inside if not file.name.startswith(hidden))

  def check(self, kind: str) -> None:
    if not store.kind_of(self._place):
      self.places()  # TFDS tells whether it has a dataset by opening it, which reads no row

  def prepared(self, kind: str) -> Path | None:
    is_whole = '?' not in self.rest and self._place.is_dir()
    return self._place if is_whole and store.kind_of(self._place) == kind else None

  @property
  def _place(self) -> Path:
    return Path(self.rest.partition('?')[0]).expanduser()


def read(name: str, options: dict[str, str]) -> Iterator[tuple[str, int, dict[str, Any]]]:
  """(name, number from 1, row) of a prepared folder, or of a dataset by its TFDS name."""
  place = f'tfds:{name}'
  folder = Path(name).expanduser()
  try:
    with store.quiet():
      for found in [folder] if folder.is_dir() else _installed(name):
        check_classes(found)
      builder = tfds.builder_from_directory(folder) if folder.is_dir() else tfds.builder(name)
      split = options.get('split') or _only(place, list(builder.info.splits))
      source = builder.as_data_source(split)
      size = len(source)
  except UserError:
    raise
  except (Exception, SystemExit) as error:  # TFDS raises many types if something is missing
    raise UserError(
      f'{place}: cannot be opened ({reason(error)}); give a folder of prepared data, or the name '
      'of a dataset in the format array_record'
    ) from error
  return _rows(place, source, size)


def check_classes(folder: Path) -> None:
  """Checks that TFDS needs no code but its own for a folder; call it before TFDS opens it.

  Raises: UserError that names the file and the class.
  """
  for file in (folder / name for name in METADATA):
    try:
      classes = list(_classes(json.loads(file.read_text())))
    except FileNotFoundError:
      continue
    except (ValueError, RecursionError) as error:
      raise UserError(f'{file}: is not JSON ({error}); prepare it again') from None
    if strange := [name for name in classes if not str(name).startswith(FEATURES)]:
      what = f'names the class {strange[0]!r:.200}, and data may not bring code'
      raise UserError(f'{file}: {what}; convert the dataset to JSON lines or Parquet')


def _classes(value: Any) -> Iterator[Any]:
  """The values of all fields with a class, also in JSON within a string."""
  if isinstance(value, list):
    for inner in value:
      yield from _classes(inner)
  elif isinstance(value, dict):
    for name, inner in value.items():
      if name in CLASS_FIELDS and not isinstance(inner, dict):
        yield inner
      elif name == 'json' and isinstance(inner, str):
        inner = json.loads(inner)
      yield from _classes(inner)


def _installed(name: str) -> Iterator[Path]:
  """The folders of a dataset by its TFDS name. Raises: UserError if TFDS would fetch its code."""
  parsed, _ = naming.parse_builder_name_kwargs(name)
  if parsed.namespace:
    what = f'is a dataset of {parsed.namespace}, whose code TFDS would download and run'
    raise UserError(f'tfds:{name}: {what}; prepare it yourself and give its folder')
  for data in file_utils.list_data_dirs():
    for file in (Path(data) / parsed.name).rglob(METADATA[0]):
      yield file.parent


def _rows(place: str, source: Any, size: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
  for i in range(size):
    try:
      row = source[i]
    except Exception as error:
      what = f'row {i + 1} is damaged ({reason(error)}); prepare it again'
      raise UserError(f'{place}: {what}') from error
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
