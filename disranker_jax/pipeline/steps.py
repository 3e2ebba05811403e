"""The steps that a stage runs, on shapes instead of arrays: no parameters, no data.

They are what can be known before a stage starts: whether settings, model and mesh fit each other,
the bytes that it holds and the FLOPs that it takes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from disranker_jax.data.batches import Shape
from disranker_jax.devices import memory, sharding
from disranker_jax.devices.memory import per_device
from disranker_jax.models import eight_bits, flops, generate, load, writing
from disranker_jax.models.load import shapes
from disranker_jax.models.network import Network
from disranker_jax.models.writing import Texts
from disranker_jax.pipeline.stage import Stage
from disranker_jax.rankers import pointwise
from disranker_jax.training import train

# The part of `Step.held` that is needed only until a model is in 8 bits.
GATE = 'full precision'


@dataclasses.dataclass(frozen=True)
class Step:
  """One step of a stage, the bytes that it holds per device, and its batch."""

  network: Network
  trace: Callable  # () -> jax.stages.Traced of what holds the most: `.jaxpr`
  lower: Callable  # () -> jax.stages.Lowered of the whole step
  held: dict[str, int]  # by part
  batch: dict  # shapes of one micro-batch
  trained: str | None  # see flops.count
  accumulate: int = 1
  saved: int = 0  # bytes of a checkpoint, over all devices
  quantize: str = ''  # the 8-bit format of the layers' products, '' for none
  texts: Texts | None = None  # what a step writes, if it writes

  @property
  def flops(self) -> flops.Flops:
    """FLOPs of the whole step on all devices."""
    network = self.network
    if network.attention == 'auto':
      kernel = 'splash' if jax.default_backend() == 'tpu' else 'xla'
      network = dataclasses.replace(network, attention=kernel)
    if self.texts:
      return writing.count(network, self.texts)
    count = flops.count(network, self.batch, self.trained, quantize=self.quantize)
    return count * self.accumulate

  @property
  def read(self) -> int:
    """Bytes that a device reads for the tokens that it writes, one after the other."""
    new = self.texts.steps if self.texts else 0
    return new * (self.held.get('operands', 0) + self.held.get('caches', 0))


def training(config: ConfigDict, stage: Stage, network: Network, mesh) -> Step:
  """The step of a stage that trains a network.

  Raises: UserError where batch, mesh and trained parameters do not fit each other.
  """
  c, task = config[stage.name], stage.task(config, network)
  variables = shapes(network, config[stage.role].param_dtype, c.trainable)
  variables |= jax.eval_shape(task.more, variables)
  shape = task.shape.on(sharding.parts(mesh))
  batch = shape.block(c.data_shards).zeros(c.data_shards)
  steps = c.max_steps or 1000  # only the schedule depends on it
  program = train.Program(task.loss, c, steps, variables, batch, c.data_shards, mesh)
  saved = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((program.trained, program.state)))
  return Step(
    network, program.trace_gradients, program.lower, memory.held(program), batch, c.trainable,
    c.gradient_accumulation_steps, saved,
  )  # fmt: skip


class Scoring(Protocol):
  """What scores batches of one shape: a PointwiseRanker, or the LabelLogits of an LLM ranker."""

  shape: Shape  # of a block
  blocks: int

  def lower(self, variables, batch) -> jax.stages.Lowered:
    """The whole step, of shapes on the mesh."""

  def trace(self, variables, batch) -> jax.stages.Traced:
    """What holds the most of it."""


def scoring(
  settings: ConfigDict,
  network: Network,
  opened: Callable[[Network], Scoring],
  mesh,
  quantize: str = '',
) -> Step:
  """The step of what `opened` makes of the network without adapters and parameters.

  In 8 bits, `held` has what the parameters take more while they are in full precision.
  """
  network, full = load.merged(network, shapes(network, settings.param_dtype))
  variables = eight_bits.quantised(full, quantize)
  scorer = opened(network)
  batch = scorer.shape.zeros(scorer.blocks)
  where = sharding.batch_shardings(batch, mesh, scorer.blocks)
  batches = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where[k]) for k, v in batch.items()}
  variables, full = sharding.abstract(variables, mesh), sharding.abstract(full, mesh)
  held = {'parameters': per_device(variables), 'batch': per_device(batches)}
  if quantize:
    held[GATE] = per_device(full) - held['parameters']
  lower, trace = (functools.partial(f, variables, batches) for f in (scorer.lower, scorer.trace))
  return Step(network, trace, lower, held, batch, None, quantize=quantize)


def by_pairs(settings: ConfigDict, kind: str, rows: int, mesh) -> Callable[[Network], Scoring]:
  """What scores pairs by `kind` in batches of `rows` rows, for `scoring`."""
  return lambda network: pointwise.PointwiseRanker(
    network, None, None, mesh, rows, settings.row_len, kind, longest=settings.max_len
  )


def writer(settings: ConfigDict, network: Network, texts: Texts, mesh) -> Step:
  """The step of a decoder that writes a batch of texts; its trace reads the prompts."""
  variables = sharding.abstract(shapes(network, settings.param_dtype), mesh)
  tokens_BT = jax.ShapeDtypeStruct((texts.prompts, texts.padded), np.int32)
  with jax.set_mesh(mesh):
    found = writing.held(network, variables, texts)
  parts = sharding.even_parts(mesh, texts.rows)
  share = per_device(variables) / writing.size(variables)  # of the parameters that a device holds
  held = {
    'parameters': per_device(variables),
    'operands': int(found['operands'] * share),
    'caches': found['caches'] // parts,
    'logits': found['logits'] // parts,
    'batch': writing.size(tokens_BT),
  }

  def jitted():
    return jax.jit(functools.partial(generate.prefill, network, texts.padded, 1))

  def trace():
    with jax.set_mesh(mesh):
      return jitted().trace(variables, tokens_BT, tokens_BT)

  def lower():
    with jax.set_mesh(mesh):
      return jitted().lower(variables, tokens_BT, tokens_BT)

  return Step(network, trace, lower, held, {'tokens_BT': tokens_BT}, None, texts=texts)
