"""Qwen2: biases of queries, keys and values; a window in every layer or in none."""

from disranker_jax.errors import UserError
from disranker_jax.models.families.decoder import Decoder, DecoderConfig


class Qwen2(Decoder):
  architecture = 'Qwen2'

  def own_fields(self, config: dict) -> dict:
    return {'qkv_bias': True, 'window': window(config)}

  def own_keys(self, config: DecoderConfig) -> dict:
    return window_keys(config)


def window_keys(config: DecoderConfig) -> dict:
  """The keys of config.json that say where the window is."""
  return {
    'sliding_window': config.window,
    'use_sliding_window': config.window is not None,
    'max_window_layers': 0,
  }


def window(config: dict) -> int | None:
  """The window of all layers, or None. Raises: UserError if only some layers have it."""
  first, count = config.get('max_window_layers', 28), config['num_hidden_layers']
  if not config.get('use_sliding_window') or config.get('sliding_window') is None or first >= count:
    return None
  if first > 0:
    raise UserError(
      f'max_window_layers {first} of {count} layers mixes full and sliding attention, which is '
      'not supported: set use_sliding_window to false for inputs shorter than the window'
    )
  return config['sliding_window']
