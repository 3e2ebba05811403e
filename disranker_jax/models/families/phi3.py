"""Phi-3 and Phi-4: Mistral, with inputs of attention in one tensor, and of the feed-forward too."""

from typing import ClassVar

from disranker_jax.models.families import decoder
from disranker_jax.models.families.mistral import Mistral

# Tensors of the file that hold several of ours, one after another.
FUSED: dict[str, tuple[str, ...]] = {
  'model.layers.{}.self_attn.qkv_proj.weight': tuple(f'blocks/{n}/kernel' for n in 'qkv'),
  'model.layers.{}.mlp.gate_up_proj.weight': ('blocks/gate/kernel', 'blocks/up/kernel'),
}
INSIDE = {path for paths in FUSED.values() for path in paths}


class Phi3(Mistral):
  architecture = 'Phi3'
  tensors: ClassVar[dict[str, str | tuple[str, ...]]] = {
    name: path for name, path in decoder.TENSORS.items() if path not in INSIDE
  } | FUSED
