"""Groups to batches: documents of many queries packed into a fixed number of fixed-length rows.

One static shape a stage, so one compile: a batch takes queries until the next would not fit. Each
document is a segment of a row (`segments_BT` counts from 1, 0 is padding; positions restart with
each), and an index says where each document's score is read.

A batch is one or more blocks, packed independently of each other from every A-th query. Whatever
the number of hosts and devices, as long as it divides A, the batches are the same; a host reads
its own blocks only, and a device finds everything that its rows need at hand, because indices
count from the start of a block. A block is a batch of A = 1; blocks are joined on the first axis.

Shapes: A blocks, B rows, T positions, G queries at most, N documents of a query at most, P
predicted tokens at most (B, G and P are of all blocks together). Keys of a batch:
  tokens_BT segments_BT positions_BT types_BT   int32
  mask_GN         bool, a real document
  labels_GN       float32, its grade, UNJUDGED (-1) if it has none
  teacher_GN      float32, the teacher's score, 0 if there is none
  index_AX        int32, [A, G / A * N]: position in the block's flattened rows of each document's
                  scored token
  index_AP        int32, [A, P / A]: position in the block that predicts a token
  targets_AP      int32, the token it should predict
  owner_AP        int32, the document of the block (g * N + n) that it belongs to; -1 is padding
"""

import dataclasses
from collections.abc import Callable

import grain
import numpy as np

from disranker_jax.data.prompts import Encoded
from disranker_jax.data.records import UNJUDGED, Click, Document, Group
from disranker_jax.errors import UserError

MOST_AHEAD, THREADS = 500, 16  # Grain's own figures


