"""Mistral and Ministral: no biases, a window in every layer, in some or in none."""

from disranker_jax.errors import UserError
from disranker_jax.models import kinds, rope
from disranker_jax.models.families.decoder import Decoder, DecoderConfig
from disranker_jax.models.kinds import FULL, SLIDING, Kind, Kinds


class Mistral(Decoder):
  architecture = 'Mistral'

  def own_fields(self, config: dict) -> dict:
    if config.get('attention_bias'):
      raise UserError('attention_bias true is not part of Mistral')
    return {}

  def layer_kinds(self, config: dict) -> Kinds:
    window = config.get('sliding_window')
    return (Kind(window, rope.from_hf(config)),) * config['num_hidden_layers']

  def own_keys(self, config: DecoderConfig) -> dict:
    return {'sliding_window': kinds.window_of(config.kinds)}


class Ministral(Mistral):
  architecture = 'Ministral'

  def layer_kinds(self, config: dict) -> Kinds:
    rotary, window = rope.from_hf(config), config.get('sliding_window')
    types = config.get('layer_types') or [
      SLIDING if window else FULL for _ in range(config['num_hidden_layers'])
    ]
    full = Kind(rope=rotary)
    sliding = Kind(window, rotary)
    return kinds.from_types(types, full_attention=full, sliding_attention=sliding)

  def own_keys(self, config: DecoderConfig) -> dict:
    return {**super().own_keys(config), 'layer_types': kinds.to_types(config.kinds)}


class Ministral3(Mistral):
  architecture = 'Ministral3'

  def own_fields(self, config: dict) -> dict:
    scaling = config.get('rope_parameters') or {}
    fields = super().own_fields(config)
    if scaling.get('llama_4_scaling_beta'):
      # Behind the original context queries grow with their position. Texts end before that here.
      original = scaling.get('original_max_position_embeddings', 16384)
      fields['max_positions'] = min(config['max_position_embeddings'], original)
    return fields

  def own_keys(self, config: DecoderConfig) -> dict:
    # transformers needs a number; with 0 queries do not grow.
    scaling = kinds.ropes(config.kinds)[0].to_hf()['rope_parameters']
    scaling |= {'llama_4_scaling_beta': 0.0}
    scaling.setdefault('original_max_position_embeddings', config.max_positions)
    return {**super().own_keys(config), 'rope_parameters': scaling, 'rope_scaling': None}
