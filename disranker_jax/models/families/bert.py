"""BERT: a post-norm encoder over packed rows, pooled at [CLS] and classified per document."""

import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from disranker_jax.errors import UserError
from disranker_jax.models import attention, layers
from disranker_jax.models.families.base import CROSS_ENCODER_USE, PAIR_SCORES, Family


def gelu(x: jax.Array) -> jax.Array:
  """The exact GELU, x Phi(x); of bf16 it is computed in fp32 and rounded once.

  Flax computes 1 + erf as erfc, which is slower on a GPU (docs/performance.md). 1 + erf loses
  digits where x is far below zero: there the result is at most 1e-6 off.
  """
  if x.dtype != jnp.bfloat16:
    return nn.gelu(x, approximate=False)
  wide = x.astype(jnp.float32)
  return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTS = {
  'gelu': gelu,
  'gelu_new': nn.gelu,
  'gelu_fast': nn.gelu,
  'gelu_pytorch_tanh': nn.gelu,
  'relu': nn.relu,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes and constants of a BERT; hashable, so that it can be static under jit."""

  vocab: int
  width: int
  ffn: int
  layers: int
  heads: int
  max_positions: int = 512
  types: int = 2  # 0: the network has no token types
  norm_eps: float = 1e-12
  act: str = 'gelu'
  pad_id: int = 0
  embed_width: int = 0  # of the embeddings, if it is not `width`: they are projected then
  model_type: str = 'bert'

  @property
  def head_dim(self) -> int:
    return self.width // self.heads


def linear(theirs: str, ours: str) -> dict[str, str]:
  return {f'{theirs}.weight': f'{ours}/kernel', f'{theirs}.bias': f'{ours}/bias'}


def norm(theirs: str, ours: str) -> dict[str, str]:
  return {f'{theirs}.weight': f'{ours}/scale', f'{theirs}.bias': f'{ours}/bias'}


def tensors(prefix: str, dense: str, out: str) -> dict[str, str]:
  """{Hugging Face name: our path} of a network below `prefix` with a head of two linear layers."""
  layer = f'{prefix}.encoder.layer.{{}}'
  embeddings = f'{prefix}.embeddings'
  return {
    f'{embeddings}.word_embeddings.weight': 'words/embedding',
    f'{embeddings}.position_embeddings.weight': 'places/embedding',
    f'{embeddings}.token_type_embeddings.weight': 'types/embedding',
    **norm(f'{embeddings}.LayerNorm', 'embed_norm'),
    **linear(f'{layer}.attention.self.query', 'blocks/q'),
    **linear(f'{layer}.attention.self.key', 'blocks/k'),
    **linear(f'{layer}.attention.self.value', 'blocks/v'),
    **linear(f'{layer}.attention.output.dense', 'blocks/o'),
    **norm(f'{layer}.attention.output.LayerNorm', 'blocks/attn_norm'),
    **linear(f'{layer}.intermediate.dense', 'blocks/up'),
    **linear(f'{layer}.output.dense', 'blocks/down'),
    **norm(f'{layer}.output.LayerNorm', 'blocks/mlp_norm'),
    **linear(dense, 'pooler'),
    **linear(out, 'classifier'),
  }


class Bert(Family):
  """BERT with a pooler and a classifier of one label.

  Its relatives differ in
    model_type  of config.json
    prefix      of the network's tensors
    head        names of the head's two linear layers
    head_act    the function between them, a key of ACTS or 'tanh'
  """

  model_type = 'bert'
  prefix = 'bert'
  head: tuple[str, str] = ('bert.pooler.dense', 'classifier')
  head_act = 'tanh'

  architecture = 'Bert'
  inputs = (*Family.inputs, 'types_BT')
  layer_states = True

  tensors = tensors(prefix, *head)
  fresh = ('classifier/', 'pooler/')
  ignored = r'cls\.(predictions|seq_relationship)\.'

  title = 'BERT cross-encoder'
  usage = CROSS_ENCODER_USE + PAIR_SCORES
  formats = ('onnx', 'onnx_fp16', 'onnx_int8', 'stablehlo')
  readers = ('disranker_jax.load', 'transformers', 'sentence-transformers')
  vocabulary_tables = ('words/embedding',)

  def from_hf(self, config: dict) -> BertConfig:
    act = config.get('hidden_act', 'gelu')
    if act not in ACTS:
      raise UserError(f'hidden_act {act!r} is not supported: use one of {", ".join(ACTS)}')
    kind = config.get('position_embedding_type', 'absolute')
    if kind != 'absolute':
      raise UserError(f"position_embedding_type {kind!r} is not supported: only 'absolute' is")
    return BertConfig(
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
      embed_width=config.get('embedding_size') or 0,
      model_type=self.model_type,
    )

  def to_hf(self, config: BertConfig) -> dict:
    c = config
    return {
      'model_type': self.model_type,
      'vocab_size': c.vocab,
      'hidden_size': c.width,
      'intermediate_size': c.ffn,
      'num_hidden_layers': c.layers,
      'num_attention_heads': c.heads,
      'hidden_act': c.act,
      'max_position_embeddings': c.max_positions,
      'position_embedding_type': 'absolute',
      'type_vocab_size': c.types,
      'layer_norm_eps': c.norm_eps,
      'hidden_dropout_prob': 0.1,
      'attention_probs_dropout_prob': 0.1,
      'initializer_range': 0.02,
      'pad_token_id': c.pad_id,
    }

  def module(self, config: BertConfig, *, head: str, states: bool, **options) -> nn.Module:
    return BertModule(config, states=states, head_act=self.head_act, **options)

  def canonical(self, name: str) -> str:
    # Files that were converted from TensorFlow, such as the original BERTs, have gamma and beta.
    name = re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', name)
    name = re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', name)
    name = super().canonical(name)
    bare = ('embeddings', 'encoder.', 'pooler.')
    return f'{self.prefix}.{name}' if name.startswith(bare) else name

  def onnx(self, name: str, config: dict, tensors: dict):
    # Imported late: only an export needs onnx.
    from disranker_jax.exporting import graph, quantised

    if name == 'onnx_int8':
      return quantised.build(graph.Bert, self, config, tensors)
    return graph.Bert(self, config, tensors, graph.DTYPES[name]).model()


class Block(nn.Module):
  """One post-norm layer: bidirectional attention inside a segment, then a feed-forward."""

  config: BertConfig
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
      lora = {'lora_rank': self.lora_rank, 'lora_alpha': self.lora_alpha}
      return layers.Linear(features, True, self.precision, **lora, name=name)

    shape = (*x_BTD.shape[:2], c.heads, c.head_dim)
    q, k, v = (linear(c.width, name)(x_BTD).reshape(shape) for name in 'qkv')
    out_BTHE = attention.attend(
      q, k, v, segments_BT=segments_BT, causal=False,
      precision=self.precision, kernel=self.attention,
    )  # fmt: skip
    x_BTD += linear(c.width, 'o')(out_BTHE.reshape(x_BTD.shape))
    x_BTD = layers.LayerNorm(c.norm_eps, name='attn_norm')(x_BTD)
    h_BTF = ACTS[c.act](linear(c.ffn, 'up')(x_BTD))
    x_BTD = layers.LayerNorm(c.norm_eps, name='mlp_norm')(x_BTD + linear(c.width, 'down')(h_BTF))
    x_BTD = layers.constrain(x_BTD, self.sequence)
    return x_BTD, x_BTD if self.states else None


class BertModule(nn.Module):
  """Embeddings, scanned blocks; pooler and one-logit classifier on gathered [CLS] positions.

  With `states` it returns the hidden states of all layers, embeddings first: [L + 1, B, T, D].
  """

  config: BertConfig
  precision: str = 'float32'
  lora_rank: int = 0
  lora_alpha: float = 16.0
  remat: str = 'none'
  scan: bool = True
  attention: str = 'xla'
  sequence: bool = False
  states: bool = False
  head_act: str = 'tanh'

  def setup(self):
    c = self.config
    embed = c.embed_width or c.width
    self.words = layers.Embed(c.vocab, embed, self.precision)
    self.places = layers.Embed(c.max_positions, embed, self.precision)
    if c.types:
      self.types = layers.Embed(c.types, embed, self.precision)
    if embed != c.width:
      self.widen = layers.Linear(c.width, True, self.precision)
    self.embed_norm = layers.LayerNorm(c.norm_eps)
    self.blocks = layers.scanned(Block, c.layers, self.remat, self.scan, in_axes=(nn.broadcast,))(
      c, self.precision, self.lora_rank, self.lora_alpha, self.attention, self.sequence,
      self.states,
    )  # fmt: skip
    self.pooler = layers.Linear(c.width, use_bias=True)
    self.classifier = layers.Linear(1, use_bias=True)

  def __call__(self, tokens_BT, segments_BT, positions_BT, types_BT=None):
    """Hidden states [B, T, D]; segment 0 is padding, positions start at 0 in each segment."""
    x_BTD = self.words(tokens_BT) + self.places(positions_BT)
    x_BTD = self.embed_norm(x_BTD if types_BT is None else x_BTD + self.types(types_BT))
    if x_BTD.shape[-1] != self.config.width:
      x_BTD = self.widen(x_BTD)
    x_BTD = layers.constrain(x_BTD, self.sequence)
    last_BTD, each_LBTD = self.blocks(x_BTD, segments_BT)
    return jnp.concatenate([x_BTD[None], each_LBTD]) if self.states else last_BTD

  def score(self, hidden_PD):
    """One relevance score [P] fp32 for each gathered [CLS]."""
    act = ACTS.get(self.head_act, jnp.tanh)
    return self.classifier(act(self.pooler(hidden_PD.astype(jnp.float32))))[:, 0]

  def everything(self, *inputs):
    """Touches every parameter once, for init."""
    return self.score(self(*inputs)[:, 0])
