"""The teacher's network: a Mistral, Llama or Qwen2 decoder over packed rows."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from disranker_jax.errors import UserError
from disranker_jax.models import attention, layers

MODEL_TYPES = ('mistral', 'llama', 'qwen2')


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and constants of a decoder; hashable, so that it can be static under jit."""

  vocab: int
  width: int
  ffn: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  model_type: str = 'mistral'
  rope_theta: float = 10000.0
  norm_eps: float = 1e-6
  window: int | None = None
  qkv_bias: bool = False
  out_bias: bool = False
  tied: bool = False
  max_positions: int = 32768
  bos_id: int | None = None
  eos_id: int | tuple[int, ...] | None = None
  pad_id: int | None = None

  @classmethod
  def from_hf(cls, config):
    """Read a Hugging Face config dict; UserError for what this decoder does not compute."""
    kind = config.get('model_type')
    _refuse_unsupported(config)
    heads = config['num_attention_heads']
    eos = config.get('eos_token_id')
    bias = bool(config.get('attention_bias', False))
    return cls(
      vocab=config['vocab_size'],
      width=config['hidden_size'],
      ffn=config['intermediate_size'],
      layers=config['num_hidden_layers'],
      heads=heads,
      kv_heads=config.get('num_key_value_heads') or heads,
      head_dim=config.get('head_dim') or config['hidden_size'] // heads,
      model_type=kind,
      rope_theta=_rope_theta(config),
      norm_eps=config['rms_norm_eps'],
      window=_window(config),
      qkv_bias=kind == 'qwen2' or bias,
      out_bias=kind == 'llama' and bias,
      tied=bool(config.get('tie_word_embeddings', False)),
      max_positions=config.get('max_position_embeddings', cls.max_positions),
      bos_id=config.get('bos_token_id'),
      eos_id=tuple(eos) if isinstance(eos, list) else eos,
      pad_id=config.get('pad_token_id'),
    )

  def to_hf(self):
    """The Hugging Face config dict of the same network, without architecture and labels."""
    config = {
      'model_type': self.model_type,
      'vocab_size': self.vocab,
      'hidden_size': self.width,
      'intermediate_size': self.ffn,
      'num_hidden_layers': self.layers,
      'num_attention_heads': self.heads,
      'num_key_value_heads': self.kv_heads,
      'head_dim': self.head_dim,
      'hidden_act': 'silu',
      'rms_norm_eps': self.norm_eps,
      'rope_theta': self.rope_theta,
      'rope_parameters': {'rope_type': 'default', 'rope_theta': self.rope_theta},
      'max_position_embeddings': self.max_positions,
      'tie_word_embeddings': self.tied,
      'initializer_range': 0.02,
      'use_cache': True,
      'bos_token_id': self.bos_id,
      'eos_token_id': list(self.eos_id) if isinstance(self.eos_id, tuple) else self.eos_id,
      'pad_token_id': self.pad_id,
    }
    if self.model_type == 'llama':
      config |= {'attention_bias': self.qkv_bias, 'mlp_bias': False}
    else:
      config['sliding_window'] = self.window
    if self.model_type == 'qwen2':
      config |= {'use_sliding_window': self.window is not None, 'max_window_layers': 0}
    return config


def _refuse_unsupported(config):
  kind = config.get('model_type')
  if kind not in MODEL_TYPES:
    raise UserError(f'model_type {kind!r} is not a supported decoder: {", ".join(MODEL_TYPES)}')
  if config.get('hidden_act', 'silu') != 'silu':
    raise UserError(f"hidden_act {config['hidden_act']!r} is not supported: decoders use 'silu'")
  if config.get('mlp_bias'):
    raise UserError('mlp_bias true is not supported: the feed-forward kernels have no bias here')
  if kind == 'mistral' and config.get('attention_bias'):
    raise UserError('attention_bias true is not part of Mistral')
  for rope in (config.get('rope_scaling') or {}, config.get('rope_parameters') or {}, config):
    scaling = rope.get('rope_type', rope.get('type', 'default'))
    if scaling != 'default':
      raise UserError(f"rope scaling {scaling!r} is not supported: only 'default' is")
    if (rope.get('partial_rotary_factor') or 1.0) != 1.0:
      raise UserError('partial_rotary_factor below 1 is not supported')


