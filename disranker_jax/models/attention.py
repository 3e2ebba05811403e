"""Grouped-query attention over packed rows: its mask and the kernels that compute it.

Every kernel of `attention_choice` has the meaning of `attention_mask`.
On several devices 'splash' needs a mesh: set by `jax.set_mesh`, or of the arrays.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from disranker_jax.models import attention_choice
from disranker_jax.models.layers import SAVED, contract

LANES = 128  # Splash's blocks are multiples of a TPU vector register's lanes.
MAX_BLOCK = 512
NOWHERE = -2  # the id of a segment that no key has


class Tree(NamedTuple):
  """Segments of which some go on where another one, their parent, ends.

  A position attends to its own segment and to all of the parent's, which comes before it in the
  row. It is for scoring causal models that have no window, or a longer one than any text.
  """

  segments_BT: jax.Array
  parents_BT: jax.Array  # 0: none


Segments = jax.Array | Tree


def attention_mask(
  segments_BT: Segments,
  segments_BS: jax.Array,
  *,
  causal: bool,
  window: int | None = None,
  start: int | jax.Array = 0,
) -> jax.Array:
  """True where a query attends to a key, [B, T, S]: same segment, not later, within the window.

  Query t is at slot `start + t` of the row, key s at slot s. A window of W keeps W keys, including
  the query's own (as in Hugging Face Mistral), and without causality also W - 1 later ones. Padding
  is segment 0 and attends to padding, so that no softmax is over an empty set; its values are never
  read. In a `Tree` a query attends to its parent segment too, and no window is applied.
  """
  parents_BT = None
  if isinstance(segments_BT, Tree):
    (segments_BT, parents_BT), window = segments_BT, None
  mask_BTS = segments_BT[:, :, None] == segments_BS[:, None, :]
  if parents_BT is not None:
    is_child_BT1 = (parents_BT > 0)[:, :, None]
    mask_BTS |= is_child_BT1 & (parents_BT[:, :, None] == segments_BS[:, None, :])
  query_T1 = start + jnp.arange(segments_BT.shape[1])[:, None]
  key_1S = jnp.arange(segments_BS.shape[1])[None, :]
  if causal:
    mask_BTS &= (key_1S <= query_T1)[None]
  if window is not None:
    mask_BTS &= (query_T1 - key_1S < window)[None]
    if not causal:
      mask_BTS &= (key_1S - query_T1 < window)[None]
  return mask_BTS


def own(segments_BT: Segments) -> jax.Array:
  """The segment of each position."""
  return segments_BT.segments_BT if isinstance(segments_BT, Tree) else segments_BT


@jax.named_scope('attend')
def attend(
  q_BTHE: jax.Array,
  k_BTKE: jax.Array,
  v_BTKE: jax.Array,
  *,
  segments_BT: Segments,
  causal: bool,
  window: int | None = None,
  scale: float | None = None,
  precision: str = 'float32',
  kernel: str = 'xla',
) -> jax.Array:
  """Grouped-query attention over packed rows, [B, T, H, E], masked by `attention_mask`.

  `scale` multiplies the products of queries and keys; None: E^-1/2.

  Raises: UserError for a kernel that does not run on this platform or in this precision.
  """
  _, T, _, E = q_BTHE.shape
  scale = E**-0.5 if scale is None else scale
  mesh = _mesh(q_BTHE)
  if kernel != 'xla':  # looking at the devices starts a backend, and shapes need none
    device = attention_choice.device_of(mesh)
    kernel, reason = attention_choice.choose(kernel, device, precision, E)
    if reason:
      attention_choice.tell(reason)
  if kernel == 'xla':
    mask_BTT = attention_mask(segments_BT, own(segments_BT), causal=causal, window=window)
    return _attend_xla(q_BTHE, k_BTKE, v_BTKE, mask_BTT, scale, precision)
  if window is not None and (window >= T or isinstance(segments_BT, Tree)):
    window = None
  if kernel == 'cudnn':
    return _attend_cudnn(q_BTHE, k_BTKE, v_BTKE, segments_BT, causal, window, scale)
  run = functools.partial(
    _attend_splash,
    causal=causal,
    window=window,
    scale=scale,
    interpret=kernel == 'splash_interpret',
  )
  return _on_each_device(run, mesh, q_BTHE, k_BTKE, v_BTKE, segments_BT)


@jax.named_scope('attend_cached')
def attend_cached(
  q_BTHE: jax.Array,
  k_BKSE: jax.Array,
  v_BKSE: jax.Array,
  *,
  segments_BS: jax.Array,
  start: jax.Array,
  window: int | None = None,
  scale: float | None = None,
  precision: str = 'float32',
) -> jax.Array:
  """Causal attention of the few queries in the slots from `start` on to a cache, [B, T, H, E].

  The cache has heads before slots, because then the two dots need no transpose of it.
  """
  B, T, H, E = q_BTHE.shape
  K = k_BKSE.shape[1]
  scale = E**-0.5 if scale is None else scale
  segments_BT = jax.lax.dynamic_slice_in_dim(segments_BS, start, T, axis=1)
  mask_BTS = attention_mask(segments_BT, segments_BS, causal=True, window=window, start=start)
  q_BKTGE = q_BTHE.reshape(B, T, K, H // K, E).swapaxes(1, 2)
  logits = contract('bktge,bkse->bktgs', q_BKTGE, k_BKSE, precision, jnp.float32) * scale
  logits = jnp.where(mask_BTS[:, None, :, None], logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits, axis=-1).astype(v_BKSE.dtype)
  out = contract('bktgs,bkse->bktge', weights, v_BKSE, precision)
  return out.swapaxes(1, 2).reshape(B, T, H, E)


def _mesh(x):
  """The mesh that is set, else the array's; an empty one if there is neither."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh if mesh.axis_names else jax.typeof(x).sharding.mesh


