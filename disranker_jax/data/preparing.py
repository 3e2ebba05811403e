"""Prepares a source: streams it into sharded ArrayRecord files, in bounded memory, with resume.

A hidden folder next to the result holds the unfinished work and a journal: which rows are read,
which sorted runs and shards are on disk. The same command continues from there. Rows of JSONL and
Parquet are never read twice; collections are joined again, but finished shards are kept.
"""

import dataclasses
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disranker_jax import locks
from disranker_jax.data import (
  contents,
  grouping,
  row_files,
  sources,
  store,
)
from disranker_jax.data.preparation import Job
from disranker_jax.data.records import BadRows, has_more
from disranker_jax.data.row_files import RowFiles
from disranker_jax.data.spool import Spool
from disranker_jax.data.store import Record, Shards
from disranker_jax.progress import Count, amount, of_units, say

CHUNK_ROWS = 100_000  # rows of a source between two writes of the journal


@dataclasses.dataclass(frozen=True)
class Prepared:
  """The result of a job. `rows` counts rows of the source files, `records` clicks or queries."""

  records: int
  rows: int
  quarantined: int
  wall_s: float
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # reported by `changes`
  notes: dict[str, int] = dataclasses.field(default_factory=dict)  # of BadRows
  is_cut: bool = False  # whether there are more records than the limit

  def described(self, unit: str, limit: str) -> str:
    """The number of records, and what to know if these are the first ones of a source.

    Args:
      unit: what records are called.
      limit: the name of the limit.
    """
    if not self.is_cut:
      return of_units(self.records, unit)
    return f'the first {of_units(self.records, unit)}; there are more ({limit})'


def prepare(job: Job) -> Prepared:
  """Runs the job or what is left of it; does nothing if the folder already has its result.

  Raises: UserError for bad input, and while another process prepares the folder; finished work is
  kept for the next call.
  """
  store.check_target(job.folder)
  digest = job.digest()
  if not job.partial.exists() and (done := _done(job, digest)):
    return done
  job.folder.parent.mkdir(parents=True, exist_ok=True)
  with locks.beside(job.folder):
    if done := _done(job, digest):
      shutil.rmtree(job.partial, ignore_errors=True)
      return done
    if done := _linked(job, digest):
      return done
    work = Work(job, digest)
    try:
      return work.run()
    finally:
      work.leave()


def _done(job: Job, digest: str) -> Prepared | None:
  """The result of an earlier call for the same job."""
  file = job.folder / store.RESULT
  if not file.exists():
    return None
  value = json.loads(file.read_text())
  if value.pop('digest') != digest:
    return None
  say(f'prepare {job.kind}: done before, {job.folder}')
  return Prepared(**value)


def take(job: Job, other: Job) -> bool:
  """Links the result of another job, if it did the same and is done, and this one has not begun."""
  file = other.folder / store.RESULT
  if job.folder.exists() or job.partial.exists() or not file.exists():
    return False
  value = json.loads(file.read_text())
  if value['digest'] != job.digest():
    return False
  job.folder.parent.mkdir(parents=True, exist_ok=True)
  if other.quarantine.exists():
    shutil.copyfile(other.quarantine, job.quarantine)
  store.copy(other.folder, job.folder, {store.RESULT: value})
  return True


def _linked(job: Job, digest: str) -> Prepared | None:
  """The result if the source is prepared data of this kind to use unchanged: links its files."""
  source = sources.open(job.address, job.kind).prepared(job.kind)
  if source is None or job.limit or job.depth or job.changes or job.keep:
    return None
  begin = time.monotonic()
  records = len(store.open(job.kind, source))
  done = Prepared(records, records, 0, time.monotonic() - begin)
  store.copy(source, job.folder, {store.RESULT: dataclasses.asdict(done) | {'digest': digest}})
  return done


def _journal(file: Path) -> dict[str, Any] | None:
  """The state of unfinished work; None if it is not one that `Work` wrote.

  The folder may be somebody else's: names must be those of files in it.
  """
  try:
    state = json.loads(file.read_text())
    counts = [state['rows'], *state['shards']['lengths'], state['runs']['count']]
    names = state['runs']['runs']
    valid = all(type(n) is int and n >= 0 for n in counts) and all(map(contents.is_name, names))
    return state if valid and isinstance(state['digest'], str) else None
  except (ValueError, TypeError, KeyError, RecursionError):
    return None


