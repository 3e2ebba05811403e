"""What models compute, on disk: Parquet shards, each with a note about its content and origin.

A shard holds the rows of consecutive items, in their order: the scored pairs of queries, or the
texts written from documents (`Format`). Its name says which: `000000120-000000432.parquet` has
items 120 to 431. Its note (`_000000120-000000432.json`) has the number of rows, the sha256 and what
made them (model, precision, tokenizer). Both are written atomically, the note last, so a shard with
a note is done. Every read checks the shard against its note. Shards may have any sizes: readers
need only that together they hold every item.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from disranker_jax import disks
from disranker_jax.data import contents
from disranker_jax.devices import processes
from disranker_jax.errors import Stopped, UserError
from disranker_jax.progress import amount, say

NAME = re.compile(r'(\d{9})-(\d{9})')


@dataclasses.dataclass(frozen=True)
class Format:
  """What the shards of a folder hold.

  schema  the columns
  rows    an item -> its rows
  items   what the items are called, and the key of their number in notes
  what    what the rows are called
  stage   the stage that computes them
  """

  schema: pa.Schema
  rows: Callable[[tuple], Iterable[tuple]]
  items: str
  what: str
  stage: str

  @property
  def again(self) -> str:
    """How to compute the rows again, for errors."""
    return f'do the {self.what} again with --rerun={self.stage}'


def scored_rows(scored: tuple) -> Iterable[tuple[str, str, float]]:
  """The rows of (group, scores)."""
  group, scores = scored
  return (
    (group.query_id, d.doc_id, score) for d, score in zip(group.docs, scores.tolist(), strict=True)
  )


SCORES = Format(
  pa.schema([('query_id', pa.string()), ('doc_id', pa.string()), ('score', pa.float32())]),
  scored_rows, 'queries', 'scores', 'score',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shard:
  """The rows of some consecutive items."""

  folder: Path
  name: str
  span: range  # of items, by index
  format: Format

  @property
  def file(self) -> Path:
    return self.folder / f'{self.name}.parquet'

  @property
  def note_file(self) -> Path:
    """Named so that readers of Parquet folders skip it."""
    return self.folder / f'_{self.name}.json'

  def note(self) -> dict | None:
    """The note; None if it is missing or unreadable."""
    try:
      note = json.loads(self.note_file.read_text())
      return note if {self.format.items, 'rows', 'sha256', 'made'} <= note.keys() else None
    except (OSError, ValueError, AttributeError):
      return None

  def problem(self) -> str:
    """Why the file is not what its note says; '' if it is."""
    try:
      content = self.file.read_bytes()
    except OSError as e:
      return f'cannot be read ({e.strerror})'
    note = self.note()
    same = note is not None and hashlib.sha256(content).hexdigest() == note['sha256']
    return '' if same else 'is not what was written (its sha256 differs)'

  def read(self) -> pa.Table:
    """The rows. Raises: UserError if the file differs from its note."""
    if problem := self.problem():
      raise UserError(f'{self.file}: {problem}; {self.format.again}')
    return pq.read_table(self.file, schema=self.format.schema)


def differing(made: dict, now: dict) -> list[str]:
  """In what the origin of rows differs from what would make them now.

  The model's 'version' is not compared where one side does not tell it.
  """
  keys = (made.keys() | now.keys()) - ({'version'} - (made.keys() & now.keys()))
  return [key for key in sorted(keys) if made.get(key) != now.get(key)]


class Shards:
  """A folder of the rows of `count` items.

  Args:
    made: what the rows come from: {'model': ..., ...}; shards with another origin are refused, see
      `differing`.
  """

  def __init__(self, folder: Path, count: int, made: dict | None = None, format: Format = SCORES):
    self.folder, self.count, self.made, self.format = folder, count, made, format

  def found(self) -> list[Shard]:
    """The shards that have a note, in order; of two that share items, the first one."""
    names = (NAME.fullmatch(file.stem[1:]) for file in self.folder.glob('_*.json'))
    shards = [
      Shard(self.folder, m[0], range(int(m[1]), int(m[2])), self.format) for m in names if m
    ]
    kept, end = [], 0
    for shard in sorted(shards, key=lambda s: (s.span.start, -s.span.stop)):
      if end <= shard.span.start < shard.span.stop <= self.count and shard.note():
        kept.append(shard)
        end = shard.span.stop
    return kept

  def kept(self) -> int:
    """How many items are on disk, by the notes alone."""
    return sum(len(shard.span) for shard in self.found())

  def missing(self) -> list[range]:
    """The items that are not on disk, as ranges in order; reads every finished shard.

    Shards that differ from their notes are reported and deleted, as is what no note names.

    Raises: UserError if another model made one of them.
    """
    whole = [shard for shard in self.found() if self._is_whole(shard)]
    names = {file.name for shard in whole for file in (shard.file, shard.note_file)}
    # Notes first: a shard without one does not count.
    for file in sorted(self.folder.glob('*'), key=lambda f: f.suffix != '.json'):
      if file.is_file() and file.name not in names:
        file.unlink()
    ends = [0, *(shard.span.stop for shard in whole)]
    starts = [*(shard.span.start for shard in whole), self.count]
    return [range(a, b) for a, b in zip(ends, starts, strict=True) if a < b]

  def take(self, other: 'Shards') -> int:
    """Links shards of another folder whose rows were made as ours are, of items that we lack.

    Returns how many items these are. Files that are links are left: they may lead anywhere.
    """
    self.folder.mkdir(parents=True, exist_ok=True)
    own, taken = [shard.span for shard in self.found()], 0
    for shard in other.found():
      files, (start, stop) = (shard.file, shard.note_file), (shard.span.start, shard.span.stop)
      there = any(span.start < stop and start < span.stop for span in own)
      made = shard.note()['made']
      same = isinstance(made, dict) and not differing(made, self.made)
      if there or not same or any(map(Path.is_symlink, files)):
        continue
      for file in files:  # the note last: a shard without one does not count
        (self.folder / file.name).unlink(missing_ok=True)
        contents.link(file, self.folder / file.name)
      taken += len(shard.span)
    return taken

  def _is_whole(self, shard: Shard) -> bool:
    note = shard.note()
    if self.made is not None and (differs := differing(note['made'], self.made)):
      raise UserError(
        f'{shard.file}: was made with another {", ".join(differs)}; {self.format.again}'
      )
    problem = shard.problem()
    if problem:
      say(f'{shard.file} {problem}: its {self.format.what} are computed again')
    return not problem

  def write(self, span: range, items: Sequence[tuple]) -> None:
    """Stores some consecutive items, atomically.

    An item is what `format.rows` takes; one more value, a dict of counts, goes into the note.
    """
    shard = Shard(self.folder, f'{span.start:09d}-{span.stop:09d}', span, self.format)
    counted = [item[-1] for item in items if isinstance(item[-1], dict)]
    rows = [row for item in items for row in self.format.rows(item[:2])]
    columns = dict(zip(self.format.schema.names, zip(*rows, strict=True), strict=False))
    columns = {name: list(columns.get(name, ())) for name in self.format.schema.names}
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, self.format.schema), buffer)
    content = buffer.getvalue().to_pybytes()
    note = {
      self.format.items: len(items),
      'rows': len(rows),
      'sha256': hashlib.sha256(content).hexdigest(),
      'made': self.made,
      **({'counts': counted} if counted else {}),
    }
    put(shard.file, content)
    put(shard.note_file, (json.dumps(note, indent=1) + '\n').encode())

  def rows(self) -> Iterator[tuple]:
    """The rows of all shards, in order; of scores (query_id, doc_id, score)."""
    for shard in self.found():
      yield from _rows(shard.read())

  def rankings(self) -> Iterator[tuple[str, dict[str, float]]]:
    """(query_id, {doc_id: score}) of all queries with documents, in order, as runs.write_run."""
    for query, rows in itertools.groupby(self.rows(), key=lambda row: row[0]):
      yield query, {doc: score for _, doc, score in rows}

  def counts(self) -> list[dict[str, int]]:
    """The counts of all queries in order, where their scores came with some."""
    return [counts for shard in self.found() for counts in shard.note().get('counts', ())]

  def whole(self) -> Iterator[tuple[Shard, pa.Table]]:
    """Every shard with its rows, in order.

    Raises: UserError if the shards do not hold all items, or if one is not what was written.
    """
    end = 0
    for shard in [*self.found(), None]:
      start = shard.span.start if shard else self.count
      if start != end:
        raise UserError(
          f'{self.folder}: no shard holds the {self.format.items} {end:,} to {start - 1:,} '
          '(counted from 0); run the same command again'
        )
      if shard:
        yield shard, shard.read()
        end = shard.span.stop

  def audit(self, pairs_of) -> np.ndarray:
    """All scores in order, after a check that every pair has exactly one finite score.

    Args:
      pairs_of: index of a query -> (query_id, its doc_ids in order), as they had to be scored.

    Raises: UserError naming the shard that fails.
    """
    scores = [np.zeros(0, np.float32)]
    for shard, table in self.whole():
      audit_keys(shard, table, [(q, d) for q, docs in map(pairs_of, shard.span) for d in docs])
      values = table.column('score').to_numpy()
      if not np.isfinite(values).all():
        raise UserError(f'{shard.file}: has scores that are not finite; --rerun=score')
      scores.append(values)
    return np.concatenate(scores)


def audit_keys(shard: Shard, table: pa.Table, expected: list[tuple]) -> None:
  """Raises: UserError if the first two columns of a shard are not what had to be computed."""
  names = table.column_names[:2]
  if expected != list(zip(*(table.column(name).to_pylist() for name in names), strict=True)):
    raise UserError(
      f'{shard.file}: its {amount(table.num_rows, "row is", "rows are")} not the '
      f'{amount(len(expected), "pair")} of {" and ".join(names)} that were to be computed; '
      f'{shard.format.again}'
    )


def _rows(table: pa.Table) -> Iterator[tuple]:
  return zip(*(column.to_pylist() for column in table.columns), strict=True)


def agreed(spans: list[range]) -> list[range]:
  """Process 0's ranges, in every process: what each one sees changes as others finish."""
  bounds = np.array([(span.start, span.stop) for span in spans], np.int64).reshape(-1, 2)
  count = int(processes.broadcast(np.array(len(bounds))))
  if not count:
    return []
  shared = processes.broadcast(bounds if len(bounds) == count else np.zeros((count, 2), np.int64))
  return [range(*pair) for pair in shared.tolist()]


