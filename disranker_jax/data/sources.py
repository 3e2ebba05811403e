"""Reads records from a data address such as `jsonl:logs/*.jsonl.gz`: SCHEME, colon, path or name.

A scheme is one function here and one line in SCHEMES. Every scheme streams its records, and sorts
and joins through files, so memory does not grow with the data.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from disranker_jax.data import (
  bright,
  collection,
  contents,
  field_names,
  grouping,
  irds,
  lines,
  python_docs,
  records,
  row_formats,
  rows,
  store,
  tfds_rows,
  trec,
)
from disranker_jax.data.records import KINDS, BadRows, Click, Document, Group
from disranker_jax.data.row_formats import Score
from disranker_jax.errors import UserError
from disranker_jax.progress import say

# SCORES are other teachers' scores of pairs, without texts. POOLED are judgements together with the
# documents of the first stage, to draw negatives from.
SCORES, POOLED = 'scores', 'pooled'
ALL_KINDS = (*KINDS, SCORES, POOLED)
DEPTH = 20  # documents that a query gets from a run or from BM25, if the caller names no number


@dataclasses.dataclass(frozen=True)
class Want:
  """What the caller wants from a source."""

  kind: str
  depth: int
  bad_rows: BadRows
  scratch: Path | None = None  # a folder for data that does not fit into memory
  keep: Callable[[Group], bool] | None = None


class Scheme(Protocol):
  """Reads the part of an address after the colon."""

  def __call__(self, rest: str, want: Want) -> Iterator[Click | Group | Score]: ...


class RowFiles(NamedTuple):
  """Files whose rows are independent of each other, so that a reader can start at any row."""

  files: list[Path]
  read: Callable[[Path], Iterator[tuple[int, Any]]]

  def places(self, start: int = 0) -> Iterator[rows.Place]:
    """(file, number, row) of all rows except the first `start`."""
    return rows.of_files(self.files, self.read, start)


def read(
  address: str,
  kind: str,
  *,
  depth: int = 0,
  bad_rows: BadRows | None = None,
  scratch: Path | None = None,
  keep: Callable[[Group], bool] | None = None,
) -> Iterator[Click | Group | Score]:
  """The records of a kind at an address.

  Clicks and teachers' scores come one by one, all other kinds as groups. `depth` is how many
  documents a query gets from its first stage: a run, BM25, or the field `rank` of rows. 0: DEPTH
  of a run or BM25, all documents of rows. `scratch` is a folder for large temporary files. `keep`
  tells which queries of rows are cut to `depth` and counted in `bad_rows`, as no others are wanted.

  Raises: UserError for an unknown address; also while reading, for bad files and rows.
  """
  if kind not in ALL_KINDS:
    raise ValueError(f'no records of kind {kind!r}, only {", ".join(ALL_KINDS)}')
  if depth < 0:
    raise UserError(f'depth: is {depth}; write 0 (the default of the source) or more')
  scheme, rest = split(address, kind)
  depth = depth or default_depth(address)
  want = Want(kind, depth, BadRows() if bad_rows is None else bad_rows, scratch, keep)
  return SCHEMES[scheme][0](rest, want)


def split(address: str, kind: str = 'records') -> tuple[str, str]:
  """(scheme, text after the colon). Raises: UserError with an example of each scheme."""
  scheme, colon, rest = str(address).partition(':')
  if not colon or scheme not in SCHEMES:
    examples = ', '.join(example for _, example in SCHEMES.values())
    raise UserError(f'{address!r}: is not an address of {kind}; write one like {examples}')
  return scheme, rest


def default_depth(address: str) -> int:
  """The depth of an address if the caller names none: 0 for rows, which are all kept."""
  return 0 if split(address)[0] in (*ROW_READERS, 'tfds') else DEPTH


def row_files(address: str) -> RowFiles | None:
  """The files of an address with independent rows (jsonl:, parquet:); None for other schemes."""
  scheme, rest = split(address)
  if scheme not in ROW_READERS:
    return None
  if not rest:
    raise UserError(f'{scheme}: has no path; write {scheme}:PATH, such as {SCHEMES[scheme][1]}')
  # There are no options: a question mark is part of a glob pattern.
  return RowFiles(lines.matching(rest), ROW_READERS[scheme])


def made(kind: str) -> Callable[[Any], list]:
  """The function that turns a row of RowFiles into records of a kind, for `BadRows.parse_all`."""
  return functools.partial(_made, kind)


def _made(kind: str, raw: Any) -> list:
  return row_formats.records_of(rows.decode(raw), kind)


def fingerprint(address: str) -> list:
  """A value that changes when the source does: names and contents of its files.

  Raises: UserError for a pipe, whose data cannot be compared with that of an earlier call.
  """
  scheme, rest = split(address)
  if scheme == 'python_docs':
    return [address, platform.python_version(), *map(_version, packages(rest))]
  if scheme == 'bright':
    return [address, *([str(file), contents.digest(file)] for file in _task(rest, DEPTH).files)]
  files = sorted(lines.found(rest)) if scheme in ROW_READERS else _files(scheme, rest)
  if pipes := [file for file in files if lines.is_pipe(file)]:
    what = 'is a pipe, so a later call cannot see whether its data changed'
    raise UserError(f'{pipes[0]}: {what}; write it to a file')
  return [address, *([str(file), contents.digest(file)] for file in files if file.is_file())]


def _files(scheme: str, rest: str) -> list[Path]:
  """The files of an address with options that are read; of others in a folder none."""
  place, _, options = rest.partition('?')
  path = Path(place).expanduser()
  # Options may name files in other folders.
  pairs = (option.partition('=') for option in filter(None, options.split('&')))
  values = (value for name, _, value in pairs if name != 'pool')
  named = [file for value in values for name in value.split(',') for file in trec.named(path, name)]
  if scheme == 'ir_datasets':  # what an id stands for never changes
    return named
  if not path.is_dir():
    return [path, *named]
  if scheme == 'tfds':
    # The result of `prepare` says how long it took, which differs for equal records.
    hidden = ('.', store.RESULT)
    return [file for file in sorted(path.iterdir()) if not file.name.startswith(hidden)]
  return [*sorted({*trec.tables(path), *(f for f in named if f.parent == path)}), *named]


def documents(address: str | Path) -> list[Document]:
  """The documents at an address, or in JSON lines at a path, in order; ids are unique.

  Rows need doc_id, title and summary; other fields are ignored. Raises: UserError, also if a
  document has two texts.
  """
  bad_rows = BadRows()
  found: dict[str, Document] = {}
  repeated = 0
  for file, number, doc in _documents(str(address), bad_rows):
    if records.differing(found.setdefault(doc.doc_id, doc), doc):
      fix = 'give each document its own id'
      bad = records.BadRow('doc_id', f'{doc.doc_id!r} appears twice, with another text', fix)
      bad_rows.reject(file, number, {}, bad)
    repeated += found[doc.doc_id] is not doc
  if repeated:
    say(f'{address}: {repeated:,} {records.REPEATED}')
  return list(found.values())


def _documents(address: str, bad_rows: BadRows) -> Iterator[tuple[Any, int, Document]]:
  """(file, number, document) of every document of an address, without label, rank and score."""
  scheme, colon, rest = address.partition(':')
  if not colon or scheme not in SCHEMES:
    places = rows.of_files(lines.matching(address), rows.read)
  elif tables := open_collection(address):
    yield from tables.documents(bad_rows)
    return
  elif scheme == 'python_docs':
    for i, doc in enumerate(python_docs.documents(packages(rest)), 1):
      yield address, i, doc
    return
  elif files := row_files(address):
    places = files.places()
  else:
    places = _tfds_places(rest)
  for file, number, raw in places:
    for doc in bad_rows.parse_all(file, number, raw, _documents_of_row):
      yield file, number, doc


def _documents_of_row(raw: Any) -> list[Document]:
  row = records.mapping(rows.decode(raw))
  if not row_formats.is_group(row):
    return [records.document(row)]
  _, _, docs = row_formats.group(row)
  return [Document(doc.doc_id, doc.title, doc.summary) for doc in docs]


def of_places(
  places: Iterator[rows.Place], want: Want, address: str, read_as: str = ''
) -> Iterator[Click | Group | Score]:
  """The records of an address's independent rows, read as another kind if it is given.

  Rows of a query are grouped.
  """
  make = made(read_as or want.kind)
  parsed = (
    (file, number, record)
    for file, number, raw in places
    for record in want.bad_rows.parse_all(file, number, raw, make)
  )
  if want.kind in ('clicks', SCORES):
    return (record for _, _, record in parsed)
  groups = filter(want.keep or bool, grouping.of_rows(parsed, want.bad_rows, want.scratch))
  return grouping.cuts(groups, want.kind, want.depth, want.bad_rows, address)


def _row_files(scheme: str, rest: str, want: Want) -> Iterator[Click | Group | Score]:
  address = f'{scheme}:{rest}'
  return of_places(row_files(address).places(), want, address)


def packages(rest: str) -> tuple[str, ...]:
  """The packages whose documentation an address of `python_docs:` reads."""
  options = _of_python_docs(rest)
  more, only = (tuple(filter(None, options.get(o, '').split(','))) for o in ('packages', 'only'))
  return (*(only or python_docs.LIBRARY), *more)


def _of_python_docs(rest: str) -> dict[str, str]:
  """The options of an address. Raises: UserError."""
  path, options = _options('python_docs', rest, ('packages', 'only', 'judged', 'splits'))
  if path:
    raise UserError(f'python_docs:{rest}: takes no path; write python_docs:?packages=numpy,jax')
  for name, known in (('judged', python_docs.JUDGED), ('splits', python_docs.SHARES)):
    if wrong := [part for part in options.get(name, '').split(',') if part and part not in known]:
      raise UserError(
        f'python_docs:{rest}: {name}={",".join(wrong)} is none of {", ".join(known)}; docs/data.md '
        'has them'
      )
  return options


def _version(package: str) -> str:
  distributions = importlib.metadata.packages_distributions().get(package, ())
  return ' '.join(map(importlib.metadata.version, distributions))


def _python_docs(rest: str, want: Want) -> Iterator[Click | Group]:
  names = packages(rest)
  if want.kind == 'clicks':
    if 'splits' in _of_python_docs(rest):
      raise UserError(f'python_docs:{rest}: clicks are one split; leave out splits')
    return python_docs.clicks(names)
  _no_scores('python_docs', rest, want)
  kind = 'judgements' if want.kind == POOLED else want.kind  # this source labels every document
  options = _of_python_docs(rest)
  splits = tuple(filter(None, options.get('splits', '').split(',')))
  judged = options.get('judged', python_docs.RULE)
  return python_docs.groups(kind, want.depth, names, judged=judged, splits=splits)


def open_collection(address: str, depth: int = DEPTH) -> collection.Collection | None:
  """The tables of a trec: or ir_datasets: address; None for other schemes. Raises: UserError."""
  scheme, rest = split(address)
  return COLLECTIONS[scheme](rest, depth) if scheme in COLLECTIONS else None


def _folder(rest: str, depth: int) -> trec.Folder:
  path, options = _options('trec', rest, trec.OPTIONS)
  if not path:
    raise UserError('trec: has no folder; write trec:DIR, such as trec:data/nfcorpus')
  return trec.Folder(Path(path).expanduser(), options, depth)


def _dataset(rest: str, depth: int) -> irds.Dataset:
  name, options = _options('ir_datasets', rest, irds.OPTIONS)
  if not name:
    raise UserError('ir_datasets: has no dataset id; write ir_datasets:ID, see ir-datasets.com')
  return irds.Dataset(name, options, depth)


def _task(rest: str, depth: int) -> bright.Task:
  path, options = _options('bright', rest, bright.OPTIONS)
  if not path:
    raise UserError('bright: has no folder; write bright:DIR?task=biology')
  return bright.Task(Path(path).expanduser(), options, depth)


def _bright(rest: str, want: Want) -> Iterator[Click | Group]:
  _no_scores('bright', rest, want)
  return _collection(_task(rest, want.depth), want)


def _trec(rest: str, want: Want) -> Iterator[Click | Group | Score]:
  path, options = _options('trec', rest, trec.OPTIONS)
  path = Path(path).expanduser()
  if want.kind == SCORES and rest:
    run = trec.existing(path, 'run', options.get('run')) if path.is_dir() else path
    return _scores(trec.run_lines(run, want.bad_rows))
  return _collection(_folder(rest, want.depth), want)


def _ir_datasets(rest: str, want: Want) -> Iterator[Group]:
  dataset = _dataset(rest, want.depth)
  if want.kind == SCORES:
    return _scores(dataset.run(want.bad_rows, needed=True))
  return _collection(dataset, want)


def _collection(tables: collection.Collection, want: Want) -> Iterator[Click | Group]:
  return collection.read(tables, want.kind, want.depth, want.bad_rows, want.scratch)


def _scores(run: Iterator[collection.Line]) -> Iterator[Score]:
  return ((line.query_id, line.doc_id, line.score) for line in run)


def _tfds(rest: str, want: Want) -> Iterator[Click | Group | Score]:
  folder = Path(rest.partition('?')[0]).expanduser()
  # Candidates have labels only if the program made them, and then they are to be learned.
  are_candidates = want.kind == 'candidates' and store.kind_of(folder) == want.kind
  return of_places(_tfds_places(rest), want, f'tfds:{rest}', POOLED if are_candidates else '')


def _tfds_places(rest: str) -> Iterator[rows.Place]:
  name, options = _options('tfds', rest, tfds_rows.OPTIONS)
  if not name:
    raise UserError('tfds: has no dataset; write tfds:NAME, or tfds:FOLDER for prepared data')
  return tfds_rows.read(name, options)


def _no_scores(scheme: str, rest: str, want: Want) -> None:
  if want.kind == SCORES:
    raise UserError(f"{scheme}:{rest}: has no teacher's scores; give another address")


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
  names: list[str] = []
  if file.is_file():
    with contextlib.suppress(OSError, ValueError, pa.ArrowException):  # `rows` reports them
      names = pq.read_schema(file).names
  return rows.parquet(file, field_names.columns(names, row_formats.COLUMNS))


ROW_READERS = {
  'jsonl': lines.read,
  'parquet': _parquet,
}
SCHEMES: dict[str, tuple[Scheme, str]] = {
  'python_docs': (_python_docs, 'python_docs:'),
  'jsonl': (functools.partial(_row_files, 'jsonl'), 'jsonl:data/*.jsonl.gz'),
  'parquet': (functools.partial(_row_files, 'parquet'), 'parquet:data/*.parquet'),
  'trec': (_trec, 'trec:data/nfcorpus?qrels=qrels.txt&pool=run'),
  'ir_datasets': (_ir_datasets, 'ir_datasets:beir/nfcorpus/train'),
  'bright': (_bright, 'bright:data/BRIGHT?task=biology'),
  'tfds': (_tfds, 'tfds:prepared/candidates'),
}
COLLECTIONS: dict[str, Callable[[str, int], collection.Collection]] = {
  'trec': _folder,
  'ir_datasets': _dataset,
  'bright': _task,
}


def _options(scheme: str, rest: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
  """Splits `PATH?name=value&name=value`."""
  path, _, query = rest.partition('?')
  options: dict[str, str] = {}
  for part in filter(None, query.split('&')):
    name, equals, value = part.partition('=')
    if name not in known or not equals or not value:
      raise UserError(
        f'{scheme}:{rest}: cannot use the option {part!r}; '
        f'write name=value with one of {", ".join(known)}'
      )
    if name in options:
      raise UserError(f'{scheme}:{rest}: has the option {name} twice; keep one')
    options[name] = value
  return path, options
