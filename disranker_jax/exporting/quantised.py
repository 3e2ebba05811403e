"""The ONNX graph with 8-bit kernels in its layers, for ONNX Runtime on CPUs.

Weights have one scale per column. Activations are quantised at run time with one scale per token,
so that a score does not depend on the other texts of its batch, as it would with the usual scale
per tensor. A few channels of a trained BERT are much larger than the rest and would use up most of
the 8 bits. They are found beforehand and multiplied in fp32 (as in LLM.int8(), arXiv 2208.07339):
after norms by a small product of their own, in a feed-forward as separate units.
"""

import dataclasses

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from disranker_jax.exporting import graph
from disranker_jax.exporting.graph import WEIGHT_BIAS, Encoder

EXACT_CHANNELS = 1 / 24  # share of the width that stays in fp32 after a norm
EXACT_UNITS = 1 / 48  # share of a feed-forward's units that stays in fp32
# GELU and the like are never below -0.17: of 255 steps, this many are for negative values.
BELOW, LOWEST = 24, 0.17
# What stands for 0 in a kernel. Without VNNI instructions ONNX Runtime adds products of unsigned
# and signed bytes in 16 bits, which overflow; those of unsigned bytes are exact on every CPU.
MIDDLE = 128
SAMPLES, SAMPLE_LEN = 64, 64


@dataclasses.dataclass
class Peaks(Encoder):
  """The fp32 graph, which also records the input of each linear layer: `reads`, {layer: tensor}."""

  def __post_init__(self):
    super().__post_init__()
    self.reads = {}

  def linear(self, x, *names):
    self.reads[names[0]] = x
    return super().linear(x, *names)


def of(kind: type[Encoder], mixin: type[Encoder]) -> type[Encoder]:
  """The graph of a kind of encoder as `Peaks` or `Quantised` builds it."""
  return type(f'{mixin.__name__}{kind.__name__}', (mixin, kind), {})


def peaks(kind: type[Encoder], family, config: dict, tensors: dict) -> dict[str, np.ndarray]:
  """{linear layer: largest absolute value of each input channel}, on random tokens.

  Which channels are large depends on the weights and not on the text, so no data is needed.
  """
  encoder = of(kind, Peaks)(family, config, tensors)
  model = encoder.model()
  outputs = sorted(set(encoder.reads.values()))
  model.graph.output.extend(
    helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs
  )
  rng = np.random.default_rng(0)
  ids = rng.integers(0, encoder.sizes.vocab, (SAMPLES, SAMPLE_LEN))
  types = np.repeat([[0, 1]], SAMPLE_LEN // 2, 1).repeat(SAMPLES, 0)
  arrays = dict(zip(graph.INPUTS, (ids, np.ones_like(ids), types), strict=True))
  feeds = {name: arrays[name] for name in family.tokenizer_inputs}
  session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=['CPUExecutionProvider']
  )
  values = dict(zip(outputs, session.run(outputs, feeds), strict=True))
  return {layer: np.abs(values[name]).max(0) for layer, name in encoder.reads.items()}


