"""Rotary positions: their frequencies, also scaled for long contexts, and the rotation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.errors import UserError

SCALINGS = ('default', 'linear', 'llama3', 'yarn')
# The keys of config.json for `low`, `high` and `original`.
BOUNDS = {
  'llama3': ('low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'),
  'yarn': ('beta_slow', 'beta_fast', 'original_max_position_embeddings'),
}


@dataclasses.dataclass(frozen=True)
class Rope:
  """Frequencies of rotary positions.

  scaling   'default'; 'linear': all frequencies divided by `factor`; 'llama3': low ones divided by
            it, high ones unchanged, those between interpolated; 'yarn' (arXiv:2309.00071): the
            same with another interpolation. All change short texts too
  low, high, original  frequencies of fewer than `low` turns in the original context are low ones,
            those of more than `high` are high ones
  amplitude  of 'yarn': multiplies cosines and sines, and so attention's logits twice
  """

  theta: float = 10000.0
  scaling: str = 'default'
  factor: float = 1.0
  low: float = 1.0
  high: float = 4.0
  original: int = 8192
  amplitude: float = 1.0

  def frequencies(self, head_dim: int) -> np.ndarray:
    """[E/2] fp32, in radians per position."""
    # Rounded where transformers rounds, since the last bit is 3e-5 radians after 500 positions.
    exponent_E = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency_E = 1 / (self.theta ** exponent_E.astype(np.float64)).astype(np.float32)
    if self.scaling == 'linear':
      frequency_E = frequency_E / self.factor
    if self.scaling == 'llama3':
      turns_E = self.original * frequency_E / (2 * math.pi)  # within the original context
      share_E = np.clip((turns_E - self.low) / (self.high - self.low), 0, 1)
      frequency_E = frequency_E * (share_E + (1 - share_E) / self.factor)
    if self.scaling == 'yarn':
      first = max(math.floor(self._pair(self.high, head_dim)), 0)
      last = min(math.ceil(self._pair(self.low, head_dim)), head_dim - 1)
      ramp_E = (np.arange(head_dim // 2, dtype=np.float32) - first) / max(last - first, 1e-3)
      share_E = 1 - np.clip(ramp_E, 0, 1)
      frequency_E = frequency_E * (share_E + (1 - share_E) / self.factor)
    return frequency_E

  def _pair(self, turns: float, head_dim: int) -> float:
    """The index, with a fraction, of the frequency of so many turns in the original context."""
    return head_dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

  def angles(self, positions_BT: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, each [B, T, E/2] fp32, computed once for all layers."""
    frequency_E = self.frequencies(head_dim)
    angle_BTE = positions_BT.astype(jnp.float32)[:, :, None] * frequency_E[None, None, :]
    return jnp.cos(angle_BTE) * self.amplitude, jnp.sin(angle_BTE) * self.amplitude

  def to_hf(self) -> dict:
    """The keys of config.json: as transformers 5 writes them, and as earlier versions read them."""
    scaling = {'rope_type': self.scaling}
    if self.scaling != 'default':
      scaling['factor'] = self.factor
    bounds = self.low, self.high, self.original
    scaling |= dict(zip(BOUNDS.get(self.scaling, ()), bounds, strict=False))
    if self.scaling == 'yarn':
      scaling['attention_factor'] = self.amplitude
    return {
      'rope_theta': self.theta,
      'rope_scaling': None if self.scaling == 'default' else scaling,
      'rope_parameters': scaling | {'rope_theta': self.theta},
    }


UNSCALED = Rope()


def from_hf(config: dict, theta: float = Rope.theta) -> Rope:
  """The rotary positions of a config.json, whose default for `rope_theta` is `theta`.

  Raises: UserError for scalings that are not computed.
  """
  new, old = config.get('rope_parameters') or {}, config.get('rope_scaling') or {}
  # transformers 5 keeps everything in rope_parameters; earlier files have theta at the top.
  theta = float(new.get('rope_theta') or config.get('rope_theta') or theta)
  for rope in (new, old, config):
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind not in SCALINGS:
      raise UserError(f'rope scaling {kind!r} is not supported: only {", ".join(SCALINGS)} are')
    if (rope.get('partial_rotary_factor') or 1.0) != 1.0:
      raise UserError('partial_rotary_factor below 1 is not supported')
  rope = new if new.get('rope_type', 'default') != 'default' else old
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return Rope(theta)
  if not isinstance(rope.get('factor'), int | float) or rope['factor'] < 1:
    raise UserError(f'rope scaling {kind!r}: factor is {rope.get("factor")!r}, not 1 or more')
  if kind == 'linear':
    return Rope(theta, kind, float(rope['factor']))
  if kind == 'yarn':
    rope = {'beta_slow': 1, 'beta_fast': 32} | {k: v for k, v in rope.items() if v is not None}
  if missing := [name for name in BOUNDS[kind] if not rope.get(name)]:
    raise UserError(f'rope scaling {kind!r}: {", ".join(missing)} is missing')
  low, high, original = (rope[name] for name in BOUNDS[kind])
  amplitude = _amplitude(rope) if kind == 'yarn' else 1.0
  return Rope(theta, kind, float(rope['factor']), float(low), float(high), int(original), amplitude)


def _amplitude(rope: dict) -> float:
  """Yarn's factor of cosines and sines."""
  if not rope.get('truncate', True):
    raise UserError("rope scaling 'yarn': truncate false is not supported")
  if rope.get('attention_factor'):
    return float(rope['attention_factor'])
  weights = rope.get('mscale'), rope.get('mscale_all_dim')
  above, below = weights if all(weights) else (1.0, 0.0)
  growth = 0.1 * math.log(rope['factor'])
  return (growth * above + 1) / (growth * below + 1)


def rotate(x_BTHE: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Applies rotary positions in the rotate-half convention of Hugging Face Llama and Mistral."""
  cos, sin = (a[:, :, None, :] for a in angles)
  first, second = jnp.split(x_BTHE.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x_BTHE.dtype)
