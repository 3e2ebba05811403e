"""Reads event logs row by row, checks each row, and sums per user and day as it goes."""

import datetime
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from disranker_jax.data import lines, rows
from disranker_jax.data.records import BadRow, BadRows, check_unicode
from disranker_jax.errors import UserError
from disranker_jax.evaluation.online.users import ROWS, SUMS, Log, Summed, summed
from disranker_jax.progress import amount

EVENTS = ('impression', 'click', 'dwell', 'query_change')
# The columns that are read from a Parquet file.
COLUMNS = ('event', 'page', 'user', 'day', 'bucket', 'clicks', 'dwell', 'query_changed')
NAME = 1000  # characters of a user, bucket or page: thousands of them are in memory at a time
LINE_BITS = 40  # the place of a row is its file's index and its line in one integer

USER_DAY = [('user', pa.large_string()), ('bucket', pa.large_string()), ('day', pa.int32())]
IMPRESSION = [('page', pa.large_string()), *USER_DAY, ('place', pa.int64())]
ACTION = [
  ('page', pa.large_string()),
  *((name, pa.float64()) for name in ('clicks', 'measured', 'dwell', 'changed')),
  ('place', pa.int64()),
]


def read(
  patterns: Iterable[str],
  *,
  max_dwell: float = math.inf,
  bad_rows: BadRows | None = None,
  progress: Callable[[int], None] = lambda rows: None,
) -> Log:
  """Reads all files of the paths or glob patterns, summed per user and day.

  `max_dwell` caps the seconds per click, for tabs that were left open. `progress` is called with
  the number of rows from time to time. Raises: UserError, `FILE:LINE:FIELD: what; what to do` for
  a bad row, unless `bad_rows` quarantines it (for Parquet, LINE is the row from 1).
  """
  bad_rows = BadRows() if bad_rows is None else bad_rows
  files = [file for pattern in patterns for file in lines.matching(pattern)]
  if twice := {str(file) for file in files if files.count(file) > 1}:
    raise UserError(f'{min(twice)}: is named twice; every event would count double')
  form: Wide | Long | None = None

  def add(raw: Any, place: int) -> None:
    nonlocal form
    row = rows.decode(raw)
    if not isinstance(row, Mapping):
      raise BadRow('row', f'is not an object ({row!r:.40})', 'write one JSON object {...} per line')
    if form is None:
      form = Wide(max_dwell) if row.get('event') is None else Long(max_dwell)
    form.add(row, place)

  read_file = functools.partial(rows.read, columns=COLUMNS)
  index_of = {file: index for index, file in enumerate(files)}
  for file, number, raw in rows.of_files(files, read_file):
    place = (index_of[file] << LINE_BITS) + number
    bad_rows.parse(file, number, raw, functools.partial(add, place=place))
    if bad_rows.rows_in % ROWS == 0:
      progress(bad_rows.rows_in)
  if form is None or not (table := form.user_days(files, bad_rows)).num_rows:
    raise UserError(f'{files[0]}: no usable row in the log; see the rows in {bad_rows.path}')
  return Log.of(table, rows=bad_rows.rows_in, quarantined=bad_rows.quarantined)


class Wide:
  """A wide log: each row is a result page."""

  def __init__(self, max_dwell: float):
    self._max_dwell = max_dwell
    self._sums = Summed([*USER_DAY, *((name, pa.float64()) for name in SUMS)], keys=3)

  def add(self, row: Mapping[str, Any], place: int) -> None:
    if row.get('event') is not None:
      fix = 'keep wide rows and single events in different logs'
      raise BadRow('event', 'is here but not in the first row of the log', fix)
    key = name_of(row, 'user'), name_of(row, 'bucket'), day_of(row)
    clicks = clicks_of(row)
    dwell, measured = dwell_of(row, clicks, self._max_dwell)
    changed = row.get('query_changed')
    if changed is not None and not isinstance(changed, bool):
      fix = 'write true or false, null if unknown'
      raise BadRow('query_changed', f'is {changed!r:.40}', fix)
    known = changed is not None
    self._sums.add(
      (*key, 1, int(clicks > 0), clicks, measured, dwell, int(known), int(known and changed))
    )

  def user_days(self, files: list[Path], bad_rows: BadRows) -> pa.Table:
    return self._sums.table()


