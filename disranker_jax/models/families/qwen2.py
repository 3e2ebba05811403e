"""Qwen2: biases of queries, keys and values; a window in the last layers, in all or in none."""

from disranker_jax.models import kinds, rope
from disranker_jax.models.families.decoder import Decoder, DecoderConfig
from disranker_jax.models.kinds import Kind, Kinds


class Qwen2(Decoder):
  architecture = 'Qwen2'

  def layer_kinds(self, config: dict) -> Kinds:
    rotary, count = rope.from_hf(config), config['num_hidden_layers']
    window = config.get('sliding_window') if config.get('use_sliding_window') else None
    # transformers derives the one from the other; files written before version 5 have no types.
    first = config.get('max_window_layers', 28)
    types = config.get('layer_types') or [
      kinds.SLIDING if window and i >= first else kinds.FULL for i in range(count)
    ]
    full = Kind(rope=rotary)
    sliding = Kind(window, rotary)
    return kinds.from_types(types, full_attention=full, sliding_attention=sliding)

  def own_fields(self, config: dict) -> dict:
    return {'qkv_bias': True}

  def own_keys(self, config: DecoderConfig) -> dict:
    types = kinds.to_types(config.kinds)
    return {
      'sliding_window': kinds.window_of(config.kinds),
      'use_sliding_window': kinds.SLIDING in types,
      'max_window_layers': types.index(kinds.SLIDING) if kinds.SLIDING in types else len(types),
      'layer_types': types,
    }
