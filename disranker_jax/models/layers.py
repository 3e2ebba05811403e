"""The parts that all networks share: dots, Linear with LoRA, norms, rotary positions, layer scans.

Shape legend, used as name suffixes and einsum letters everywhere:
  G groups               N documents of a group   B rows (packed sequences)
  T positions of a row   S key positions          D model width
  F ffn width            H query heads            K key/value heads
  E head size            V vocabulary             L layers
  P gathered positions   C classes

Precision is one word that is passed down to every layer:
  'float32'        activations and dots in true fp32 (no TF32, no bf16 passes)
  'bfloat16'       activations and dot operands bf16, for TPU and GPU
  'bfloat16_dots'  activations fp32, dot operands bf16, sums fp32: for a CPU with fast instructions
                   for bf16 x bf16 -> fp32 (no CPU has any for bf16 -> bf16)
Softmax, norms, ranking heads and losses are fp32 under every precision.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from disranker_jax.errors import UserError
from disranker_jax.models import eight_bits

# The checkpoint name of dot products' results: `remat='dots'` keeps these.
SAVED = 'dot'

ACTIVATIONS = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'bfloat16_dots': jnp.float32}


def activation_dtype(precision: str) -> jnp.dtype:
  """The dtype of activations under a precision; UserError if there is no such precision."""
  if precision not in ACTIVATIONS:
    raise UserError(f'precision {precision!r} is unknown: use one of {", ".join(ACTIVATIONS)}')
  return ACTIVATIONS[precision]


def operand_dtype(precision: str) -> jnp.dtype:
  """The dtype in which `contract` multiplies: arrays that only it reads may be kept in it."""
  return jnp.float32 if precision == 'float32' else jnp.bfloat16


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _bf16_einsum(eqn, out_dtype, x, y):
  return jnp.einsum(
    eqn, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), preferred_element_type=out_dtype
  )


def _bf16_einsum_fwd(eqn, out_dtype, x, y):
  # The residuals are the operands before the cast: scan would store a cast kernel a second time.
  return _bf16_einsum(eqn, out_dtype, x, y), (x, y)


def _bf16_einsum_bwd(eqn, out_dtype, residuals, g):
  del out_dtype
  x, y = residuals
  inputs, out = eqn.split('->')
  left, right = inputs.split(',')
  dx = _bf16_einsum(f'{out},{right}->{left}', x.dtype, g, y)
  # XLA on a CPU materialises the transpose of the first operand, so the smaller one comes first. It
  # would swap them back to save a transpose of the result. For a narrow result, such as an
  # adapter's, that is slower, and the barrier prevents it.
  if len(right) == 2 and 8 * g.size < x.size:
    dy = _bf16_einsum(f'{out},{left}->{right[::-1]}', y.dtype, g, x)
    dy = jax.lax.optimization_barrier(dy).T
  elif g.size < x.size:
    dy = _bf16_einsum(f'{out},{left}->{right}', y.dtype, g, x)
  else:
    dy = _bf16_einsum(f'{left},{out}->{right}', y.dtype, x, g)
  return dx, dy


_bf16_einsum.defvjp(_bf16_einsum_fwd, _bf16_einsum_bwd)


def contract(
  eqn: str, x: jax.Array, y: jax.Array, precision: str, out_dtype: str | None = None
) -> jax.Array:
  """The only dot product of the models: an einsum of two arrays under a precision.

  It has its own gradient because autodiff of a bf16 x bf16 -> fp32 dot multiplies fp32 cotangents
  by bf16 operands, which is slow on every device. `eqn` names each axis with a letter (no
  ellipsis), and no letter is in one operand only. The result has the activation dtype unless
  `out_dtype` is given.
  """
  out_dtype = jnp.dtype(out_dtype or activation_dtype(precision))
  if precision == 'float32':
    out = jnp.einsum(
      eqn, x, y, precision=jax.lax.Precision.HIGHEST, preferred_element_type=out_dtype
    )
    return checkpoint_name(out, SAVED)
  return checkpoint_name(_bf16_einsum(eqn, out_dtype, x, y), SAVED)


def _last_axis(vector, like):
  return vector.reshape((1,) * (like.ndim - 1) + (-1,))


class Linear(nn.Module):
  """x W + b, plus x A B * alpha / rank when `lora_rank` > 0.

  A (random) and B (zeros) are in the collection 'lora', so that the 'params' tree is the same with
  and without LoRA, and each can be differentiated, sharded and saved without the other.
  kernel [in, features], bias [features], lora_a [in, rank], lora_b [rank, features]. A kernel of 8
  bits has its scale [1, features] in the collection 'scales', see eight_bits.py.
  """

  features: int
  use_bias: bool = False
  precision: str = 'float32'
  out_dtype: str | None = None
  lora_rank: int = 0
  lora_alpha: float = 16.0

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.normal(0.02)
    fan_in, rank = x.shape[-1], self.lora_rank
    rows = 'xyz'[: x.ndim - 1]
    dot = functools.partial(contract, precision=self.precision, out_dtype=self.out_dtype)
    kernel = self.param('kernel', init, (fan_in, self.features))
    if eight_bits.is_small(kernel):
      out_dtype = self.out_dtype or activation_dtype(self.precision)
      out = eight_bits.product(x, kernel, self.get_variable('scales', 'scale'), out_dtype)
    else:
      out = dot(f'{rows}i,io->{rows}o', x, kernel)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      out += _last_axis(bias.astype(out.dtype), out)
    if rank:
      init_a = nn.initializers.he_uniform()
      a = self.variable('lora', 'lora_a', lambda: init_a(self.make_rng('params'), (fan_in, rank)))
      b = self.variable('lora', 'lora_b', lambda: jnp.zeros((rank, self.features)))
      low = dot(f'{rows}i,ir->{rows}r', x, a.value) * (self.lora_alpha / rank)
      out += dot(f'{rows}r,ro->{rows}o', low, b.value)
    return out


class Embed(nn.Module):
  """A table of vectors looked up by integer id; an id outside the table gives NaN."""

  entries: int
  features: int
  precision: str = 'float32'

  def setup(self):
    init = nn.initializers.normal(0.02)
    self.embedding = self.param('embedding', init, (self.entries, self.features))

  def __call__(self, ids):
    return jnp.take(self.embedding, ids, axis=0).astype(activation_dtype(self.precision))


class RMSNorm(nn.Module):
  """Root-mean-square norm in fp32; the result has the input's dtype.

  It multiplies by `scale + offset`. Gemma's offset is 1: the parameter stays what its files hold,
  near 0, where bf16 is finer than near 1.
  """

  eps: float
  offset: float = 0.0

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.constant(1 - self.offset), (x.shape[-1],))
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
    scale = scale.astype(jnp.float32) + self.offset
    return (wide * _last_axis(scale, wide)).astype(x.dtype)


class LayerNorm(nn.Module):
  """Layer norm in fp32; the result has the input's dtype."""

  eps: float
  use_bias: bool = True

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
    wide *= _last_axis(scale, wide)
    if self.use_bias:
      wide += _last_axis(self.param('bias', nn.initializers.zeros, (x.shape[-1],)), wide)
    return wide.astype(x.dtype)


