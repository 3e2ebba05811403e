"""Kinds of layers: models such as Gemma 3 and ModernBERT mix local and global attention.

A config has one kind for each layer. The layers stay one stack of parameters that is scanned; each
layer gets the number of its kind, and so any pattern works, also that of a student which keeps only
some layers.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.errors import UserError
from disranker_jax.models.rope import UNSCALED, Rope

# The words of `layer_types` in config.json.
FULL, SLIDING = 'full_attention', 'sliding_attention'


@dataclasses.dataclass(frozen=True)
class Kind:
  """What layers of one kind have in common besides the network's sizes.

  window  a query sees the keys that are less than `window` positions away; None: all
  rope    its rotary positions; None: it has none
  """

  window: int | None = None
  rope: Rope | None = UNSCALED

  def pairs(self, length: int, causal: bool) -> int:
    """How many of a row's length^2 pairs of query and key it computes."""
    window = min(self.window or length, length)
    earlier = window * (window - 1) // 2 + (length - window) * (window - 1)
    if causal:
      return length + earlier
    return length + 2 * earlier if self.window else length * length


Kinds = tuple[Kind, ...]


def numbers(kinds: Kinds) -> np.ndarray:
  """The number of each layer's kind, [L] int32: its place in `distinct(kinds)`."""
  order = distinct(kinds)
  return np.array([order.index(kind) for kind in kinds], np.int32)


def distinct(kinds: Kinds) -> Kinds:
  """The different kinds, in the order of the layers."""
  return tuple(dict.fromkeys(kinds))


def angles(kinds: Kinds, positions_BT: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines for each distinct kind, each [kinds, B, T, E/2] fp32, for all layers."""
  ropes = [kind.rope for kind in distinct(kinds)]
  each = [rope.angles(positions_BT, head_dim) if rope else None for rope in ropes]
  some = next((pair for pair in each if pair), None)
  if some is None:
    shape = (*positions_BT.shape, head_dim // 2)
    some = jnp.ones(shape), jnp.zeros(shape)
  # A rotation by 0 is exact, so that a layer without rotary positions needs no other code.
  still = jnp.ones_like(some[0]), jnp.zeros_like(some[1])
  return tuple(jnp.stack(parts) for parts in zip(*(pair or still for pair in each), strict=True))


def of_layer(
  number: int | jax.Array, angles: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """The [B, T, E/2] angles of a layer, from those of all kinds."""
  if len(angles[0]) == 1:
    return tuple(a[0] for a in angles)
  return tuple(jax.lax.dynamic_index_in_dim(a, number, keepdims=False) for a in angles)


def by_window(kinds: Kinds, number: int | jax.Array, attend: Callable, *arrays) -> jax.Array:
  """`attend(*arrays, window=W)` with the window W of the layer's kind, computed for no other one.

  W is a Python number in `attend`: kernels compile a window into their mask.
  """
  windows = [kind.window for kind in distinct(kinds)]
  choices = list(dict.fromkeys(windows))
  if len(choices) == 1:
    return attend(*arrays, window=choices[0])
  if isinstance(number, int):
    return attend(*arrays, window=windows[number])

  def branch(window):
    return lambda *arrays: attend(*arrays, window=window)

  chosen = jnp.array([choices.index(window) for window in windows])[number]
  return jax.lax.switch(chosen, [branch(window) for window in choices], *arrays)


def wider(kinds: Kinds, by: int) -> Kinds:
  """The kinds with so many more positions in each window."""
  return tuple(
    dataclasses.replace(kind, window=kind.window + by) if kind.window else kind for kind in kinds
  )


def from_types(types: Sequence[str], **kinds: Kind) -> Kinds:
  """The kinds of `layer_types` in config.json, such as ['full_attention', ...].

  Raises: UserError for a type that is not among `kinds`.
  """
  if unknown := sorted({str(name) for name in types} - set(kinds)):
    raise UserError(f'layer_types has {", ".join(unknown)}: only {", ".join(kinds)} are supported')
  return tuple(kinds[name] for name in types)


def to_types(kinds: Kinds) -> list[str]:
  """The reverse of `from_types`: 'sliding_attention' for layers that have a window."""
  return [SLIDING if kind.window else FULL for kind in kinds]


def ropes(kinds: Kinds) -> list[Rope]:
  """The different rotary positions, in the order of the layers; the usual ones if there are none.

  A config.json needs some even for layers that do not use them.
  """
  return list(dict.fromkeys(kind.rope for kind in kinds if kind.rope)) or [UNSCALED]


def window_of(kinds: Kinds) -> int | None:
  """The window of the layers that have one. Raises: UserError if there are different ones."""
  windows = {kind.window for kind in kinds if kind.window}
  if len(windows) > 1:
    raise UserError(f'windows of {sorted(windows)} in one model are not supported')
  return windows.pop() if windows else None
