"""Scored pairs on disk: Parquet shards, each with a note about its content and origin.

A shard holds query_id, doc_id and score of consecutive queries, in their order. Its name says
which: `000000120-000000432.parquet` has queries 120 to 431. Its note (`_000000120-000000432.json`)
has the number of rows, the sha256 and what made the scores (model, precision, tokenizer). Both are
written atomically, the note last, so a shard with a note is done. Every read checks the shard
against its note. Shards may have any sizes: readers need only that together they hold every query.
"""

import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from disranker_jax.errors import Stopped, UserError
from disranker_jax.progress import say

SCHEMA = pa.schema([('query_id', pa.string()), ('doc_id', pa.string()), ('score', pa.float32())])
NAME = re.compile(r'(\d{9})-(\d{9})')


@dataclasses.dataclass(frozen=True)
class Shard:
  """The scored pairs of some consecutive queries."""

  folder: Path
  name: str
  span: range  # of queries, by index

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
      return note if {'queries', 'rows', 'sha256', 'made'} <= note.keys() else None
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
      raise UserError(f'{self.file}: {problem}; do the scores again with --rerun=score')
    return pq.read_table(self.file, schema=SCHEMA)


class Shards:
  """A folder of the scored pairs of `queries` queries.

  Args:
    made: what the scores come from: {'model': ..., ...}; shards with another origin are refused.
  """

  def __init__(self, folder: Path, queries: int, made: dict | None = None):
    self.folder, self.queries, self.made = folder, queries, made

  def found(self) -> list[Shard]:
    """The shards that have a note, in order; of two that share queries, the first one."""
    names = (NAME.fullmatch(file.stem[1:]) for file in self.folder.glob('_*.json'))
    shards = [Shard(self.folder, m[0], range(int(m[1]), int(m[2]))) for m in names if m]
    kept, end = [], 0
    for shard in sorted(shards, key=lambda s: (s.span.start, -s.span.stop)):
      if end <= shard.span.start < shard.span.stop <= self.queries and shard.note():
        kept.append(shard)
        end = shard.span.stop
    return kept

  def kept(self) -> int:
    """How many queries have scores on disk, by the notes alone."""
    return sum(len(shard.span) for shard in self.found())

  def missing(self) -> list[range]:
    """The queries without scores, as ranges in order; reads every finished shard.

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
    starts = [*(shard.span.start for shard in whole), self.queries]
    return [range(a, b) for a, b in zip(ends, starts, strict=True) if a < b]

  def _is_whole(self, shard: Shard) -> bool:
    note = shard.note()
    if self.made is not None and note['made'] != self.made:
      differs = [k for k in self.made if note['made'].get(k) != self.made[k]]
      raise UserError(
        f'{shard.file}: was made with another {", ".join(differs) or "model"}; '
        'do the scores again with --rerun=score'
      )
    problem = shard.problem()
    if problem:
      say(f'{shard.file} {problem}: it is scored again')
    return not problem

  def write(self, span: range, scored) -> None:
    """Stores the (group, scores) of some consecutive queries, atomically.

    A third value, a dict of counts for the query, goes into the note.
    """
    shard = Shard(self.folder, f'{span.start:09d}-{span.stop:09d}', span)
    columns = {'query_id': [], 'doc_id': [], 'score': []}
    counted = [counts for _, _, *more in scored for counts in more]
    for group, scores, *_ in scored:
      columns['query_id'] += [group.query_id] * len(group.docs)
      columns['doc_id'] += [d.doc_id for d in group.docs]
      columns['score'] += scores.tolist()
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, SCHEMA), buffer)
    content = buffer.getvalue().to_pybytes()
    note = {
      'queries': len(scored),
      'rows': len(columns['score']),
      'sha256': hashlib.sha256(content).hexdigest(),
      'made': self.made,
      **({'counts': counted} if counted else {}),
    }
    put(shard.file, content)
    put(shard.note_file, (json.dumps(note, indent=1) + '\n').encode())

  def rows(self) -> Iterator[tuple[str, str, float]]:
    """(query_id, doc_id, score) of all shards, in order."""
    for shard in self.found():
      table = shard.read()
      yield from zip(*(table.column(c).to_pylist() for c in SCHEMA.names), strict=True)

  def counts(self) -> list[dict[str, int]]:
    """The counts of all queries in order, where their scores came with some."""
    return [counts for shard in self.found() for counts in shard.note().get('counts', ())]

  def audit(self, pairs_of) -> np.ndarray:
    """All scores in order, after a check that every pair has exactly one finite score.

    Args:
      pairs_of: index of a query -> (query_id, its doc_ids in order), as they had to be scored.

    Raises: UserError naming the shard that fails.
    """
    scores, end = [np.zeros(0, np.float32)], 0
    for shard in [*self.found(), None]:
      start = shard.span.start if shard else self.queries
      if start != end:
        raise UserError(
          f'{self.folder}: no shard holds the queries {end:,} to {start - 1:,} (counted from 0); '
          'run the same command again'
        )
      if shard:
        scores.append(_audited(shard, pairs_of))
        end = shard.span.stop
    return np.concatenate(scores)


def _audited(shard: Shard, pairs_of) -> np.ndarray:
  table = shard.read()
  expected = [(q, d) for q, docs in map(pairs_of, shard.span) for d in docs]
  stored = zip(table.column('query_id').to_pylist(), table.column('doc_id').to_pylist(),
              strict=True)  # fmt: skip
  if expected != list(stored):
    raise UserError(
      f'{shard.file}: its {table.num_rows} rows are not the {len(expected)} pairs that '
      'were to be scored; do it again with --rerun=score'
    )
  values = table.column('score').to_numpy()
  if not np.isfinite(values).all():
    raise UserError(f'{shard.file}: has scores that are not finite; --rerun=score')
  return values


def units(missing: Sequence[range], size: int) -> list[range]:
  """The missing queries in units of `size`, which begin at multiples of it.

  The documents of a unit are packed together and with no others. So a score is the same to the last
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

  def add(self, unit: range, scored: tuple) -> None:
    """Takes the next query of a unit as (group, scores), perhaps with counts."""
    self._current.append(scored)
    if len(self._current) < len(unit):
      return
    if self._span.stop != unit.start:  # the queries between are in another shard
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
    with partial.open('wb') as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    os.replace(partial, file)
  except OSError:
    partial.unlink(missing_ok=True)
    raise
