"""The mesh, and one table of path -> PartitionSpec: the only file with layout rules.

`jax.jit` with these shardings is what pjit was. A 'pmap run' is a mesh with only a data axis over
all local devices.
"""

import re

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from disranker_jax.errors import UserError

AXES = ('data', 'fsdp', 'model')
BATCH = P(('data', 'fsdp'))

# First match wins; paths are '/'-joined, layers are stacked on the first axis of 'blocks'.
RULES = (
  (r'embed', P('model', 'fsdp')),
  (r'lora_', P()),
  (r'blocks/.*(q|k|v|gate|up)/kernel', P(None, 'fsdp', 'model')),
  (r'blocks/.*(o|down)/kernel', P(None, 'model', 'fsdp')),
  (r'lm_head/kernel', P('fsdp', 'model')),
  (r'', P()),
)


def make_mesh(sizes, devices=None) -> Mesh:
  """A (data, fsdp, model) mesh; one size may be -1 and takes the devices that are left.

  Of all devices here, or of `devices`, which may be ones to compile for only.
  """
  shape = [sizes[a] for a in AXES]
  places, devices = devices, jax.device_count() if devices is None else len(devices)
  if shape.count(-1) > 1 or any(s < 1 for s in shape if s != -1):
    raise UserError(f'config.mesh: {shape} must be positive sizes, of which one may be -1')
  fixed = int(np.prod([s for s in shape if s != -1]))
  shape = [devices // fixed if s == -1 else s for s in shape]
  if int(np.prod(shape)) != devices:
    raise UserError(f'config.mesh: {dict(zip(AXES, shape, strict=True))} is not {devices} devices')
  types = (AxisType.Auto,) * 3
  return jax.make_mesh(tuple(shape), AXES, axis_types=types, devices=places)


def fit(spec: P, shape: tuple[int, ...], mesh: Mesh, path: str) -> P:
  """The spec without the axes that do not divide their dimension, and without trailing Nones."""
  kept = []
  for size, axis in zip(shape, tuple(spec) + (None,) * len(shape), strict=False):
    parts = int(np.prod([mesh.shape[a] for a in np.atleast_1d(axis)])) if axis else 1
    if parts > 1 and size % parts:
      logging.log_first_n(
        logging.INFO, 'not sharded over %s: %s, whose %d does not divide', 8, axis, path, size
      )
      axis = None
    kept.append(axis)
  while kept and kept[-1] is None:
    kept.pop()
  return P(*kept)


def shardings(tree, mesh: Mesh):
  """A NamedSharding for every leaf; optimizer moments share their parameters' paths."""

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = next(s for pattern, s in RULES if re.search(pattern, name)) if leaf.ndim > 1 else P()
    return NamedSharding(mesh, fit(spec, leaf.shape, mesh, name))

  return jax.tree.map_with_path(one, tree)


def put(tree, mesh: Mesh):
  """Moves parameters to their places on the mesh; on several processes each has all of them."""
  return jax.tree.map(place, tree, shardings(tree, mesh))


def place(x, sharding):
  """An array at its place; from a host's copy each process takes the part that its devices need."""
  if jax.process_count() == 1 or (isinstance(x, jax.Array) and not x.is_fully_addressable):
    return jax.device_put(x, sharding)
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def abstract(tree, mesh: Mesh):
  """Shapes with the shardings of the table: what a restore or a compiler needs of arrays."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings(tree, mesh)
  )


def parts(mesh: Mesh) -> int:
  """Over how many parts a batch is spread."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def batch_shardings(shapes: dict, mesh: Mesh, blocks: int) -> dict:
  """Blocks over the data axes; of a single block the rows, and its indices everywhere."""
  if blocks % parts(mesh) == 0:
    return dict.fromkeys(shapes, NamedSharding(mesh, BATCH))
  if blocks > 1:
    raise UserError(f'blocks={blocks} must be a multiple of mesh data x fsdp = {parts(mesh)}, or 1')
  rows = next((v.shape[0] for k, v in shapes.items() if k.endswith('_BT')), 0)
  if rows % parts(mesh):
    raise UserError(f'batch_rows={rows} must be a multiple of mesh data x fsdp = {parts(mesh)}')
  return {k: NamedSharding(mesh, BATCH if k.endswith('_BT') else P()) for k in shapes}


def own_blocks(mesh: Mesh, blocks: int) -> list[int]:
  """The blocks that this process's devices hold, which are those that it reads."""
  if blocks % parts(mesh):
    return list(range(blocks))
  places = NamedSharding(mesh, BATCH).addressable_devices_indices_map((blocks,))
  return sorted({b for (where,) in places.values() for b in range(blocks)[where]})


def put_batch(batch: dict, mesh: Mesh, blocks: int = 1) -> dict:
  """The whole batch on the mesh, from this process's own blocks of it."""
  where = batch_shardings(batch, mesh, blocks)
  own = own_blocks(mesh, blocks)
  if len(own) == blocks and jax.process_count() == 1:
    return jax.device_put(batch, where)

  def whole(x, sharding):
    size = len(x) // len(own)  # of a block

    def part(index):
      start, stop, _ = index[0].indices(size * blocks)
      first = own.index(start // size) * size + start % size
      return x[first : first + stop - start]

    return jax.make_array_from_callback((size * blocks, *x.shape[1:]), sharding, part)

  return {k: whole(x, where[k]) for k, x in batch.items()}


def own_part(x: jax.Array, mesh: Mesh, blocks: int = 1) -> np.ndarray:
  """What this process's blocks have of an array that lies as a batch does: `put_batch` undone."""
  if x.is_fully_addressable:
    return np.asarray(x)
  size = len(x) // blocks
  found = {}
  for shard in x.addressable_shards:
    start, stop, _ = shard.index[0].indices(len(x))
    data = np.asarray(shard.data)
    found |= {(start + i) // size: data[i : i + size] for i in range(0, stop - start, size)}
  return np.concatenate([found[b] for b in own_blocks(mesh, blocks)])


def flags(mesh: Mesh, **values: bool) -> dict[str, jax.Array]:
  """This process's word on each question, for a step to take the maximum over all processes."""
  where = NamedSharding(mesh, P(AXES))

  def flag(value: bool):
    return jax.make_array_from_callback((mesh.size,), where, lambda _: np.array([value]))

  return {name: flag(value) for name, value in values.items()}
