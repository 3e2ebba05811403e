"""Writes and reads prepared data: records as TFDS datasets in ArrayRecord files, no TensorFlow.

Shuffling, sharding over hosts and exact resume need random access to records, which JSONL does not
have. `tfds.data_source` and `tfds.builder_from_directory` can read these folders. Here they are
read without TFDS, which imports what a folder's metadata names: only the number of records in each
shard is taken from there.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module
from tensorflow_datasets.core import naming
from tensorflow_datasets.proto import tf_example_pb2

from disranker_jax import disks
from disranker_jax.data import contents
from disranker_jax.data.records import DOCUMENT_FIELDS, KINDS, Click, Document, Group
from disranker_jax.errors import UserError, first_line

SPLIT = 'rows'
RESULT = 'prepared.json'  # file next to the shards: the result and the job's digest
SHARD_BYTES = 64 << 20  # serialised records per file: some seconds of work
PIECE = 256  # records that an iteration reads at once
GROUPING = 'group_size:1'  # as TFDS writes: each record can be read separately
DECODE = {'label': int, 'rank': int, 'score': float, 'in_pool': bool, 'teacher': float}
INTEGERS = ('count', 'docs/label', 'docs/rank', 'docs/in_pool')

Record = Click | Group


def write(kind: str, records: Iterable[Record], folder: str | pathlib.Path) -> int:
  """Writes the records in their order to `folder`, all or nothing; returns their number.

  Replaces a prepared folder. Raises: UserError if there are no records, or if the folder contains
  anything else.
  """
  folder = pathlib.Path(folder)
  check_target(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  # In the same parent folder, so that the final rename stays within one file system.
  with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as temp:
    shards = Shards(kind, pathlib.Path(temp) / 'new')
    for record in records:
      if shards.add(record):
        shards.close_shard()
    shards.finish(folder)
  return sum(shards.lengths)


def check_target(folder: pathlib.Path) -> None:
  """Raises: UserError if the folder contains anything other than prepared data."""
  if (
    folder.exists() and not _is_prepared(folder) and (not folder.is_dir() or any(folder.iterdir()))
  ):
    raise UserError(f'{folder}: contains something that is not prepared data; give another folder')


class Shards:
  """Writes records to the numbered ArrayRecord files of a TFDS dataset.

  A file gets its final name when it is complete, so the files of a `mark` are complete. Records are
  streamed to disk.
  """

  def __init__(self, kind: str, folder: pathlib.Path):
    _check_kind(kind)
    self.kind, self.lengths, self.bytes = kind, [], 0
    self._folder = folder
    self._writer, self._open_length, self._open_bytes = None, 0, 0
    folder.mkdir(parents=True, exist_ok=True)

  def mark(self) -> dict[str, Any]:
    """The shards on disk, for `rewind` in a later process; call `close_shard` before."""
    return {'lengths': self.lengths, 'bytes': self.bytes}

  def rewind(self, mark: dict[str, Any]) -> None:
    """Continues after the shards of a mark."""
    self.lengths, self.bytes = list(mark['lengths']), mark['bytes']

  def add(self, record: Record) -> bool:
    """Writes a record; True if the shard is large enough to close."""
    if self._writer is None:
      self._writer = array_record_module.ArrayRecordWriter(str(self._path('.partial')), GROUPING)
    data = serialize(record)
    with disks.writing(self._folder):
      self._writer.write(data)
    self._open_length += 1
    self._open_bytes += len(data)
    return self._open_bytes >= SHARD_BYTES

  def close_shard(self) -> None:
    """Completes the open shard."""
    if self._writer is not None:
      with disks.writing(self._folder):
        self._writer.close()
      os.replace(self._path('.partial'), self._path())
      self.lengths.append(self._open_length)
      self.bytes += self._open_bytes
      self._writer, self._open_length, self._open_bytes = None, 0, 0

  def finish(self, folder: pathlib.Path, notes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Renames the shards as TFDS does, adds the metadata, and moves them to `folder`.

    `notes` are JSON values by file name, written next to them. Raises: UserError if there are no
    records.
    """
    self.close_shard()
    if not self.lengths:
      what = f'there are no {self.kind} to prepare; check the address of the {self.kind}'
      raise UserError(f'{folder}: {what}')
    with quiet():
      builder = PreparedBuilder(kind=self.kind, data_dir=str(self._folder / 'new'))
      # The folder of the builder: it adds its name and version to the path.
      new = pathlib.Path(builder.data_dir)
      new.mkdir(parents=True, exist_ok=True)
      names = naming.ShardedFileTemplate(
        data_dir=new, dataset_name=self.kind, split=SPLIT, filetype_suffix='array_record'
      )
      for i in range(len(self.lengths)):
        target = names.sharded_filepath(shard_index=i, num_shards=len(self.lengths))
        if not target.exists():  # else the process was killed between these renames
          os.replace(self._path(number=i), target)
      split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=self.lengths, num_bytes=self.bytes, filename_template=names
      )
      builder.info.set_splits(tfds.core.splits.SplitDict([split]))
      builder.info.write_to_directory(new)
    _note(new, notes)
    replace(new, folder)

  def _path(self, suffix: str = '', number: int | None = None) -> pathlib.Path:
    number = len(self.lengths) if number is None else number
    return self._folder / f'shard-{number:06d}{suffix}'