class Work:
  """A job in progress, with its state on disk and in the journal."""

  def __init__(self, job: Job, digest: str):
    self._job, self._digest = job, digest
    self._label = f'prepare {job.kind}'
    self._journal = job.partial / 'journal.json'
    self._begin = time.monotonic()
    self._state = self._resume()
    self._bad_rows = BadRows(job.on_bad_row, job.quarantine, keep=True)
    self._bad_rows.rewind(self._state['bad_rows'])
    self._shards = Shards(job.kind, job.partial / 'shards')
    self._shards.rewind(self._state['shards'])
    self._finished = self._is_cut = False

  def _resume(self) -> dict[str, Any]:
    if self._journal.exists():
      state = _journal(self._journal)
      if state is None:
        say(f'{self._label}: {self._journal} is not a journal; starts again')
      elif state['digest'] == self._digest:
        rows, records = state['rows'], sum(state['shards']['lengths'])
        say(
          f'{self._label}: continues after {amount(rows, "row")} read and '
          f'{amount(records, "record")} written'
        )
        return state
      else:
        say(f'{self._label}: the source or a setting has changed; starts again')
    shutil.rmtree(self._job.partial, ignore_errors=True)
    self._job.partial.mkdir(parents=True)
    return {
      'digest': self._digest, 'rows': 0, 'read': False, 'wall_s': 0.0,
      'bad_rows': {'rows_in': 0, 'quarantined': 0, 'bytes': 0},
      'runs': {'count': 0, 'runs': []}, 'shards': {'lengths': [], 'bytes': 0},
    }  # fmt: skip

  def _save(self, **changes: Any) -> None:
    now = time.monotonic()
    spent = self._state['wall_s'] + now - self._begin
    self._begin = now
    self._state |= changes | {'shards': self._shards.mark(), 'wall_s': spent}
    partial = self._journal.with_suffix('.partial')
    partial.write_text(json.dumps(self._state))
    os.replace(partial, self._journal)

  def run(self) -> Prepared:
    """Does the rest of the job."""
    job = self._job
    kind = job.read_as or job.kind
    source = sources.open(job.address)
    if isinstance(source, RowFiles) and kind == 'clicks':
      self._clicks(source)
    elif isinstance(source, RowFiles):
      runs = Spool(job.partial / 'by_query')
      self._read(source, runs)
      groups = grouping.groups(runs, self._bad_rows, job.partial / 'scratch')
      groups = filter(job.keep or bool, groups)  # others are not to be counted when they are cut
      self._write(grouping.cuts(groups, kind, job.depth, self._bad_rows, job.address))
    else:
      scratch = job.partial / 'scratch'
      options = {'bad_rows': self._bad_rows, 'scratch': scratch, 'keep': job.keep}
      self._write(sources.read(job.address, kind, depth=job.depth, **options))
    result = Prepared(
      records=sum(self._shards.lengths), rows=self._bad_rows.rows_in,
      quarantined=self._bad_rows.quarantined, wall_s=self._state['wall_s'],
      facts={k: v for change in job.changes for k, v in getattr(change, 'facts', {}).items()},
      notes=dict(self._bad_rows.notes),
      is_cut=self._is_cut or any(getattr(change, 'is_cut', False) for change in job.changes),
    )  # fmt: skip
    self._shards.finish(
      job.folder, {store.RESULT: dataclasses.asdict(result) | {'digest': self._digest}}
    )
    self._finished = True
    return result

  def _clicks(self, source: RowFiles) -> None:
    """Writes clicks directly into shards, because they need no grouping."""
    make, done = row_files.made('clicks'), self._state['rows']
    left = (self._job.limit or math.inf) - sum(self._shards.lengths)
    with Count(self._label, 'rows', done) as progress:
      # Shards end between rows only: a resume starts with the next row.
      def end_shard() -> None:
        self._shards.close_shard()
        self._save(rows=progress.count, bad_rows=self._bad_rows.mark())

      kept = (
        list(filter(self._job.keep or bool, self._bad_rows.parse_all(*place, make)))
        for place in source.places(done)
      )
      for clicks in kept if left else ():
        self._is_cut = len(clicks) > left
        full = [self._shards.add(click) for click in clicks[: min(left, len(clicks))]]
        left -= len(full)
        progress.add(1)
        if any(full):
          end_shard()
        if not left:
          break
      if not left and not self._is_cut:
        self._is_cut = has_more(itertools.chain.from_iterable(kept), self._bad_rows)
      end_shard()

  def _read(self, source: RowFiles, runs: Spool) -> None:
    """Checks every row once and spools them to disk, sorted by query."""
    runs.rewind(self._state['runs'])
    if self._state['read']:
      return
    make, bad_rows = row_files.made(self._job.read_as or self._job.kind), self._bad_rows
    with Count(self._label, 'rows', self._state['rows']) as progress:
      places = source.places(self._state['rows'])

      def parsed() -> Iterator[tuple[Any, int, Any]]:
        for file, number, raw in itertools.islice(places, CHUNK_ROWS):
          progress.add(1)
          for record in bad_rows.parse_all(file, number, raw, make):
            yield file, number, record

      while True:
        before = progress.count
        for query_id, part in grouping.parts(parsed(), start=bad_rows.rows_in):
          runs.add(query_id, part)
        if progress.count == before:
          break
        runs.flush()
        self._save(rows=progress.count, bad_rows=bad_rows.mark(), runs=runs.mark())
    obsolete = runs.compact()
    self._save(read=True, runs=runs.mark())
    for run in obsolete:  # only after the journal no longer names them
      run.unlink()

  def _write(self, records: Iterator[Record]) -> None:
    """Writes the records after those of the finished shards."""
    records = self._limited(filter(self._job.keep or bool, records))
    for change in self._job.changes:
      records = change(records, self._bad_rows, self._job.partial / 'scratch')
    done = sum(self._shards.lengths)
    unit = 'clicks' if self._job.kind == 'clicks' else 'queries'
    with Count(self._label, unit, done) as progress:
      for record in itertools.islice(records, done, None):
        full = self._shards.add(record)
        progress.add(1)
        if full:
          self._shards.close_shard()
          self._save()
    self._shards.close_shard()
    self._save()

  def _limited(self, records: Iterator[Record]) -> Iterator[Record]:
    """The records up to the limit; sees whether there is another one."""
    yield from itertools.islice(records, self._job.limit or None)
    self._is_cut = bool(self._job.limit) and has_more(records, self._bad_rows)

  def leave(self) -> None:
    """Removes files that a resume does not need."""
    if self._finished or not self._journal.exists():
      shutil.rmtree(self._job.partial, ignore_errors=True)
    empty = not self._bad_rows.quarantined
    if empty and self._job.on_bad_row == 'quarantine':
      self._job.quarantine.unlink(missing_ok=True)
