"""Where the training loop gets its batches: a protocol, and the feed of prepared records."""

import functools
from typing import Protocol

import jax
import numpy as np

from disranker_jax.data import batches, streams
from disranker_jax.devices import sharding


class Feed(Protocol):
  """The batches of one stage, placed on the mesh.

  A resumed run gives the same result if `next` depends on the variables and the position only. On
  several processes all of them call each method together, and computations of `next` on the mesh
  must be the same in each.
  """

  blocks: int  # parts of a batch, see data/batches.py

  def shapes(self) -> dict:
    """Arrays or shapes of one micro-batch, for which the step is compiled."""

  def next(self, variables: dict) -> tuple[list[dict], list[str]]:
    """(micro-batches of the next step, names of this process's queries in them).

    `variables` are those that the step will start from, for feeds that sample from the policy they
    train. They are read-only and valid until `next` returns: the step is given their memory
    (donation), so a feed that keeps them raises an error later.

    Raises: UserError for bad records; the loop then ends on all processes.
    """

  def nothing(self) -> tuple[list[dict], list[str]]:
    """Batches without queries: a process whose `next` failed takes part in one last step."""

  def positions(self) -> jax.Array:
    """The place in the data, [blocks, ...], saved with every checkpoint."""

  def seek(self, positions_A: jax.Array) -> None:
    """Continues from what `positions` gave, on any number of processes."""


class OfflineFeed:
  """Prepared records, packed; each process reads only the blocks that its devices hold.

  Args:
    data: shuffled queries without end.
    mesh: where batches go.
    accumulate: micro-batches per step.
  """

  def __init__(self, data: streams.Training, mesh, accumulate: int):
    self.data, self.blocks, self.accumulate = data, data.blocks, accumulate
    self._mesh = mesh

  @functools.cached_property
  def _streams(self) -> list[streams.Stream]:
    return [self.data.stream(b) for b in sharding.own_blocks(self._mesh, self.blocks)]

  def shapes(self) -> dict:
    return self.data.shape.zeros(self.blocks)

  def next(self, variables: dict | None = None) -> tuple[list[dict], list[str]]:
    """See Feed; prepared records do not depend on the variables."""
    placed, names = [], []
    for _ in range(self.accumulate):
      drawn = [stream.next() for stream in self._streams]
      names += [name for _, block in drawn for name in block]
      whole = batches.join([block for block, _ in drawn])
      placed.append(sharding.put_batch(whole, self._mesh, self.blocks))
    return placed, names

  def nothing(self) -> tuple[list[dict], list[str]]:
    empty = self.data.shape.zeros(len(self._streams))
    placed = sharding.put_batch(empty, self._mesh, self.blocks)
    return [placed] * self.accumulate, []

  def positions(self) -> jax.Array:
    """How many queries each block has used, [A]."""
    own = np.array([s.position for s in self._streams], np.int32)
    return sharding.put_batch({'positions_A': own}, self._mesh, self.blocks)['positions_A']

  def seek(self, positions_A: jax.Array) -> None:
    own = sharding.own_part(positions_A, self._mesh, self.blocks)
    for stream, position in zip(self._streams, own.tolist(), strict=True):
      stream.seek(position)