def _rope_theta(config):
  # transformers 5 keeps it in rope_parameters, earlier files at the top.
  rope = config.get('rope_parameters') or {}
  return float(rope.get('rope_theta') or config.get('rope_theta') or 10000.0)


def _window(config):
  window = config.get('sliding_window')
  if config['model_type'] == 'llama' or window is None:
    return None
  if config['model_type'] == 'qwen2':
    first, count = config.get('max_window_layers', 28), config['num_hidden_layers']
    if not config.get('use_sliding_window') or first >= count:
      return None
    if first > 0:
      raise UserError(
        f'max_window_layers {first} of {count} layers mixes full and sliding attention, which is '
        'not supported: set use_sliding_window to false for inputs shorter than the window'
      )
  return window


class Block(nn.Module):
  """One pre-norm layer: grouped-query attention, then a gated feed-forward."""

  config: DecoderConfig
  precision: str
  lora_rank: int
  lora_alpha: float
  attention: str
  sequence: bool

  @nn.compact
  def __call__(self, x_BTD, cache, segments_BT, segments_BS, angles, start):
    """One layer; `cache` is None or {'k', 'v': [B, S, K, E]}, filled from slot `start` on."""
    c = self.config

    def linear(features, name, use_bias=False):
      return layers.Linear(
        features,
        use_bias,
        self.precision,
        lora_rank=self.lora_rank,
        lora_alpha=self.lora_alpha,
        name=name,
      )

    def heads(name, count, h_BTD):
      out = linear(count * c.head_dim, name, c.qkv_bias)(h_BTD)
      return out.reshape(*out.shape[:2], count, c.head_dim)

    h_BTD = layers.RMSNorm(c.norm_eps, name='attn_norm')(x_BTD)
    q_BTHE = layers.rotate(heads('q', c.heads, h_BTD), angles)
    k_BSKE = layers.rotate(heads('k', c.kv_heads, h_BTD), angles)
    v_BSKE = heads('v', c.kv_heads, h_BTD)
    if cache is not None:
      write = jax.lax.dynamic_update_slice_in_dim
      k_BSKE = write(cache['k'], k_BSKE, start, axis=1)
      v_BSKE = write(cache['v'], v_BSKE, start, axis=1)
      cache = {'k': k_BSKE, 'v': v_BSKE}
    out_BTHE = attention.attend(
      q_BTHE,
      k_BSKE,
      v_BSKE,
      segments_BT=segments_BT,
      segments_BS=segments_BS,
      causal=True,
      window=c.window,
      # A number outside a trace, from which `attend` sees that this is no decoding.
      start=0 if cache is None else start,
      precision=self.precision,
      kernel=self.attention,
    )
    x_BTD += linear(c.width, 'o', c.out_bias)(out_BTHE.reshape(*x_BTD.shape[:2], -1))
    h_BTD = layers.RMSNorm(c.norm_eps, name='mlp_norm')(x_BTD)
    gate_BTF = linear(c.ffn, 'gate')(h_BTD)
    x_BTD += linear(c.width, 'down')(nn.silu(gate_BTF) * linear(c.ffn, 'up')(h_BTD))
    return layers.constrain(x_BTD, self.sequence), cache


