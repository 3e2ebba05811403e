"""The device mesh and RULES, the table of parameter path -> PartitionSpec.

All layout rules are in this file. `jax.jit` with these shardings replaces pjit; a mesh with only a
data axis over all local devices replaces pmap.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from disranker_jax.errors import UserError

AXES = ('data', 'fsdp', 'model')
BATCH = P(('data', 'fsdp'))

# The first match wins. Paths are joined by '/'; 'blocks' stacks the layers on its first axis.
RULES = (
  (r'embed', P('model', 'fsdp')),
  (r'lora_', P()),
  (r'blocks/.*(q|k|v|gate|up)/kernel', P(None, 'fsdp', 'model')),
  (r'blocks/.*(o|down)/kernel', P(None, 'model', 'fsdp')),
  (r'lm_head/kernel', P('fsdp', 'model')),
  (r'', P()),
)


def make_mesh(sizes, devices=None) -> Mesh:
  """A (data, fsdp, model) mesh; one size may be -1 and takes the remaining devices.

  Over all devices, or over `devices`, which may be abstract ones to compile for.
  Raises: UserError if the sizes are not positive or do not multiply to the number of devices.
  """
  count = jax.device_count() if devices is None else len(devices)
  if said := misfit(sizes, count):
    what = f'set sizes that multiply to {count}; one may be -1, which takes what is left'
    raise UserError(f'{said}, not for {count}; {what}')
  left = count // math.prod(sizes[a] for a in AXES if sizes[a] != -1)
  shape = [left if sizes[a] == -1 else sizes[a] for a in AXES]
  types = (AxisType.Auto,) * 3
  return jax.make_mesh(tuple(shape), AXES, axis_types=types, devices=devices)


def misfit(sizes, count: int) -> str:
  """For how many devices these sizes are, as text, if not for `count`; '' if they are.

  Raises: UserError if the sizes are not positive.
  """
  shape = [sizes[a] for a in AXES]
  if shape.count(-1) > 1 or any(s < 1 for s in shape if s != -1):
    raise UserError(f'config.mesh: {shape} must be positive sizes, of which one may be -1')
  fixed = math.prod(s for s in shape if s != -1)
  if count == fixed or (-1 in shape and count % fixed == 0):
    return ''
  needed = f'{fixed} device{"s" * (fixed > 1)}'
  return f'config.mesh is for {"a multiple of " if -1 in shape else ""}{needed}'


def local(mesh: Mesh) -> Mesh:
  """A mesh of this process's devices, on which it computes without the others."""
  if jax.process_count() == 1:
    return mesh
  return apart(mesh, jax.local_device_count(), jax.local_devices())


def apart(mesh: Mesh, have: int, devices) -> Mesh:
  """A mesh of devices that splits parameters as `mesh` does, but over `have` of them at most."""
  split = math.gcd(mesh.shape['fsdp'] * mesh.shape['model'], have)
  return make_mesh({'data': -1, 'fsdp': split, 'model': 1}, devices)


def on_local(tree, own: Mesh) -> Any:
  """The parameters of a mesh of all processes, on `local(mesh)`."""
  if jax.process_count() == 1:
    return tree
  return jax.tree.map(lambda x, where: place(on_host(x), where), tree, shardings(tree, own))


def on_host(x: jax.Array) -> np.ndarray:
  """An array's values in every process."""
  whole = x.is_fully_addressable or x.is_fully_replicated
  return np.asarray(x) if whole else multihost_utils.process_allgather(x, tiled=True)


def fit(spec: P, shape: tuple[int, ...], mesh: Mesh, path: str) -> P:
  """`spec` without axes that do not divide their dimension of `shape`, or trailing Nones."""
  kept = []
  for size, axis in zip(shape, tuple(spec) + (None,) * len(shape), strict=False):
    parts = int(np.prod([mesh.shape[a] for a in np.atleast_1d(axis)])) if axis else 1
    if parts > 1 and size % parts:
      logging.log_first_n(
        logging.INFO, 'not sharded over %s: %s, dimension %d is not divisible', 8, axis, path, size
      )
      axis = None
    kept.append(axis)
  while kept and kept[-1] is None:
    kept.pop()
  return P(*kept)


