"""Packs documents into batches for scoring, out of order, so that rows are almost full.

The score of a document does not depend on other documents, so any order is allowed. A row starts
with the documents that have waited longest and ends with the one or two documents of the pool that
fill it best. So no document waits forever, and rows have almost no padding.
"""

import collections
from collections.abc import Iterable, Iterator

from disranker_jax.data.batches import EncodedGroup, Shape, lay_out, unfit

# Rows of tokens in the pool beyond those of a batch; with fewer, rows have more padding.
CHOICE = 64


class Pool:
  """Collects documents, each with a key of the caller, and packs them into batches.

  Args:
    shape: the shape of a batch; every group in it is one document.
  """

  def __init__(self, shape: Shape):
    self.shape = shape
    self.tokens = 0
    self._waiting = collections.OrderedDict()  # number -> (group, key), oldest first
    self._of_length = [collections.deque() for _ in range(shape.row_len + 1)]  # numbers
    self._lengths = 0  # bit n is set if there is a document of n tokens
    self._numbers = 0

  def __len__(self) -> int:
    return len(self._waiting)

  @property
  def ready(self) -> bool:
    """Whether the pool has enough documents for a well-filled batch."""
    return self.tokens >= (self.shape.rows + CHOICE) * self.shape.row_len

  def add(self, group: EncodedGroup, key) -> None:
    """Adds a group of one document. Raises: UserError if it does not fit into a batch."""
    [doc], s = group.docs, self.shape
    if len(doc) > s.row_len or (s.predicted and group.predicted > s.predicted * s.rows):
      raise unfit(group, s)
    self._waiting[self._numbers] = group, key
    self._of_length[len(doc)].append(self._numbers)
    self._lengths |= 1 << len(doc)
    self._numbers += 1
    self.tokens += len(doc)

  def batch(self) -> tuple[list, dict]:
    """(keys of the documents in order, the arrays of data/batches.py)."""
    filling, s = Filling(self.shape), self.shape
    for row in range(s.rows):
      room = s.row_len
      while lengths := self._next(room):
        for length in lengths:
          if not filling.take(self._oldest(length), row, s.row_len - room):
            return filling.keys, filling.batch()
          self._remove(length)
          room -= length
    return filling.keys, filling.batch()

  def _next(self, room: int) -> tuple[int, ...]:
    """The lengths of the next documents for a row with this room; () if none fits."""
    if not self._waiting:
      return ()
    if room == self.shape.row_len or room > 2 * (self._lengths.bit_length() - 1):
      group, _ = next(iter(self._waiting.values()))
      return (len(group.docs[0]),)
    return self._best(room)

  def _best(self, room: int) -> tuple[int, ...]:
    """The lengths of the one or two documents that fill the room best, longest first."""
    best, chosen = 0, ()
    firsts = fitting = self._lengths & ((2 << room) - 1)
    while firsts and best < room:
      first = firsts.bit_length() - 1
      if 2 * first <= best:
        break  # the second is at most as long as the first
      firsts ^= 1 << first
      seconds = fitting & ((2 << min(room - first, first)) - 1)
      if len(self._of_length[first]) == 1:
        seconds &= ~(1 << first)
      second = max(seconds.bit_length() - 1, 0)
      if first + second > best:
        best, chosen = first + second, (first, second) if second else (first,)
    return chosen

  def _oldest(self, length: int):
    return self._waiting[self._of_length[length][0]]

  def _remove(self, length: int) -> None:
    del self._waiting[self._of_length[length].popleft()]
    if not self._of_length[length]:
      self._lengths ^= 1 << length
    self.tokens -= length


def pack(documents: Iterable[tuple[EncodedGroup, object]], shape: Shape) -> Iterator:
  """Packs all documents; yields (keys of its documents, batch)."""
  pool = Pool(shape)
  for group, key in documents:
    pool.add(group, key)
    while pool.ready:
      yield pool.batch()
  while len(pool):
    yield pool.batch()


class Filling:
  """A batch under construction."""

  def __init__(self, shape: Shape):
    self.shape = shape
    self.keys, self._groups, self._places, self._predicted = [], [], [], 0

  def take(self, waiting, row: int, start: int) -> bool:
    """Places a document; False if the batch has no room for its scores or predicted tokens."""
    (group, key), s = waiting, self.shape
    total = self._predicted + group.predicted
    if len(self._groups) == s.groups or (s.predicted and total > s.predicted * s.rows):
      return False
    self._predicted = total
    self.keys.append(key)
    self._groups.append(group)
    self._places.append((row, start))
    return True

  def batch(self) -> dict:
    return lay_out(self._groups, self._places, self.shape)
