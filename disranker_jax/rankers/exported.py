"""An exported model as a ranker of many queries, on all devices of this machine.

`open_ranker` returns what scores groups part by part: ONNX Runtime on the cores of a CPU, or
`PointwiseRanker` on the accelerators.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from disranker_jax.data.records import Group
from disranker_jax.rankers import backends, loaded

PART_PAIRS = 2000  # of a part on one device: enough batches that a half-empty one costs little
BATCH_TOKENS = 16_384  # of one accelerator


@dataclasses.dataclass(frozen=True)
class PartRanker:
  """Scores groups in parts; the scores of a part do not depend on other parts.

  Args:
    parts: (part, its groups) of all parts -> (part, group, scores_N) of all groups, in order.
    part_pairs: pairs that a part should have.
  """

  parts: Callable[
    [Iterable[tuple[object, list[Group]]]], Iterator[tuple[object, Group, np.ndarray]]
  ]
  part_pairs: int


def open_ranker(folder: Path, backend: str = 'auto', *, fast: bool = False) -> PartRanker:
  """The ranker of an exported folder; the arguments are those of `loaded.load`."""
  name = backends.choose(folder, fast) if backend == 'auto' else backend
  if name == 'jax':
    return on_devices(folder, fast)
  in_calls = functools.partial(by_calls, loaded.load(folder, name, fast=fast))
  return PartRanker(in_calls, PART_PAIRS)


def by_calls(
  ranker: loaded.LoadedRanker, parts: Iterable[tuple[object, list[Group]]]
) -> Iterator[tuple[object, Group, np.ndarray]]:
  """Scores each part in one call, which uses all cores; see `PartRanker.parts`."""
  for part, groups in parts:
    scores = ranker.score((g.query, doc) for g in groups for doc in g.docs)
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
  return PartRanker(ranker.parts, PART_PAIRS * len(devices))
