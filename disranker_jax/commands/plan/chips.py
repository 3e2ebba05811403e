"""TPU chips and slices: published figures, and devices for which a program can be compiled."""

import dataclasses
import math
import os
import re

from disranker_jax.errors import UserError, first_line

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of one chip of a generation.

  `efficiency` is our assumption: the share of the peak that a step's matrix products reach,
  recomputed ones included. A chip has two links per axis of the torus; `link_rate` is the rate of
  one link in one direction.
  """

  name: str
  peak: float  # bf16 FLOP/s
  peak_int8: float  # the same as `peak` where Google publishes no other one
  hbm_bytes: int
  hbm_rate: float  # bytes/s
  link_rate: float  # bytes/s
  axes: int  # axes of the torus
  efficiency: float
  slices: tuple[str, ...]  # usual ones, for messages


_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8')

# Rates: Google Cloud's page of each generation; the rate of a link is the chip's published one-way
# bandwidth divided by its links. Efficiencies are rounded down from public runs of dense decoders:
# MaxText reports 61 to 67 % model FLOPs on v5e, above 65 % on v5p and 47 % for Mistral-7B on v6e,
# PaLM (2022) 58 % with recomputation on v4.
CHIPS = {
  c.name: c
  for c in (
    Chip('v4', 275e12, 275e12, 32 * GIB, 1228e9, 50e9, 3, 0.5, _CUBES),
    Chip('v5e', 197e12, 393e12, 16 * GIB, 819e9, 50e9, 2, 0.6, _FLAT),
    Chip('v5p', 459e12, 459e12, 95 * GIB, 2765e9, 100e9, 3, 0.6, _CUBES),
    Chip('v6e', 918e12, 1836e12, 32 * GIB, 1640e9, 100e9, 2, 0.5, _FLAT),
  )
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips of one kind in a grid, e.g. v5e:4x4."""

  chip: Chip
  grid: tuple[int, ...]

  @property
  def name(self) -> str:
    return f'{self.chip.name}:{"x".join(map(str, self.grid))}'

  @property
  def size(self) -> int:
    return math.prod(self.grid)

  @property
  def ici_rate(self) -> float:
    """Bytes per second that the worst-connected chip receives from its neighbours.

    An axis gives a corner chip two links if it closes to a ring, else one; an axis of length one
    gives none. A flat torus (two axes) closes at its full length, a cubic one at multiples of four.
    """
    full = (lambda n: n % 16 == 0) if self.chip.axes == 2 else (lambda n: n % 4 == 0)
    return self.chip.link_rate * sum(2 if full(n) else 1 for n in self.grid if n > 1)


def find(topology: str) -> Slice:
  """The slice with this name. Raises: UserError, with the usual names, for an unknown one."""
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)+)', topology)
  chip = CHIPS.get(match[1]) if match else None
  grid = tuple(int(n) for n in match[2].split('x')) if match else ()
  if not chip or len(grid) != chip.axes or 0 in grid:
    raise UserError(f'--topology={topology!r} is unknown; there are {names()}')
  return Slice(chip, grid)


def names() -> str:
  """All usual slices, for messages."""
  slices = '; '.join(f'{c.name}:{", ".join(c.slices)}' for c in CHIPS.values())
  return f'{slices}; gpu:COUNTxGIB, such as gpu:1x24'


def prepare() -> None:
  """Sets the environment, before jax is imported, to compute on the CPU and look for no TPU."""
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  # Compiling uses no chip, so several processes may do it at once.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  os.environ.setdefault('TPU_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TPU_STDERR_LOG_LEVEL', '3')


def devices(where: Slice) -> list:
  """A slice's devices, one per chip; programs can be compiled for them but not run."""
  try:
    import libtpu  # noqa: F401
  except ImportError as e:
    raise UserError(
      "planning for a TPU needs its compiler, but no TPU: pip install -e '.[tpu]' in the checkout"
    ) from e
  from jax.experimental import topologies

  options = {}
  if where.size == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  if where.chip.name == 'v4':  # otherwise each of a chip's two cores is a device
    options['chip_config_name'] = 'megacore'
  try:
    described = topologies.get_topology_desc(where.name, 'tpu', **options).devices
  except Exception as e:  # the compiler's exceptions have no public type
    what = f'{first_line(e)}; usual ones are {names()}'
    raise UserError(f'--topology={where.name}: {what}') from e
  assert len(described) == where.size, (where, len(described))
  return list(described)
