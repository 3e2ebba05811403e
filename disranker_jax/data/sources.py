"""Turns an address in the config into records: which scheme reads what.

A scheme is one class here and one line in SCHEMES. Whatever the scheme, records are read as they
are asked for, and what has to be sorted or joined goes through files: memory does not grow with
the data.
"""

import dataclasses
import functools
import glob
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from disranker_jax.data import (
  collection,
  grouping,
  irds,
  lines,
  python_docs,
  records,
  row_formats,
  rows,
  tfds_rows,
  trec,
)
from disranker_jax.data.records import BadRows, Click, Document, Group
from disranker_jax.data.row_formats import Score
from disranker_jax.errors import UserError

KINDS = ('clicks', 'judgements', 'candidates', 'test')
# Kinds of their own: what other teachers gave to pairs whose text is elsewhere; judgements with
# the first stage's documents beside them, to draw negatives from.
SCORES, POOLED = 'scores', 'pooled'
ALL_KINDS = (*KINDS, SCORES, POOLED)


@dataclasses.dataclass(frozen=True)
class Want:
  """What is wanted of a source."""

  kind: str
  depth: int
  bad_rows: BadRows
  scratch: Path | None = None  # a folder for what does not fit into memory


class Scheme(Protocol):
  """How what follows the colon of an address is read."""

  def __call__(self, rest: str, want: Want) -> Iterator[Click | Group | Score]: ...


class RowFiles(NamedTuple):
  """A source whose rows stand for themselves, so that a reader can begin at any of them."""

  files: list[Path]
  read: Callable[[Path], Iterator[tuple[int, Any]]]

  def places(self, start: int = 0) -> Iterator[rows.Place]:
    """(file, number, row) of all rows but the first `start`."""
    return rows.of_files(self.files, self.read, start)


def read(
  address: str,
  kind: str,
  *,
  depth: int = 20,
  bad_rows: BadRows | None = None,
  scratch: Path | None = None,
) -> Iterator[Click | Group | Score]:
  """The records of a kind at an address such as `python_docs:` or `jsonl:logs/*.jsonl.gz`.

  Clicks and teachers' scores come one by one, all else as groups. `depth` is how many documents a
  query gets from a first stage (a run, or BM25); rows of JSONL and Parquet are the user's own
  choice and all kept. `scratch` is a folder for large temporary files. Raises: UserError for an
  address nobody knows, and while reading for files and rows that are bad.
  """
  if kind not in ALL_KINDS:
    raise ValueError(f'no records of kind {kind!r}, only {", ".join(ALL_KINDS)}')
  if depth < 1:
    raise UserError(f'depth: is {depth}; give each query at least 1 document')
  scheme, rest = split(address, kind)
  want = Want(kind, depth, BadRows() if bad_rows is None else bad_rows, scratch)
  return SCHEMES[scheme][0](rest, want)


def split(address: str, kind: str = 'records') -> tuple[str, str]:
  """(scheme, what follows the colon). Raises: UserError with an example of each scheme."""
  scheme, colon, rest = str(address).partition(':')
  if not colon or scheme not in SCHEMES:
    examples = ', '.join(example for _, example in SCHEMES.values())
    raise UserError(f'{address!r}: is no address of {kind}; write one like {examples}')
  return scheme, rest


def row_files(address: str) -> RowFiles | None:
  """The files of an address whose rows stand for themselves; None for one of other schemes."""
  scheme, rest = split(address)
  if scheme not in ROW_READERS:
    return None
  if not rest:
    example = SCHEMES[scheme][1]
    raise UserError(f'{scheme}: names no file; write {scheme}:PATH, such as {example}')
  # No options: a question mark is part of a glob pattern.
  return RowFiles(lines.matching(rest), ROW_READERS[scheme])


def made(kind: str) -> Callable[[Any], list]:
  """What turns a row of a RowFiles into records of a kind, for `BadRows.parse_all`."""
  return functools.partial(_made, kind)


def _made(kind: str, raw: Any) -> list:
  return row_formats.records_of(rows.decode(raw), kind)


