"""Groups to batches: documents of many queries packed into a fixed number of fixed-length rows.

One static shape a stage, so one compile: a batch takes queries until the next would not fit. Each
document is a segment of a row (`segments_BT` counts from 1, 0 is padding; positions restart with
each), and `index_GN` says where in the flattened rows each document's score is read.

Shapes: B rows, T positions, G queries at most, N documents of a query at most, P predicted tokens
at most. Keys of a batch:
  tokens_BT segments_BT positions_BT types_BT   int32
  index_GN        int32, flat position (row * T + position) of a document's scored token
  mask_GN         bool, a real document
  labels_GN       float32, its grade, UNJUDGED (-1) if it has none
  teacher_GN      float32, the teacher's score, 0 if there is none
  index_P targets_P owner_P   int32: flat position that predicts, the token it should predict, and
                  the document (g * N + n) the token belongs to; owner -1 is padding
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import grain
import numpy as np

from disranker_jax.data.prompts import Encoded
from disranker_jax.data.records import UNJUDGED, Click, Document, Group
from disranker_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Shape:
  """The static shape of a stage's batches."""

  rows: int  # B
  row_len: int  # T
  docs: int  # N
  predicted: int = 0  # P of a row; 0: scores only

  @property
  def groups(self) -> int:
    """G: enough for rows full of sequences of 16 tokens, and for at least one query."""
    return max(1, self.rows * self.row_len // (16 * self.docs))


@dataclasses.dataclass(frozen=True)
class EncodedGroup:
  """A query's documents as token ids, with what the losses need beside them."""

  docs: list[Encoded]
  labels: np.ndarray
  teacher: np.ndarray
  name: str  # for messages


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
    predicted = sum(d.predict[1] - d.predict[0] for d in group.docs)
    placed = self._place(lengths, predicted)
    if placed is None:
      if not self.groups:
        s = self.shape
        raise UserError(
          f'query {group.name!r}: its {len(group.docs)} documents ({sum(lengths)} tokens) do not '
          f'fit a batch of {s.rows} rows of {s.row_len} tokens; raise batch_rows'
        )
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
    s = self.shape
    tokens, segments, positions, types = np.zeros((4, s.rows, s.row_len), np.int32)
    index = np.zeros((s.groups, s.docs), np.int32)
    mask = np.zeros((s.groups, s.docs), bool)
    labels = np.full((s.groups, s.docs), UNJUDGED, np.float32)
    teacher = np.zeros((s.groups, s.docs), np.float32)
    spans = []
    used = np.zeros(s.rows, np.int32)
    places = iter(self._places)
    for g, group in enumerate(self.groups):
      labels[g, : len(group.docs)] = group.labels
      teacher[g, : len(group.docs)] = group.teacher
      for n, doc in enumerate(group.docs):
        row, room = next(places)
        start = s.row_len - room
        used[row] += 1
        here = slice(start, start + len(doc))
        tokens[row, here], types[row, here] = doc.ids, doc.types
        segments[row, here], positions[row, here] = used[row], np.arange(len(doc))
        flat = row * s.row_len + start
        index[g, n], mask[g, n] = flat + doc.anchor, True
        spans.append((g * s.docs + n, flat, doc))
    batch = {
      'tokens_BT': tokens, 'segments_BT': segments, 'positions_BT': positions, 'types_BT': types,
      'index_GN': index, 'mask_GN': mask, 'labels_GN': labels, 'teacher_GN': teacher,
    }  # fmt: skip
    return batch | self._targets(spans) if s.predicted else batch

  def _targets(self, spans) -> dict[str, np.ndarray]:
    size = self.shape.rows * self.shape.predicted
    index, targets = np.zeros((2, size), np.int32)
    owner = np.full(size, -1, np.int32)
    at = 0
    for doc_index, flat, doc in spans:
      start, stop = doc.predict
      here = slice(at, at + stop - start)
      # The position before a token predicts it.
      index[here] = flat + np.arange(start, stop) - 1
      targets[here], owner[here] = doc.ids[start:stop], doc_index
      at += stop - start
    return {'index_P': index, 'targets_P': targets, 'owner_P': owner}


def pack(groups: Iterable[EncodedGroup], shape: Shape) -> Iterator[tuple[int, dict]]:
  """All groups in order, once: (number of groups, batch)."""
  packer = Packer(shape)
  for group in groups:
    if not packer.add(group):
      yield len(packer.groups), packer.batch()
      packer = Packer(shape)
      packer.add(group)
  if packer.groups:
    yield len(packer.groups), packer.batch()


class PackedDataset(grain.IterDataset):
  """Endless groups packed into batches, with a state from which the next batch is the same."""

  def __init__(self, parent: grain.IterDataset, shape: Shape):
    super().__init__(parent)
    self._shape = shape

  def __iter__(self):
    return PackedIterator(self._parent.__iter__(), self._shape)


class PackedIterator(grain.DatasetIterator):
  """Holds back the group that did not fit; the state is the one from before it was drawn."""

  def __init__(self, parent: grain.DatasetIterator, shape: Shape):
    super().__init__(parent)
    self._shape = shape
    self._held: EncodedGroup | None = None
    self._state = parent.get_state()

  def __next__(self) -> dict[str, np.ndarray]:
    packer = Packer(self._shape)
    if self._held is not None:
      packer.add(self._held)
    while True:
      before = self._parent.get_state()
      group = next(self._parent)
      if not packer.add(group):
        self._held, self._state = group, before
        return packer.batch()

  def get_state(self):
    return {'groups': self._state}

  def set_state(self, state):
    self._parent.set_state(state['groups'])
    self._state, self._held = state['groups'], None


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
  source, encode: Callable, shape: Shape, *, seed: int, draw: Callable | None = None
) -> grain.IterDataset:
  """Endless shuffled batches of a random-access source, one pass after another.

  `encode(record) -> EncodedGroup`; `draw(record, rng)` comes before it and may choose documents.
  The order depends on `seed` and nothing else.
  """
  data = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
  if draw is not None:
    data = data.random_map(draw)
  return PackedDataset(data.map(encode).to_iter_dataset(), shape)


def groups_per_batch(dataset: grain.IterDataset, batches: int = 8) -> float:
  """Mean number of queries in a batch, measured on the first few: it turns epochs into steps."""
  it = iter(dataset)
  counts = [int(next(it)['mask_GN'].any(1).sum()) for _ in range(batches)]
  return sum(counts) / len(counts)
