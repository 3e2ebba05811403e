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
  (r'embed', P('model')),
  (r'lora_', P()),
  (r'blocks/.*(q|k|v|gate|up)/kernel', P(None, 'fsdp', 'model')),
  (r'blocks/.*(o|down)/kernel', P(None, 'model', 'fsdp')),
  (r'lm_head/kernel', P('fsdp', 'model')),
  (r'', P()),
)


def make_mesh(sizes) -> Mesh:
  """A (data, fsdp, model) mesh; one size may be -1 and takes the devices that are left."""
  shape = [sizes[a] for a in AXES]
  devices = jax.device_count()
  if shape.count(-1) > 1 or any(s < 1 for s in shape if s != -1):
    raise UserError(f'config.mesh: {shape} must be positive sizes, of which one may be -1')
  fixed = int(np.prod([s for s in shape if s != -1]))
  shape = [devices // fixed if s == -1 else s for s in shape]
  if int(np.prod(shape)) != devices:
    raise UserError(f'config.mesh: {dict(zip(AXES, shape, strict=True))} is not {devices} devices')
  return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3)


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
  """Moves parameters to their places on the mesh."""
  return jax.device_put(tree, shardings(tree, mesh))


def put_batch(batch, mesh: Mesh):
  """Rows over the data axes; the small [G, N] and [P] arrays everywhere."""
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  rows = [v.shape[0] for k, v in batch.items() if k.endswith('_BT')]
  if any(r % parts for r in rows):
    raise UserError(f'batch_rows={rows[0]} must be a multiple of mesh data x fsdp = {parts}')
  where = {k: NamedSharding(mesh, BATCH if k.endswith('_BT') else P()) for k in batch}
  return jax.device_put(batch, where)