def fingerprint(address: str) -> list:
  """What changes when the source does: names, sizes and times of its files."""
  scheme, rest = split(address)
  if scheme == 'python_docs':
    return [address, platform.python_version(), *map(_version, _packages(rest))]
  path, _, options = (rest, '', '') if scheme in ROW_READERS else rest.partition('?')
  path = Path(path).expanduser()
  files = sorted(path.iterdir()) if path.is_dir() else sorted(map(Path, glob.glob(str(path))))
  # Options may name files elsewhere; ids of ir_datasets do not change their content.
  for option in filter(None, options.split('&')):
    names = option.partition('=')[2].split(',')
    files += [file for name in names for file in trec.named(path, name)]
  stats = [(str(file), file.stat()) for file in files if file.is_file()]
  return [address, *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


def documents(path: str | Path) -> list[Document]:
  """The documents of a JSON-lines file of doc_id, title, summary, in its order; each id once."""
  bad_rows, docs = BadRows(), {}

  def parse(line: bytes) -> Document:
    doc = records.document(lines.from_json(line))
    if doc.doc_id in docs:
      raise records.BadRow('doc_id', f'{doc.doc_id!r} is there twice', 'give each its own')
    return doc

  for file in lines.matching(str(path)):
    for number, line in lines.read(file):
      doc = bad_rows.parse(file, number, line, parse)
      docs[doc.doc_id] = doc
  return list(docs.values())


def of_places(places: Iterator[rows.Place], want: Want) -> Iterator[Click | Group | Score]:
  """The records of rows that stand for themselves; documents of a query are gathered."""
  make = made(want.kind)
  parsed = (
    (file, number, record)
    for file, number, raw in places
    for record in want.bad_rows.parse_all(file, number, raw, make)
  )
  if want.kind in ('clicks', SCORES):
    return (record for _, _, record in parsed)
  return grouping.of_rows(parsed, want.bad_rows, want.scratch)


def _row_files(scheme: str, rest: str, want: Want) -> Iterator[Click | Group | Score]:
  source = row_files(f'{scheme}:{rest}')
  return of_places(source.places(), want)


def _packages(rest: str) -> tuple[str, ...]:
  """Whose documentation an address of `python_docs:` means."""
  path, options = _options('python_docs', rest, ('packages', 'only'))
  if path:
    raise UserError(f'python_docs:{rest}: takes no path; write python_docs:?packages=numpy,jax')
  more, only = (tuple(filter(None, options.get(o, '').split(','))) for o in ('packages', 'only'))
  return (*(only or python_docs.LIBRARY), *more)


def _version(package: str) -> str:
  found = importlib.metadata.packages_distributions().get(package, ())
  return ' '.join(importlib.metadata.version(name) for name in found)


def _python_docs(rest: str, want: Want) -> Iterator[Click | Group]:
  packages = _packages(rest)
  if want.kind == 'clicks':
    return python_docs.clicks(packages)
  _no_scores('python_docs', rest, want)
  kind = 'judgements' if want.kind == POOLED else want.kind  # every document there is labelled
  return python_docs.groups(kind, want.depth, packages)


def _trec(rest: str, want: Want) -> Iterator[Click | Group | Score]:
  path, options = _options('trec', rest, trec.OPTIONS)
  if not path:
    raise UserError('trec: names no folder; write trec:DIR, such as trec:data/nfcorpus')
  path = Path(path).expanduser()
  if want.kind != SCORES:
    folder = trec.Folder(path, options, want.depth)
    return collection.read(folder, want.kind, want.depth, want.bad_rows, want.scratch)
  run = path
  if path.is_dir():
    run = trec.existing(path, 'run', options.get('run'))
  found = trec.run_lines(run, want.bad_rows)
  return ((line.query_id, line.doc_id, line.score) for line in found)


def _ir_datasets(rest: str, want: Want) -> Iterator[Group]:
  name, options = _options('ir_datasets', rest, irds.OPTIONS)
  if not name:
    raise UserError('ir_datasets: names no dataset; write ir_datasets:ID, see ir-datasets.com')
  dataset = irds.Dataset(name, options, want.depth)
  if want.kind != SCORES:
    return collection.read(dataset, want.kind, want.depth, want.bad_rows, want.scratch)
  found = dataset.run(want.bad_rows, needed=True)
  return ((line.query_id, line.doc_id, line.score) for line in found)


def _tfds(rest: str, want: Want) -> Iterator[Click | Group | Score]:
  name, options = _options('tfds', rest, tfds_rows.OPTIONS)
  if not name:
    raise UserError('tfds: names no dataset; write tfds:NAME or tfds:FOLDER of a prepared one')
  return of_places(tfds_rows.read(name, options), want)


def _no_scores(scheme: str, rest: str, want: Want) -> None:
  if want.kind == SCORES:
    raise UserError(f"{scheme}:{rest}: has no teacher's scores; give another address")


ROW_READERS = {
  'jsonl': lines.read,
  'parquet': functools.partial(rows.parquet, columns=row_formats.COLUMNS),
}
SCHEMES: dict[str, tuple[Scheme, str]] = {
  'python_docs': (_python_docs, 'python_docs:'),
  'jsonl': (functools.partial(_row_files, 'jsonl'), 'jsonl:data/*.jsonl.gz'),
  'parquet': (functools.partial(_row_files, 'parquet'), 'parquet:data/*.parquet'),
  'trec': (_trec, 'trec:data/nfcorpus?qrels=qrels.txt&pool=run'),
  'ir_datasets': (_ir_datasets, 'ir_datasets:beir/nfcorpus/train'),
  'tfds': (_tfds, 'tfds:prepared/candidates'),
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
