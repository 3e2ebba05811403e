"""Prepared data: records as a TFDS dataset in ArrayRecord files, without TensorFlow.

Random access to any record is what shuffling, sharding over hosts and exact resume need, and JSONL
does not have it. `tfds.data_source` and `tfds.builder_from_directory` read the same folders.
"""

import contextlib
import dataclasses
import hashlib
import logging
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from disranker_jax.data.records import Click, Document, Group
from disranker_jax.errors import UserError

KINDS = ('clicks', 'judgements', 'candidates', 'test')
SPLIT = 'rows'

Record = Click | Group


def write(kind: str, records: Iterable[Record], folder: str | pathlib.Path) -> int:
  """Prepares `folder` from records in their order, all or nothing; returns how many there were.

  A prepared folder that is there already is replaced. Raises: UserError if there are no records,
  or if the folder holds something else.
  """
  folder = pathlib.Path(folder)
  _check_kind(kind)
  if (
    folder.exists() and not _is_prepared(folder) and (not folder.is_dir() or any(folder.iterdir()))
  ):
    raise UserError(f'{folder}: holds something that is not prepared data; give another folder')
  records = iter(records)
  first = next(records, None)
  if first is None:
    raise UserError(f'{folder}: there are no {kind} to prepare; check the address of the {kind}')
  folder.parent.mkdir(parents=True, exist_ok=True)
  # Beside its final place, so that the rename at the end stays inside one file system.
  with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as temp:
    builder = Prepared(kind=kind, records=_chain(first, records), data_dir=f'{temp}/new')
    with _quiet():
      builder.download_and_prepare()
    if folder.exists():
      folder.rename(f'{temp}/old')
    pathlib.Path(builder.data_dir).rename(folder)
  return builder.written


def open(kind: str, folder: str | pathlib.Path) -> 'Source':
  """Opens a prepared folder for random access.

  Raises: UserError if it was not prepared, is damaged, or holds another kind of records.
  """
  _check_kind(kind)
  folder = pathlib.Path(folder)
  if not _is_prepared(folder):
    raise UserError(f'{folder}: is no prepared data; prepare it with builders.write first')
  source = Source(kind, str(folder))
  if source.prepared_kind != kind:
    raise UserError(f'{folder}: holds {source.prepared_kind}, not {kind}; open it as what it is')
  return source


def fingerprint(folder: str | pathlib.Path) -> str:
  """The sha256 of the prepared files' names and content: the same records give the same one."""
  folder = pathlib.Path(folder)
  if not _is_prepared(folder):
    raise UserError(f'{folder}: is no prepared data; prepare it with builders.write first')
  digest = hashlib.sha256()
  for path in sorted(folder.iterdir()):
    if '.array_record' in path.name or path.name == 'features.json':
      with path.open('rb') as file:
        digest.update(f'{path.name}\0{hashlib.file_digest(file, "sha256").hexdigest()}\n'.encode())
  return digest.hexdigest()


class Source:
  """Prepared records by index, for `grain.MapDataset.source`; workers get it pickled."""

  def __init__(self, kind: str, folder: str):
    self.kind, self.folder = kind, folder
    self._open()

  def _open(self) -> None:
    try:
      with _quiet():
        builder = tfds.builder_from_directory(self.folder)
        self.prepared_kind = builder.info.name
        self._rows = builder.as_data_source(SPLIT)
        len(self._rows)
      missing = [path for path in builder.info.splits[SPLIT].filepaths if not path.exists()]
    except Exception as error:  # Whatever TFDS and its parsers raise for files that are not theirs.
      reason = str(error).partition('\n')[0]
      raise UserError(f'{self.folder}: is damaged ({reason}); prepare it again') from error
    if missing:
      raise UserError(f'{self.folder}: is damaged ({missing[0].name} is gone); prepare it again')

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    if not -len(self) <= index < len(self):
      raise IndexError(f'{self.folder}: no record {index} of {len(self)}')
    row = self._rows[int(index) % len(self)]
    return _to_click(row) if self.kind == 'clicks' else _to_group(row)

  def __iter__(self) -> Iterator[Record]:
    return (self[i] for i in range(len(self)))

  def __repr__(self) -> str:
    return f'Source({self.kind!r}, {self.folder!r})'

  def __getstate__(self) -> tuple[str, str]:
    return self.kind, self.folder

  def __setstate__(self, state: tuple[str, str]) -> None:
    self.kind, self.folder = state
    self._open()


class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The TFDS builder behind `write`; the dataset's name is the kind of its records."""

  VERSION = tfds.core.Version('1.0.0')
  # Nothing is downloaded; looking that up would import importlib_resources, which TFDS needs here
  # without declaring it.
  url_infos = None

  def __init__(self, *, kind: str, records: Iterable[Record], data_dir: str):
    # An instance attribute: TFDS takes the name from it, and would else take the class's.
    self.name = kind
    self.written = 0
    self._records = records
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, features=features(self.name), disable_shuffling=True)

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    return {SPLIT: self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    for record in self._records:
      yield self.written, _to_row(record)
      self.written += 1


def features(kind: str) -> tfds.features.FeaturesDict:
  """The typed fields of a kind of records."""
  text = tfds.features.Text
  if kind == 'clicks':
    return tfds.features.FeaturesDict(
      {'query': text(), 'title': text(), 'summary': text(), 'count': np.int32}
    )
  doc = {'doc_id': text(), 'title': text(), 'summary': text(), 'label': np.int32, 'rank': np.int32}
  # As text: examples store floats in 32 bits, and a score should come back as it was.
  doc |= {'score': text(), 'in_pool': np.bool_}
  return tfds.features.FeaturesDict(
    {'query_id': text(), 'query': text(), 'docs': tfds.features.Sequence(doc)}
  )


def _to_row(record: Record) -> dict[str, Any]:
  if isinstance(record, Click):
    return dataclasses.asdict(record)
  docs = [dataclasses.asdict(doc) | {'score': repr(float(doc.score))} for doc in record.docs]
  return {'query_id': record.query_id, 'query': record.query, 'docs': docs}


def _to_click(row: dict[str, Any]) -> Click:
  texts = (row[field].decode() for field in ('query', 'title', 'summary'))
  return Click(*texts, int(row['count']))


def _to_group(row: dict[str, Any]) -> Group:
  # TFDS turns a sequence of dicts into a dict of lists.
  decode = {'label': int, 'rank': int, 'score': float, 'in_pool': bool}
  names = [field.name for field in dataclasses.fields(Document)]
  columns = [[decode.get(name, bytes.decode)(v) for v in row['docs'][name]] for name in names]
  docs = tuple(Document(*values) for values in zip(*columns, strict=True))
  return Group(row['query_id'].decode(), row['query'].decode(), docs)


def _check_kind(kind: str) -> None:
  if kind not in KINDS:
    raise ValueError(f'no records of kind {kind!r}, only {", ".join(KINDS)}')


def _is_prepared(folder: pathlib.Path) -> bool:
  return (folder / 'dataset_info.json').is_file() and (folder / 'features.json').is_file()


def _chain(first: Record, rest: Iterator[Record]) -> Iterator[Record]:
  yield first
  yield from rest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps TFDS from printing banners and progress bars into the run's log."""
  tfds.disable_progress_bar()
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.WARNING)
  try:
    with contextlib.redirect_stdout(None):
      yield
  finally:
    logger.setLevel(level)