class Long:
  """A long log: each row is an event; events are joined by page at the end."""

  def __init__(self, max_dwell: float):
    self._max_dwell = max_dwell
    self._pages = Summed(IMPRESSION, keys=len(IMPRESSION))
    self._actions = Summed(ACTION, keys=1)

  def add(self, row: Mapping[str, Any], place: int) -> None:
    event = row.get('event')
    if event not in EVENTS:
      what = 'is missing' if event is None else f'is {event!r:.40}'
      raise BadRow('event', what, f'write one of {", ".join(EVENTS)}')
    page = name_of(row, 'page')
    if event == 'impression':
      self._pages.add((page, name_of(row, 'user'), name_of(row, 'bucket'), day_of(row), place))
    elif event == 'dwell':
      if row.get('dwell') is None:
        raise BadRow('dwell', 'is missing', 'give the seconds, or leave the event out')
      seconds = min(seconds_of(row['dwell']), self._max_dwell)
      self._actions.add((page, 0, 1, seconds, 0, place))
    else:
      clicks = int(event == 'click')
      self._actions.add((page, clicks, 0, 0, 1 - clicks, place))

  def user_days(self, files: list[Path], bad_rows: BadRows) -> pa.Table:
    pages, actions = self._pages.table(), self._actions.table()
    page_P = pages['page'].combine_chunks()
    first_P = np.unique(page_P.dictionary_encode().indices.to_numpy(), return_index=True)[1]
    again = np.setdiff1d(np.arange(len(pages)), first_P)
    reject(pages.take(again), 'has a second impression', 'log one for each page', files, bad_rows)
    pages, page_P = pages.take(first_P), page_P.take(first_P)

    index_A = pc.index_in(actions['page'].combine_chunks(), value_set=page_P)
    orphans = actions.filter(pc.is_null(index_A))
    reject(orphans, 'has no impression', 'log one for each page', files, bad_rows)
    actions, index_A = actions.filter(pc.is_valid(index_A)), index_A.drop_null().to_numpy()
    sums = {key: np.zeros(len(pages)) for key in ('clicks', 'measured', 'dwell', 'changed')}
    for key, sum_P in sums.items():
      sum_P[index_A] = actions[key].to_numpy()
    excess_P = sums['measured'] > sums['clicks']
    what = 'has more dwell events than clicks'
    reject(pages.filter(excess_P), what, 'log every click', files, bad_rows)

    sums['pages'] = np.ones(len(pages))
    sums['clicked'] = 1.0 * (sums['clicks'] > 0)
    sums['known'] = sums['pages'] * sums['changed'].any()
    sums['changed'] = 1.0 * (sums['changed'] > 0)
    table = pages.select(['user', 'bucket', 'day'])
    for key in SUMS:
      table = table.append_column(key, pa.array(sums[key]))
    return summed(table.filter(~excess_P), table.schema.names[:3])


def reject(table: pa.Table, what: str, fix: str, files: list[Path], bad_rows: BadRows) -> None:
  """Rejects the pages of a table, each with the place of its first event, in file order."""
  for row in table.select(['page', 'place']).sort_by('place').to_pylist():
    index, number = divmod(row['place'], 1 << LINE_BITS)
    bad = BadRow('page', f'{row["page"]!r:.40} {what}', fix)
    bad_rows.reject(files[index], number, {'page': row['page']}, bad)


def name_of(row: Mapping[str, Any], field: str) -> str:
  """A field that names something: text, or an integer as text."""
  value = row.get(field)
  if isinstance(value, str) and value.strip():
    check_unicode(field, value)
    if len(value) > NAME:
      raise BadRow(field, f'has {len(value):,} characters', f'write at most {NAME:,}')
    return value
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  what = 'is missing' if value is None else f'is {value!r:.40}'
  raise BadRow(field, what, 'write text that is not blank, or an integer')


def day_of(row: Mapping[str, Any]) -> int:
  """The day as a number (datetime's ordinal)."""
  value = row.get('day')
  if isinstance(value, datetime.date):
    return value.toordinal()
  what = 'is missing' if value is None else f'is {value!r:.40}'
  try:
    return _ordinal(value)
  except (TypeError, ValueError):
    raise BadRow('day', what, 'write a date as YYYY-MM-DD') from None


@functools.lru_cache(maxsize=10_000)
def _ordinal(text: str) -> int:
  return datetime.datetime.strptime(text, '%Y-%m-%d').toordinal()


def clicks_of(row: Mapping[str, Any]) -> int:
  """The number of clicks on a page."""
  value = row.get('clicks')
  if isinstance(value, list):
    return len(value)
  if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31:
    return value
  what = 'is missing' if value is None else f'is {value!r:.40}'
  raise BadRow('clicks', what, 'write how many results were clicked, or a list with one entry each')


def dwell_of(row: Mapping[str, Any], clicks: int, cap: float) -> tuple[float, int]:
  """Seconds on the clicked results of a page, and how many clicks they were measured on."""
  value = row.get('dwell')
  if value is None or value == []:
    return 0.0, 0
  if isinstance(value, list):
    if len(value) != clicks:
      what = f'has {amount(len(value), "entry", "entries")} for {amount(clicks, "click")}'
      raise BadRow('dwell', what, 'write one for each click, null where it was not measured')
    seconds = [min(seconds_of(entry), cap) for entry in value if entry is not None]
    return math.fsum(seconds), len(seconds)
  seconds = seconds_of(value)
  if seconds and not clicks:
    raise BadRow('dwell', f'is {value!r:.40} without a click', 'count the clicks or write null')
  return (min(seconds, cap * clicks), clicks) if clicks else (0.0, 0)


def seconds_of(value: Any) -> float:
  """Seconds of dwell time."""
  if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15:
    return float(value)
  raise BadRow('dwell', f'is {value!r:.40}', 'write seconds, 0 or more, or null if not measured')
