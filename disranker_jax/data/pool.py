"""Packs bundles of documents into batches for scoring, out of order, so that rows are almost full.

The score of a document does not depend on other documents, so any order is allowed. A row starts
with the bundles that have waited longest and ends with the one or two bundles of the pool that fill
it best. So no bundle waits forever, and rows have almost no padding.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence

from disranker_jax.data.batches import EncodedGroup, Shape, lay_out, placed, unfit
from disranker_jax.data.bundles import Bundle, Limits, bundles
from disranker_jax.data.encoded import Encoded

# Rows of tokens in the pool beyond those of a batch; with fewer, rows have more padding.
CHOICE = 64


class Pool:
  """Collects bundles, each with the caller's keys of its documents, and packs them into batches.

  Args:
    shape: the shape of a batch; every group in it is one document.
  """

  def __init__(self, shape: Shape):
    self.shape = shape
    self.tokens = 0
    self._waiting = collections.OrderedDict()  # number -> (bundle, keys), oldest first
    self._of_length = [collections.deque() for _ in range(shape.row_len + 1)]  # numbers
    self._lengths = 0  # bit n is set if there is a bundle of n tokens
    self._numbers = 0

  def __len__(self) -> int:
    return len(self._waiting)

  @property
  def ready(self) -> bool:
    """Whether the pool has enough bundles for a well-filled batch."""
    return self.tokens >= (self.shape.rows + CHOICE) * self.shape.row_len

  def add(self, bundle: Bundle, keys: Sequence) -> None:
    """Adds a bundle. Raises: UserError if it does not fit into a batch."""
    length, s = len(bundle), self.shape
    if length > s.row_len or (s.predicted and bundle.predicted > s.predicted * s.rows):
      raise unfit(bundle, s)
    self._waiting[self._numbers] = bundle, keys
    self._of_length[length].append(self._numbers)
    self._lengths |= 1 << length
    self._numbers += 1
    self.tokens += length

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
    """The lengths of the next bundles for a row with this room; () if none fits."""
    if not self._waiting:
      return ()
    if room == self.shape.row_len or room > 2 * (self._lengths.bit_length() - 1):
      bundle, _ = next(iter(self._waiting.values()))
      return (len(bundle),)
    return self._best(room)

  def _best(self, room: int) -> tuple[int, ...]:
    """The lengths of the one or two bundles that fill the room best, longest first."""
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


def bundled(
  docs: Sequence[Encoded], shape: Shape, name: str = ''
) -> list[tuple[Bundle, list[int]]]:
  """A query's texts as bundles that rows can hold, each with its texts' numbers."""
  if not shape.shares:
    return [(Bundle.alone(doc, name), [n]) for n, doc in enumerate(docs)]
  most = min(shape.groups, max(1, shape.row_len // 16))
  return bundles(docs, Limits(shape.row_len, most, shape.predicted), name)


def pack(documents: Iterable[tuple[Bundle, Sequence]], shape: Shape) -> Iterator:
  """Packs all bundles, given with the keys of their documents; yields (keys in order, batch)."""
  pool = Pool(shape)
  for bundle, keys in documents:
    pool.add(bundle, keys)
    while pool.ready:
      yield pool.batch()
  while len(pool):
    yield pool.batch()


class Filling:
  """A batch under construction."""

  def __init__(self, shape: Shape):
    self.shape = shape
    self.keys, self._groups, self._places, self._predicted = [], [], [], 0

  def take(self, waiting: tuple[Bundle, Sequence], row: int, start: int) -> bool:
    """Places a bundle; False if the batch has no room for its scores or predicted tokens."""
    (bundle, keys), s = waiting, self.shape
    total = self._predicted + bundle.predicted
    if len(self._groups) + len(bundle.docs) > s.groups or (
      s.predicted and total > s.predicted * s.rows
    ):
      return False
    self._predicted = total
    self.keys += keys
    self._groups += [EncodedGroup.alone(doc, bundle.name) for doc in bundle.docs]
    self._places += placed(bundle, row, start)
    return True

  def batch(self) -> dict:
    return lay_out(self._groups, self._places, self.shape)
