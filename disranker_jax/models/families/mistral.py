"""Mistral: no biases, a window in every layer."""

from disranker_jax.errors import UserError
from disranker_jax.models import rope
from disranker_jax.models.families.decoder import Decoder, DecoderConfig
from disranker_jax.models.kinds import Kind, Kinds, window_of


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
    return {'sliding_window': window_of(config.kinds)}
