"""Gemma 3, the text model: Gemma with norms on both sides, and local and global attention."""

from typing import ClassVar

from disranker_jax.errors import UserError
from disranker_jax.models import kinds, rope
from disranker_jax.models.families import decoder
from disranker_jax.models.families.decoder import DecoderConfig
from disranker_jax.models.families.gemma import GELU, Gemma
from disranker_jax.models.kinds import FULL, SLIDING, Kind, Kinds
from disranker_jax.models.rope import Rope

THETAS = {FULL: 1_000_000.0, SLIDING: 10_000.0}
LAYER = 'model.layers.{}.'


class Gemma3(Gemma):
  architecture = 'Gemma3'
  pre_norm = False  # a norm follows the last product of a layer
  tensors: ClassVar[dict[str, str]] = {
    **decoder.TENSORS,
    **decoder.QK_NORMS,
    LAYER + 'post_attention_layernorm.weight': 'blocks/attn_post_norm/scale',
    LAYER + 'pre_feedforward_layernorm.weight': 'blocks/mlp_norm/scale',
    LAYER + 'post_feedforward_layernorm.weight': 'blocks/mlp_post_norm/scale',
  }

  def class_name(self, task: str) -> str:
    # The other Gemma3ForSequenceClassification reads images.
    return f'Gemma3{"Text" if task == "SequenceClassification" else ""}For{task}'

  def activation(self, config: dict) -> str:
    return config.get('hidden_activation', GELU)

  def layer_kinds(self, config: dict) -> Kinds:
    count, window = config['num_hidden_layers'], config.get('sliding_window')
    # Files of before transformers 5 have a number: the last of so many layers is global.
    every = config.get('sliding_window_pattern') or 6
    types = config.get('layer_types') or [
      SLIDING if (i + 1) % every else FULL for i in range(count)
    ]
    if SLIDING in types and not window:
      raise UserError(f'sliding_window is {window!r}: local layers need a number of keys')
    new = config.get('rope_parameters') or {}
    full = {'rope_theta': config.get('rope_theta'), 'rope_scaling': config.get('rope_scaling')}
    local = {'rope_theta': config.get('rope_local_base_freq')}
    each = {
      name: rope.from_hf(old | {'rope_parameters': new.get(name)}, THETAS[name])
      for name, old in ((FULL, full), (SLIDING, local))
    }
    return kinds.from_types(
      types, full_attention=Kind(None, each[FULL]), sliding_attention=Kind(window, each[SLIDING])
    )

  def own_fields(self, config: dict) -> dict:
    for name in ('attn_logit_softcapping', 'final_logit_softcapping'):
      if config.get(name):
        raise UserError(f'{name} {config[name]} is not supported: logits are not capped here')
    return super().own_fields(config) | {
      'qk_norm': True,
      'post_norms': True,
      'query_scale': config.get('query_pre_attn_scalar', 256) ** -0.5,
    }

  def own_keys(self, config: DecoderConfig) -> dict:
    types = kinds.to_types(config.kinds)
    found = dict(zip(types, (kind.rope for kind in config.kinds), strict=True))
    each = {name: found.get(name, Rope(theta)) for name, theta in THETAS.items()}
    return {
      **super().own_keys(config),
      **each[FULL].to_hf(),
      'rope_local_base_freq': each[SLIDING].theta,
      'rope_parameters': {name: r.to_hf()['rope_parameters'] for name, r in each.items()},
      'hidden_activation': config.activation,
      'layer_types': types,
      'sliding_window': kinds.window_of(config.kinds),
      'query_pre_attn_scalar': round(config.query_scale**-2),
    }