def copy(source: pathlib.Path, folder: pathlib.Path, notes: Mapping[str, Any]) -> None:
  """Copies a prepared folder, by hard links where possible; writes other `notes`."""
  with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as temp:
    new = pathlib.Path(temp) / 'new'
    new.mkdir()
    for file in source.iterdir():
      if file.name in notes or not file.is_file():
        continue
      contents.link(file, new / file.name)
    _note(new, notes)
    replace(new, folder)


def kind_of(folder: pathlib.Path) -> str | None:
  """The kind of records in a prepared folder; None for any other folder."""
  if not _is_prepared(folder):
    return None
  try:
    return json.loads((folder / 'dataset_info.json').read_text())['name']
  except (ValueError, KeyError, TypeError):
    return None


def _note(folder: pathlib.Path, notes: Mapping[str, Any]) -> None:
  for name, value in notes.items():
    (folder / name).write_text(json.dumps(value, indent=2) + '\n')


def replace(new: pathlib.Path, folder: pathlib.Path) -> None:
  """Renames the finished folder `new` to `folder`, and removes the old one."""
  if folder.exists():
    old = new.with_name(f'{new.name}.old')
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old)
  else:
    new.rename(folder)


def open(kind: str, folder: str | pathlib.Path) -> 'Source':
  """Opens a prepared folder for random access.

  Raises: UserError if it is not prepared data, is damaged, or contains another kind of records.
  """
  _check_kind(kind)
  return Source(kind, str(_prepared(folder)))


def fingerprint(folder: str | pathlib.Path) -> str:
  """The sha256 of names and content of the prepared files; equal for equal records."""
  digest = hashlib.sha256()
  for path in sorted(_prepared(folder).iterdir()):
    if '.array_record' in path.name or path.name == 'features.json':
      with path.open('rb') as file:
        digest.update(f'{path.name}\0{hashlib.file_digest(file, "sha256").hexdigest()}\n'.encode())
  return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Shard:
  """A file with its number of records, as array_record's FileInstruction."""

  filename: str
  examples_in_shard: int
  take: int
  skip: int = 0


def _shards(kind: str, folder: pathlib.Path) -> tuple[str, list[_Shard]]:
  """(kind of a prepared folder, shards); the names are ours, not those that the folder tells."""
  info = json.loads((folder / 'dataset_info.json').read_text())
  [split] = [split for split in info['splits'] if split['name'] == SPLIT]
  lengths = list(map(int, split['shardLengths']))
  names = naming.ShardedFileTemplate(
    data_dir=folder, dataset_name=kind, split=SPLIT, filetype_suffix='array_record'
  )
  files = [
    str(names.sharded_filepath(shard_index=i, num_shards=len(lengths))) for i in range(len(lengths))
  ]
  return info['name'], [_Shard(file, n, n) for file, n in zip(files, lengths, strict=True)]


class Source:
  """Prepared records by index, for `grain.MapDataset.source`; can be pickled for workers."""

  def __init__(self, kind: str, folder: str):
    self.kind, self.folder = kind, folder
    self._open()

  def _open(self) -> None:
    try:
      found, shards = _shards(self.kind, pathlib.Path(self.folder))
      missing = [os.path.basename(s.filename) for s in shards if not os.path.isfile(s.filename)]
      if found == self.kind and not missing:
        self._rows = array_record_data_source.ArrayRecordDataSource(shards)
    except Exception as error:  # parsers raise many types for invalid files
      what = f'is damaged ({first_line(error)}); prepare it again'
      raise UserError(f'{self.folder}: {what}') from error
    if found != self.kind:
      what = f'contains {str(found)[:40]}, not {self.kind}; give a folder of {self.kind}'
      raise UserError(f'{self.folder}: {what}')
    if missing:
      raise UserError(f'{self.folder}: is damaged ({missing[0]} is missing); prepare it again')

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    if not -len(self) <= index < len(self):
      raise IndexError(f'{self.folder}: no record {index} of {len(self)}')
    return parse(self._rows[int(index) % len(self)])

  def __iter__(self) -> Iterator[Record]:
    """All records in order, read in pieces: twenty times as fast as one by one."""
    for start in range(0, len(self), PIECE):
      piece = range(start, min(start + PIECE, len(self)))
      yield from map(parse, self._rows.__getitems__(list(piece)))

  def __repr__(self) -> str:
    return f'Source({self.kind!r}, {self.folder!r})'

  def __getstate__(self) -> tuple[str, str]:
    return self.kind, self.folder

  def __setstate__(self, state: tuple[str, str]) -> None:
    self.kind, self.folder = state
    self._open()


class PreparedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The TFDS builder of prepared data; the name of the dataset is the kind of its records.

  `examples` is for Apache Beam: a PTransform of (key, fields of a record), see beam.py.
  """

  VERSION = tfds.core.Version('1.1.0')
  # There are no downloads. Without this line TFDS imports importlib_resources to look for them, a
  # dependency that it does not declare.
  url_infos = None

  def __init__(self, *, kind: str, data_dir: str, examples: Any = None):
    # TFDS takes the name from the instance before that of the class.
    self.name = kind
    self._examples = examples
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    # We keep our order. Beam has no order, so there TFDS sorts by a hash of the key.
    ordered = self._examples is None
    return tfds.core.DatasetInfo(
      builder=self, features=features(self.name), disable_shuffling=ordered
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    return {SPLIT: self._generate_examples()}

  def _generate_examples(self) -> Any:
    return self._examples


def features(kind: str) -> tfds.features.FeaturesDict:
  """The TFDS features of a kind of records."""
  text = tfds.features.Text
  if kind == 'clicks':
    return tfds.features.FeaturesDict(
      {'query': text(), 'title': text(), 'summary': text(), 'count': np.int32}
    )
  doc = {'doc_id': text(), 'title': text(), 'summary': text(), 'label': np.int32, 'rank': np.int32}
  # Scores are text, because tf.Example stores floats in 32 bits.
  doc |= {'score': text(), 'in_pool': np.bool_, 'teacher': text()}
  return tfds.features.FeaturesDict(
    {'query_id': text(), 'query': text(), 'docs': tfds.features.Sequence(doc)}
  )


def to_row(record: Record) -> dict[str, Any]:
  """The fields of a record as `features` describes them."""
  if isinstance(record, Click):
    return dataclasses.asdict(record)
  docs = {name: [getattr(doc, name) for doc in record.docs] for name in DOCUMENT_FIELDS}
  for name in ('score', 'teacher'):
    docs[name] = [repr(float(value)) for value in docs[name]]
  return {'query_id': record.query_id, 'query': record.query, 'docs': docs}


def serialize(record: Record) -> bytes:
  """The tf.Example that TFDS makes of a record (tests compare them), ten times as fast."""
  row = to_row(record)
  columns = {f'docs/{name}': values for name, values in row.pop('docs', {}).items()}
  columns |= {name: [value] for name, value in row.items()}
  example = tf_example_pb2.Example()
  for name, values in columns.items():
    feature = example.features.feature[name]
    if name in INTEGERS:
      feature.int64_list.SetInParent()  # present even if the list is empty
      feature.int64_list.value.extend(map(int, values))
    else:
      feature.bytes_list.SetInParent()
      feature.bytes_list.value.extend([value.encode() for value in values])
  return example.SerializeToString(deterministic=True)


def parse(data: bytes) -> Record:
  """The record of `serialize`; fields that are missing in older files get their defaults."""
  features = tf_example_pb2.Example.FromString(data).features.feature
  if 'count' in features:
    texts = (features[name].bytes_list.value[0].decode() for name in ('query', 'title', 'summary'))
    return Click(*texts, features['count'].int64_list.value[0])
  columns = {}
  for name in DOCUMENT_FIELDS:
    if (key := f'docs/{name}') in features:
      values = features[key].bytes_list.value or features[key].int64_list.value
      columns[name] = [DECODE.get(name, bytes.decode)(value) for value in values]
  rows = zip(*columns.values(), strict=True)
  docs = tuple(Document(**dict(zip(columns, row, strict=True))) for row in rows)
  query_id, query = (features[n].bytes_list.value[0].decode() for n in ('query_id', 'query'))
  return Group(query_id, query, docs)


def _check_kind(kind: str) -> None:
  if kind not in KINDS:
    raise ValueError(f'no records of kind {kind!r}, only {", ".join(KINDS)}')


def _prepared(folder: str | pathlib.Path) -> pathlib.Path:
  folder = pathlib.Path(folder)
  if not _is_prepared(folder):
    raise UserError(f'{folder}: is not prepared data; prepare it first')
  return folder


def _is_prepared(folder: pathlib.Path) -> bool:
  return (folder / 'dataset_info.json').is_file() and (folder / 'features.json').is_file()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Hides the banners and progress bars of TFDS."""
  tfds.disable_progress_bar()
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.WARNING)
  try:
    with contextlib.redirect_stdout(None):
      yield
  finally:
    logger.setLevel(level)
