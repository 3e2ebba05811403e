"""The student's network: a BERT encoder over packed rows, pooled and classified per document."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp

from disranker_jax.errors import UserError
from disranker_jax.models import attention, layers
from disranker_jax.models.decoder import scanned

ACTS = {
  'gelu': functools.partial(nn.gelu, approximate=False),
  'gelu_new': nn.gelu,
  'gelu_fast': nn.gelu,
  'gelu_pytorch_tanh': nn.gelu,
  'relu': nn.relu,
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Sizes and constants of a BERT; hashable, so that it can be static under jit."""

  vocab: int
  width: int
  ffn: int
  layers: int
  heads: int
  max_positions: int = 512
  types: int = 2
  norm_eps: float = 1e-12
  act: str = 'gelu'
  pad_id: int = 0

  @property
  def head_dim(self):
    return self.width // self.heads

  @classmethod
  def from_hf(cls, config):
    """Read a Hugging Face BERT config dict; UserError for what this encoder does not compute."""
    if config.get('model_type') != 'bert':
      raise UserError(f"model_type {config.get('model_type')!r} is not supported: encoders: 'bert'")
    act = config.get('hidden_act', 'gelu')
    if act not in ACTS:
      raise UserError(f'hidden_act {act!r} is not supported: use one of {", ".join(ACTS)}')
    kind = config.get('position_embedding_type', 'absolute')
    if kind != 'absolute':
      raise UserError(f"position_embedding_type {kind!r} is not supported: only 'absolute' is")
    return cls(
      vocab=config['vocab_size'],
      width=config['hidden_size'],
      ffn=config['intermediate_size'],
      layers=config['num_hidden_layers'],
      heads=config['num_attention_heads'],
      max_positions=config['max_position_embeddings'],
      types=config.get('type_vocab_size', 2),
      norm_eps=config.get('layer_norm_eps', 1e-12),
      act=act,
      pad_id=config.get('pad_token_id') or 0,
    )

  def to_hf(self):
    """The Hugging Face config dict of the same network, without architecture and labels."""
    return {
      'model_type': 'bert',
      'vocab_size': self.vocab,
      'hidden_size': self.width,
      'intermediate_size': self.ffn,
      'num_hidden_layers': self.layers,
      'num_attention_heads': self.heads,
      'hidden_act': self.act,
      'max_position_embeddings': self.max_positions,
      'position_embedding_type': 'absolute',
      'type_vocab_size': self.types,
      'layer_norm_eps': self.norm_eps,
      'hidden_dropout_prob': 0.1,
      'attention_probs_dropout_prob': 0.1,
      'initializer_range': 0.02,
      'pad_token_id': self.pad_id,
    }


class Block(nn.Module):
  """One post-norm layer: attention both ways inside a segment, then a feed-forward."""

  config: EncoderConfig
  precision: str
  lora_rank: int
  lora_alpha: float
  attention: str
  sequence: bool
  states: bool

  @nn.compact
  def __call__(self, x_BTD, segments_BT):
    c = self.config

    def linear(features, name):
      return layers.Linear(
        features,
        use_bias=True,
        precision=self.precision,
        lora_rank=self.lora_rank,
        lora_alpha=self.lora_alpha,
        name=name,
      )

    shape = (*x_BTD.shape[:2], c.heads, c.head_dim)
    q, k, v = (linear(c.width, name)(x_BTD).reshape(shape) for name in 'qkv')
    out_BTHE = attention.attend(
      q,
      k,
      v,
      segments_BT=segments_BT,
      segments_BS=segments_BT,
      causal=False,
      precision=self.precision,
      kernel=self.attention,
    )
    x_BTD += linear(c.width, 'o')(out_BTHE.reshape(x_BTD.shape))
    x_BTD = layers.LayerNorm(c.norm_eps, name='attn_norm')(x_BTD)
    h_BTF = ACTS[c.act](linear(c.ffn, 'up')(x_BTD))
    x_BTD = layers.LayerNorm(c.norm_eps, name='mlp_norm')(x_BTD + linear(c.width, 'down')(h_BTF))
    x_BTD = layers.constrain(x_BTD, self.sequence)
    return x_BTD, x_BTD if self.states else None


class Encoder(nn.Module):
  """Embeddings, scanned blocks; pooler and one-logit classifier on gathered [CLS] positions.

  With `states` every layer's hidden states are kept, the embeddings first: [L + 1, B, T, D].
  """

  config: EncoderConfig
  precision: str = 'float32'
  lora_rank: int = 0
  lora_alpha: float = 16.0
  remat: str = 'none'
  scan: bool = True
  attention: str = 'xla'
  sequence: bool = False
  states: bool = False

  def setup(self):
    c = self.config
    self.words = layers.Embed(c.vocab, c.width, self.precision)
    self.places = layers.Embed(c.max_positions, c.width, self.precision)
    self.types = layers.Embed(c.types, c.width, self.precision)
    self.embed_norm = layers.LayerNorm(c.norm_eps)
    self.blocks = scanned(Block, c.layers, self.remat, self.scan, in_axes=(nn.broadcast,))(
      c, self.precision, self.lora_rank, self.lora_alpha, self.attention, self.sequence,
      self.states,
    )  # fmt: skip
    self.pooler = layers.Linear(c.width, use_bias=True)
    self.classifier = layers.Linear(1, use_bias=True)

  def __call__(self, tokens_BT, segments_BT, positions_BT, types_BT):
    """Hidden states [B, T, D]; segment 0 is padding, positions count within each segment."""
    x_BTD = self.words(tokens_BT) + self.places(positions_BT) + self.types(types_BT)
    x_BTD = layers.constrain(self.embed_norm(x_BTD), self.sequence)
    last_BTD, each_LBTD = self.blocks(x_BTD, segments_BT)
    return jnp.concatenate([x_BTD[None], each_LBTD]) if self.states else last_BTD

  def score(self, hidden_PD):
    """One relevance score [P] fp32 for each gathered [CLS]."""
    return self.classifier(jnp.tanh(self.pooler(hidden_PD.astype(jnp.float32))))[:, 0]

  def everything(self, tokens_BT, segments_BT, positions_BT, types_BT):
    """Touch every parameter once, for init."""
    return self.score(self(tokens_BT, segments_BT, positions_BT, types_BT)[:, 0])
