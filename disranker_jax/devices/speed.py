"""How fast the devices multiply matrices: a measurement of a quarter of a second."""

import time

import jax
import jax.numpy as jnp

PEAK_S = 0.25  # seconds of matrix products
PEAK_SIZE = {'cpu': 2048}  # rows and columns of the product; 8192 on an accelerator


def matmul_peak(precision: str, mesh) -> float:
  """Best FLOP/s of a large square product in the models' precision, on all devices."""
  cpu = jax.default_backend() == 'cpu'
  size = PEAK_SIZE.get(jax.default_backend(), 8192)
  dtype = jnp.float32 if precision == 'float32' else jnp.bfloat16
  out = jnp.bfloat16 if precision == 'bfloat16' else jnp.float32
  exact = jax.lax.Precision.HIGHEST if precision == 'float32' else None
  product = jax.jit(lambda x, y: jnp.matmul(x, y, precision=exact, preferred_element_type=out))
  x, y = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in (0, 1))
  jax.block_until_ready(product(x, y))
  best, end, times = 0.0, time.perf_counter() + PEAK_S, 1 if cpu else 20
  while time.perf_counter() < end:
    begin = time.perf_counter()
    jax.block_until_ready([product(x, y) for _ in range(times)])
    best = max(best, times * 2.0 * size**3 / (time.perf_counter() - begin))
  # A CPU's virtual devices share its cores.
  return best if cpu else best * mesh.size
