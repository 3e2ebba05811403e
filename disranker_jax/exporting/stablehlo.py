"""The student as portable StableHLO, which runs wherever jax does, without this package.

Two serialised programs for CPU, GPU and TPU, with dynamic batch and length:
  stablehlo/prepare   the tensors of model.safetensors, by name -> parameters
  stablehlo/score     (parameters, input_ids, attention_mask, token_type_ids) -> fp32 [batch]
The weights are stored once, in model.safetensors. A family without token types has no third array.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from disranker_jax.models import tensors
from disranker_jax.models.families import Family
from disranker_jax.models.network import Network, from_hf

PLATFORMS = ('cpu', 'cuda', 'tpu')
ARRAYS = {
  'input_ids': 'tokens_BT', 'attention_mask': 'segments_BT', 'token_type_ids': 'types_BT',
}  # fmt: skip


def write(folder: Path) -> None:
  """Adds both programs to a folder that hf.save wrote."""
  # XLA's own attention, because a kernel is for one platform and a program is for all.
  network = from_hf(folder, attention='xla')
  dtype = json.loads((folder / 'config.json').read_text())['dtype']
  shapes = {
    name: jax.ShapeDtypeStruct(row.shape, dtype) for name, row in tensors.rows_of(network).items()
  }
  prepare = jax.jit(lambda by_name: tensors.stack(network, by_name))
  params = jax.eval_shape(prepare, shapes)
  ids = jax.ShapeDtypeStruct(export.symbolic_shape('batch, length'), jnp.int32)
  score = jax.jit(lambda params, *arrays: scores(network, params, *arrays))
  target = folder / 'stablehlo'
  target.mkdir(exist_ok=True)
  for name, program, arguments in (
    ('prepare', prepare, (shapes,)),
    ('score', score, (params, *(ids for _ in inputs(network.family)))),
  ):
    exported = export.export(program, platforms=PLATFORMS)(*arguments)
    (target / name).write_bytes(exported.serialize())


def inputs(family: Family) -> list[str]:
  """The arrays of `score`, by their names in Hugging Face."""
  return [theirs for theirs, ours in ARRAYS.items() if ours in family.inputs]


def scores(network: Network, params: dict, *arrays_BT: jax.Array) -> jax.Array:
  """Scores [B] of padded rows with one text pair each."""
  names = (ARRAYS[name] for name in inputs(network.family))
  batch = dict(zip(names, arrays_BT, strict=True))
  B, T = batch['tokens_BT'].shape
  batch['positions_BT'] = jnp.broadcast_to(jnp.arange(T), (B, T))
  batch |= {'index_AX': (jnp.arange(B) * T)[None], 'mask_GN': jnp.ones((B, 1), bool)}
  return network.scores({'params': params}, batch)[:, 0]


def load(folder: Path):
  """The two programs: (tensors) -> params and (params, *arrays) -> scores; needs jax only."""
  return [
    export.deserialize(bytearray((folder / 'stablehlo' / name).read_bytes())).call
    for name in ('prepare', 'score')
  ]
