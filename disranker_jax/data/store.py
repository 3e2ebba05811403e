"""Prepared data: records as a TFDS dataset in ArrayRecord files, without TensorFlow.

Random access to any record is what shuffling, sharding over hosts and exact resume need, and JSONL
does not have it. `tfds.data_source` and `tfds.builder_from_directory` read the same folders.
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
from array_record.python import array_record_module
from tensorflow_datasets.core import naming
from tensorflow_datasets.proto import tf_example_pb2

from disranker_jax.data.records import Click, Document, Group
from disranker_jax.errors import UserError

KINDS = ('clicks', 'judgements', 'candidates', 'test')
SPLIT = 'rows'
SHARD_BYTES = 64 << 20  # Of serialised records in a file: some seconds of work.
GROUPING = 'group_size:1'  # What TFDS writes: every record can be read alone.
FIELDS = tuple(Document.__dataclass_fields__)
DECODE = {'label': int, 'rank': int, 'score': float, 'in_pool': bool, 'teacher': float}
RAW = tfds.decode.DeserializeMethod.RAW_BYTES
INTEGERS = ('count', 'docs/label', 'docs/rank', 'docs/in_pool')

Record = Click | Group


def write(kind: str, records: Iterable[Record], folder: str | pathlib.Path) -> int:
  """Prepares `folder` from records in their order, all or nothing; returns how many there were.

  A prepared folder that is there already is replaced. Raises: UserError if there are no records,
  or if the folder holds something else.
  """
  folder = pathlib.Path(folder)
  check_target(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  # Beside its final place, so that the rename at the end stays inside one file system.
  with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as temp:
    shards = Shards(kind, pathlib.Path(temp) / 'new')
    for record in records:
      if shards.add(record):
        shards.close_shard()
    shards.finish(folder)
  return sum(shards.lengths)


def check_target(folder: pathlib.Path) -> None:
  """Raises: UserError if writing to the folder would replace anything but prepared data."""
  if (
    folder.exists() and not _is_prepared(folder) and (not folder.is_dir() or any(folder.iterdir()))
  ):
    raise UserError(f'{folder}: holds something that is not prepared data; give another folder')


class Shards:
  """Writes records into the numbered ArrayRecord files of a TFDS dataset, one after another.

  A file appears under its name only once it is whole, so what `mark` says is there. Records go to
  disk as they come.
  """

  def __init__(self, kind: str, folder: pathlib.Path):
    _check_kind(kind)
    self.kind, self.lengths, self.bytes = kind, [], 0
    self._folder = folder
    self._writer, self._open_length, self._open_bytes = None, 0, 0
    folder.mkdir(parents=True, exist_ok=True)

  def mark(self) -> dict[str, Any]:
    """What is on disk, for `rewind` in a later process; call `close_shard` before."""
    return {'lengths': self.lengths, 'bytes': self.bytes}

  def rewind(self, mark: dict[str, Any]) -> None:
    """Goes on behind the shards of a mark."""
    self.lengths, self.bytes = list(mark['lengths']), mark['bytes']

  def add(self, record: Record) -> bool:
    """Writes a record; True if the shard is large enough to be closed."""
    if self._writer is None:
      self._writer = array_record_module.ArrayRecordWriter(str(self._path('.partial')), GROUPING)
    data = serialize(record)
    self._writer.write(data)
    self._open_length += 1
    self._open_bytes += len(data)
    return self._open_bytes >= SHARD_BYTES

  def close_shard(self) -> None:
    """Makes what was added a shard of its own."""
    if self._writer is not None:
      self._writer.close()
      os.replace(self._path('.partial'), self._path())
      self.lengths.append(self._open_length)
      self.bytes += self._open_bytes
      self._writer, self._open_length, self._open_bytes = None, 0, 0

  def finish(self, folder: pathlib.Path, notes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Names the files as TFDS does, describes them, and moves them to their place.

    `notes` are JSON values by file name, put beside them. Raises: UserError if there were no
    records.
    """
    self.close_shard()
    if not self.lengths:
      what = f'there are no {self.kind} to prepare; check the address of the {self.kind}'
      raise UserError(f'{folder}: {what}')
    with quiet():
      builder = Prepared(kind=self.kind, data_dir=str(self._folder / 'new'))
      # The builder's own folder has its name and version in it.
      new = pathlib.Path(builder.data_dir)
      new.mkdir(parents=True, exist_ok=True)
      names = naming.ShardedFileTemplate(
        data_dir=new, dataset_name=self.kind, split=SPLIT, filetype_suffix='array_record'
      )
      for i in range(len(self.lengths)):
        target = names.sharded_filepath(shard_index=i, num_shards=len(self.lengths))
        if not target.exists():  # else a kill came between these renames
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
  """Another prepared folder of the same records; their files are linked where that can be."""
  with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as temp:
    new = pathlib.Path(temp) / 'new'
    new.mkdir()
    for file in source.iterdir():
      if file.name in notes or not file.is_file():
        continue
      try:
        os.link(file, new / file.name)
      except OSError:  # another file system, or one without links
        shutil.copy2(file, new / file.name)
    _note(new, notes)
    replace(new, folder)