def constrain(x: jax.Array, sequence: bool = False) -> jax.Array:
  """Shards the leading axis over the mesh's batch axes; without such a mesh the identity.

  One call at each block's end halves the all-reduces that XLA inserts on a (data, fsdp, model)
  mesh. With `sequence` the positions of [B, T, D] are sharded over 'model' too: activations between
  blocks are smaller by that axis, but each block gathers the positions.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not {'data', 'fsdp'} <= set(mesh.axis_names):
    return x
  if x.shape[0] % (mesh.shape['data'] * mesh.shape['fsdp']):
    return x
  spec = PartitionSpec(('data', 'fsdp'))
  if sequence and x.ndim == 3 and x.shape[1] % mesh.shape['model'] == 0:
    spec = PartitionSpec(('data', 'fsdp'), 'model')
  return jax.lax.with_sharding_constraint(x, spec)


def keeps_dots(primitive, *arrays, **options) -> bool:
  """The policy of `remat='dots'`: the backward pass has the results of all dot products.

  Those of cuDNN's attention have no name, because the public interface does not return what its
  backward pass needs.
  """
  return 'dot_product_attention_fwd' in primitive.name or _named(primitive, *arrays, **options)


_named = jax.checkpoint_policies.save_only_these_names(SAVED)


def scanned(
  block: type[nn.Module], length: int, remat: str, scan: bool, in_axes: tuple
) -> Callable[..., nn.Module]:
  """`block` over `length` layers with stacked parameters [L, ...], rematerialised as `remat` says.

  Without `scan` the loop is unrolled: it compiles longer and has the same parameter tree.
  """
  if remat not in ('none', 'dots', 'full'):
    raise UserError(f"remat {remat!r} is unknown: use 'none', 'dots' or 'full'")
  if remat != 'none':
    policy = keeps_dots if remat == 'dots' else None
    block = nn.remat(block, prevent_cse=not scan, policy=policy)
  return nn.scan(
    block,
    variable_axes={'params': 0, 'lora': 0, 'scales': 0},
    split_rngs={'params': True},
    in_axes=in_axes,
    length=length,
    unroll=1 if scan else length,
  )
