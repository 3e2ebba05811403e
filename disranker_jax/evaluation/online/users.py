"""The sums that are kept of a log, per user and day, and their accumulation from rows."""

import dataclasses
import datetime
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from disranker_jax.errors import UserError

ROWS = 1 << 16  # rows that are Python objects at a time; then they become columns
BUCKETS = 100  # the time grows with buckets times rows
COMPACT = 1 << 20  # columns are summed again after this many rows, or when they have doubled

# pages shown, pages with a click, clicks, clicks with a dwell time, their seconds, pages where a
# query change is known to have happened or not, and pages with a query change
SUMS = ('pages', 'clicked', 'clicks', 'measured', 'dwell', 'known', 'changed')


class Summed:
  """Rows summed by their first `keys` columns as they arrive; memory grows with the keys only."""

  def __init__(self, schema: Sequence[tuple[str, pa.DataType]], keys: int):
    self._schema = pa.schema(schema)
    self._keys = self._schema.names[:keys]
    self._rows: list[tuple] = []
    self._parts: list[pa.Table] = []
    self._size = self._compacted = 0

  def add(self, row: tuple) -> None:
    self._rows.append(row)
    if len(self._rows) >= ROWS:
      self._flush()

  def table(self) -> pa.Table:
    """All rows so far, see `summed`."""
    self._flush()
    self._compact()
    return self._parts[0]

  def _flush(self) -> None:
    columns = zip(*self._rows, strict=True) if self._rows else [[]] * len(self._schema)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, self._schema, strict=True)]
    self._parts.append(summed(pa.Table.from_arrays(arrays, schema=self._schema), self._keys))
    self._rows = []
    self._size += self._parts[-1].num_rows
    if self._size > max(COMPACT, 2 * self._compacted):
      self._compact()

  def _compact(self) -> None:
    self._parts = [summed(pa.concat_tables(self._parts), self._keys)]
    self._size = self._compacted = self._parts[0].num_rows


def summed(table: pa.Table, keys: Sequence[str]) -> pa.Table:
  """One row per key: the minimum of `place`, the sum of all other columns."""
  schema = table.schema
  values = schema.names[len(keys) :]
  if not values:
    return table.combine_chunks()
  how = [(name, 'min' if name == 'place' else 'sum') for name in values]
  # One thread: the order of additions, which decides the last digit, must not vary.
  result = table.group_by(keys, use_threads=False).aggregate(how)
  result = result.select([*keys, *(f'{name}_{kind}' for name, kind in how)])
  return result.rename_columns(schema.names).cast(schema)


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
  """The users of one bucket: R rows, one for each user and day, with their sums.

  `user_R` counts 0..users-1 and `day_R` is an index into the log's days; sums_R[name] as in SUMS.
  """

  users: int
  user_R: np.ndarray
  day_R: np.ndarray
  sums_R: dict[str, np.ndarray]

  def totals(self, days: int | None = None) -> dict[str, np.ndarray]:
    """Sums for each user seen in the first `days` days (None: all), {name: (U,)}."""
    rows = slice(None) if days is None else self.day_R < days
    users = self.user_R[rows]
    totals = {k: np.bincount(users, v[rows], self.users) for k, v in self.sums_R.items()}
    seen = totals['pages'] > 0
    return totals if seen.all() else {k: v[seen] for k, v in totals.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Log:
  """A log, summed: buckets by name, the days with events, and what was left out and why."""

  buckets: dict[str, Bucket]
  days: tuple[datetime.date, ...]
  rows: int
  quarantined: int
  users_in_several_buckets: int

  @classmethod
  def of(cls, table: pa.Table, rows: int, quarantined: int) -> 'Log':
    """From a table of user, bucket, day (ordinal) and SUMS; users of several buckets are left out.

    The effect on such a user cannot be attributed; counting them in one bucket would bias both.
    """
    user_R, users = _codes(table['user'])
    bucket_R, names = _codes(table['bucket'])
    if len(names) > BUCKETS:
      shown = ', '.join(f'{name!r:.40}' for name in names[:3])
      raise UserError(
        f'bucket: has {len(names):,} different values ({shown}, ...), more than {BUCKETS}; write '
        'the ranker that the user saw'
      )
    days, day_R = np.unique(table['day'].to_numpy(), return_inverse=True)
    pairs = np.unique(user_R * len(names) + bucket_R) // len(names)
    several_U = np.bincount(pairs, minlength=len(users)) > 1
    sums = {name: table[name].to_numpy() for name in SUMS}
    buckets = {}
    for name, code in sorted(zip(names, range(len(names)), strict=True)):
      kept = (bucket_R == code) & ~several_U[user_R]
      unique, user = np.unique(user_R[kept], return_inverse=True)
      buckets[name] = Bucket(
        len(unique), user, day_R[kept], {k: value[kept] for k, value in sums.items()}
      )
    return cls(
      buckets,
      tuple(datetime.date.fromordinal(int(day)) for day in days),
      rows,
      quarantined,
      int(several_U.sum()),
    )


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
  encoded = column.combine_chunks().dictionary_encode()
  return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
