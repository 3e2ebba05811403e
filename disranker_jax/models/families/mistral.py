"""Mistral: no biases, a window in every layer."""

from disranker_jax.errors import UserError
from disranker_jax.models.families.decoder import Decoder, DecoderConfig


class Mistral(Decoder):
  architecture = 'Mistral'

  def own_fields(self, config: dict) -> dict:
    if config.get('attention_bias'):
      raise UserError('attention_bias true is not part of Mistral')
    return {'window': config.get('sliding_window')}

  def own_keys(self, config: DecoderConfig) -> dict:
    return {'sliding_window': config.window}
