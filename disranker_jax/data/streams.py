"""Endless streams of packed batches for training: shuffled queries, from any position on."""

import dataclasses
from collections.abc import Callable

import grain
import numpy as np

from disranker_jax.data.batches import Packer, Shape

MOST_AHEAD, THREADS = 500, 16  # the defaults of Grain


class Stream:
  """The endless packed batches of one block; `position` is the number of used queries.

  `queries` is an endless source of encoded groups by index. The block takes every `blocks`-th one
  from `block` on.
  """

  def __init__(self, queries: grain.MapDataset, shape: Shape, block: int, blocks: int):
    self._queries, self._shape, self._block, self._blocks = queries, shape, block, blocks
    self.seek(0)

  def seek(self, position: int) -> None:
    """Continues after the first `position` queries of this block."""
    self.position, self._held = position, None
    start = self._block + position * self._blocks
    # Grain's threads read and tokenise ahead of the device. Two blocks are enough; when a stream
    # ends, what is read ahead is lost.
    ahead = min(2 * self._shape.groups, MOST_AHEAD)
    options = grain.ReadOptions(min(ahead, THREADS), ahead)
    self._rest = iter(self._queries[start :: self._blocks].to_iter_dataset(options))

  def next(self) -> tuple[dict[str, np.ndarray], list[str]]:
    """(block, names of its queries)."""
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
  """The batches of a training stage: endless queries, shuffled by a seed, packed into blocks."""

  queries: grain.MapDataset
  shape: Shape
  blocks: int = 1

  def stream(self, block: int) -> Stream:
    return Stream(self.queries, self.shape, block, self.blocks)

  def queries_per_batch(self, batches: int = 8) -> float:
    """Mean queries per batch, from the first batches of block 0; converts epochs to steps."""
    stream = self.stream(0)
    counts = [len(stream.next()[1]) for _ in range(batches)]
    return self.blocks * sum(counts) / len(counts)


def training(
  source,
  encode: Callable,
  shape: Shape,
  *,
  seed: int,
  draw: Callable | None = None,
  blocks: int = 1,
) -> Training:
  """Endless shuffled batches of a random-access source, one epoch after another.

  `encode(record) -> EncodedGroup`. Before it, `draw(record, rng)` may choose documents. `shape` is
  the shape of the whole batch. The order depends on `seed` only.
  """
  queries = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
  if draw is not None:
    queries = queries.random_map(draw)
  return Training(queries.map(encode), shape.block(blocks), blocks)
