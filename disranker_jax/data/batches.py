"""Packs the documents of many queries into batches with a fixed number of fixed-length rows.

Each stage has one static shape, so one compile: a batch takes queries until the next one does not
fit. Each document is a segment of a row (`segments_BT` counts from 1, 0 is padding; positions
restart with each document), and an index gives the position of each document's score. Documents
that begin with the same tokens can share these: such a beginning is a segment of its own.

A batch is one or more blocks (config key data_shards). Block a is packed from every A-th query from
a on, independently of the other blocks. So batches do not depend on the number of hosts and devices
if that number divides A. A host reads only its own blocks, and a device needs no rows of other
devices, because indices count from the start of a block. Blocks are joined on the first axis.

Shapes: A blocks, B rows, T positions, at most G queries, at most N documents per query, at most P
predicted tokens (B, G and P are totals of all blocks). Keys of a batch:
  tokens_BT segments_BT positions_BT types_BT   int32
  parents_BT      int32, where the shape shares: the segment with the beginning of this one's
                  document; 0: the whole document is here
  mask_GN         bool, a real document
  labels_GN       float32, its grade, UNJUDGED (-1) if it has none
  teacher_GN      float32, the teacher's score, 0 if there is none
  NAME_GN         float32, one for each name in the shape's `values`; 0 if there is none
  index_AX        int32, [A, G / A * N]: position of each document's scored token in the flattened
                  rows of the block
  index_AP        int32, [A, P / A]: position in the block that predicts a token
  targets_AP      int32, the token to predict
  owner_AP        int32, the document in the block (g * N + n) of that token; -1 is padding
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from disranker_jax.data.bundles import Bundle, Limits, bundles
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.records import UNJUDGED, Click, Document, Group
from disranker_jax.errors import UserError
from disranker_jax.progress import amount


@dataclasses.dataclass(frozen=True)
class Shape:
  """The static shape of a block."""

  rows: int  # B
  row_len: int  # T
  docs: int  # N
  predicted: int = 0  # P per row; 0: scores only
  shares: bool = False  # documents may share their first tokens
  values: tuple[str, ...] = ()  # further values of each document
  shortest: int = 16  # tokens of a document that are its own, where all are short

  @property
  def groups(self) -> int:
    """G: enough for rows full of sequences of `shortest` tokens, and at least one query."""
    return max(1, self.rows * self.row_len // (self.shortest * self.docs))

  def block(self, blocks: int) -> 'Shape':
    """The shape of each of `blocks` equal parts."""
    if self.rows % blocks:
      raise UserError(f'batch_rows={self.rows} must be a multiple of data_shards={blocks}')
    return dataclasses.replace(self, rows=self.rows // blocks)

  def on(self, parts: int) -> 'Shape':
    """The shape on devices that split a batch into so many parts; `rows` is a setting here."""
    return self

  def zeros(self, blocks: int = 1) -> dict[str, np.ndarray]:
    """A batch without documents: for its shapes, or to fill up."""
    return join([lay_out([], [], self)] * blocks)


@dataclasses.dataclass(frozen=True)
class EncodedGroup:
  """The documents of a query as token ids, with their labels, teacher scores and other values."""

  docs: list[Encoded]
  labels: np.ndarray
  teacher: np.ndarray
  name: str  # for messages
  values: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @classmethod
  def alone(cls, doc: Encoded, name: str = '') -> 'EncodedGroup':
    """A group of one document, for scoring."""
    return cls([doc], np.zeros(1, np.float32), np.zeros(1, np.float32), name)

  @property
  def predicted(self) -> int:
    """The number of tokens that a language model predicts."""
    return sum(doc.predictions for doc in self.docs)


def first_fit(lengths: list[int], free: list[int]) -> list[tuple[int, int]] | None:
  """(row, free tokens in that row before placement) per sequence; longest sequences first.

  `free` is the room of each row and is updated in place. None if the sequences do not all fit.
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
  """Collects groups while they fit; `batch()` lays them out."""

  def __init__(self, shape: Shape):
    self.shape = shape
    self.groups: list[EncodedGroup] = []
    self._units: list[list[tuple[Bundle, list[int]]]] = []  # what is placed of each group
    self._lengths: list[int] = []
    self._places: list[tuple[int, int]] = []
    self._free = [shape.row_len] * shape.rows
    self._predicted = 0

  def add(self, group: EncodedGroup) -> bool:
    """Adds the group and returns True if all its documents fit.

    Raises: UserError if they do not fit into an empty batch either.
    """
    units = units_of(group, self.shape)
    lengths = [len(bundle) for bundle, _ in units]
    predicted = group.predicted
    found = self._place(lengths, predicted)
    if found is None:
      if not self.groups:
        raise unfit(group, self.shape)
      return False
    self._free, self._places = found
    self._lengths += lengths
    self._predicted += predicted
    self.groups.append(group)
    self._units.append(units)
    return True

  def _place(self, lengths: list[int], predicted: int):
    """(free, places) with the new sequences; all are placed again if the new ones do not fit."""
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
    """The arrays that the module docstring describes."""
    units, places = iter(self._places), []
    for group, own in zip(self.groups, self._units, strict=True):
      found: dict[int, Place] = {}
      for bundle, numbers in own:
        row, room = next(units)
        found |= zip(numbers, placed(bundle, row, self.shape.row_len - room), strict=True)
      places += [found[n] for n in range(len(group.docs))]
    return lay_out(self.groups, places, self.shape)


