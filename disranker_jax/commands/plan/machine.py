"""Machines that a plan is about: this one, or GPUs of a given memory. Imports no jax."""

import dataclasses
import os
import re

from disranker_jax.commands.plan import chips
from disranker_jax.errors import UserError

GIB = 2**30
# What sets the share of a GPU's memory that JAX takes at its start; the first is the new name.
FRACTIONS = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')
USUAL_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices of one kind.

  platform  of the devices that are planned for, which decides the precision
  size      how many devices
  limit     bytes that a step may use per device; None if it is unknown
  before    bytes that are used before it: libraries, in the memory of a CPU
  measured  whether it is this machine
  slice     the TPU slice that the devices stand for
  """

  name: str
  platform: str
  size: int
  limit: int | None
  before: int = 0
  measured: bool = False
  slice: chips.Slice | None = None


def gpus(topology: str) -> Machine | None:
  """GPUs by `gpu:COUNTxGIB`, such as gpu:1x24; None for another name.

  Raises: UserError if the variable with the share of the memory is not a number.
  """
  match = re.fullmatch(r'gpu:(\d+)x(\d+)', topology)
  if not match or 0 in (count := int(match[1]), each := int(match[2])):
    return None
  name = next((name for name in FRACTIONS if os.environ.get(name)), FRACTIONS[1])
  try:
    share = float(os.environ.get(name) or USUAL_FRACTION)
  except ValueError:
    what = 'is not a number; write the share of the memory that JAX takes, such as .75'
    raise UserError(f'{name}={os.environ[name]}: {what}') from None
  text = f'{count} GPU{"s" * (count > 1)} of {each} GiB, of which JAX takes {share:.0%} ({name})'
  return Machine(text, 'gpu', count, int(share * each * GIB))


def chips_of(where: chips.Slice) -> Machine:
  """The chips of a slice, for a stage whose step is computed and not compiled."""
  return Machine(where.name, 'tpu', where.size, where.chip.hbm_bytes, slice=where)


def prepare(machine: Machine) -> None:
  """Sets the environment, before jax is imported: the CPU stands in for the planned devices."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  flag = f'--xla_force_host_platform_device_count={machine.size}'
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()
