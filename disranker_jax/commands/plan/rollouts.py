"""GRPO in a plan: what a step does beside its update, and what a device holds while it samples."""

import dataclasses
import math

import jax
import numpy as np
from ml_collections import ConfigDict

from disranker_jax.commands.plan import chips
from disranker_jax.devices import sharding
from disranker_jax.devices.memory import per_device
from disranker_jax.models import flops, generate
from disranker_jax.models.flops import Flops
from disranker_jax.pipeline import steps, systems
from disranker_jax.pipeline.steps import Step
from disranker_jax.rewriting import packed, sampling
from disranker_jax.rewriting.stages import rewrite


@dataclasses.dataclass(frozen=True)
class Rollouts:
  """The rollout of a step: prompts are read once, and each of their samples is written.

  prompts    of a rollout, each with `samples` samples of up to `max_new` tokens
  updates    from a rollout
  split      parts that the prefill is split into: 1 if the devices do not divide the prompts
  read       bytes of parameters that a written token reads, per device
  caches     bytes of keys and values, per device
  held       all bytes of a device while it samples, by part
  prefill    FLOPs over the prompts, on all devices if they are split
  reference  the share of an update's FLOPs that the pass of the policy of the start takes
  """

  prompts: int
  samples: int
  max_new: int
  updates: int
  split: int
  read: int
  caches: int
  held: dict[str, int]
  prefill: Flops
  reference: float

  @property
  def bytes(self) -> int:
    return sum(self.held.values())

  def seconds(self, update_s: float, where: chips.Slice) -> dict[str, float]:
    """Seconds by part, for each update. Rewards, and the exchange of parameters, are left out.

    A written token takes as long as reading parameters and caches.
    """
    chip = where.chip
    prefill = self.prefill.seconds(chip.peak, chip.peak_int8) / (self.split * chip.efficiency)
    token = (self.read + self.caches) / chip.hbm_rate
    return {
      'prefill': prefill / self.updates,
      'decoding': self.max_new * token / self.updates,
      'reference': self.reference * update_s / self.updates,
    }


def is_asked(config: ConfigDict, name: str) -> bool:
  """Whether the stage samples what it learns from."""
  return systems.find(config, name) is rewrite.STAGE


def find(config: ConfigDict, name: str, step: Step, mesh) -> Rollouts | None:
  """What a planned stage samples; None for other stages."""
  if not is_asked(config, name):
    return None
  c, network = config.rewrite, step.network
  variables = sharding.abstract(steps.shapes(network, config.rewriter.param_dtype), mesh)
  longest = generate.padded_len(rewrite.longest(config))
  whole = variables
  if mesh.shape['fsdp'] > 1:
    with jax.set_mesh(mesh):
      whole = jax.eval_shape(sampling.gathering(network, variables, mesh), variables)
    where = sampling.whole(variables, mesh)
    whole = jax.tree.map(lambda x, s: _shaped(x, s), whole, where)
  tokens_BT = jax.ShapeDtypeStruct((c.prompts, longest), np.int32)
  read = jax.eval_shape(lambda x: generate.operands(network, x), whole)
  with jax.set_mesh(mesh):
    slots = generate.slots_for(longest + c.max_new)
    _, caches = jax.eval_shape(
      lambda *x: generate.prefill(network, slots, c.samples, *x), whole, tokens_BT, tokens_BT
    )
  parts, rows = sharding.parts(mesh), c.prompts * c.samples
  share = per_device(whole) / _bytes(whole)  # below 1 where 'model' splits parameters
  of_rows = parts if rows % parts == 0 else 1
  held = {
    'parameters': step.held['parameters'],
    'moments': step.held['moments'],
    'gathered': per_device(whole) if whole is not variables else 0,
    'operands': int(_bytes(read) * share),
    'caches': _bytes(caches) // of_rows,
    'logits': rows * network.config.vocab * 4 // of_rows,
  }
  batch = {'tokens_BT': tokens_BT, 'index_AX': np.zeros((1, 0), np.int32)}
  passes = flops.count(network, step.batch).hardware * step.accumulate / step.flops.hardware
  split = parts if c.prompts % parts == 0 else 1
  return Rollouts(
    c.prompts, c.samples, c.max_new, c.iterations, split, held['operands'], held['caches'], held,
    flops.count(network, batch), passes if packed.has_reference(c) else 0.0,
  )  # fmt: skip


def beside(config: ConfigDict, step: Step) -> float:
  """How many times as long as its update a step takes, where parts are known by their tokens."""
  shape = rewrite.STAGE.task(config, step.network).shape
  parts = rewrite.parts(config.rewrite, shape, rewrite.longest(config))
  return sum(parts.values()) / parts['update']


def _shaped(x, where) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _bytes(tree) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
