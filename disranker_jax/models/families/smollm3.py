"""SmolLM3: Llama with some layers that have no rotary positions."""

import dataclasses

from disranker_jax.models import kinds, rope
from disranker_jax.models.families.decoder import DecoderConfig
from disranker_jax.models.families.llama import Llama
from disranker_jax.models.kinds import SLIDING, Kind, Kinds


class SmolLM3(Llama):
  architecture = 'SmolLM3'

  def layer_kinds(self, config: dict) -> Kinds:
    count, every = config['num_hidden_layers'], config.get('no_rope_layer_interval') or 4
    rotates = config.get('no_rope_layers') or [(i + 1) % every for i in range(count)]
    rotary = rope.from_hf(config, 2_000_000.0)
    window = config.get('sliding_window') if config.get('use_sliding_window') else None
    types = config.get('layer_types') or [
      kinds.FULL if r or not window else SLIDING for r in rotates
    ]
    each = kinds.from_types(types, full_attention=Kind(), sliding_attention=Kind(window))
    return tuple(
      dataclasses.replace(kind, rope=rotary if rotating else None)
      for kind, rotating in zip(each, rotates[:count], strict=True)
    )

  def own_keys(self, config: DecoderConfig) -> dict:
    types = kinds.to_types(config.kinds)
    return {
      **super().own_keys(config),
      'no_rope_layers': [int(kind.rope is not None) for kind in config.kinds],
      'sliding_window': kinds.window_of(config.kinds),
      'use_sliding_window': SLIDING in types,
      'layer_types': types,
    }
