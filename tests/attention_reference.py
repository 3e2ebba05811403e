"""Small arrays to attend over, and attention computed in another way."""

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.models import attention


def random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def qkv(B=1, T=10, H=4, K=2, E=8):
  return random(B, T, H, E), random(B, T, K, E, seed=1), random(B, T, K, E, seed=2)


def some_segments(B, T, padding=9, seed=0):
  """Rows of a few segments in order, the last slots of each padding."""
  rng = np.random.default_rng(seed)
  out = np.sort(rng.integers(1, 5, (B, T)), axis=1)
  out[:, T - padding :] = 0
  return out


def attend(qkv, segments, **options):
  return attention.attend(*qkv, segments_BT=segments, **options)


def may_see(segments, causal, window):
  """The rule of `attention_mask` once more, position by position."""
  t, s = np.indices(2 * segments.shape[1:])
  allowed = segments[:, :, None] == segments[:, None, :]
  if causal:
    allowed = allowed & (s <= t)
  if window is not None:
    # W keys, the query's own among them: t - W + 1 is in, t - W is out. Later ones alike.
    allowed = allowed & (s > t - window) & (s < t + window)
  return allowed


def numpy_attention(qkv, segments, causal, window):
  """Attention in float64, a head at a time."""
  q, k, v = (np.asarray(x, np.float64) for x in qkv)
  group = q.shape[2] // k.shape[2]
  allowed = may_see(segments, causal, window)
  out = np.zeros_like(q)
  for h in range(q.shape[2]):
    logits = np.einsum('bte,bse->bts', q[:, :, h], k[:, :, h // group]) / np.sqrt(q.shape[-1])
    weights = np.where(allowed, np.exp(logits - logits.max()), 0.0)
    weights /= weights.sum(-1, keepdims=True)
    out[:, :, h] = np.einsum('bts,bse->bte', weights, v[:, :, h // group])
  return out


def values_and_gradients(qkv, segments, jit=jax.jit, **options):
  """The output and the gradients of q, k, v, where padding takes no part in the loss."""
  wanted = random(*qkv[0].shape, seed=7) * (segments != 0)[:, :, None, None]

  def loss(qkv):
    out = attend(qkv, segments, **options)
    return jnp.sum(out.astype(jnp.float32) * wanted), out

  grads, out = jit(jax.grad(loss, has_aux=True))(qkv)
  return out, *grads


def agree(ours, theirs, atol):
  for name, one, other in zip(('out', 'dq', 'dk', 'dv'), ours, theirs, strict=True):
    np.testing.assert_allclose(one, other, atol=atol, err_msg=name)