def units_of(group: EncodedGroup, shape: Shape) -> list[tuple[Bundle, list[int]]]:
  """What of a group stays together in a row, with the numbers of its documents."""
  if not shape.shares:
    return [(Bundle.alone(doc, group.name), [n]) for n, doc in enumerate(group.docs)]
  return bundles(group.docs, Limits(shape.row_len, len(group.docs)), group.name)


def unfit(group: EncodedGroup | Bundle, shape: Shape) -> UserError:
  """The error for a group that does not fit into an empty batch."""
  return UserError(
    f'query {group.name!r}: its {amount(len(group.docs), "document")} '
    f'({amount(sum(map(len, group.docs)), "token")}) {"does" if len(group.docs) == 1 else "do"} '
    f'not fit {amount(shape.rows, "row")} of {amount(shape.row_len, "token")}; raise '
    'batch_rows or lower data_shards'
  )


class Place(NamedTuple):
  """Where a document's own tokens are in a block, and its first `shared` ones, if any."""

  row: int
  start: int
  shared: int = 0
  prefix: int = 0  # where in the row the shared ones start


def placed(bundle: Bundle, row: int, start: int) -> Iterator[Place]:
  """The places of a bundle's documents if it starts at a position of a row."""
  own = start + bundle.shared
  for doc in bundle.docs:
    yield Place(row, own, bundle.shared, start)
    own += len(doc) - bundle.shared


class Piece(NamedTuple):
  """Consecutive tokens of a document that are a segment: its tokens `first` to `stop`."""

  doc: Encoded
  first: int
  stop: int
  flat: int  # where they start in the block's flattened rows
  segment: int
  parent: int


def lay_out(groups: list[EncodedGroup], places: list[Place], shape: Shape) -> dict:
  """A block as the module docstring describes it; `places` has each document's."""
  s, batch = shape, _without(shape)
  docs = [doc for group in groups for doc in group.docs]
  if not docs:
    return batch
  slots = [g * s.docs + n for g, group in enumerate(groups) for n in range(len(group.docs))]
  pieces = _pieces(docs, places, s)
  first, stop, flat, segments, parents = np.array([piece[1:] for piece in pieces]).T
  lengths = stop - first
  where, within = _spread(flat, lengths)
  values = {
    'tokens_BT': np.concatenate([p.doc.ids[p.first : p.stop] for p in pieces]),
    'types_BT': np.concatenate([p.doc.types[p.first : p.stop] for p in pieces]),
    'positions_BT': within + np.repeat(first, lengths),
    'segments_BT': np.repeat(segments, lengths),
    **({'parents_BT': np.repeat(parents, lengths)} if s.shares else {}),
  }
  for key, value in values.items():
    batch[key].reshape(-1)[where] = value
  rows, starts, shared, prefixes = np.array(places).T

  def at(token, n=slice(None)):
    """The position in the block of tokens of the documents n, by their numbers in them."""
    column = np.where(token < shared[n], prefixes[n] + token, starts[n] + token - shared[n])
    return rows[n] * s.row_len + column

  batch['index_AX'][0, slots] = at(np.array([doc.anchor for doc in docs]))
  batch['mask_GN'].reshape(-1)[slots] = True
  batch['labels_GN'].reshape(-1)[slots] = np.concatenate([group.labels for group in groups])
  batch['teacher_GN'].reshape(-1)[slots] = np.concatenate([group.teacher for group in groups])
  for name in s.values:
    parts = [group.values.get(name, np.zeros(len(group.docs))) for group in groups]
    batch[f'{name}_GN'].reshape(-1)[slots] = np.concatenate(parts)
  if s.predicted:
    positions, targets = zip(*(doc.predicted for doc in docs), strict=True)
    counts, predicted = list(map(len, positions)), np.concatenate(positions)
    # The position before a token predicts it.
    before = at(predicted - 1, np.repeat(np.arange(len(docs)), counts))
    batch['index_AP'][0, : len(predicted)] = before
    batch['targets_AP'][0, : len(predicted)] = np.concatenate(targets)
    batch['owner_AP'][0, : len(predicted)] = np.repeat(slots, counts)
  return batch


