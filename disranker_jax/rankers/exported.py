"""An exported model as a ranker of many queries, on all devices of this machine.

`open_ranker` returns what scores groups part by part: ONNX Runtime on the cores of a CPU, or
`PointwiseRanker` on the accelerators.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from disranker_jax.data.records import Group
from disranker_jax.rankers import backends, loaded

PART_PAIRS = 2000  # of a part on one device: enough batches that a half-empty one costs little
BATCH_TOKENS = 16_384  # of one accelerator


class PartRanker(Protocol):
  """Scores groups in parts; the scores of a part do not depend on other parts."""

  part_pairs: int  # pairs that a part should have

  def parts(
    self, parts: Iterable[tuple[object, list[Group]]]
  ) -> Iterator[tuple[object, Group, np.ndarray]]:
    """(part, group, scores_N) of all groups, in order."""


def open_ranker(folder: Path, backend: str = 'auto', *, fast: bool = False) -> PartRanker:
  """The ranker of an exported folder; the arguments are those of `loaded.load`."""
  name = backends.choose(folder, fast) if backend == 'auto' else backend
  if name == 'jax':
    return on_devices(folder, fast)
  return Calls(loaded.load(folder, name, fast=fast))


class Calls:
  """A `LoadedRanker` that scores each part in one call, which uses all cores."""

  part_pairs = PART_PAIRS

  def __init__(self, ranker: loaded.LoadedRanker):
    self._ranker = ranker

  def parts(
    self, parts: Iterable[tuple[object, list[Group]]]
  ) -> Iterator[tuple[object, Group, np.ndarray]]:
    for part, groups in parts:
      scores = self._ranker.score((g.query, doc) for g in groups for doc in g.docs)
      ends = np.cumsum([len(g.docs) for g in groups])
      for group, of_group in zip(groups, np.split(scores, ends[:-1]), strict=True):
        yield part, group, of_group


def on_devices(folder: Path, fast: bool) -> PartRanker:
  """A PointwiseRanker whose batches are sharded over all local devices."""
  import jax

  from disranker_jax.devices import sharding
  from disranker_jax.models.load import open_exported
  from disranker_jax.rankers.pointwise import PointwiseRanker

  loaded.check(folder)
  model = open_exported(folder, precision='auto' if fast else 'float32')
  row_len = model.settings.row_len
  devices = jax.local_devices()
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1}, devices)
  rows = max(1, BATCH_TOKENS // row_len) * len(devices)
  ranker = PointwiseRanker(
    model.network,
    model.pretrained(0, mesh),
    model.prompt(),
    mesh,
    rows,
    row_len,
    model.scorer,
  )
  ranker.part_pairs = PART_PAIRS * len(devices)
  return ranker
