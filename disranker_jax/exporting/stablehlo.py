"""The student as portable StableHLO: runs wherever jax does, without this package.

Two serialised programs for CPU, GPU and TPU, with free batch and length:
  stablehlo/prepare   the tensors of model.safetensors, by name -> parameters
  stablehlo/score     (parameters, input_ids, attention_mask, token_type_ids) -> fp32 [batch]
Weights stay in model.safetensors, once.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from disranker_jax.models import hf
from disranker_jax.models.network import from_hf

PLATFORMS = ('cpu', 'cuda', 'tpu')
ARRAYS = ('input_ids', 'attention_mask', 'token_type_ids')


def write(folder: Path) -> None:
  """Adds both programs to a folder that hf.save wrote."""
  # XLA's own attention: kernels are of one platform, and a program is for all.
  network = from_hf(folder, attention='xla')
  dtype = json.loads((folder / 'config.json').read_text())['dtype']
  shapes = {
    name: jax.ShapeDtypeStruct(row.shape, dtype) for name, row in hf.tensor_rows(network).items()
  }
  prepare = jax.jit(lambda tensors: hf.stack(network, tensors))
  params = jax.eval_shape(prepare, shapes)
  ids = jax.ShapeDtypeStruct(export.symbolic_shape('batch, length'), jnp.int32)
  score = jax.jit(lambda params, *arrays: scores(network, params, *arrays))
  target = folder / 'stablehlo'
  target.mkdir(exist_ok=True)
  for name, program, arguments in (
    ('prepare', prepare, (shapes,)),
    ('score', score, (params, ids, ids, ids)),
  ):
    exported = export.export(program, platforms=PLATFORMS)(*arguments)
    (target / name).write_bytes(exported.serialize())


def scores(network, params, ids_BT, mask_BT, types_BT):
  """Scores [B] of padded rows with one text pair each."""
  B, T = ids_BT.shape
  batch = {
    'tokens_BT': ids_BT,
    'segments_BT': mask_BT,
    'positions_BT': jnp.broadcast_to(jnp.arange(T), (B, T)),
    'types_BT': types_BT,
  }
  hidden_BTD = network.hidden({'params': params}, batch)
  return network.module.apply({'params': params}, hidden_BTD[:, 0], method='score')


def load(folder: Path):
  """(tensors) -> params and (params, *arrays) -> scores, as anyone with jax alone would."""
  return [
    export.deserialize(bytearray((folder / 'stablehlo' / name).read_bytes())).call
    for name in ('prepare', 'score')
  ]
