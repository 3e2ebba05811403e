"""Qwen3: a norm of each head's queries and keys; a window in every layer or in none."""

from typing import ClassVar

from disranker_jax.models.families import decoder
from disranker_jax.models.families.decoder import Decoder, DecoderConfig
from disranker_jax.models.families.qwen2 import window, window_keys


class Qwen3(Decoder):
  architecture = 'Qwen3'
  tensors: ClassVar[dict[str, str]] = decoder.TENSORS | {
    f'model.layers.{{}}.self_attn.{n}_norm.weight': f'blocks/{n}_norm/scale' for n in 'qk'
  }

  def own_fields(self, config: dict) -> dict:
    bias = bool(config.get('attention_bias', False))
    # Unlike the other types, Qwen3 has heads of 128 if the config does not say.
    head_dim = config.get('head_dim') or 128
    return {
      'qkv_bias': bias, 'out_bias': bias, 'qk_norm': True, 'head_dim': head_dim,
      'window': window(config),
    }  # fmt: skip

  def own_keys(self, config: DecoderConfig) -> dict:
    return {'attention_bias': config.qkv_bias, **window_keys(config)}