def shardings(tree, mesh: Mesh) -> Any:
  """A NamedSharding per leaf; optimizer moments have the paths of their parameters."""

  def of_leaf(path, leaf) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = next(s for pattern, s in RULES if re.search(pattern, name)) if leaf.ndim > 1 else P()
    return NamedSharding(mesh, fit(spec, leaf.shape, mesh, name))

  return jax.tree.map_with_path(of_leaf, tree)


def put(tree, mesh: Mesh) -> Any:
  """Shards a tree of parameters over the mesh; every process passes all of them."""
  return jax.tree.map(place, tree, shardings(tree, mesh))


def place(x, sharding: NamedSharding) -> jax.Array:
  """Shards an array; each process copies the part of `x` that its own devices hold."""
  if jax.process_count() == 1 or (isinstance(x, jax.Array) and not x.is_fully_addressable):
    return jax.device_put(x, sharding)
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def abstract(tree, mesh: Mesh) -> Any:
  """A ShapeDtypeStruct with its sharding per leaf, for restoring or compiling without arrays."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings(tree, mesh)
  )


def parts(mesh: Mesh) -> int:
  """The number of parts that a batch is split into."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def even_parts(mesh: Mesh, rows: int) -> int:
  """The number of equal parts of `rows`, one per part of the mesh; 1 if they do not divide."""
  return 1 if rows % parts(mesh) else parts(mesh)


def batch_shardings(shapes: dict, mesh: Mesh, blocks: int) -> dict:
  """Shards blocks over the data axes; a single block is sharded by rows, its indices replicated.

  Raises: UserError if neither the blocks nor the rows divide evenly.
  """
  if blocks % parts(mesh) == 0:
    return dict.fromkeys(shapes, NamedSharding(mesh, BATCH))
  if blocks > 1:
    raise UserError(
      f'data_shards={blocks} must be a multiple of mesh data x fsdp = {parts(mesh)}, or 1'
    )
  rows = next((v.shape[0] for k, v in shapes.items() if k.endswith('_BT')), 0)
  if rows % parts(mesh):
    raise UserError(f'batch_rows={rows} must be a multiple of mesh data x fsdp = {parts(mesh)}')
  return {k: NamedSharding(mesh, BATCH if k.endswith('_BT') else P()) for k in shapes}


def own_blocks(mesh: Mesh, blocks: int) -> list[int]:
  """The indices of the blocks that this process's devices hold; it reads only those."""
  if blocks % parts(mesh):
    return list(range(blocks))
  slices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((blocks,))
  return sorted({b for (part,) in slices.values() for b in range(blocks)[part]})


def put_batch(batch: dict, mesh: Mesh, blocks: int = 1) -> dict:
  """The global batch on the mesh; `batch` holds this process's own blocks."""
  where = batch_shardings(batch, mesh, blocks)
  own = own_blocks(mesh, blocks)
  if len(own) == blocks and jax.process_count() == 1:
    return jax.device_put(batch, where)

  def assemble(x, sharding: NamedSharding) -> jax.Array:
    size = len(x) // len(own)  # rows per block

    def part(index):
      start, stop, _ = index[0].indices(size * blocks)
      first = own.index(start // size) * size + start % size
      return x[first : first + stop - start]

    return jax.make_array_from_callback((size * blocks, *x.shape[1:]), sharding, part)

  return {k: assemble(x, where[k]) for k, x in batch.items()}


def own_part(x: jax.Array, mesh: Mesh, blocks: int = 1) -> np.ndarray:
  """The rows of this process's own blocks, as a host array: the inverse of `put_batch`."""
  if x.is_fully_addressable:
    return np.asarray(x)
  size = len(x) // blocks
  block_rows = {}
  for shard in x.addressable_shards:
    start, stop, _ = shard.index[0].indices(len(x))
    data = np.asarray(shard.data)
    block_rows |= {(start + i) // size: data[i : i + size] for i in range(0, stop - start, size)}
  return np.concatenate([block_rows[b] for b in own_blocks(mesh, blocks)])


def flags(mesh: Mesh, **values: bool) -> dict[str, jax.Array]:
  """Per-process boolean flags; the step ORs them over all processes."""
  where = NamedSharding(mesh, P(AXES))

  def flag(value: bool):
    return jax.make_array_from_callback((mesh.size,), where, lambda _: np.array([value]))

  return {name: flag(value) for name, value in values.items()}