def units(missing: Sequence[range], size: int) -> list[range]:
  """The missing items in units of `size`, which begin at multiples of it.

  What a unit needs is computed together and with nothing else. So a score is the same to the last
  bit whatever was scored before, in which shard and by which process.
  """
  starts = (range(r.start - r.start % size, r.stop, size) for r in missing)
  return [
    range(max(start, whole.start), min(start + size, whole.stop))
    for whole, begins in zip(missing, starts, strict=True)
    for start in begins
  ]


class Writer:
  """Writes finished units as shards of about `seconds` of work; a context manager.

  When the work is stopped, what is finished is written first.
  """

  def __init__(self, shards: Shards, seconds: float):
    self._shards, self._seconds = shards, seconds
    self._span, self._rows, self._current = range(0), [], []
    self._since = time.monotonic()

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    if kind is None or issubclass(kind, Stopped | KeyboardInterrupt):
      self._flush()

  def add(self, unit: range, item: tuple) -> None:
    """Takes the next item of a unit, as `Shards.write` has them."""
    self._current.append(item)
    if len(self._current) < len(unit):
      return
    if self._span.stop != unit.start:  # the items between are in another shard
      self._flush()
    self._span = range(self._span.start if self._rows else unit.start, unit.stop)
    self._rows, self._current = [*self._rows, *self._current], []
    if time.monotonic() - self._since >= self._seconds:
      self._flush()

  def _flush(self) -> None:
    if self._rows:
      self._shards.write(self._span, self._rows)
    self._rows, self._since = [], time.monotonic()


def put(file: Path, content: bytes) -> None:
  """Writes a file atomically and to disk: under another name first."""
  partial = file.with_name(file.name + '.partial')
  try:
    with disks.writing(file), partial.open('wb') as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    os.replace(partial, file)
  except OSError:
    partial.unlink(missing_ok=True)
    raise
