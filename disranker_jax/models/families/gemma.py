"""Gemma: embeddings times the root of the width, norms that multiply by 1 + weight, GELU gates."""

from disranker_jax.errors import UserError
from disranker_jax.models.families.decoder import Decoder, DecoderConfig

GELU = 'gelu_pytorch_tanh'


class Gemma(Decoder):
  architecture = 'Gemma'
  can_be_bidirectional = False  # transformers halves the windows of such a Gemma 3

  def activation(self, config: dict) -> str:
    # The first files say 'gelu', and mean the tanh form that the model was trained with.
    name = config.get('hidden_activation') or config.get('hidden_act') or GELU
    return GELU if name == 'gelu' else name

  def own_fields(self, config: dict) -> dict:
    bias = bool(config.get('attention_bias', False))
    return {
      'qkv_bias': bias,
      'out_bias': bias,
      'norm_offset': 1.0,
      'embed_scale': config['hidden_size'] ** 0.5,
      'tied': config.get('tie_word_embeddings', True),
      'head_dim': config.get('head_dim') or 256,
    }

  def own_keys(self, config: DecoderConfig) -> dict:
    return {'attention_bias': config.qkv_bias}

  def prompt(self, tokenizer, *args, **settings):
    if tokenizer.bos_token_id is None:
      raise UserError(
        'tokenizer: has no bos_token, which must be the first token of each text for Gemma; '
        'restore tokenizer_config.json'
      )
    return super().prompt(tokenizer, *args, **settings)
