"""A cross-encoder as an ONNX graph, from the tensors of its Hugging Face folder; BERT's own graph.

Inputs: input_ids, attention_mask and, where the family has token types, token_type_ids, int64
[batch, length], both sizes dynamic. Output:
logits fp32 [batch, 1]. Inside, tokens are rows: [batch * length, width]. The last layer is computed
at `[CLS]` only, because only that is read; it saves a seventh of a 6-layer network's work.
All operators are standard ONNX; quantised.py adds the 8-bit kernels.
"""

import dataclasses

import numpy as np
import onnx
from onnx import helper, numpy_helper

from disranker_jax.models import families

OPSET = 20  # the first one that has Gelu
IR_VERSION = 9  # the file format of that opset's time, so that older runtimes can read it
INPUTS = ('input_ids', 'attention_mask', 'token_type_ids')
MASKED = -1e4  # float16 can represent it, and a softmax turns it into 0
WEIGHT_BIAS = ('weight', 'bias')
DTYPES = {'onnx': np.float32, 'onnx_fp16': np.float16}  # of each format


@dataclasses.dataclass
class Encoder:
  """The graph while it is being built: nodes in order and constants by name.

  `family` is that of the model, `config` the folder's config.json, `tensors` its safetensors by
  Hugging Face name. `dtype` is float32, or float16 with softmax, norms and the head in fp32.

  A kind of encoder is a subclass with
    embeddings()          the states that the first layer reads
    block(x, layer)       one layer
    units(layer), combine(parts)  what `feed_forward` is made of
    head(x)               the score, the last node
  """

  family: families.Family
  config: dict
  tensors: dict[str, np.ndarray]
  dtype: type = np.float32

  def __post_init__(self):
    self.nodes, self.constants = [], {}
    self.sizes = self.family.from_hf(self.config)
    self.width, self.heads, self.layers = self.sizes.width, self.sizes.heads, self.sizes.layers

  # Pieces

  def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes):
    """Adds a node; returns the name of its output, or a list of names."""
    names = [f'{kind}_{len(self.nodes)}' + (f'_{i}' if i else '') for i in range(outputs)]
    self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
    return names[0] if outputs == 1 else names

  def constant(self, value, name: str = '') -> str:
    """Adds an array; equal unnamed arrays are stored once."""
    value = np.asarray(value, order='C')
    name = name or f'{value.dtype}_{list(value.shape)}_{"_".join(map(str, value.ravel()))}'
    self.constants[name] = numpy_helper.from_array(value, name)
    return name

  def tensor(self, name: str) -> np.ndarray:
    return np.asarray(self.tensors[name], np.float32)

  def weights(self, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """(kernel [in, out], bias [out]) of linear layers side by side."""
    kernels, biases = ([self.tensor(f'{n}.{part}') for n in names] for part in WEIGHT_BIAS)
    return np.concatenate(kernels).T, np.concatenate(biases)

  def cast(self, x: str, dtype) -> str:
    """x in fp32 or in the graph's type."""
    if self.dtype == np.float32:
      return x
    return self.op('Cast', x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

  def norm(self, x: str, name: str) -> str:
    """Layer norm in fp32."""
    parts = [self.constant(self.tensor(f'{name}.{n}'), f'{name}.{n}') for n in WEIGHT_BIAS]
    x = self.op('LayerNormalization', self.cast(x, np.float32), *parts, epsilon=self.sizes.norm_eps)
    return self.cast(x, self.dtype)

  def linear(self, x: str, *names: str) -> str:
    """x W + b of one linear layer, or of several side by side."""
    kernel, bias = (a.astype(self.dtype) for a in self.weights(*names))
    out = self.op('MatMul', x, self.constant(kernel, f'{names[0]}.kernel'))
    return self.op('Add', out, self.constant(bias, f'{names[0]}.bias')) if bias.any() else out

  def act(self, x: str, name: str = '') -> str:
    """The function of a feed-forward, or the one with this name."""
    name = name or self.sizes.act
    if name == 'relu':
      return self.op('Relu', x)
    return self.op('Gelu', x, approximate='none' if name == 'gelu' else 'tanh')

  # The network

  def mask(self) -> str:
    """The bias that masks padding in attention's logits: fp32 [batch, 1, 1, length]."""
    padded = self.op('Equal', 'attention_mask', self.constant(np.int64(0)))
    out = self.op('Where', padded, *(self.constant(np.float32(v)) for v in (MASKED, 0)))
    return self.op('Unsqueeze', out, self.constant(np.int64([1, 2])))

  def heads_of(self, x: str, length: str, *order: int) -> str:
    """[batch * length, width] as [batch, length, heads, head size], transposed."""
    sizes = self.constant(np.int64([self.heads, self.width // self.heads]))
    shape = self.op('Concat', self.batch, length, sizes, axis=0)
    return self.op('Transpose', self.op('Reshape', x, shape), perm=order)

  def queries(self, q: str, length: str) -> str:
    """[batch, heads, length, head size]."""
    return self.heads_of(q, length, 0, 2, 1, 3)

  def keys(self, k: str) -> str:
    """[batch, heads, head size, length]."""
    return self.heads_of(k, self.length, 0, 2, 3, 1)

  def attend(self, q: str, k: str, v: str, length: str, bias: str = '') -> str:
    """Attention of `length` queries per text to all of its tokens that `bias` does not mask."""
    logits = self.op('MatMul', self.queries(q, length), self.keys(k))
    scale = self.constant(self.dtype((self.width // self.heads) ** -0.5))
    logits = self.cast(self.op('Mul', logits, scale), np.float32)
    logits = self.op('Add', logits, bias or self.bias)
    weights = self.cast(self.op('Softmax', logits, axis=-1), self.dtype)
    out = self.op('MatMul', weights, self.heads_of(v, self.length, 0, 2, 1, 3))
    out = self.op('Transpose', out, perm=(0, 2, 1, 3))
    return self.op('Reshape', out, self.constant(np.int64([-1, self.width])))

  def split(self, x: str, parts: int, size: int = 0) -> list[str]:
    """The last axis in equal parts, of the model's width if no size is given."""
    sizes = self.constant(np.int64([size or self.width] * parts))
    return self.op('Split', x, sizes, outputs=parts, axis=-1)

  def first(self, x: str) -> str:
    """[batch * length, width] at each text's first position: [batch, width]."""
    shape = self.op('Concat', self.batch, self.constant(np.int64([-1, self.width])), axis=0)
    return self.op('Gather', self.op('Reshape', x, shape), self.constant(np.int64(0)), axis=1)

  def feed_forward(self, x: str, layer: int) -> str:
    """The feed-forward of a layer."""
    ups, down = self.units(layer)
    parts = [self.linear(x, *ups)]
    if len(ups) > 1:
      parts = self.split(parts[0], len(ups), self.sizes.ffn)
    return self.linear(self.combine(parts), down)

  def prepare(self) -> None:
    """Adds what all layers need."""

  def model(self) -> onnx.ModelProto:
    """The whole graph; call it once per instance."""
    self.batch = self.op('Shape', 'input_ids', start=0, end=1)
    self.length = self.op('Shape', 'input_ids', start=1, end=2)
    self.bias = self.mask()
    self.prepare()
    x = self.embeddings()
    for layer in range(self.layers):
      x = self.block(x, layer)
    self.head(x)
    inputs = [
      helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ['batch', 'length'])
      for name in self.family.tokenizer_inputs
    ]
    outputs = [helper.make_tensor_value_info('logits', onnx.TensorProto.FLOAT, ['batch', 1])]
    constants = list(self.constants.values())
    graph = helper.make_graph(self.nodes, 'cross_encoder', inputs, outputs, constants)
    opsets = [helper.make_opsetid('', OPSET), helper.make_opsetid('com.microsoft', 1)]
    return helper.make_model(
      graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name='disranker_jax'
    )


class Bert(Encoder):
  """BERT's graph: embeddings of words, types and positions, post-norm layers."""

  def __post_init__(self):
    super().__post_init__()
    self.names = {path: name for name, path in self.family.tensors.items()}

  def name(self, path: str, layer: int = 0) -> str:
    """The Hugging Face name of a module, from the path of ours."""
    last = next(end for end in ('kernel', 'scale', 'embedding') if f'{path}/{end}' in self.names)
    return self.names[f'{path}/{last}'].format(layer).removesuffix('.weight')

  def embeddings(self) -> str:
    zero, one = self.constant(np.int64(0)), self.constant(np.int64(1))
    places = self.op('Range', zero, self.op('Squeeze', self.length), one)
    if offset := self.family.position_offset(self.sizes):
      places = self.op('Add', places, self.constant(np.int64(offset)))
    tables = {'words': 'input_ids', 'types': '', 'places': places}
    if 'token_type_ids' in self.family.tokenizer_inputs:
      tables['types'] = 'token_type_ids'
    elif self.sizes.types:
      tables['types'] = self.op('Mul', 'input_ids', zero)
    else:
      del tables['types']
    total = ''
    for path, ids in tables.items():
      name = f'{self.name(path)}.weight'
      rows = self.op('Gather', self.constant(self.tensor(name).astype(self.dtype), name), ids)
      total = self.op('Add', total, rows) if total else rows
    embed = self.sizes.embed_width or self.width
    total = self.op('Reshape', total, self.constant(np.int64([-1, embed])))
    total = self.norm(total, self.name('embed_norm'))
    if embed == self.width:
      return total
    return Encoder.linear(self, total, self.name('widen'))

  def units(self, layer: int) -> tuple[list[str], str]:
    """(the linear layers that make a feed-forward's units, the one that reads them)."""
    return [self.name('blocks/up', layer)], self.name('blocks/down', layer)

  def combine(self, parts: list[str]) -> str:
    """The units from the outputs of those layers."""
    return self.act(parts[0])

  def block(self, x: str, layer: int) -> str:
    """One post-norm layer; the last one computes only the first position, which attends to all."""
    names = [self.name(f'blocks/{n}', layer) for n in 'qkv']
    if layer == self.layers - 1:
      k, v = self.split(self.linear(x, *names[1:]), 2)
      x = self.first(x)
      out = self.attend(self.linear(x, names[0]), k, v, self.constant(np.int64([1])))
    else:
      out = self.attend(*self.split(self.linear(x, *names), 3), self.length)
    out = self.linear(out, self.name('blocks/o', layer))
    x = self.norm(self.op('Add', out, x), self.name('blocks/attn_norm', layer))
    out = self.feed_forward(x, layer)
    return self.norm(self.op('Add', out, x), self.name('blocks/mlp_norm', layer))

  def head(self, x: str) -> None:
    """The head's two layers, in fp32, of [batch, width]."""
    x = self.cast(x, np.float32)
    dense, out = self.family.head
    for name in (dense, out):
      parts = [self.constant(self.tensor(f'{name}.{n}'), f'{name}.{n}') for n in WEIGHT_BIAS]
      if name == out:
        x = self.op(self.family.head_act.capitalize(), x)
      x = self.op('Gemm', x, *parts, transB=1)
    self.nodes[-1].output[0] = 'logits'
