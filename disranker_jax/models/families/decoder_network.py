"""The network of decoders over packed rows, and its config.

Pre-norm layers of grouped-query attention with rotary positions and a gated feed-forward.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from disranker_jax.models import attention, kinds, layers
from disranker_jax.models.kinds import Kind, Kinds
from disranker_jax.models.rope import rotate

# By their names in config.json.
ACTIVATIONS = {
  'silu': nn.silu,
  'gelu_pytorch_tanh': functools.partial(nn.gelu, approximate=True),
}


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
  kinds: Kinds = ()  # of each layer; (): `Kind()` for all
  activation: str = 'silu'  # of the gate: a key of ACTIVATIONS
  norm_eps: float = 1e-6
  norm_offset: float = 0.0  # added to the weights of norms
  post_norms: bool = False  # of what attention and feed-forward add to the stream
  qkv_bias: bool = False
  out_bias: bool = False
  qk_norm: bool = False  # of each head's queries and keys, before the rotation
  query_scale: float | None = None  # of products of queries and keys; None: head_dim^-1/2
  embed_scale: float = 1.0
  tied: bool = False
  causal: bool = True  # False: a position attends to all of its text, as in LLM2Vec
  pooling: str = 'token'  # a key of pooling.POOLINGS
  max_positions: int = 32768
  bos_id: int | None = None
  eos_id: int | tuple[int, ...] | None = None
  pad_id: int | None = None

  def __post_init__(self):
    if not self.kinds:
      object.__setattr__(self, 'kinds', (Kind(),) * self.layers)


class Block(nn.Module):
  """One pre-norm layer: grouped-query attention, then a gated feed-forward."""

  config: DecoderConfig
  precision: str
  lora_rank: int
  lora_alpha: float
  attention: str
  sequence: bool
  keep: bool

  @nn.compact
  def __call__(self, x_BTD, kind, segments_BS, angles, cache=None, start=0):
    """One layer, of the kind with this number in `kinds.distinct`.

    `cache` is None, or the keys and values {'k', 'v': [B, K, S, E]} of all slots, to which those of
    x_BTD are added from slot `start` on. With `cache`, or `keep`, it returns keys and values too.
    """
    c = self.config

    def linear(features, name, use_bias=False):
      lora = {'lora_rank': self.lora_rank, 'lora_alpha': self.lora_alpha}
      return layers.Linear(features, use_bias, self.precision, **lora, name=name)

    def heads(name, count, h_BTD):
      out = linear(count * c.head_dim, name, c.qkv_bias)(h_BTD)
      return out.reshape(*out.shape[:2], count, c.head_dim)

    def norm(name, h):
      return layers.RMSNorm(c.norm_eps, c.norm_offset, name=name)(h)

    def add(name, h_BTD):
      return x_BTD + (norm(name, h_BTD) if c.post_norms else h_BTD)

    h_BTD = norm('attn_norm', x_BTD)
    q_BTHE, k_BTKE = heads('q', c.heads, h_BTD), heads('k', c.kv_heads, h_BTD)
    if c.qk_norm:
      q_BTHE, k_BTKE = norm('q_norm', q_BTHE), norm('k_norm', k_BTKE)
    angles = kinds.of_layer(kind, angles)
    q_BTHE, k_BTKE = rotate(q_BTHE, angles), rotate(k_BTKE, angles)
    v_BTKE = heads('v', c.kv_heads, h_BTD)
    if self.keep or cache is not None:
      dtype = layers.operand_dtype(self.precision)
      new = {'k': k_BTKE, 'v': v_BTKE}
      new = {name: x.astype(dtype).swapaxes(1, 2) for name, x in new.items()}
    if cache is None:
      attend = functools.partial(
        attention.attend, segments_BT=segments_BS, causal=c.causal, scale=c.query_scale,
        precision=self.precision, kernel=self.attention,
      )  # fmt: skip
      out_BTHE = kinds.by_window(c.kinds, kind, attend, q_BTHE, k_BTKE, v_BTKE)
    else:
      write = jax.lax.dynamic_update_slice_in_dim
      new = {name: write(cache[name], x, start, axis=2) for name, x in new.items()}
      attend = functools.partial(
        attention.attend_cached, segments_BS=segments_BS, start=start, scale=c.query_scale,
        precision=self.precision,
      )  # fmt: skip
      out_BTHE = kinds.by_window(c.kinds, kind, attend, q_BTHE, new['k'], new['v'])
    h_BTD = linear(c.width, 'o', c.out_bias)(out_BTHE.reshape(*x_BTD.shape[:2], -1))
    x_BTD = add('attn_post_norm', h_BTD)
    h_BTD = norm('mlp_norm', x_BTD)
    gate_BTF = ACTIVATIONS[c.activation](linear(c.ffn, 'gate')(h_BTD))
    x_BTD = add('mlp_post_norm', linear(c.width, 'down')(gate_BTF * linear(c.ffn, 'up')(h_BTD)))
    kept = new if self.keep or cache is not None else None
    return layers.constrain(x_BTD, self.sequence), kept


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
  keep: bool = False

  @property
  def block(self) -> Block:
    """A layer on its own, for parameters that are not stacked."""
    return Block(self.config, *self._options())

  def _options(self):
    return (
      self.precision, self.lora_rank, self.lora_alpha, self.attention, self.sequence, self.keep
    )  # fmt: skip

  def setup(self):
    c = self.config
    self.embed = layers.Embed(c.vocab, c.width, self.precision)
    self.blocks = layers.scanned(
      Block, c.layers, self.remat, self.scan, in_axes=(0, *(nn.broadcast,) * 2)
    )(c, *self._options())
    self.norm = layers.RMSNorm(c.norm_eps, c.norm_offset)
    if self.head != 'lm':
      self.score_head = layers.Linear(1, name='score')
    if self.head != 'rank' and not c.tied:
      self.lm_head = layers.Linear(c.vocab, precision=self.precision, out_dtype='float32')

  def __call__(self, tokens_BT, segments_BT, positions_BT):
    """Hidden states [B, T, D] after the final norm; segment 0 is padding, positions per segment."""
    return self.prefill(tokens_BT, segments_BT, positions_BT)[0]

  def prefill(self, tokens_BT, segments_BT, positions_BT):
    """The same, and with `keep` the keys and values {'k', 'v': [L, B, K, T, E]}, else None."""
    c = self.config
    angles = kinds.angles(c.kinds, positions_BT, c.head_dim)
    kind_L = jnp.asarray(kinds.numbers(c.kinds))
    x_BTD, cache = self.blocks(self.embedded(tokens_BT), kind_L, segments_BT, angles)
    return self.norm(x_BTD), cache

  def embedded(self, tokens_BT):
    """What the first layer gets: the vectors of tokens, scaled as the model was trained."""
    x_BTD = self.embed(tokens_BT)
    # transformers rounds the factor to the type of the weights: bf16 has 25.25 for 640^1/2.
    x_BTD *= jnp.asarray(self.config.embed_scale, x_BTD.dtype)
    return layers.constrain(x_BTD, self.sequence)

  def normed(self, x_BTD):
    """Final hidden states, from what the last layer gives."""
    return self.norm(x_BTD)

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
