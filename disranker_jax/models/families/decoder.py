"""What decoders have in common: config, Hugging Face tensors, and the network over packed rows.

Pre-norm layers of grouped-query attention with rotary positions and a gated feed-forward. A type
of decoder is a module of its own, which says how its config differs.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from disranker_jax.data.prompts import PairPrompt, TextPrompt
from disranker_jax.errors import UserError
from disranker_jax.models import attention, layers, rope
from disranker_jax.models.families.base import Family
from disranker_jax.models.rope import UNSCALED, Rope, rotate

USE = """It scores text as `disranker_jax.template` in `config.json` has it; `transformers`
loads it as `{architecture}`. Scores are raw: any real number, larger is better.
"""


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
  rope: Rope = UNSCALED
  norm_eps: float = 1e-6
  window: int | None = None
  qkv_bias: bool = False
  out_bias: bool = False
  qk_norm: bool = False  # of each head's queries and keys, before the rotation
  tied: bool = False
  max_positions: int = 32768
  bos_id: int | None = None
  eos_id: int | tuple[int, ...] | None = None
  pad_id: int | None = None


TENSORS = {
  'model.embed_tokens.weight': 'embed/embedding',
  'model.norm.weight': 'norm/scale',
  'model.layers.{}.input_layernorm.weight': 'blocks/attn_norm/scale',
  'model.layers.{}.post_attention_layernorm.weight': 'blocks/mlp_norm/scale',
  **{
    f'model.layers.{{}}.self_attn.{n}_proj.{theirs}': f'blocks/{n}/{ours}'
    for n in 'qkvo'
    for theirs, ours in (('weight', 'kernel'), ('bias', 'bias'))
  },
  'model.layers.{}.mlp.gate_proj.weight': 'blocks/gate/kernel',
  'model.layers.{}.mlp.up_proj.weight': 'blocks/up/kernel',
  'model.layers.{}.mlp.down_proj.weight': 'blocks/down/kernel',
  'lm_head.weight': 'lm_head/kernel',
  'score.weight': 'score/kernel',
}


class Decoder(Family):
  """A causal language model; its score is read at the last token.

  A type of decoder sets `architecture`, `own_fields` and `own_keys`.
  """

  causal = True
  pre_norm = True
  heads = ('rank', 'lm', 'both')

  prefix = 'model'
  tensors = TENSORS
  fresh = ('score/',)
  ignored = r'lm_head\.weight$|score\.weight$'  # the head that is not in use

  title = 'decoder'
  usage = USE
  readers = ('transformers-tokens',)
  served = False
  prompt_settings = ('template', 'scorer', 'input')

  def own_fields(self, config: dict) -> dict:
    """The fields of DecoderConfig that this type reads in its own way.

    Raises: UserError for options that the network does not compute.
    """
    raise NotImplementedError

  def own_keys(self, config: DecoderConfig) -> dict:
    """The keys of config.json that only this type has; the reverse of `own_fields`."""
    raise NotImplementedError

  def from_hf(self, config: dict) -> DecoderConfig:
    _refuse_unsupported(config)
    heads = config['num_attention_heads']
    eos = config.get('eos_token_id')
    fields = dict(
      vocab=config['vocab_size'],
      width=config['hidden_size'],
      ffn=config['intermediate_size'],
      layers=config['num_hidden_layers'],
      heads=heads,
      kv_heads=config.get('num_key_value_heads') or heads,
      head_dim=config.get('head_dim') or config['hidden_size'] // heads,
      model_type=config['model_type'],
      rope=rope.from_hf(config),
      norm_eps=config['rms_norm_eps'],
      tied=bool(config.get('tie_word_embeddings', False)),
      max_positions=config.get('max_position_embeddings', DecoderConfig.max_positions),
      bos_id=config.get('bos_token_id'),
      eos_id=tuple(eos) if isinstance(eos, list) else eos,
      pad_id=config.get('pad_token_id'),
    )
    return DecoderConfig(**fields | self.own_fields(config))

  def to_hf(self, config: DecoderConfig) -> dict:
    c = config
    return {
      'model_type': c.model_type,
      'vocab_size': c.vocab,
      'hidden_size': c.width,
      'intermediate_size': c.ffn,
      'num_hidden_layers': c.layers,
      'num_attention_heads': c.heads,
      'num_key_value_heads': c.kv_heads,
      'head_dim': c.head_dim,
      'hidden_act': 'silu',
      'rms_norm_eps': c.norm_eps,
      **c.rope.to_hf(),
      'max_position_embeddings': c.max_positions,
      'tie_word_embeddings': c.tied,
      'initializer_range': 0.02,
      'use_cache': True,
      'bos_token_id': c.bos_id,
      'eos_token_id': list(c.eos_id) if isinstance(c.eos_id, tuple) else c.eos_id,
      'pad_token_id': c.pad_id,
    } | self.own_keys(c)

  def module(self, config: DecoderConfig, *, head: str, states: bool, **options) -> nn.Module:
    return DecoderModule(config, head=head, **options)

  def logits_path(self, config: DecoderConfig) -> str:
    return 'embed/embedding' if config.tied else 'lm_head/kernel'

  def prompt(
    self,
    tokenizer,
    max_len: int,
    max_query_len: int,
    *,
    template: str = '',
    predict: str = 'document',
    reads: str = 'template',
  ) -> TextPrompt | PairPrompt:
    if reads == 'pair' or not template:
      return PairPrompt(tokenizer, max_len, max_query_len, scored='last')
    return TextPrompt(
      tokenizer, max_len, max_query_len, template, predict, with_end=reads == 'template'
    )

  def scoring_config(self, config: dict) -> dict:
    """With a padding token that is not the end token.

    transformers scores the last token that is not padding: with pad = `</s>` it skips our `</s>`.
    """
    eos = config['eos_token_id']
    eos = eos if isinstance(eos, list) else [eos]
    pads = (config['pad_token_id'], 0, 1, 2)
    return config | {'pad_token_id': next(i for i in pads if i is not None and i not in eos)}


def _refuse_unsupported(config: dict) -> None:
  if config.get('hidden_act', 'silu') != 'silu':
    raise UserError(f"hidden_act {config['hidden_act']!r} is not supported: decoders use 'silu'")
  if config.get('mlp_bias'):
    raise UserError('mlp_bias true is not supported: the feed-forward kernels have no bias here')


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
      lora = {'lora_rank': self.lora_rank, 'lora_alpha': self.lora_alpha}
      return layers.Linear(features, use_bias, self.precision, **lora, name=name)

    def heads(name, count, h_BTD):
      out = linear(count * c.head_dim, name, c.qkv_bias)(h_BTD)
      return out.reshape(*out.shape[:2], count, c.head_dim)

    h_BTD = layers.RMSNorm(c.norm_eps, name='attn_norm')(x_BTD)
    q_BTHE, k_BSKE = heads('q', c.heads, h_BTD), heads('k', c.kv_heads, h_BTD)
    if c.qk_norm:
      q_BTHE = layers.RMSNorm(c.norm_eps, name='q_norm')(q_BTHE)
      k_BSKE = layers.RMSNorm(c.norm_eps, name='k_norm')(k_BSKE)
    q_BTHE, k_BSKE = rotate(q_BTHE, angles), rotate(k_BSKE, angles)
    v_BSKE = heads('v', c.kv_heads, h_BTD)
    if cache is not None:
      write = jax.lax.dynamic_update_slice_in_dim
      k_BSKE = write(cache['k'], k_BSKE, start, axis=1)
      v_BSKE = write(cache['v'], v_BSKE, start, axis=1)
      cache = {'k': k_BSKE, 'v': v_BSKE}
    # A Python number tells `attend` that this is not decoding.
    start = 0 if cache is None else start
    out_BTHE = attention.attend(
      q_BTHE, k_BSKE, v_BSKE, segments_BT=segments_BT, segments_BS=segments_BS, causal=True,
      window=c.window, start=start, precision=self.precision, kernel=self.attention,
    )  # fmt: skip
    x_BTD += linear(c.width, 'o', c.out_bias)(out_BTHE.reshape(*x_BTD.shape[:2], -1))
    h_BTD = layers.RMSNorm(c.norm_eps, name='mlp_norm')(x_BTD)
    gate_BTF = linear(c.ffn, 'gate')(h_BTD)
    x_BTD += linear(c.width, 'down')(nn.silu(gate_BTF) * linear(c.ffn, 'up')(h_BTD))
    return layers.constrain(x_BTD, self.sequence), cache


class DecoderModule(nn.Module):
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
    self.blocks = layers.scanned(
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
    """Hidden states of T new tokens in the slots from `start` on, and the updated cache."""
    segments_BT = jax.lax.dynamic_slice_in_dim(segments_BS, start, tokens_BT.shape[1], axis=1)
    return self._run(tokens_BT, positions_BT, cache, segments_BT, segments_BS, start)

  def _run(self, tokens_BT, positions_BT, cache, segments_BT, segments_BS, start):
    angles = self.config.rope.angles(positions_BT, self.config.head_dim)
    x_BTD = layers.constrain(self.embed(tokens_BT), self.sequence)
    x_BTD, cache = self.blocks(x_BTD, cache, segments_BT, segments_BS, angles, start)
    return self.norm(x_BTD), cache

  def logits(self, hidden_PD):
    """Next-token logits [P, V] fp32; gather positions first, since [B, T, V] is large."""
    if self.config.tied:
      table_VD = self.embed.embedding
      return layers.contract('pd,vd->pv', hidden_PD, table_VD, self.precision, jnp.float32)
    return self.lm_head(hidden_PD)

  def score(self, hidden_PD):
    """One relevance score [P] fp32 for each gathered position."""
    return self.score_head(hidden_PD.astype(jnp.float32))[:, 0]

  def everything(self, tokens_BT, segments_BT, positions_BT):
    """Touches every parameter once, for init."""
    hidden_PD = self(tokens_BT, segments_BT, positions_BT)[:, 0]
    score = self.score(hidden_PD) if self.head != 'lm' else None
    logits = self.logits(hidden_PD) if self.head != 'rank' else None
    return score, logits

  def empty_cache(self, rows, slots):
    """An empty cache of keys and values: {'k', 'v': [L, B, S, K, E]}."""
    c = self.config
    shape = (c.layers, rows, slots, c.kv_heads, c.head_dim)
    dtype = layers.activation_dtype(self.precision)
    return {'k': jnp.zeros(shape, dtype), 'v': jnp.zeros(shape, dtype)}
