"""ModernBERT, and so Ettin and mmBERT: a pre-norm encoder with local and global attention.

Warner et al., Smarter, Better, Faster, Longer, arXiv 2412.13663. Rotary positions, gated
feed-forward, most norms and products without biases. Most layers see a window only.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from disranker_jax.errors import UserError
from disranker_jax.models import attention, kinds, layers, rope
from disranker_jax.models.families.base import CROSS_ENCODER_USE, PAIR_SCORES, Family
from disranker_jax.models.families.bert import ACTS
from disranker_jax.models.kinds import FULL, SLIDING, Kind, Kinds
from disranker_jax.progress import amount

THETAS = {FULL: 160_000.0, SLIDING: 10_000.0}  # of files that do not say
OLD_THETAS = {FULL: 'global_rope_theta', SLIDING: 'local_rope_theta'}
EVERY = 3  # a global layer is followed by two local ones, in files that do not say
# Token ids that transformers keeps in the config; nothing here reads them.
TOKENS = ('bos_token_id', 'eos_token_id', 'cls_token_id', 'sep_token_id')
POOLING = {'cls': 'token', 'mean': 'mean'}  # of `classifier_pooling`: the pooling here


@dataclasses.dataclass(frozen=True)
class ModernBertConfig:
  """Sizes and constants of a ModernBERT; hashable, so that it can be static under jit."""

  vocab: int
  width: int
  ffn: int
  layers: int
  heads: int
  kinds: Kinds
  max_positions: int = 8192
  norm_eps: float = 1e-5
  norm_bias: bool = False
  attention_bias: bool = False
  mlp_bias: bool = False
  act: str = 'gelu'
  pooling: str = 'cls'
  head_bias: bool = False
  head_act: str = 'gelu'
  pad_id: int | None = None
  tokens: tuple[int | None, ...] = (None,) * len(TOKENS)
  model_type: str = 'modernbert'

  @property
  def head_dim(self) -> int:
    return self.width // self.heads


def _linear(theirs: str, *ours: str) -> dict[str, str | tuple[str, ...]]:
  """The kernel and bias of a linear layer of the file, which may be several layers here."""
  names = {'weight': 'kernel', 'bias': 'bias'}
  return {
    f'{theirs}.{part}': tuple(f'{path}/{own}' for path in ours) for part, own in names.items()
  }


def _norm(theirs: str, ours: str) -> dict[str, str]:
  return {f'{theirs}.weight': f'{ours}/scale', f'{theirs}.bias': f'{ours}/bias'}


class ModernBert(Family):
  """ModernBERT with its own head: pooled state -> dense -> activation -> norm -> one score."""

  pre_norm = True
  layer_states = True

  architecture = 'ModernBert'
  tensors: ClassVar[dict[str, str | tuple[str, ...]]] = {
    'model.embeddings.tok_embeddings.weight': 'words/embedding',
    **_norm('model.embeddings.norm', 'embed_norm'),
    **_norm('model.layers.{}.attn_norm', 'blocks/attn_norm'),
    **_linear('model.layers.{}.attn.Wqkv', 'blocks/q', 'blocks/k', 'blocks/v'),
    **_linear('model.layers.{}.attn.Wo', 'blocks/o'),
    **_norm('model.layers.{}.mlp_norm', 'blocks/mlp_norm'),
    **_linear('model.layers.{}.mlp.Wi', 'blocks/gate', 'blocks/up'),
    **_linear('model.layers.{}.mlp.Wo', 'blocks/down'),
    **_norm('model.final_norm', 'final_norm'),
    **_linear('head.dense', 'dense'),
    **_norm('head.norm', 'head_norm'),
    **_linear('classifier', 'classifier'),
  }
  # The first layer reads the norm of the embeddings and has none of its own.
  absent: ClassVar[dict[str, float]] = {
    'model.layers.0.attn_norm.weight': 1.0,
    'model.layers.0.attn_norm.bias': 0.0,
  }
  fresh = ('classifier/', 'dense/', 'head_norm/')
  ignored = r'decoder\.'
  head_modules = ('Pooling', 'Dense', 'LayerNorm', 'Dense')

  title = 'ModernBERT cross-encoder'
  usage = CROSS_ENCODER_USE + PAIR_SCORES
  formats = ('onnx', 'onnx_fp16', 'onnx_int8', 'stablehlo')
  readers = ('disranker_jax.load', 'transformers', 'sentence-transformers')

  def from_hf(self, config: dict) -> ModernBertConfig:
    _refuse_unsupported(config)
    return ModernBertConfig(
      vocab=config['vocab_size'],
      width=config['hidden_size'],
      ffn=config['intermediate_size'],
      layers=config['num_hidden_layers'],
      heads=config['num_attention_heads'],
      kinds=_kinds(config),
      max_positions=config.get('max_position_embeddings', ModernBertConfig.max_positions),
      norm_eps=config.get('norm_eps', ModernBertConfig.norm_eps),
      norm_bias=bool(config.get('norm_bias')),
      attention_bias=bool(config.get('attention_bias')),
      mlp_bias=bool(config.get('mlp_bias')),
      act=config.get('hidden_activation', 'gelu'),
      pooling=config.get('classifier_pooling', 'cls'),
      head_bias=bool(config.get('classifier_bias')),
      head_act=config.get('classifier_activation', 'gelu'),
      pad_id=config.get('pad_token_id'),
      tokens=tuple(config.get(name) for name in TOKENS),
    )

  def to_hf(self, config: ModernBertConfig) -> dict:
    c = config
    types = kinds.to_types(c.kinds)
    ropes = {name: kind.rope for name, kind in zip(types, c.kinds, strict=True)}
    window = kinds.window_of(c.kinds)
    thetas = {key: ropes[name].theta for name, key in OLD_THETAS.items() if name in ropes}
    return {
      'model_type': 'modernbert',
      'vocab_size': c.vocab,
      'hidden_size': c.width,
      'intermediate_size': c.ffn,
      'num_hidden_layers': c.layers,
      'num_attention_heads': c.heads,
      'hidden_activation': c.act,
      'max_position_embeddings': c.max_positions,
      'norm_eps': c.norm_eps,
      'norm_bias': c.norm_bias,
      'attention_bias': c.attention_bias,
      'mlp_bias': c.mlp_bias,
      'layer_types': types,
      'rope_parameters': {name: r.to_hf()['rope_parameters'] for name, r in ropes.items()},
      'local_attention': 2 * (window - 1) if window else 128,
      # Before version 5 transformers reads these instead of the types and parameters.
      'global_attn_every_n_layers': _every(types),
      **thetas,
      'classifier_pooling': c.pooling,
      'classifier_bias': c.head_bias,
      'classifier_activation': c.head_act,
      'initializer_range': 0.02,
      'pad_token_id': c.pad_id,
      **dict(zip(TOKENS, c.tokens, strict=True)),
    }

  def take(self, config: ModernBertConfig, layers: Sequence[int]) -> ModernBertConfig:
    if layers[0] != 0 or 0 in layers[1:]:
      raise UserError(
        f'layers={list(layers)}: the first layer must be 0, and only the first: it is the one '
        'without a norm of its input'
      )
    return super().take(config, layers)

  def pooling(self, config: ModernBertConfig) -> str:
    return POOLING[config.pooling]

  def module(self, config: ModernBertConfig, *, head: str, states: bool, **options) -> nn.Module:
    return ModernBertModule(config, states=states, **options)

  def canonical(self, name: str) -> str:
    bare = name.startswith(('embeddings.', 'layers.', 'final_norm.'))
    return f'model.{name}' if bare else name

  def onnx(self, name: str, config: dict, tensors: dict):
    # Imported late: only an export needs onnx.
    from disranker_jax.exporting import graph, modernbert, quantised

    if name == 'onnx_int8':
      return quantised.build(modernbert.ModernBert, self, config, tensors)
    return modernbert.ModernBert(self, config, tensors, graph.DTYPES[name]).model()


def _refuse_unsupported(config: dict) -> None:
  for key in ('hidden_activation', 'classifier_activation'):
    if config.get(key, 'gelu') not in ACTS:
      raise UserError(f'{key} {config[key]!r} is not supported: use one of {", ".join(ACTS)}')
  if (pooling := config.get('classifier_pooling', 'cls')) not in POOLING:
    raise UserError(f'classifier_pooling {pooling!r} is not supported: only cls and mean are')
  width, heads = config['hidden_size'], config['num_attention_heads']
  if width % heads or (width // heads) % 2:
    raise UserError(f'hidden_size {width} does not divide into {heads} heads of an even size')
  if config.get('head_dim') not in (None, width // heads):
    raise UserError(f'head_dim {config["head_dim"]} is not hidden_size / num_attention_heads')


def _kinds(config: dict) -> Kinds:
  """Of each layer: the keys of transformers 5, or those of earlier versions."""
  count = config['num_hidden_layers']
  every = config.get('global_attn_every_n_layers') or EVERY
  types = config.get('layer_types') or [SLIDING if i % every else FULL for i in range(count)]
  if len(types) != count:
    raise UserError(f'layer_types has {amount(len(types), "entry", "entries")} for {count} layers')
  half = config.get('local_attention', 128) // 2
  if half < 1:
    raise UserError(f'local_attention {config["local_attention"]} is below 2')
  windows = {FULL: None, SLIDING: half + 1}  # a position sees `half` on each side, and itself
  return kinds.from_types(
    types, **{name: Kind(window, _rope(config, name)) for name, window in windows.items()}
  )


def _rope(config: dict, name: str) -> rope.Rope:
  """The rotary positions of a type of layers."""
  parameters = dict((config.get('rope_parameters') or {}).get(name) or {})
  # The usual value where the key is missing; a local theta of null is the global one.
  theta = parameters.get('rope_theta') or config.get(OLD_THETAS[name], THETAS[name])
  parameters |= {'rope_theta': theta or config.get(OLD_THETAS[FULL]) or THETAS[FULL]}
  return rope.from_hf({'rope_parameters': parameters, 'rope_scaling': config.get('rope_scaling')})


def _every(types: Sequence[str]) -> int | None:
  """n, if every n-th layer is global, from the first one on.

  None otherwise, with which earlier versions of transformers stop instead of computing something
  else.
  """
  for n in range(1, len(types) + 1):
    if list(types) == [SLIDING if i % n else FULL for i in range(len(types))]:
      return n
  return None


class Block(nn.Module):
  """One pre-norm layer: attention inside a segment, in a window or not; a gated feed-forward."""

  config: ModernBertConfig
  precision: str
  lora_rank: int
  lora_alpha: float
  attention: str
  sequence: bool
  states: bool

  @nn.compact
  def __call__(self, x_BTD, kind, is_first, segments_BT, angles):
    """One layer, of the kind with this number in `kinds.distinct`; the first has no input norm."""
    c = self.config

    def linear(features, name, use_bias):
      lora = {'lora_rank': self.lora_rank, 'lora_alpha': self.lora_alpha}
      return layers.Linear(features, use_bias, self.precision, **lora, name=name)

    def norm(name):
      return layers.LayerNorm(c.norm_eps, c.norm_bias, name=name)

    h_BTD = jnp.where(is_first, x_BTD, norm('attn_norm')(x_BTD))
    shape = (*x_BTD.shape[:2], c.heads, c.head_dim)
    q, k, v = (linear(c.width, n, c.attention_bias)(h_BTD).reshape(shape) for n in 'qkv')
    angles = kinds.of_layer(kind, angles)
    attend = functools.partial(
      attention.attend, segments_BT=segments_BT, causal=False,
      precision=self.precision, kernel=self.attention,
    )  # fmt: skip
    q, k = rope.rotate(q, angles), rope.rotate(k, angles)
    out_BTHE = kinds.by_window(c.kinds, kind, attend, q, k, v)
    x_BTD += linear(c.width, 'o', c.attention_bias)(out_BTHE.reshape(x_BTD.shape))
    h_BTD = norm('mlp_norm')(x_BTD)
    gate_BTF = ACTS[c.act](linear(c.ffn, 'gate', c.mlp_bias)(h_BTD))
    h_BTF = gate_BTF * linear(c.ffn, 'up', c.mlp_bias)(h_BTD)
    x_BTD = layers.constrain(x_BTD + linear(c.width, 'down', c.mlp_bias)(h_BTF), self.sequence)
    return x_BTD, x_BTD if self.states else None


class ModernBertModule(nn.Module):
  """Embeddings with a norm, scanned blocks, a final norm; the head scores pooled states.

  With `states` it returns the hidden states of all layers, embeddings first: [L + 1, B, T, D]; the
  last ones are those after the final norm, as in transformers.
  """

  config: ModernBertConfig
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
    self.embed_norm = layers.LayerNorm(c.norm_eps, c.norm_bias)
    self.blocks = layers.scanned(
      Block, c.layers, self.remat, self.scan, in_axes=(0, 0, nn.broadcast, nn.broadcast)
    )(
      c, self.precision, self.lora_rank, self.lora_alpha, self.attention, self.sequence,
      self.states,
    )  # fmt: skip
    self.final_norm = layers.LayerNorm(c.norm_eps, c.norm_bias)
    self.dense = layers.Linear(c.width, use_bias=c.head_bias)
    self.head_norm = layers.LayerNorm(c.norm_eps, c.norm_bias)
    self.classifier = layers.Linear(1, use_bias=True)

  def __call__(self, tokens_BT, segments_BT, positions_BT):
    """Hidden states [B, T, D]; segment 0 is padding, positions start at 0 in each segment."""
    c = self.config
    x_BTD = layers.constrain(self.embed_norm(self.words(tokens_BT)), self.sequence)
    angles = kinds.angles(c.kinds, positions_BT, c.head_dim)
    kind_L, is_first_L = jnp.asarray(kinds.numbers(c.kinds)), jnp.arange(c.layers) == 0
    last_BTD, each_LBTD = self.blocks(x_BTD, kind_L, is_first_L, segments_BT, angles)
    last_BTD = self.final_norm(last_BTD)
    if not self.states:
      return last_BTD
    return jnp.concatenate([x_BTD[None], each_LBTD[:-1], last_BTD[None]])

  def score(self, hidden_PD):
    """One relevance score [P] fp32 for each pooled state."""
    h_PD = ACTS[self.config.head_act](self.dense(hidden_PD.astype(jnp.float32)))
    return self.classifier(self.head_norm(h_PD))[:, 0]

  def everything(self, *inputs: jax.Array):
    """Touches every parameter once, for init."""
    return self.score(self(*inputs)[:, 0])
