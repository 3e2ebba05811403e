"""Bytes of device memory that a step needs: from shapes, and from the compiled program."""

import contextlib
import math
import os
import resource
from collections.abc import Callable, Iterator

import jax
from jax.extend.core import jaxprs_in_params

from disranker_jax.devices import cgroup
from disranker_jax.errors import UserError

EXHAUSTED = 'RESOURCE_EXHAUSTED'  # the first word of the runtime's error


def per_device(tree) -> int:
  """Bytes per device of a tree of sharded arrays or shapes; shards of an array have equal size."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def held(program) -> dict[str, int]:
  """Bytes per device of what a training step is given, by part.

  'average' is that of the parameters (`ema`), for programs with one.
  """
  state, averaged = per_device(program.state), per_device(program.average)
  return {
    'parameters': per_device((program.trained, program.frozen)),
    'moments': state - averaged,
    **({'average': averaged} if averaged else {}),
    'batch': per_device(program.batches),
  }


def parts(program, compiled=None) -> dict[str, int]:
  """`held`, and the scratch space if the program is compiled.

  Scratch space is mostly activations and gradients; only the compiled program tells its size.
  Donated buffers are counted once.
  """
  given = held(program)
  if compiled is None:
    return given
  rest = peak(compiled.memory_analysis()) - sum(given.values())
  return given | {'activations': max(0, rest)}


def peak(analysis) -> int:
  """Peak bytes on a device, including the program's own code."""
  code = analysis.generated_code_size_in_bytes
  reported, scratch = getattr(analysis, 'peak_memory_in_bytes', 0), analysis.temp_size_in_bytes
  buffers = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
  buffers -= analysis.alias_size_in_bytes
  # The CPU compiler's peak excludes scratch space, except for a few bytes of alignment.
  return code + (reported if reported - buffers > scratch // 100 else buffers + scratch)


def live(jaxpr) -> int:
  """The most bytes that the values computed by a traced program take at a time.

  The values of its arguments are not counted. An estimate, for a program that is not compiled: the
  compiler fuses some values away and computes in another order.
  """
  last_use = {}
  for i, equation in enumerate(jaxpr.eqns):
    last_use |= {id(v): i for v in equation.invars if not hasattr(v, 'val')}
  last_use |= {id(v): len(jaxpr.eqns) for v in jaxpr.outvars}
  now = most = 0
  own = {}
  for i, equation in enumerate(jaxpr.eqns):
    made = {id(v): _bytes(v.aval) for v in equation.outvars if id(v) in last_use}
    inner = max((live(j) for j in jaxprs_in_params(equation.params)), default=0)
    together = max(inner, sum(made.values()))
    if equation.primitive.name in ('scan', 'while'):
      # The results are there while the body runs. What it carries is updated in place.
      together = inner + sum(made.values()) - _carried(equation, own, last_use, i)
    most = max(most, now + together)
    own |= made
    now += sum(made.values())
    for done in [v for v in own if last_use[v] == i]:
      now -= own.pop(done)
  return most


def _carried(loop, own: dict, last_use: dict, i: int) -> int:
  """Bytes of a loop's carry that are counted more than once: in the body, and before the loop."""
  carry = loop.params.get('num_carry', len(loop.outvars))
  first = loop.params.get('num_consts', 0)
  before = [id(v) for v in loop.invars[first : first + carry]]
  ending = sum(own[v] for v in set(before) if v in own and last_use[v] == i)
  return ending + sum(_bytes(v.aval) for v in loop.outvars[:carry])


def _bytes(aval) -> int:
  return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, 'shape') else 0


def expected(label: str, program, compiled) -> str:
  """The log line at the start of a stage: expected bytes per device."""
  return f'{label}: a device will hold {listed(parts(program, compiled))}'


def listed(bytes_of: dict[str, int]) -> str:
  """'parameters 3 MiB, activations 1 MiB: 4 MiB in all'."""
  text = ', '.join(f'{name} {size(n)}' for name, n in bytes_of.items() if name != 'batch')
  return f'{text}: {size(sum(bytes_of.values()))} in all'


@contextlib.contextmanager
def limited(label: str, needed: Callable[[], dict[str, int]], lower: str) -> Iterator[None]:
  """Turns running out of device memory into a UserError of one line.

  `needed` gives the expected bytes per device by part; without 'activations' the step is not
  compiled. `lower` names the settings that need less.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if EXHAUSTED not in str(error):
      raise
    bytes_of = needed()
    unknown = '' if 'activations' in bytes_of else ' without activations'
    limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')
    available = size(limit) if limit else 'an unknown amount'
    raise UserError(
      f'{label}: out of device memory: needs {listed(bytes_of)}{unknown}, has {available}; {lower}'
    ) from error


def limit() -> int | None:
  """Bytes that this process may use: of a device, or of the machine if its devices are the CPU.

  None if it is unknown.
  """
  bytes_limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')
  if bytes_limit or jax.default_backend() != 'cpu':
    return bytes_limit
  try:
    machine = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  except (ValueError, OSError):  # another system
    return None
  return min(machine, cgroup.memory() or machine)


def of_process(per_device: int) -> int:
  """What counts against `limit`: a CPU's devices share the machine's memory."""
  return per_device * (jax.local_device_count() if jax.default_backend() == 'cpu' else 1)


def measured(label: str) -> str:
  """The log line after the first step: peak memory so far.

  Of this process's first device, or of the process where the device keeps no count (a CPU).
  """
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    return f'{label}: a device has held {size(stats["peak_bytes_in_use"])} at most so far'
  kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return f'{label}: the process has held {size(kib * 1024)} at most so far, loading included'


def size(count: int) -> str:
  """1536 -> '1.5 KiB'."""
  for unit in ('B', 'KiB', 'MiB'):
    if count < 1024:
      return f'{count:.4g} {unit}'
    count /= 1024
  return f'{count:.4g} GiB'
