"""Qwen3: Qwen2 with a norm of each head's queries and keys, and without biases."""

from typing import ClassVar

from disranker_jax.models.families import decoder
from disranker_jax.models.families.decoder import DecoderConfig
from disranker_jax.models.families.qwen2 import Qwen2


class Qwen3(Qwen2):
  architecture = 'Qwen3'
  tensors: ClassVar[dict[str, str]] = decoder.TENSORS | decoder.QK_NORMS

  def own_fields(self, config: dict) -> dict:
    bias = bool(config.get('attention_bias', False))
    # Unlike the other types, Qwen3 has heads of 128 if the config does not say.
    head_dim = config.get('head_dim') or 128
    return {'qkv_bias': bias, 'out_bias': bias, 'qk_norm': True, 'head_dim': head_dim}

  def own_keys(self, config: DecoderConfig) -> dict:
    return {'attention_bias': config.qkv_bias, **super().own_keys(config)}