@dataclasses.dataclass
class Quantised(Encoder):
  """The 8-bit graph; `peaks` decides which channels stay in fp32."""

  peaks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    super().__post_init__()
    self.norms = {}  # {normalised tensor: (what the norm read, its name)}

  def norm(self, x, name):
    out = super().norm(x, name)
    self.norms[out] = x, name
    return out

  def first(self, x):
    out = super().first(x)
    if x in self.norms:
      source, name = self.norms[x]
      self.norms[out] = super().first(source), name
    return out

  def linear(self, x, *names):
    kernel, bias = self.weights(*names)
    if x in self.norms:
      return self.of_norm(x, kernel, bias, names[0])
    return self.product(x, kernel, bias, names[0])

  def of_norm(self, x: str, kernel, bias, name: str) -> str:
    """x W + b of a norm's output: its large channels in fp32, the others in 8 bits.

    The norm is computed a second time with zeros in the large channels, which is as fast as a copy.
    """
    top = self.largest(name, EXACT_CHANNELS)
    kept = np.ones(len(kernel), np.float32)
    kept[top] = 0
    source, norm = self.norms[x]
    parts = [self.constant(self.tensor(f'{norm}.{n}') * kept, f'{name}.{n}') for n in WEIGHT_BIAS]
    rest = self.op('LayerNormalization', source, *parts, epsilon=self.sizes.norm_eps)
    exact = self.op('Gather', x, self.constant(np.int64(top)), axis=-1)
    return self.product(rest, kernel * kept[:, None], bias, name, exact, kernel[top])

  def feed_forward(self, x, layer):
    """Units are independent sums, so the ones that become large can be computed apart, in fp32."""
    ups, down = self.units(layer)
    ups_weights, (down_kernel, down_bias) = [self.weights(up) for up in ups], self.weights(down)
    top = self.largest(down, EXACT_UNITS)
    rest = np.setdiff1d(np.arange(len(down_kernel)), top)

    def sides(units):
      """(kernel, bias) of these units in all layers that make them, side by side."""
      kernels, biases = zip(*((k[:, units], b[units]) for k, b in ups_weights), strict=True)
      return np.concatenate(kernels, axis=1), np.concatenate(biases)

    def combined(x, units):
      return self.combine(self.split(x, len(ups), len(units)) if len(ups) > 1 else [x])

    h = combined(self.of_norm(x, *sides(rest), ups[0]), rest)
    kernel, bias = sides(top)
    exact = self.op('MatMul', x, self.constant(kernel, f'{ups[0]}.exact'))
    exact = combined(self.op('Add', exact, self.constant(bias, f'{ups[0]}.exact_bias')), top)
    below = self.steps_below()
    return self.product(h, down_kernel[rest], down_bias, down, exact, down_kernel[top], below)

  def steps_below(self) -> int:
    """How many of 255 steps are for units below 0."""
    if len(self.units(0)[0]) > 1:  # products of two layers have either sign
      return 128
    return 0 if self.sizes.act == 'relu' else BELOW

  def largest(self, layer: str, share: float) -> np.ndarray:
    """The indices of the largest channels that a layer reads, sorted."""
    count = max(1, round(share * len(self.peaks[layer])))
    return np.sort(np.argsort(-self.peaks[layer])[:count])

  def product(self, x, kernel, bias, name, exact='', exact_kernel=None, below=128) -> str:
    """x W + b + (exact channels times their kernel), of 8-bit integers with 32-bit sums.

    Everything is divided by the token's peak, which is the integers' unit; the result is multiplied
    by it at the end.
    """
    peak = self.op('ReduceMax', self.op('Abs', x), self.constant(np.int64([-1])), keepdims=1)
    low = LOWEST * (255 - below) / below if 0 < below < 128 else 1e-6
    peak = self.op('Max', peak, self.constant(np.float32(low)))
    step, zero = np.float32(1 / (255 - below)), self.constant(np.uint8(below))
    x8 = self.op('QuantizeLinear', self.op('Div', x, peak), self.constant(step), zero)
    steps = np.maximum(np.abs(kernel).max(0), 1e-12) / 127
    kernel8 = (np.round(kernel / steps) + MIDDLE).astype(np.uint8)
    out = self.op(
      'MatMulIntegerToFloat', x8, self.constant(kernel8, f'{name}.kernel8'), self.constant(step),
      self.constant(steps.astype(np.float32), f'{name}.steps'), zero,
      self.constant(np.uint8(MIDDLE)), domain='com.microsoft',
    )  # fmt: skip
    if not exact:
      return self.op('Add', self.op('Mul', out, peak), self.constant(bias, f'{name}.bias8'))
    ones = self.op('Div', peak, peak)
    extra = self.op('Div', self.op('Concat', exact, ones, axis=-1), peak)
    rows = self.constant(np.concatenate([exact_kernel, bias[None]]), f'{name}.exact_rows')
    return self.op('Mul', self.op('Gemm', extra, rows, out), peak)


def build(kind: type[Encoder], family, config: dict, tensors: dict) -> onnx.ModelProto:
  """The 8-bit ONNX model of a folder's config and tensors, of a kind of encoder."""
  found = peaks(kind, family, config, tensors)
  return of(kind, Quantised)(family, config, tensors, peaks=found).model()
