"""ModernBERT as an ONNX graph: pre-norm layers with rotary positions, windows and gated units.

Scores of `[CLS]` need only its state after the last layer; scores of the mean need all states.
"""

import numpy as np

from disranker_jax.exporting.graph import MASKED, WEIGHT_BIAS, Encoder
from disranker_jax.models import kinds

# The tensors that hold several layers, and the names of these here.
FUSED = {'attn.Wqkv': ('attn.q', 'attn.k', 'attn.v'), 'mlp.Wi': ('mlp.gate', 'mlp.up')}
SINGLE = ('attn.Wo', 'mlp.Wo')
BIASED = {'attn': 'attention_bias', 'mlp': 'mlp_bias'}  # by the first part of the name


class ModernBert(Encoder):
  """The graph of ModernBERT with its head."""

  def __post_init__(self):
    super().__post_init__()
    self.tensors = dict(self.tensors)
    for layer in range(self.layers):
      for name, parts in FUSED.items() | {(name, (name,)) for name in SINGLE}:
        self.unfuse(f'model.layers.{layer}', name, parts)
    if not self.sizes.norm_bias:
      norms = [name for name in self.tensors if name.endswith('norm.weight')]
      zeros = np.zeros(self.width, np.float32)
      self.tensors |= {name.replace('.weight', '.bias'): zeros for name in norms}
    if not self.sizes.head_bias:
      self.tensors['head.dense.bias'] = np.zeros(self.width, np.float32)

  def unfuse(self, layer: str, name: str, parts: tuple[str, ...]) -> None:
    """Adds the tensors that one tensor of the file holds, and zeros for biases that it lacks."""
    weight = self.tensor(f'{layer}.{name}.weight')
    has_bias = self.config.get(BIASED[name.partition('.')[0]])
    bias = self.tensor(f'{layer}.{name}.bias') if has_bias else np.zeros(len(weight), np.float32)
    for kind, whole in zip(WEIGHT_BIAS, (weight, bias), strict=True):
      for part, value in zip(parts, np.split(whole, len(parts)), strict=True):
        self.tensors[f'{layer}.{part}.{kind}'] = value

  def prepare(self) -> None:
    """Adds angles [length, head size / 2] and masks of the kinds of layers."""
    zero, one = self.constant(np.int64(0)), self.constant(np.int64(1))
    places = self.op('Range', zero, self.op('Squeeze', self.length), one)
    column = self.op('Unsqueeze', places, self.constant(np.int64([1])))
    distance = self.op('Abs', self.op('Sub', column, places))
    self.angles, self.biases = {}, {}
    for kind in kinds.distinct(self.sizes.kinds):
      frequency = np.asarray(kind.rope.frequencies(self.sizes.head_dim), np.float32)
      angle = self.op('Mul', self.op('Cast', column, to=1), self.constant(frequency))
      self.angles[kind] = self.op('Cos', angle), self.op('Sin', angle)
      self.biases[kind] = self.bias
      if kind.window:
        far = self.op('GreaterOrEqual', distance, self.constant(np.int64(kind.window)))
        window = self.op('Where', far, *(self.constant(np.float32(v)) for v in (MASKED, 0)))
        self.biases[kind] = self.op('Add', self.bias, window)

  def rotated(self, x: str) -> str:
    """[batch, heads, length, head size] turned by the angles of the current layer's kind."""
    cos, sin = self.angles[self.kind]
    first, second = self.split(self.cast(x, np.float32), 2, self.sizes.head_dim // 2)
    turned = (
      self.op('Sub', self.op('Mul', first, cos), self.op('Mul', second, sin)),
      self.op('Add', self.op('Mul', second, cos), self.op('Mul', first, sin)),
    )
    return self.cast(self.op('Concat', *turned, axis=-1), self.dtype)

  def queries(self, q, length):
    q = super().queries(q, length)
    return self.rotated(q) if length == self.length else q  # position 0 is not turned

  def keys(self, k):
    k = self.rotated(self.heads_of(k, self.length, 0, 2, 1, 3))
    return self.op('Transpose', k, perm=(0, 1, 3, 2))

  def embeddings(self) -> str:
    name = 'model.embeddings.tok_embeddings.weight'
    table = self.constant(self.tensor(name).astype(self.dtype), name)
    x = self.op('Gather', table, 'input_ids')
    x = self.op('Reshape', x, self.constant(np.int64([-1, self.width])))
    return self.norm(x, 'model.embeddings.norm')

  def units(self, layer: int) -> tuple[list[str], str]:
    name = f'model.layers.{layer}'
    return [f'{name}.mlp.gate', f'{name}.mlp.up'], f'{name}.mlp.Wo'

  def combine(self, parts: list[str]) -> str:
    gate, up = parts
    return self.op('Mul', self.act(gate), up)

  def block(self, x: str, layer: int) -> str:
    """One pre-norm layer; the last one only at `[CLS]`, if that is what is scored."""
    name, self.kind = f'model.layers.{layer}', self.sizes.kinds[layer]
    names = [f'{name}.attn.{n}' for n in 'qkv']
    bias = self.biases[self.kind]
    h = self.norm(x, f'{name}.attn_norm') if layer else x
    if layer == self.layers - 1 and self.sizes.pooling == 'cls':
      k, v = self.split(self.linear(h, *names[1:]), 2)
      x, q = self.first(x), self.linear(self.first(h), names[0])
      if self.kind.window:
        bias = self.op('Gather', bias, self.constant(np.int64([0])), axis=2)
      out = self.attend(q, k, v, self.constant(np.int64([1])), bias)
    else:
      out = self.attend(*self.split(self.linear(h, *names), 3), self.length, bias)
    x = self.op('Add', x, self.linear(out, f'{name}.attn.Wo'))
    h = self.norm(x, f'{name}.mlp_norm')
    return self.op('Add', x, self.feed_forward(h, layer))

  def mean(self, x: str) -> str:
    """[batch * length, width] as the mean of each text's tokens: fp32 [batch, width]."""
    sizes = self.constant(np.int64([self.width]))
    x = self.op('Reshape', x, self.op('Concat', self.batch, self.length, sizes, axis=0))
    axis = self.constant(np.int64([1]))
    real = self.op('Cast', 'attention_mask', to=1)
    real = self.op('Unsqueeze', real, self.constant(np.int64([2])))
    total = self.op('ReduceSum', self.op('Mul', x, real), axis, keepdims=0)
    return self.op('Div', total, self.op('ReduceSum', real, axis, keepdims=0))

  def head(self, x: str) -> None:
    """Final norm, pooling, dense layer, norm and classifier, in fp32."""
    x = self.cast(self.norm(x, 'model.final_norm'), np.float32)
    x = self.mean(x) if self.sizes.pooling == 'mean' else x

    def parts(name):
      return [self.constant(self.tensor(f'{name}.{n}'), f'{name}.{n}') for n in WEIGHT_BIAS]

    x = self.act(self.op('Gemm', x, *parts('head.dense'), transB=1), self.sizes.head_act)
    x = self.op('LayerNormalization', x, *parts('head.norm'), epsilon=self.sizes.norm_eps)
    self.op('Gemm', x, *parts('classifier'), transB=1)
    self.nodes[-1].output[0] = 'logits'
