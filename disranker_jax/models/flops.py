"""Floating-point operations of a step, from shapes; every layer of a scan is counted.

A product of [m, k] and [k, n] is 2 m k n. The model's FLOPs follow MaxText's definition: 2 per
parameter and token forward, twice that backward, causal attention halved. What the program computes
beyond that is stated separately.
"""

import dataclasses
import re

import numpy as np

from disranker_jax.models import eight_bits
from disranker_jax.models.kinds import Kind
from disranker_jax.models.network import logprob_chunk
from disranker_jax.models.tree import flatten

# Attention products (of two forward, four backward) that a kernel's backward pass recomputes.
# 'auto' is none of them: resolve it first, with attention_choice.choose.
AGAIN = {'xla': 1, 'cudnn': 1, 'splash': 3}


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOPs of one step on all devices."""

  model: float
  recomputed: float = 0.0  # in the backward pass, to save memory
  masked: float = 0.0  # attention scores that the causal mask discards
  in_8_bits: float = 0.0  # of `model`
  mixed: float = 0.0  # for them, see eight_bits.mixed

  @property
  def hardware(self) -> float:
    return self.model + self.recomputed + self.masked + self.mixed

  def seconds(self, peak: float, peak_8_bits: float) -> float:
    """The time that it takes at so many FLOP/s."""
    return (self.hardware - self.in_8_bits) / peak + self.in_8_bits / peak_8_bits

  def __mul__(self, times: int) -> 'Flops':
    return Flops(*(value * times for value in dataclasses.astuple(self)))

  def __add__(self, other: 'Flops') -> 'Flops':
    pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
    return Flops(*(a + b for a, b in pairs))


def count(network, batch: dict, trained: str | None = None, quantize: str = '') -> Flops:
  """FLOPs of a step on one batch of these shapes.

  `trained` is a regular expression over the trained parameters' paths; None is scoring, in which
  the layers' kernels can be of an 8-bit format, `quantize`.
  """
  shapes = flatten(network.shapes())
  sizes = {k: v.size for k, v in shapes.items()}
  is_trained = {k: trained is not None and bool(re.search(trained, k)) for k in sizes}
  # Gradients flow down to the lowest trained part; layers of a scan are not distinguished.
  below = any(t for k, t in is_trained.items() if not _is_head(k))
  total = Flops(0.0)
  for path, size in sizes.items():
    uses = _uses(path, network, batch)
    forward = 2.0 * size * uses
    # The gradients of a product's input and of its weights each cost as much as the product.
    model = forward * (1 + (trained is not None and below) + is_trained[path])
    again = trained is not None and below and _is_again(path, network)
    total += Flops(model, forward if again else 0.0)
    if quantize and eight_bits.KERNELS.fullmatch(path.removeprefix('params/')):
      block = eight_bits.block(shapes[path].shape[-2], eight_bits.FORMATS[quantize])
      extra = forward * block / shapes[path].shape[-1] if block > 1 else 0.0
      total += Flops(0.0, in_8_bits=forward, mixed=extra)
  return total + _attention(network, batch, trained is not None and below)


def filled(batch: dict) -> dict:
  """The batch with only the chunks of predicted tokens that are computed, the non-empty ones."""
  if 'owner_AP' not in batch:
    return batch
  real_AP = np.asarray(batch['owner_AP']) >= 0
  chunk = logprob_chunk(*real_AP.shape)
  some_K = [real_AP[:, at : at + chunk].any() for at in range(0, real_AP.shape[1], chunk)]
  return batch | {'index_AP': np.zeros((len(real_AP), chunk * sum(some_K)), np.int32)}


def _attention(network, batch: dict, backward: bool) -> Flops:
  c = network.config
  rows, length = batch['tokens_BT'].shape
  product = 2.0 * rows * c.heads * c.head_dim  # per pair of positions and layer
  kinds = getattr(c, 'kinds', (Kind(),) * c.layers)
  seen = sum(kind.pairs(length, network.causal) for kind in kinds)
  again = 0
  if backward:
    again = AGAIN[network.attention] + 2 * (network.remat == 'full')
    if network.attention == 'xla' and network.remat == 'dots':
      again = 0  # what it would recompute is among the saved dots
  products = 2 + 4 * backward
  masked = sum(computed(kind, length, network) for kind in kinds) - seen
  return Flops(
    product * seen * products, product * seen * again, product * masked * (products + again)
  )


def computed(kind: Kind, length: int, network) -> int:
  """How many of a row's length^2 pairs of query and key a layer's kernel computes."""
  causal = network.causal
  if network.attention == 'splash':
    return kind.pairs(length, causal)
  # cuDNN skips what causality masks; a window is part of the mask that it adds.
  whole = (kind.window or length) >= length
  return Kind().pairs(length, causal and whole and network.attention == 'cudnn')


def _uses(path: str, network, batch: dict) -> int:
  """The number of positions at which a forward pass multiplies a parameter by an activation."""
  if _is_vocabulary(path, network):
    blocks, count = batch['index_AP'].shape if 'index_AP' in batch else (0, 0)
    chunk = logprob_chunk(blocks, count)
    return blocks * -(-count // chunk) * chunk
  if not re.search(r'(kernel|lora_a|lora_b)$', path):
    return 0  # looked up, or applied element by element
  is_of_token = re.search('blocks/|widen/', path)  # widen: of embeddings that are narrower
  return batch['tokens_BT'].size if is_of_token else batch['index_AX'].size


def _is_vocabulary(path: str, network) -> bool:
  """Whether it is the matrix of next-token logits."""
  if network.head == 'rank':
    return False
  return path == f'params/{network.family.logits_path(network.config)}'


def _is_head(path: str) -> bool:
  return not re.search(r'blocks/|embed|words|places|types|widen/', path)


def _is_again(path: str, network) -> bool:
  """Whether the backward pass recomputes a product."""
  if 'blocks/' not in path:
    return _is_vocabulary(path, network)  # chunks of logits are never saved
  # The value of a layer's last product is needed only by a norm behind it.
  last = network.family.pre_norm and path.endswith(('down/kernel', 'down/lora_b'))
  return network.remat == 'full' and not last
