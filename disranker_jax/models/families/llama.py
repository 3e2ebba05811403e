"""Llama: biases of all projections of attention, or of none; no window."""

from disranker_jax.models.families.decoder import Decoder, DecoderConfig


class Llama(Decoder):
  architecture = 'Llama'

  def own_fields(self, config: dict) -> dict:
    bias = bool(config.get('attention_bias', False))
    return {'qkv_bias': bias, 'out_bias': bias}

  def own_keys(self, config: DecoderConfig) -> dict:
    return {'attention_bias': config.qkv_bias, 'mlp_bias': False}