@functools.partial(jax.checkpoint, static_argnums=(4, 5))
def _attend_xla(q_BTHE, k_BTKE, v_BTKE, mask_BTT, scale, precision):
  """Attention whose [B, H, T, T] weights are recomputed in the backward pass."""
  B, T, H, E = q_BTHE.shape
  K = k_BTKE.shape[2]
  q_BTKGE = q_BTHE.reshape(B, T, K, H // K, E)
  logits = contract('btkge,bske->bkgts', q_BTKGE, k_BTKE, precision, jnp.float32) * scale
  logits = jnp.where(mask_BTT[:, None, None], logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits, axis=-1).astype(v_BTKE.dtype)
  return contract('bkgts,bske->btkge', weights, v_BTKE, precision).reshape(B, T, H, E)


def _pad(q, k, v, segments, length):
  """Rows padded to [B, length, ...] with a segment that neither tokens nor padding attend to."""
  pads = [(0, 0), (0, length - q.shape[1]), (0, 0), (0, 0)]
  q, k, v = (jnp.pad(x, pads) for x in (q, k, v))
  padded = functools.partial(jnp.pad, pad_width=pads[:2], constant_values=-1)
  return q, k, v, jax.tree.map(padded, segments)


def _attend_cudnn(q_BTHE, k_BTKE, v_BTKE, segments_BT, causal, window, scale):
  """Attention by cuDNN, with the segments as a bias."""
  T = q_BTHE.shape[1]
  # Backward passes with a bias fail for odd lengths, and some give NaN where T % 128 is 64
  # (pytorch/pytorch#196678).
  q, k, v, segments = _pad(q_BTHE, k_BTKE, v_BTKE, segments_BT, -(-T // LANES) * LANES)
  # cuDNN combines a bias with causality only, so a window is part of the bias.
  windowed = window is not None
  mask = attention_mask(segments, own(segments), causal=causal and windowed, window=window)
  causal = causal and not windowed
  out = jax.nn.dot_product_attention(
    q, k, v, mask=mask[:, None], is_causal=causal, scale=scale, implementation='cudnn'
  )
  return out[:, :T]


def _on_each_device(run, mesh, q_BTHE, k_BTKE, v_BTKE, segments_BT):
  """`run` on each device's rows and heads, since the compiler cannot split a kernel."""
  kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
  free = {axis for axis, kind in kinds if kind != AxisType.Manual}
  if not free:
    return run(q_BTHE, k_BTKE, v_BTKE, segments_BT)
  B, K = q_BTHE.shape[0], k_BTKE.shape[2]
  rows = tuple(axis for axis in ('data', 'fsdp') if axis in free)
  if B % math.prod(mesh.shape[axis] for axis in rows):
    rows = None
  heads = 'model' if 'model' in free else None
  if heads and K % mesh.shape[heads]:
    logging.log_first_n(
      logging.INFO, 'attention not sharded over model: %d key/value heads do not divide', 1, K
    )
    heads = None
  arrays = P(rows, None, heads)
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(arrays, arrays, arrays, P(rows)),
    out_specs=arrays,
    axis_names=free,
    check_vma=False,  # A Pallas kernel does not declare over which axes its result varies.
  )(q_BTHE, k_BTKE, v_BTKE, segments_BT)


def _attend_splash(q_BTHE, k_BTKE, v_BTKE, segments_BT, *, causal, window, scale, interpret):
  """Attention of one device's rows and heads by the multi-query kernel, mapped over rows and K."""
  B, T, H, E = q_BTHE.shape
  K = k_BTKE.shape[2]
  count = -(-T // MAX_BLOCK)
  block = -(-T // (count * LANES)) * LANES
  # The kernel does not scale; in bf16 the scale would be rounded first.
  q_BTHE = (q_BTHE.astype(jnp.float32) * scale).astype(q_BTHE.dtype)
  q, k, v, segments = _pad(q_BTHE, k_BTKE, v_BTKE, segments_BT, count * block)
  # [B, K, G, T, E] against [B, K, T, E].
  q = q.reshape(B, -1, K, H // K, E).transpose(0, 2, 3, 1, 4)
  k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))

  def run(ids_BT, causal, residuals=False):
    """Attention of positions with these ids to those of the segments with the same."""
    kernel = _splash_kernel(count * block, block, H // K, causal, window, interpret, residuals)
    ids = splash.SegmentIds(ids_BT, own(segments))
    return jax.vmap(jax.vmap(kernel, in_axes=(0, 0, 0, None)))(q, k, v, ids)

  if isinstance(segments, Tree):
    # The kernel knows one segment per position, so the parent's part is computed by itself.
    itself = run(segments.segments_BT, causal, residuals=True)
    parents_BT = jnp.where(segments.parents_BT > 0, segments.parents_BT, NOWHERE)
    out = _together(itself, run(parents_BT, causal=False, residuals=True))
  else:
    out = run(segments, causal)
  return out.transpose(0, 3, 1, 2, 4).reshape(B, -1, H, E)[:, :T]


def _together(first, second):
  """Attention to two sets of keys, from that to each of them: (values, (logsumexp,))."""
  (first, (first_sum,)), (second, (second_sum,)) = first, second
  share = jax.nn.sigmoid(first_sum - second_sum)[..., None]
  both = share * first.astype(jnp.float32) + (1 - share) * second.astype(jnp.float32)
  return both.astype(first.dtype)


def _splash_kernel(length, block, group, causal, window, interpret, residuals=False):
  """Splash attention of `group` query heads [G, T, E] to one key/value head [T, E]."""
  sizes = {f'block_{name}': block for name in ('q', 'kv', 'q_dkv', 'kv_dkv', 'q_dq', 'kv_dq')}
  return splash.make_splash_mqa_single_device(
    _splash_mask(length, group, causal, window),
    block_sizes=splash.BlockSizes(**sizes),
    residual_checkpoint_name=SAVED,
    save_residuals=residuals,
    interpret=interpret,
  )


# The mask is cached because its function is part of jit's cache key for the kernel. The kernel is
# not cached, because its arrays belong to a trace.
@functools.lru_cache(maxsize=64)
def _splash_mask(length, group, causal, window):
  shape = (length, length)
  if window is not None:
    mask = splash.LocalMask(shape, (window - 1, 0 if causal else window - 1), 0)
  else:
    mask = splash.CausalMask(shape) if causal else splash.FullMask(shape)
  return splash.MultiHeadMask([mask] * group)
