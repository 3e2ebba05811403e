"""The matrix products of a model's layers on this CPU: XLA's beside oneDNN's (torch), by type.

It answers whether a gap to torch is that of the products themselves. `bench profile` says how much
of a step they are.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.commands.common import Parser, load_config, positive, prepare_absl
from disranker_jax.devices import processor, runtime
from disranker_jax.errors import UserError
from disranker_jax.models import load, weights
from disranker_jax.report import tables

TURN_S = 0.5  # of each side
SETTLE_S = 0.3  # until the other side's threads no longer spin


def parse_args(argv) -> argparse.Namespace:
  parser = Parser('bench dots', __doc__, '--config configs/quickstart.py --role student')
  parser.add_config()
  add = parser.add_argument_group('dots').add_argument
  add('--role', default='student', choices=('teacher', 'student'), help='whose layers')
  add('--tokens', type=positive, default=2048, help='rows of the left operand')
  add('--rounds', type=positive, default=5, help='turns of each side, whose median is shown')
  args = parser.parse_args(argv)
  args.config = load_config(args.config, args.overrides)
  return args


def products(args: argparse.Namespace) -> dict[str, tuple[int, int, int]]:
  """(rows, in, out) of a layer's different kernels."""
  settings = args.config[args.role]
  network = load.open_network(weights.find(settings.model), settings)
  kernels = network.shapes()['params']['blocks']
  shapes = {
    name: leaf['kernel'].shape[1:] for name, leaf in kernels.items() if 'kernel' in leaf
  }  # fmt: skip
  return {name: (args.tokens, *shape) for name, shape in shapes.items()}


def ours(kind: str, shape: tuple[int, int, int]):
  """A call of XLA's product, with fp32 or int32 sums and result, as the models compute it."""
  rows, width, out = shape
  rng = np.random.default_rng(0)
  dtype = {'fp32': jnp.float32, 'bf16': jnp.bfloat16, 'int8': jnp.int8}[kind]
  sums = jnp.int32 if kind == 'int8' else jnp.float32
  x, y = (jnp.asarray(rng.integers(-9, 9, s), dtype) for s in ((rows, width), (width, out)))
  product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=sums))
  return lambda: jax.block_until_ready(product(x, y))


def torchs(kind: str, shape: tuple[int, int, int]):
  """A call of torch's product: fp32, bf16 with a bf16 result, or int8 with an int32 one."""
  import torch

  rows, width, out = shape
  dtype = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'int8': torch.int8}[kind]
  x, y = (torch.randint(-9, 9, s).to(dtype) for s in ((rows, width), (width, out)))
  return lambda: torch._int_mm(x, y) if kind == 'int8' else x @ y


def rate(call, flops: float) -> float:
  """FLOP/s of a call in a turn."""
  time.sleep(SETTLE_S)
  call()
  count, begin = 0, time.perf_counter()
  while time.perf_counter() - begin < TURN_S:
    call()
    count += 1
  return count * flops / (time.perf_counter() - begin)


def main(argv) -> None:
  args = parse_args(argv)
  runtime.prepare()
  prepare_absl()
  jax.config.update('jax_platforms', 'cpu')
  try:
    import torch
  except ImportError:
    raise UserError('torch, whose products are the comparison, is not installed') from None
  torch.set_num_threads(processor.cores())
  rows = []
  for name, shape in products(args).items():
    for kind in ('fp32', 'bf16', 'int8'):
      sides, flops = (ours(kind, shape), torchs(kind, shape)), 2.0 * np.prod(shape)
      turns = [[rate(side, flops) for side in sides] for _ in range(args.rounds)]
      xla, torch_rate = (statistics.median(side) for side in zip(*turns, strict=True))
      rows.append([
        name, ' x '.join(map(str, shape)), kind, f'{xla / 1e9:,.0f}', f'{torch_rate / 1e9:,.0f}',
        f'{statistics.median(a / b for a, b in turns):.2f}',
      ])  # fmt: skip
      print(*rows[-1], flush=True)
  heads = ['kernel', 'rows x in x out', 'type', 'XLA GFLOP/s', 'torch GFLOP/s', 'XLA / torch']
  print(f'\n{processor.described()}; medians of {args.rounds} turns\n')
  print(tables.markdown(heads, rows))
