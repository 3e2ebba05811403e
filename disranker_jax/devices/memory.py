"""Bytes of device memory that a training step needs: from shapes, and from the compiled program."""

import math
import resource

import jax


def per_device(tree) -> int:
  """Bytes per device of a tree of sharded arrays or shapes; shards of an array have equal size."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def parts(program, compiled) -> dict[str, int]:
  """Bytes per device of parameters, optimizer moments, the batch and the scratch space.

  Scratch space is mostly activations and gradients. Donated buffers are counted once.
  """
  held = {
    'parameters': per_device((program.trained, program.frozen)),
    'moments': per_device(program.state),
    'batch': per_device(program.batches),
  }
  rest = peak(compiled.memory_analysis()) - sum(held.values())
  return held | {'activations': max(0, rest)}


def peak(analysis) -> int:
  """Peak bytes on a device, including the program's own code."""
  code = analysis.generated_code_size_in_bytes
  reported, scratch = getattr(analysis, 'peak_memory_in_bytes', 0), analysis.temp_size_in_bytes
  buffers = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
  buffers -= analysis.alias_size_in_bytes
  # The CPU compiler's peak excludes scratch space, except for a few bytes of alignment.
  return code + (reported if reported - buffers > scratch // 100 else buffers + scratch)


def expected(label: str, program, compiled) -> str:
  """The log line at the start of a stage: expected bytes per device."""
  bytes_of = parts(program, compiled)
  text = ', '.join(f'{name} {size(n)}' for name, n in bytes_of.items() if name != 'batch')
  return f'{label}: a device will hold {text}: {size(sum(bytes_of.values()))} in all'


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
