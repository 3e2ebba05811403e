"""GRPO in a plan: what a step does beside its update, and what a device holds while it samples."""

import dataclasses

import jax
import numpy as np
from ml_collections import ConfigDict

from disranker_jax.commands.plan import chips
from disranker_jax.devices import sharding
from disranker_jax.devices.memory import per_device
from disranker_jax.models import flops, generate, writing
from disranker_jax.models.flops import Flops
from disranker_jax.pipeline import steps, systems
from disranker_jax.pipeline.steps import Step
from disranker_jax.rewriting import packed, sampling
from disranker_jax.rewriting.stages import rewrite
from disranker_jax.training import remedies as less


def remedies(config: ConfigDict, size: int, mesh) -> list[str]:
  """What to try if sampling does not fit on so many devices, the smallest loss of speed first."""
  c, options = config.rewrite, []
  if mesh.shape['model'] * 2 <= size:  # sampling gathers what `fsdp` splits
    options.append(f'--config.mesh.model={2 * mesh.shape["model"]}')
  every = less.remedies('rewrite', 'rewriter', c, config.rewriter, (), trains=True, mesh=mesh)
  options += less.as_flags(r for r in every if r.lessens in (less.AVERAGE, less.MOMENTS))
  if c.drawn > c.samples:  # so fewer samples to learn from are no fewer to write
    options.append(f'--config.rewrite.drawn={max(c.samples, c.drawn // 2)}')
  elif c.samples > 2:
    also = ' --config.rewrite.drawn=0' if c.drawn else ''
    options.append(f'--config.rewrite.samples={max(2, c.samples // 2)}{also}')
  blocks = c.gradient_accumulation_steps * c.data_shards
  if c.prompts % (2 * blocks) == 0:
    options.append(f'--config.rewrite.prompts={c.prompts // 2}')
  return options


@dataclasses.dataclass(frozen=True)
class Sampled:
  """The rollout of a step: prompts are read once, and each of their samples is written.

  max_new    tokens of a sample
  updates    from a rollout
  split      parts that the prefill is split into: 1 if the devices do not divide the prompts
  held       bytes of a device while it samples, by part; a written token reads 'operands', the
             parameters, and 'caches', keys and values
  prefill    FLOPs over the prompts, on all devices if they are split
  reference  the share of an update's FLOPs that the pass of the policy of the start takes
  """

  max_new: int
  updates: int
  split: int
  held: dict[str, int]
  prefill: Flops
  reference: float

  def seconds(self, update_s: float, where: chips.Slice) -> dict[str, float]:
    """Seconds by part, for each update. Rewards, and the exchange of parameters, are left out.

    A written token takes as long as reading parameters and caches.
    """
    chip = where.chip
    prefill = self.prefill.seconds(chip.peak, chip.peak_int8) / (self.split * chip.efficiency)
    token = (self.held['operands'] + self.held['caches']) / chip.hbm_rate
    return {
      'prefill': prefill / self.updates,
      'decoding': self.max_new * token / self.updates,
      'reference': self.reference * update_s / self.updates,
    }


def is_asked(config: ConfigDict, name: str) -> bool:
  """Whether the stage samples what it learns from."""
  return systems.find(config, name.partition(':')[0]) is rewrite.STAGE


def find(config: ConfigDict, name: str, step: Step, mesh) -> Sampled | None:
  """What a planned stage samples; None for other stages."""
  if not is_asked(config, name):
    return None
  c, network = config.rewrite, step.network
  longest = generate.padded_len(rewrite.longest(config))
  tokens_BT = jax.ShapeDtypeStruct((c.prompts, longest), np.int32)
  held = _held(network, config, step, mesh)
  batch = {'tokens_BT': tokens_BT, 'index_AX': np.zeros((1, 0), np.int32)}
  passes = flops.count(network, step.batch).hardware * step.accumulate / step.flops.hardware
  split = sharding.even_parts(mesh, c.prompts)
  return Sampled(
    c.max_new, c.iterations, split, held, flops.count(network, batch),
    passes if packed.has_reference(c) else 0.0,
  )  # fmt: skip


def _held(network, config: ConfigDict, step: Step, mesh) -> dict[str, int]:
  """What a device holds while it samples."""
  c = config.rewrite
  shapes = steps.shapes(network, config.rewriter.param_dtype, c.trainable)
  variables = sharding.abstract(shapes, mesh)
  with jax.set_mesh(mesh):
    whole = variables
    if mesh.shape['fsdp'] > 1:
      gather = sampling.gathering(network, variables)
      whole = jax.tree.map(_whole, jax.eval_shape(gather, variables), variables)
    texts = rewrite.rollout(c, rewrite.longest(config))
    found = writing.held(network, whole, texts)
  parts = sharding.even_parts(mesh, texts.rows)  # see layers.constrain
  share = per_device(whole) / writing.size(whole)  # below 1 where 'model' splits parameters
  return {
    **{part: count for part, count in step.held.items() if part != 'batch'},
    'gathered': per_device(whole) if whole is not variables else 0,
    'operands': int(found['operands'] * share),
    'caches': found['caches'] // parts,
    'logits': found['logits'] // parts,
  }


def samples(config: ConfigDict, step: Step, mesh) -> Step:
  """The step that writes a rollout's samples on this machine."""
  texts = rewrite.rollout(config.rewrite, rewrite.longest(config))
  return steps.writer(config.rewriter, step.network, texts, mesh)


def _whole(x, before) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sampling.whole(before.sharding))