class Decoder(nn.Module):
  """Embedding, scanned blocks, final norm; heads are separate methods on gathered positions.

  `head` is 'rank' (a bias-free scalar, Hugging Face's `score.weight`), 'lm' (next-token logits) or
  'both'.
  """

  config: DecoderConfig
  precision: str = 'float32'
  lora_rank: int = 0
  lora_alpha: float = 16.0
  remat: str = 'none'
  scan: bool = True
  head: str = 'rank'
  attention: str = 'xla'
  sequence: bool = False

  def setup(self):
    c = self.config
    self.embed = layers.Embed(c.vocab, c.width, self.precision)
    self.blocks = scanned(
      Block, c.layers, self.remat, self.scan, in_axes=(0, *(nn.broadcast,) * 4)
    )(c, self.precision, self.lora_rank, self.lora_alpha, self.attention, self.sequence)
    self.norm = layers.RMSNorm(c.norm_eps)
    if self.head != 'lm':
      self.score_head = layers.Linear(1, name='score')
    if self.head != 'rank' and not c.tied:
      self.lm_head = layers.Linear(c.vocab, precision=self.precision, out_dtype='float32')

  def __call__(self, tokens_BT, segments_BT, positions_BT):
    """Hidden states [B, T, D] after the final norm; segment 0 is padding, positions per segment."""
    return self._run(tokens_BT, positions_BT, None, segments_BT, segments_BT, 0)[0]

  def decode(self, tokens_BT, positions_BT, cache, segments_BS, start):
    """Hidden states of T new tokens in slots start.., and the cache that now holds them."""
    segments_BT = jax.lax.dynamic_slice_in_dim(segments_BS, start, tokens_BT.shape[1], axis=1)
    return self._run(tokens_BT, positions_BT, cache, segments_BT, segments_BS, start)

  def _run(self, tokens_BT, positions_BT, cache, segments_BT, segments_BS, start):
    angles = layers.rope_angles(positions_BT, self.config.head_dim, self.config.rope_theta)
    x_BTD = layers.constrain(self.embed(tokens_BT), self.sequence)
    x_BTD, cache = self.blocks(x_BTD, cache, segments_BT, segments_BS, angles, start)
    return self.norm(x_BTD), cache

  def logits(self, hidden_PD):
    """Next-token logits [P, V] fp32; gather positions first, [B, T, V] is rarely worth having."""
    if self.config.tied:
      table_VD = self.embed.embedding
      return layers.contract('pd,vd->pv', hidden_PD, table_VD, self.precision, jnp.float32)
    return self.lm_head(hidden_PD)

  def score(self, hidden_PD):
    """One relevance score [P] fp32 for each gathered position."""
    return self.score_head(hidden_PD.astype(jnp.float32))[:, 0]

  def everything(self, tokens_BT, segments_BT, positions_BT):
    """Touch every parameter once, for init."""
    hidden_PD = self(tokens_BT, segments_BT, positions_BT)[:, 0]
    score = self.score(hidden_PD) if self.head != 'lm' else None
    logits = self.logits(hidden_PD) if self.head != 'rank' else None
    return score, logits

  def empty_cache(self, rows, slots):
    """Keys and values of no tokens yet: {'k', 'v': [L, B, S, K, E]}."""
    c = self.config
    shape = (c.layers, rows, slots, c.kv_heads, c.head_dim)
    dtype = layers.activation_dtype(self.precision)
    return {'k': jnp.zeros(shape, dtype), 'v': jnp.zeros(shape, dtype)}


def scanned(block, length, remat, scan, in_axes):
  """`block` over `length` layers with stacked parameters [L, ...], rematerialised if asked.

  Without `scan` the loop is unrolled: longer compiles, the same parameter tree.
  """
  if remat not in ('none', 'dots', 'full'):
    raise UserError(f"remat {remat!r} is unknown: use 'none', 'dots' or 'full'")
  if remat != 'none':
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(layers.SAVED) if remat == 'dots' else None
    block = nn.remat(block, prevent_cse=not scan, policy=policy)
  return nn.scan(
    block,
    variable_axes={'params': 0, 'lora': 0},
    split_rngs={'params': True},
    in_axes=in_axes,
    length=length,
    unroll=1 if scan else length,
  )
