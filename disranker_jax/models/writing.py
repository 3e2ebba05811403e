"""What writing texts takes, from shapes: FLOPs of a batch, the bytes that it holds and reads.

Nothing is computed here; generate.py writes.
"""

import dataclasses
import functools
import math

import jax
import numpy as np

from disranker_jax.models import flops, generate
from disranker_jax.models.flops import Flops


@dataclasses.dataclass(frozen=True)
class Texts:
  """A batch of prompts, and of the texts that are written after each.

  prompts  of a batch, over all devices
  samples  texts of each prompt
  longest  tokens of the longest prompt; all prompts take as long
  max_new  tokens of a text; a batch takes as long as its longest text
  shared   tokens that all prompts begin with, which are read once for all batches
  """

  prompts: int
  samples: int
  longest: int
  max_new: int
  shared: int = 0

  @property
  def rows(self) -> int:
    """Texts of a batch."""
    return self.prompts * self.samples

  @property
  def padded(self) -> int:
    """Tokens to which prompts are padded."""
    return generate.padded_len(self.longest)

  @property
  def slots(self) -> int:
    """Tokens for which each text's cache has room."""
    return generate.slots_for(self.padded + self.max_new)

  @property
  def steps(self) -> int:
    """Written tokens that the network reads, one after the other."""
    return self.max_new


@dataclasses.dataclass(frozen=True)
class Beams(Texts):
  """The same of a beam search: `samples` beams of each prompt. No last token is read."""

  @property
  def slots(self) -> int:
    return self.padded + self.steps

  @property
  def steps(self) -> int:
    return self.max_new - 1


def count(network, texts: Texts) -> Flops:
  """FLOPs of a batch: its prompts, and every token of its texts with its logits."""
  first = texts.prompts if isinstance(texts, Beams) else 0  # logits of prompts, before any beams
  if texts.shared:
    reading = _after(network, texts.prompts, texts.padded - texts.shared, texts.slots, logits=first)
  else:
    reading = flops.count(network, _batch(texts.prompts, texts.padded, first))
  token = _after(network, texts.rows, 1, texts.slots, logits=texts.rows)
  return reading + token * texts.steps


def _after(network, rows: int, tokens: int, slots: int, logits: int) -> Flops:
  """FLOPs of tokens that attend to all slots of a cache."""
  c = network.config
  network = dataclasses.replace(network, attention='xla')
  among = flops.count(network, _batch(rows, tokens, logits))  # attention among these tokens
  pair = 2 * 2.0 * rows * c.heads * c.head_dim * c.layers
  return among + Flops(0.0, masked=pair * tokens * (slots - tokens))


def _batch(rows: int, tokens: int, logits: int) -> dict:
  return {
    'tokens_BT': jax.ShapeDtypeStruct((rows, tokens), np.int32),
    'index_AX': np.zeros((1, 0), np.int32),
    'index_AP': np.zeros((1, logits), np.int32),
  }


def held(network, variables, texts: Texts) -> dict[str, int]:
  """Bytes, over all devices, that writing holds beside the parameters, by part.

  A written token reads 'operands', the parameters as dots read them, and 'caches', keys and values.

  Args:
    variables: shapes of the network's variables.
  """
  tokens_BT = jax.ShapeDtypeStruct((texts.prompts, texts.padded), np.int32)
  read = jax.eval_shape(functools.partial(generate.operands, network), variables)
  prefill = functools.partial(generate.prefill, network, texts.slots, texts.samples)
  _, caches = jax.eval_shape(prefill, variables, tokens_BT, tokens_BT)
  logits = texts.rows * network.config.vocab * 4
  return {'operands': size(read), 'caches': size(caches), 'logits': logits}


def size(tree) -> int:
  """Bytes of a tree of arrays or shapes, over all devices."""
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