@dataclasses.dataclass(frozen=True)
class Shape:
  """The static shape of a block."""

  rows: int  # B
  row_len: int  # T
  docs: int  # N
  predicted: int = 0  # P of a row; 0: scores only

  @property
  def groups(self) -> int:
    """G: enough for rows full of sequences of 16 tokens, and for at least one query."""
    return max(1, self.rows * self.row_len // (16 * self.docs))

  def block(self, blocks: int) -> 'Shape':
    """The shape of each of `blocks` equal parts."""
    if self.rows % blocks:
      raise UserError(f'batch_rows={self.rows} must be a multiple of blocks={blocks}')
    return dataclasses.replace(self, rows=self.rows // blocks)

  def zeros(self, blocks: int = 1) -> dict[str, np.ndarray]:
    """A batch without documents, as shapes or as filling."""
    return join([lay_out([], [], self)] * blocks)


@dataclasses.dataclass(frozen=True)
class EncodedGroup:
  """A query's documents as token ids, with what the losses need beside them."""

  docs: list[Encoded]
  labels: np.ndarray
  teacher: np.ndarray
  name: str  # for messages

  @classmethod
  def alone(cls, doc: Encoded, name: str = '') -> 'EncodedGroup':
    """A document by itself, to be scored."""
    return cls([doc], np.zeros(1, np.float32), np.zeros(1, np.float32), name)

  @property
  def predicted(self) -> int:
    """How many of its tokens a language model has to predict."""
    return sum(stop - start for start, stop in (doc.predict for doc in self.docs))


def first_fit(lengths: list[int], free: list[int]) -> list[tuple[int, int]] | None:
  """(row, free tokens left of it before) of each sequence, longest placed first, into `free`.

  `free` is the room of each row and is changed; None where the sequences do not all fit.
  """
  places = [(0, 0)] * len(lengths)
  for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    row = next((r for r, room in enumerate(free) if room >= lengths[i]), None)
    if row is None:
      return None
    places[i] = (row, free[row])
    free[row] -= lengths[i]
  return places


class Packer:
  """Gathers groups while they fit; `batch()` lays them out."""

  def __init__(self, shape: Shape):
    self.shape = shape
    self.groups: list[EncodedGroup] = []
    self._lengths: list[int] = []
    self._places: list[tuple[int, int]] = []
    self._free = [shape.row_len] * shape.rows
    self._predicted = 0

  def add(self, group: EncodedGroup) -> bool:
    """Takes the group if all of its documents still fit; raises if they never could."""
    lengths = [len(d) for d in group.docs]
    predicted = group.predicted
    placed = self._place(lengths, predicted)
    if placed is None:
      if not self.groups:
        raise unfit(group, self.shape)
      return False
    self._free, self._places = placed
    self._lengths += lengths
    self._predicted += predicted
    self.groups.append(group)
    return True

  def _place(self, lengths: list[int], predicted: int):
    """(free, places) with the new sequences; places are anew only if they do not fit as it is."""
    s = self.shape
    if len(self.groups) == s.groups or sum(lengths) > sum(self._free):
      return None
    if s.predicted and self._predicted + predicted > s.predicted * s.rows:
      return None
    free = list(self._free)
    if (places := first_fit(lengths, free)) is not None:
      return free, self._places + places
    free = [s.row_len] * s.rows
    places = first_fit(self._lengths + lengths, free)
    return None if places is None else (free, places)

  def batch(self) -> dict[str, np.ndarray]:
    """The arrays of the module's docstring."""
    starts = [(row, self.shape.row_len - room) for row, room in self._places]
    return lay_out(self.groups, starts, self.shape)


def unfit(group: EncodedGroup, shape: Shape) -> UserError:
  """What to say of a group that not even an empty batch has room for."""
  return UserError(
    f'query {group.name!r}: its {len(group.docs)} documents ({sum(map(len, group.docs))} tokens) '
    f'do not fit {shape.rows} rows of {shape.row_len} tokens; raise batch_rows or lower blocks'
  )


def lay_out(groups: list[EncodedGroup], places: list[tuple[int, int]], shape: Shape) -> dict:
  """A block, as the module's docstring has it: `places` are (row, start) of each document."""
  s, batch = shape, _without(shape)
  docs = [doc for group in groups for doc in group.docs]
  if not docs:
    return batch
  slots = [g * s.docs + n for g, group in enumerate(groups) for n in range(len(group.docs))]
  rows, starts = np.array(places).T
  flat = rows * s.row_len + starts
  lengths = np.array([len(doc) for doc in docs])
  where, within = _spread(flat, lengths)
  used, segments = [0] * s.rows, []
  for row in rows.tolist():
    used[row] += 1
    segments.append(used[row])
  values = {
    'tokens_BT': np.concatenate([doc.ids for doc in docs]),
    'types_BT': np.concatenate([doc.types for doc in docs]),
    'positions_BT': within,
    'segments_BT': np.repeat(segments, lengths),
  }
  for key, value in values.items():
    batch[key].reshape(-1)[where] = value
  batch['index_AX'][0, slots] = flat + [doc.anchor for doc in docs]
  batch['mask_GN'].reshape(-1)[slots] = True
  batch['labels_GN'].reshape(-1)[slots] = np.concatenate([group.labels for group in groups])
  batch['teacher_GN'].reshape(-1)[slots] = np.concatenate([group.teacher for group in groups])
  if s.predicted:
    spans = np.array([doc.predict for doc in docs])
    counts = spans[:, 1] - spans[:, 0]
    # The position before a token predicts it.
    before, _ = _spread(flat + spans[:, 0] - 1, counts)
    batch['index_AP'][0, : len(before)] = before
    batch['targets_AP'][0, : len(before)] = batch['tokens_BT'].reshape(-1)[before + 1]
    batch['owner_AP'][0, : len(before)] = np.repeat(slots, counts)
  return batch


def _spread(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The numbers from each start on, as many as its count says; and each one's place in its run."""
  within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
  return np.repeat(starts, counts) + within, within


def _without(s: Shape) -> dict[str, np.ndarray]:
  """A block without documents."""
  tokens, segments, positions, types = np.zeros((4, s.rows, s.row_len), np.int32)
  batch = {
    'tokens_BT': tokens, 'segments_BT': segments, 'positions_BT': positions, 'types_BT': types,
    'index_AX': np.zeros((1, s.groups * s.docs), np.int32),
    'mask_GN': np.zeros((s.groups, s.docs), bool),
    'labels_GN': np.full((s.groups, s.docs), UNJUDGED, np.float32),
    'teacher_GN': np.zeros((s.groups, s.docs), np.float32),
  }  # fmt: skip
  if s.predicted:
    index, targets = np.zeros((2, 1, s.rows * s.predicted), np.int32)
    owner = np.full((1, s.rows * s.predicted), -1, np.int32)
    batch |= {'index_AP': index, 'targets_AP': targets, 'owner_AP': owner}
  return batch


def join(blocks: list[dict]) -> dict[str, np.ndarray]:
  """Blocks as one batch."""
  return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}


class Stream:
  """One block's endless queries, packed; a number says where it is.

  `queries` is an endless source of encoded groups by index, of which this block takes every
  `blocks`-th one from `block` on.
  """

  def __init__(self, queries: grain.MapDataset, shape: Shape, block: int, blocks: int):
    self._queries, self._shape, self._block, self._blocks = queries, shape, block, blocks
    self.seek(0)

  def seek(self, position: int) -> None:
    """Goes to where `position` of this block's queries have been used."""
    self.position, self._held = position, None
    start = self._block + position * self._blocks
    # Records are read and tokenised ahead of the device, in Grain's threads: two blocks' worth, for
    # more is thrown away with every stream that ends.
    ahead = min(2 * self._shape.groups, MOST_AHEAD)
    options = grain.ReadOptions(min(ahead, THREADS), ahead)
    self._rest = iter(self._queries[start :: self._blocks].to_iter_dataset(options))

  def next(self) -> tuple[dict[str, np.ndarray], list[str]]:
    """(block, the names of its queries)."""
    packer = Packer(self._shape)
    if self._held is not None:
      packer.add(self._held)
    while True:
      group = next(self._rest)
      if not packer.add(group):
        self._held = group
        self.position += len(packer.groups)
        return packer.batch(), [g.name for g in packer.groups]


@dataclasses.dataclass(frozen=True)
class Training:
  """A training stage's batches: endless queries in the order of a seed, packed into blocks."""

  queries: grain.MapDataset
  shape: Shape
  blocks: int = 1

  def stream(self, block: int) -> Stream:
    return Stream(self.queries, self.shape, block, self.blocks)

  def queries_per_batch(self, batches: int = 8) -> float:
    """Mean number of queries in a batch, by the first few of block 0: turns epochs into steps."""
    stream = self.stream(0)
    counts = [len(stream.next()[1]) for _ in range(batches)]
    return self.blocks * sum(counts) / len(counts)


def encode_group(prompt, group: Group, teacher: np.ndarray | None = None) -> EncodedGroup:
  """A query's documents, tokenised; `teacher` gives their scores where a teacher has been."""
  labels = np.array([d.label for d in group.docs], np.float32)
  scores = np.zeros_like(labels) if teacher is None else teacher
  return EncodedGroup(prompt.encode(group.query, group.docs), labels, scores, group.query_id)


def encode_click(prompt, click: Click) -> EncodedGroup:
  """A click is a query with the one document that was chosen."""
  doc = Document('', click.title, click.summary)
  return encode_group(prompt, Group(click.query, click.query, (doc,)))


def sample(group: Group, size: int, rng: np.random.Generator) -> np.ndarray:
  """Indices of `size` of a query's documents: every grade first, then chance; order kept.

  A pairwise loss learns only from unequal grades, so one document of each grade is taken, best
  grades first, before the rest is drawn at random.
  """
  count = len(group.docs)
  if not size or count <= size:
    return np.arange(count)
  order = rng.permutation(count)
  labels = np.array([d.label for d in group.docs])
  firsts = {int(labels[i]): int(i) for i in order[::-1]}
  chosen = [firsts[grade] for grade in sorted(firsts, reverse=True)][:size]
  chosen += [int(i) for i in order if int(i) not in chosen][: size - len(chosen)]
  return np.sort(chosen)


def training(
  source,
  encode: Callable,
  shape: Shape,
  *,
  seed: int,
  draw: Callable | None = None,
  blocks: int = 1,
) -> Training:
  """Endless shuffled batches of a random-access source, one pass after another.

  `encode(record) -> EncodedGroup`; `draw(record, rng)` comes before it and may choose documents.
  `shape` is of the whole batch. The order depends on `seed` and nothing else.
  """
  queries = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
  if draw is not None:
    queries = queries.random_map(draw)
  return Training(queries.map(encode), shape.block(blocks), blocks)
