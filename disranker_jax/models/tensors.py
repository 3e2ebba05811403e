"""Which tensors of a Hugging Face file hold which parameters of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

from disranker_jax.models.tree import flatten, unflatten

if TYPE_CHECKING:
  from disranker_jax.models.network import Network


class Row(NamedTuple):
  """Where one tensor of the file goes."""

  paths: tuple[str, ...]  # the parameters that it holds, one after another on its first axis
  layer: int | None  # index in our stack
  shape: tuple[int, ...]  # as the file has it


def rows_of(network: Network, layers: Sequence[int] | None = None) -> dict[str, Row]:
  """Every tensor of the network as {Hugging Face name: Row}; see `hf.load` for `layers`."""
  absent = network.family.absent
  return {name: row for name, row in _all_rows(network, layers).items() if name not in absent}


def _all_rows(network, layers) -> dict[str, Row]:
  """As `rows_of`, with the tensors that no file has."""
  shapes = flatten(network.shapes()['params'])
  layers = range(network.config.layers) if layers is None else layers
  rows, todo = {}, set(shapes)
  for template, target in network.family.tensors.items():
    paths = (target,) if isinstance(target, str) else target
    if paths[0] not in shapes:
      continue
    todo.difference_update(paths)
    stacked = '{}' in template
    each = [_file_shape(path, shapes[path].shape[stacked:]) for path in paths]
    shape = (sum(s[0] for s in each), *each[0][1:])
    for ours, theirs in enumerate(layers if stacked else (None,)):
      rows[template.format(theirs)] = Row(paths, ours if stacked else None, shape)
  assert not todo, f'no Hugging Face name for {sorted(todo)}'
  return rows


def _file_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  return shape[::-1] if path.endswith('/kernel') else shape


def parts(network, row: Row) -> Iterator[tuple[str, int, int]]:
  """(path, start, stop) of each parameter in a tensor of the file."""
  shapes, start = flatten(network.shapes()['params']), 0
  for path in row.paths:
    shape = shapes[path].shape[row.layer is not None :]
    stop = start + _file_shape(path, shape)[0]
    yield path, start, stop
    start = stop


def constants(network, layers) -> dict[str, dict[int, np.ndarray]]:
  """What stands for the tensors that no file has: {path: {layer: array}}."""
  rows = _all_rows(network, layers)
  out = {}
  for name, value in network.family.absent.items():
    if name in rows:
      row = rows[name]
      out.setdefault(row.paths[0], {})[row.layer] = np.full(row.shape, value, np.float32)
  return out


def stack(network: Network, tensors: dict) -> dict:
  """The network's params, from all of its tensors by Hugging Face name; can be traced."""
  values = constants(network, None)
  for name, row in rows_of(network).items():
    tensor = tensors[name].astype(np.float32)
    for path, start, stop in parts(network, row):
      part = tensor[start:stop]
      values.setdefault(path, {})[row.layer] = part.T if path.endswith('/kernel') else part
  return unflatten(
    {
      path: layers[None] if None in layers else jnp.stack([layers[i] for i in sorted(layers)])
      for path, layers in values.items()
    }
  )


@dataclasses.dataclass(frozen=True)
class Part:
  """Some rows of a tensor in a file; indexed with slices that have a start and a stop."""

  view: object
  start: int

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    first, *others = index
    return self.view[(slice(self.start + first.start, self.start + first.stop), *others)]


class InMemory:
  """Arrays as an open safetensors file has them."""

  def __init__(self, arrays: dict[str, np.ndarray]):
    self.arrays = arrays

  def keys(self):
    return self.arrays.keys()

  def get_slice(self, name: str) -> Slice:
    return Slice(self.arrays[name])


@dataclasses.dataclass(frozen=True)
class Slice:
  """An fp32 array as a tensor of a safetensors file."""

  array: np.ndarray

  def get_shape(self):
    return list(self.array.shape)

  def get_dtype(self):
    return 'F32'

  def __getitem__(self, index):
    return self.array[index]