def _pieces(docs: list[Encoded], places: list[Place], shape: Shape) -> list[Piece]:
  """The segments of a block; those of a row are numbered in order, from 1."""
  used, prefixes, pieces = [0] * shape.rows, {}, []

  def add(doc, first, stop, row, start, parent):
    used[row] += 1
    pieces.append(Piece(doc, first, stop, row * shape.row_len + start, used[row], parent))

  for doc, place in zip(docs, places, strict=True):
    prefix = place.row, place.prefix
    if place.shared and prefix not in prefixes:
      add(doc, 0, place.shared, *prefix, 0)
      prefixes[prefix] = used[place.row]
    parent = prefixes[prefix] if place.shared else 0
    add(doc, place.shared, len(doc), place.row, place.start, parent)
  return pieces


def _spread(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Concatenates range(start, start + count) of all pairs; also the offsets within each range."""
  within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
  return np.repeat(starts, counts) + within, within


def _without(s: Shape) -> dict[str, np.ndarray]:
  """A block without documents."""
  tokens, segments, positions, types = np.zeros((4, s.rows, s.row_len), np.int32)
  batch = {
    'tokens_BT': tokens, 'segments_BT': segments, 'positions_BT': positions, 'types_BT': types,
    **({'parents_BT': np.zeros_like(tokens)} if s.shares else {}),
    'index_AX': np.zeros((1, s.groups * s.docs), np.int32),
    'mask_GN': np.zeros((s.groups, s.docs), bool),
    'labels_GN': np.full((s.groups, s.docs), UNJUDGED, np.float32),
    'teacher_GN': np.zeros((s.groups, s.docs), np.float32),
    **{f'{name}_GN': np.zeros((s.groups, s.docs), np.float32) for name in s.values},
  }  # fmt: skip
  if s.predicted:
    index, targets = np.zeros((2, 1, s.rows * s.predicted), np.int32)
    owner = np.full((1, s.rows * s.predicted), -1, np.int32)
    batch |= {'index_AP': index, 'targets_AP': targets, 'owner_AP': owner}
  return batch


def join(blocks: list[dict]) -> dict[str, np.ndarray]:
  """Joins blocks into one batch."""
  return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}


def encode_group(prompt, group: Group, teacher: np.ndarray | None = None) -> EncodedGroup:
  """Tokenises the documents of a query; `teacher` is their scores, if there are any."""
  labels = np.array([d.label for d in group.docs], np.float32)
  scores = np.zeros_like(labels) if teacher is None else teacher
  return EncodedGroup(prompt.encode(group.query, group.docs), labels, scores, group.query_id)


def encode_click(prompt, click: Click) -> EncodedGroup:
  """Encodes a click as a query with one document."""
  doc = Document('', click.title, click.summary)
  return encode_group(prompt, Group(click.query, click.query, (doc,)))


def sample(group: Group, size: int, rng: np.random.Generator) -> np.ndarray:
  """Indices of `size` documents of a query, in their order: one of each grade, the rest random.

  A pairwise loss learns only from unequal grades. If there are more grades than places, the best
  and the worst one that is judged are taken, and others at random: the best alone would show no
  bad document.
  """
  count = len(group.docs)
  if not size or count <= size:
    return np.arange(count)
  order = rng.permutation(count)
  labels = np.array([d.label for d in group.docs])
  firsts = {int(labels[i]): int(i) for i in order[::-1]}
  grades = sorted(firsts, reverse=True)
  if len(grades) > size:
    judged = [grade for grade in grades if grade != UNJUDGED]
    ends = [judged[0], judged[-1]][:size]
    others = [grade for grade in grades if grade not in ends]
    grades = ends + [others[i] for i in rng.permutation(len(others))[: size - len(ends)]]
  chosen = [firsts[grade] for grade in grades]
  chosen += [int(i) for i in order if int(i) not in chosen][: size - len(chosen)]
  return np.sort(chosen)
