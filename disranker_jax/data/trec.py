"""Reads the tables of a collection from TREC files: queries, documents, qrels and a run.

Rows: `queries.tsv` query_id, tab, text; `docs.jsonl` {doc_id, title, summary}; qrels `query_id 0
doc_id grade`. A run is `query_id Q0 doc_id rank score tag`, `query_id doc_id score`, or a margin
file of MS MARCO, `positive_score negative_score query_id positive_id negative_id`. All files may
be gzip.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator

from disranker_jax.data import (
  collection,
  collection_tables,
  lines,
  records,
  run_order,
  trec_lines,
)
from disranker_jax.data.bm25_run import BM25Run
from disranker_jax.data.collection import Line, Query, checked
from disranker_jax.data.records import BadRow, BadRows, Click, Document
from disranker_jax.data.source import DEPTH, SCORES, Want
from disranker_jax.data.tables import Tables
from disranker_jax.errors import UserError

FILES = {
  'queries': 'queries.tsv',
  'docs': 'docs.jsonl',
  'qrels': 'qrels.txt',
  'run': 'bm25.run',
  'clicks': 'clicks.jsonl',
}
OPTIONS = (*FILES, *collection_tables.WORDS, *collection_tables.CHOICES)


class Trec(Tables):
  """A folder of TREC files; for SCORES also a run alone."""

  scheme, example = 'trec', 'trec:data/nfcorpus?qrels=qrels.txt&pool=run'

  def open(self, depth: int = DEPTH) -> 'Folder':
    path, options = self.options(OPTIONS)
    if not path:
      raise UserError('trec: has no folder; write trec:DIR, such as trec:data/nfcorpus')
    return Folder(pathlib.Path(path).expanduser(), options, depth)

  def scores(self, want: Want) -> Iterator[Line]:
    _, options = self.options(OPTIONS)
    if not self.rest:
      self.open(want.depth)  # says what is missing
    place = self._place
    run = existing(place, 'run', options.get('run')) if place.is_dir() else place
    return run_lines(run, want.bad_rows)

  def check(self, kind: str) -> None:
    if kind == SCORES and self.rest and not self._place.is_dir():
      lines.check([self._place])
    else:
      super().check(kind)

  def fingerprint(self) -> list:
    place, named = self._place, self.named()
    if not place.is_dir():
      return self.of_files([place, *named])
    inside = {*tables(place), *(file for file in named if file.parent == place)}
    return self.of_files([*sorted(inside), *named])

  @property
  def _place(self) -> pathlib.Path:
    return pathlib.Path(self.rest.partition('?')[0]).expanduser()


class Folder:
  """The tables of a collection as files of a folder; `options` override the names in FILES."""

  parts = False

  def __init__(self, folder: pathlib.Path, options: dict[str, str], depth: int):
    if not folder.is_dir():
      raise UserError(f'{folder}: is not a folder; give the folder of a TREC collection')
    self.name, self.options = str(folder), options
    self._folder, self._depth = folder, depth

  @property
  def is_judged(self) -> bool:
    # A file that the option names and that does not exist is an error when it is read.
    return 'qrels' in self.options or bool(lines.variants(self._folder / FILES['qrels']))

  def queries(self, bad_rows: BadRows) -> Iterator[Query]:
    yield from checked(self._rows('queries'), _query, bad_rows)

  def documents(self, bad_rows: BadRows) -> Iterator[tuple[str, int, Document]]:
    make = functools.partial(_document, bad_rows.note)
    yield from checked(self._rows('docs'), make, bad_rows)

  def qrels(self, bad_rows: BadRows) -> Iterator[Line]:
    yield from checked(self._rows('qrels'), _judged, bad_rows)

  def choice(self, name: str) -> Iterator[Line]:
    file = existing(self._folder, 'only, ?exclude or ?without', name)
    yield from checked(_rows(file), _judged, BadRows())

  def run(self, bad_rows: BadRows, *, needed: bool) -> Iterable[Line] | None:
    name = self.options.get('run')
    if name == 'bm25' and not lines.variants(self._folder / name):
      return BM25Run(self, self._depth, needed=needed)
    if not (file := self._run_file(needed)):
      return None
    rows = run_lines(file, bad_rows)
    # A run that is merely there may only rank judged documents, for which any order does.
    return run_order.ordered(rows) if needed or name else rows

  def _run_file(self, needed: bool) -> pathlib.Path | None:
    name = self.options.get('run')
    if not needed and not name and not lines.variants(self._folder / FILES['run']):
      return None
    return existing(self._folder, 'run', name)

  def clicks(self, bad_rows: BadRows) -> Iterator[Click]:
    yield from checked(self._rows('clicks'), _click, bad_rows)

  def check(self, kind: str) -> None:
    tables = collection_tables.tables_of(kind, self.options)
    choices = collection_tables.choices_of(kind, self.options)
    files = [existing(self._folder, what, self.options.get(what)) for what in tables]
    files += [existing(self._folder, 'only, ?exclude or ?without', name) for name in choices]
    name = self.options.get('run')
    # BM25's own scores are none of a teacher, so these are of a file.
    computed = kind != SCORES and name == 'bm25' and not lines.variants(self._folder / name)
    if collection_tables.reads_run(kind) and not computed:
      want = collection.Reading(kind, self._depth, BadRows(), self.options.get('pool', ''))
      files += filter(None, [self._run_file(want.needs_run)])
    for file in files:
      lines.check([file])

  def _rows(self, what: str) -> Iterator[tuple[pathlib.Path, int, bytes]]:
    return _rows(existing(self._folder, what, self.options.get(what)))


def run_lines(file: pathlib.Path, bad_rows: BadRows) -> Iterator[Line]:
  """The lines of a run, in any of its layouts."""
  yield from checked(_rows(file), _scored, bad_rows)


def _rows(file: pathlib.Path) -> Iterator[tuple[pathlib.Path, int, bytes]]:
  for number, raw in lines.read(file):
    yield file, number, raw


def _query(file: str, number: int, raw: bytes) -> list[Query]:
  query_id, tab, query = lines.text(raw).partition('\t')
  if not tab:
    raise BadRow('query', 'is missing', 'write query_id, tab, query')
  if not query_id.strip() or not query.strip():
    raise BadRow('query' if query_id.strip() else 'query_id', 'is blank', 'fill it in or remove it')
  records.identifier({'query_id': query_id}, 'query_id')
  return [Query(file, number, raw, query_id, query)]


def _document(
  note: Callable[[str], None], file: str, number: int, raw: bytes
) -> list[tuple[str, int, Document]]:
  return [(file, number, records.document(lines.from_json(raw), note))]


def _judged(file: str, number: int, raw: bytes) -> list[Line]:
  query_id, _, doc_id, grade = trec_lines.columns(raw, trec_lines.QRELS)
  label = trec_lines.number(int, 'label', grade)
  if abs(label) > records.LARGEST_LABEL:
    what = f'write at most {records.LARGEST_LABEL}; 0 to 4 is usual'
    raise BadRow('label', f'is {grade[:40]}', what)
  return [Line(file, number, raw, query_id, doc_id, label)]


def _scored(file: str, number: int, raw: bytes) -> list[Line]:
  count = len(raw.split())
  line = functools.partial(Line, file, number, raw)
  if count == 3:
    query_id, doc_id, score = trec_lines.columns(raw, 'query_id doc_id score')
    return [line(query_id, doc_id, score=trec_lines.number(float, 'score', score))]
  if count == 5:
    layout = 'positive_score negative_score query_id positive_id negative_id'
    *scores, query_id, positive, negative = trec_lines.columns(raw, layout)
    better, worse = (
      trec_lines.number(float, *pair)
      for pair in zip(('positive_score', 'negative_score'), scores, strict=True)
    )
    return [line(query_id, positive, score=better), line(query_id, negative, score=worse)]
  query_id, _, doc_id, rank, score, _ = trec_lines.columns(raw, trec_lines.RUN)
  # Some tools count ranks from 0, some from 1; here 0 means "no rank".
  rank = max(trec_lines.number(int, 'rank', rank), 0) + 1
  return [line(query_id, doc_id, rank=rank, score=trec_lines.number(float, 'score', score))]


def _click(file: str, number: int, raw: bytes) -> list[Click]:
  return [records.click(lines.from_json(raw))]


def existing(folder: pathlib.Path, option: str, name: str | None = None) -> pathlib.Path:
  """The file `name` of an option, or the default file of the folder; either may have a .gz.

  Raises: UserError if it does not exist.
  """
  files = lines.named(folder, name) if name else lines.variants(folder / FILES[option])
  if not files:
    file = folder / (name or FILES[option])
    raise UserError(f'{file}: does not exist, nor does its .gz; name the file with ?{option}=FILE')
  return files[0]


def tables(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files of a folder that are read if no option names another."""
  return [file for name in FILES.values() for file in lines.variants(folder / name)[:1]]
