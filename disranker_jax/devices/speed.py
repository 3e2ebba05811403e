"""How fast the devices multiply matrices and read memory: measurements of a second or less."""

import time

import jax
import jax.numpy as jnp

PEAK_S = 0.25  # seconds of matrix products for the peak
TYPICAL_S = 1.0  # and for the speed that other work on the machine leaves
READ_BYTES = {'cpu': 1 << 28}  # of the array that is read, more than caches hold; 2**30 elsewhere
PEAK_SIZE = {'cpu': 2048}  # rows and columns of the product; 8192 on an accelerator
# The dtypes of operands and of the result, by precision or 8-bit format.
OPERANDS = {
  'float32': (jnp.float32, jnp.float32),
  'bfloat16': (jnp.bfloat16, jnp.bfloat16),
  'bfloat16_dots': (jnp.bfloat16, jnp.float32),
  'int8': (jnp.int8, jnp.int32),
  'fp8': (jnp.float8_e4m3fn, jnp.float32),
}


def matmul_peak(precision: str, mesh) -> float:
  """Best FLOP/s of a large square product in a key of OPERANDS, on all devices."""
  return max(flops / seconds for flops, seconds in _products(precision, mesh, PEAK_S))


def matmul_typical(precision: str, mesh) -> float:
  """Mean FLOP/s of the same product."""
  flops, seconds = zip(*_products(precision, mesh, TYPICAL_S), strict=True)
  return sum(flops) / sum(seconds)


def reading(mesh) -> float:
  """Bytes per second that a device of the mesh reads from its memory, measured on one device.

  Devices that are virtual, on a CPU, get an equal share of what the CPU reads.
  """
  cpu = jax.default_backend() == 'cpu'
  x = jnp.ones(READ_BYTES.get(jax.default_backend(), 1 << 30) // 4, jnp.float32)
  total = jax.jit(jnp.sum)
  jax.block_until_ready(total(x))
  found, end = [], time.perf_counter() + PEAK_S
  while not found or time.perf_counter() < end:
    begin = time.perf_counter()
    jax.block_until_ready(total(x))
    found.append(time.perf_counter() - begin)
  return x.nbytes * len(found) / sum(found) / (mesh.size if cpu else 1)


def _products(precision: str, mesh, most_s: float) -> list[tuple[float, float]]:
  """(FLOPs on all devices, seconds) of products, until `most_s` seconds are over."""
  cpu = jax.default_backend() == 'cpu'
  size = PEAK_SIZE.get(jax.default_backend(), 8192)
  dtype, out = OPERANDS[precision]
  exact = None if precision.startswith(('bfloat16', 'int8')) else jax.lax.Precision.HIGHEST
  product = jax.jit(lambda x, y: jnp.matmul(x, y, precision=exact, preferred_element_type=out))
  x, y = (jax.random.normal(jax.random.key(i), (size, size)).astype(dtype) for i in (0, 1))
  jax.block_until_ready(product(x, y))
  times = 1 if cpu else 20
  # A CPU's virtual devices share its cores.
  each = times * 2.0 * size**3 * (1 if cpu else mesh.size)
  found, end = [], time.perf_counter() + most_s
  while not found or time.perf_counter() < end:
    begin = time.perf_counter()
    jax.block_until_ready([product(x, y) for _ in range(times)])
    found.append((each, time.perf_counter() - begin))
  return found