def kind_of(folder: pathlib.Path) -> str | None:
  """The kind of records of a prepared folder; None if it is none."""
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
  """Puts a finished folder in its place, and what was there out of the way."""
  if folder.exists():
    old = new.with_name(f'{new.name}.old')
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old)
  else:
    new.rename(folder)


def open(kind: str, folder: str | pathlib.Path) -> 'Source':
  """Opens a prepared folder for random access.

  Raises: UserError if it was not prepared, is damaged, or holds another kind of records.
  """
  _check_kind(kind)
  folder = pathlib.Path(folder)
  if not _is_prepared(folder):
    raise UserError(f'{folder}: is no prepared data; prepare it with store.write first')
  source = Source(kind, str(folder))
  if source.prepared_kind != kind:
    raise UserError(f'{folder}: holds {source.prepared_kind}, not {kind}; open it as what it is')
  return source


def fingerprint(folder: str | pathlib.Path) -> str:
  """The sha256 of the prepared files' names and content: the same records give the same one."""
  folder = pathlib.Path(folder)
  if not _is_prepared(folder):
    raise UserError(f'{folder}: is no prepared data; prepare it with store.write first')
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
      with quiet():
        builder = tfds.builder_from_directory(self.folder)
        self.prepared_kind = builder.info.name
        self._rows = builder.as_data_source(SPLIT, deserialize_method=RAW)
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
    return parse(self._rows[int(index) % len(self)])

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
  """The TFDS builder of prepared data; the dataset's name is the kind of its records.

  `examples` is for Apache Beam: a PTransform of (key, record's fields), see beam.py.
  """

  VERSION = tfds.core.Version('1.1.0')
  # Nothing is downloaded; looking that up would import importlib_resources, which TFDS needs here
  # without declaring it.
  url_infos = None

  def __init__(self, *, kind: str, data_dir: str, examples: Any = None):
    # An instance attribute: TFDS takes the name from it, and would else take the class's.
    self.name = kind
    self._examples = examples
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    # Our own order is kept; Beam has none, so there TFDS orders by a hash of the key.
    ordered = self._examples is None
    return tfds.core.DatasetInfo(
      builder=self, features=features(self.name), disable_shuffling=ordered
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    return {SPLIT: self._generate_examples()}

  def _generate_examples(self) -> Any:
    return self._examples


def features(kind: str) -> tfds.features.FeaturesDict:
  """The typed fields of a kind of records."""
  text = tfds.features.Text
  if kind == 'clicks':
    return tfds.features.FeaturesDict(
      {'query': text(), 'title': text(), 'summary': text(), 'count': np.int32}
    )
  doc = {'doc_id': text(), 'title': text(), 'summary': text(), 'label': np.int32, 'rank': np.int32}
  # As text: examples store floats in 32 bits, and scores should come back as they were.
  doc |= {'score': text(), 'in_pool': np.bool_, 'teacher': text()}
  return tfds.features.FeaturesDict(
    {'query_id': text(), 'query': text(), 'docs': tfds.features.Sequence(doc)}
  )


def to_row(record: Record) -> dict[str, Any]:
  """A record's fields as `features` describes them."""
  if isinstance(record, Click):
    return dataclasses.asdict(record)
  docs = {name: [getattr(doc, name) for doc in record.docs] for name in FIELDS}
  for name in ('score', 'teacher'):
    docs[name] = [repr(float(value)) for value in docs[name]]
  return {'query_id': record.query_id, 'query': record.query, 'docs': docs}


def serialize(record: Record) -> bytes:
  """A record as the tf.Example that TFDS makes of it, ten times as fast (and tested to be it)."""
  row = to_row(record)
  columns = {f'docs/{name}': values for name, values in row.pop('docs', {}).items()}
  columns |= {name: [value] for name, value in row.items()}
  example = tf_example_pb2.Example()
  for name, values in columns.items():
    feature = example.features.feature[name]
    if name in INTEGERS:
      feature.int64_list.SetInParent()  # there even if the list is empty
      feature.int64_list.value.extend(map(int, values))
    else:
      feature.bytes_list.SetInParent()
      feature.bytes_list.value.extend([value.encode() for value in values])
  return example.SerializeToString(deterministic=True)


def parse(data: bytes) -> Record:
  """The record that was serialised; fields that older files lack have their defaults."""
  features = tf_example_pb2.Example.FromString(data).features.feature
  if 'count' in features:
    texts = (features[name].bytes_list.value[0].decode() for name in ('query', 'title', 'summary'))
    return Click(*texts, features['count'].int64_list.value[0])
  columns = {}
  for name in FIELDS:
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


def _is_prepared(folder: pathlib.Path) -> bool:
  return (folder / 'dataset_info.json').is_file() and (folder / 'features.json').is_file()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
