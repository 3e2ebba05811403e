"""Kernels and activations in 8 bits: products of scoring that take half the time and memory.

A kernel is rounded once and has a scale for each output channel. An activation is rounded before
each product and has a scale for each token, so that a score depends on no other text of its batch.
Products are summed in int32 or fp32, and the scales are multiplied in fp32. Norms, softmax,
embeddings, heads and LoRA adapters keep their precision.

Before they are rounded to int8, the values of a kernel and of an activation are mixed in blocks of
their common axis, by a Hadamard matrix. The product stays the same, and large values are spread
over their block instead of taking the steps of all others (QuaRot, Ashkboos et al., 2024).

Scales are in a collection of their own, 'scales', beside 'params': `blocks/q/kernel` [L, in, out]
has `blocks/q/scale` [L, 1, out]. A kernel's dtype tells `Linear` how to multiply.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from disranker_jax.errors import UserError
from disranker_jax.models import tree

KERNELS = re.compile(r'blocks/.*kernel')
LEAST = 1e-30  # of a channel or token: one of zeros needs a scale that can divide
BLOCK = 128  # values that are mixed, at most; larger blocks gain little and take longer


@dataclasses.dataclass(frozen=True)
class Format:
  """Numbers of 8 bits.

  largest  the largest number
  sums     the dtype in which products are summed
  mixes    whether values are mixed before they are rounded
  """

  name: str
  dtype: jnp.dtype
  largest: float
  sums: jnp.dtype
  mixes: bool


FORMATS = {
  f.name: f
  for f in (
    Format('int8', jnp.dtype(jnp.int8), 127.0, jnp.dtype(jnp.int32), True),
    Format('fp8', jnp.dtype(jnp.float8_e4m3fn), 448.0, jnp.dtype(jnp.float32), False),
  )
}
NAMES = ('', *FORMATS)  # of the setting; '' leaves a model as it is


def is_small(x: jax.Array) -> bool:
  """Whether an array holds 8-bit numbers."""
  return any(x.dtype == f.dtype for f in FORMATS.values())


def rounded(x: jax.Array, form: Format, axis: int) -> tuple[jax.Array, jax.Array]:
  """(8-bit numbers, scale in fp32) of an array: x is about numbers * scale.

  There is one scale for all values along `axis`, which keeps length 1. A value that is not finite
  makes its scale nan or infinite, so that results show it.
  """
  wide = x.astype(jnp.float32)
  largest = jnp.max(jnp.abs(wide), axis=axis, keepdims=True)
  largest = jnp.maximum(largest, LEAST)
  steps = wide * (form.largest / largest)
  if form.dtype == jnp.int8:
    steps = jnp.round(steps)
  return steps.astype(form.dtype), largest / form.largest


def hadamard(size: int) -> np.ndarray:
  """A symmetric matrix of 1 and -1 whose square is `size` times the identity; a power of two."""
  if size == 1:
    return np.ones((1, 1), np.float32)
  half = hadamard(size // 2)
  return np.block([[half, half], [half, -half]])


def block(length: int, form: Format) -> int:
  """How many values of an axis are mixed; 1 for none."""
  return math.gcd(length, BLOCK) if form.mixes else 1


def mixed(x: jax.Array, axis: int, precision: jax.lax.Precision | None = None) -> jax.Array:
  """x with each block of values along `axis` multiplied by `hadamard`; the dtype stays.

  A block has up to BLOCK values, a power of two that divides the axis. Without a precision x is
  read in bf16, whose error is far below that of 8 bits.
  """
  size = math.gcd(x.shape[axis], BLOCK)
  if size == 1:
    return x
  dtype = jnp.float32 if precision else jnp.bfloat16
  last = jnp.moveaxis(x.astype(dtype), axis, -1)
  blocks = last.reshape(*last.shape[:-1], -1, size)
  out = jax.lax.dot_general(
    blocks, jnp.asarray(hadamard(size), dtype), (((blocks.ndim - 1,), (0,)), ((), ())),
    precision=precision, preferred_element_type=x.dtype,
  )  # fmt: skip
  return jnp.moveaxis(out.reshape(last.shape), -1, axis)


def product(x: jax.Array, kernel: jax.Array, scale: jax.Array, out_dtype) -> jax.Array:
  """x W, summed over the last axis of x: [..., in] by an 8-bit kernel [in, out] gives [..., out].

  `scale` [1, out] is the kernel's.
  """
  form = next(f for f in FORMATS.values() if f.dtype == kernel.dtype)
  kernel = gathered(kernel)
  small, of_token = rounded(mixed(x, -1) if form.mixes else x, form, -1)
  # The precision matters for fp8 on a GPU, which otherwise keeps fewer bits of its sums.
  sums = jax.lax.dot_general(
    small, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=form.sums,
    precision=None if form.dtype == jnp.int8 else jax.lax.Precision.HIGHEST,
  )  # fmt: skip
  of_channel = scale.reshape((1,) * (x.ndim - 1) + (-1,))
  return (sums.astype(jnp.float32) * of_token * of_channel).astype(out_dtype)


def gathered(kernel: jax.Array) -> jax.Array:
  """A kernel that is sharded over 'fsdp' alone, on every device.

  Otherwise XLA multiplies its parts one by one, and sums them in HBM in 32 bits, which takes longer
  than 8 bits save.
  """
  sizes = dict(jax.sharding.get_abstract_mesh().shape)
  if sizes.get('fsdp', 1) == 1 or sizes.get('model', 1) > 1:
    return kernel
  return jax.lax.with_sharding_constraint(kernel, PartitionSpec())


def quantised(variables: dict, name: str) -> dict:
  """The variables with the kernels of the layers in 8 bits; `name` is a key of FORMATS, or ''.

  Of arrays or of shapes. Each array that is replaced is deleted, so that a device never holds the
  whole model twice.
  """
  if not name:
    return variables
  flat, scales = tree.flatten(variables['params']), {}
  for path, kernel in flat.items():
    if KERNELS.fullmatch(path):
      small, scale = _of_kernel(kernel, FORMATS[name])
      flat[path], scales[f'{path.removesuffix("kernel")}scale'] = small, scale
  return variables | {'params': tree.unflatten(flat), 'scales': tree.unflatten(scales)}


def kernels(stacked: jax.Array, form: Format) -> tuple[jax.Array, jax.Array]:
  """(8-bit numbers, scale in fp32) of stacked kernels [L, in, out], for `product`."""

  def one(kernel):  # at a time, since mixing needs memory for a copy in fp32
    if form.mixes:
      size = block(kernel.shape[0], form)
      kernel = mixed(kernel.astype(jnp.float32), 0, jax.lax.Precision.HIGHEST) / size
    return rounded(kernel, form, 0)

  return jax.lax.map(one, stacked)


def _of_kernel(kernel, form: Format):
  """(8-bit numbers, scale) of stacked kernels [L, in, out], sharded as they are."""
  rounding = functools.partial(kernels, form=form)
  if isinstance(kernel, jax.ShapeDtypeStruct):
    return jax.eval_shape(rounding, kernel)
  where = kernel.sharding if isinstance(kernel, jax.Array) else None
  if isinstance(where, NamedSharding):
    where = where, NamedSharding(where.mesh, PartitionSpec())
  else:
    where = None
  made = jax.block_until_ready(jax.jit(rounding, out_shardings=where)(kernel))
  if isinstance(kernel, jax.Array):
    kernel.delete()
  return made


def check_device(key: str, name: str, device: jax.Device) -> None:
  """Raises: UserError for a value `name` of the setting `key` that a device does not multiply.

  A CPU multiplies all formats, for tests and trials; fp8 slowly.
  """
  if name != 'fp8' or device.platform == 'cpu':
    return
  kind = device.device_kind
  if device.platform == 'gpu':
    # A number such as 8.9 on NVIDIA's GPUs. AMD's have another name, and another kind of fp8.
    capability = re.fullmatch(r'(\d+)\.(\d+)', str(getattr(device, 'compute_capability', '')))
    if capability and tuple(map(int, capability.groups())) >= (8, 9):
      return
    needs = 'an NVIDIA GPU of compute capability 8.9 or higher (Ada, Hopper, Blackwell)'
  else:
    number = re.search(r'\d+', kind)
    if number and int(number[0]) >= 7:
      return
    needs = 'a TPU v7 or newer'
  raise UserError(
    f"{key}='fp8': {kind} does not multiply fp8, which needs {needs}; set it to 'int8'"
  )
