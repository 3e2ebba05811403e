"""How many bytes a training step takes on a device: expected from shapes, and as compiled."""

import math
import resource

import jax


def per_device(tree) -> int:
  """Bytes of a tree of arrays or shapes with shardings on the device that has most of it."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def parts(program, compiled) -> dict[str, int]:
  """Bytes a device: parameters, optimizer moments, batch, and the compiler's scratch space.

  Scratch space is mostly activations and gradients; what is donated is counted once.
  """
  held = {
    'parameters': per_device((program.trained, program.frozen)),
    'moments': per_device(program.state),
    'batch': per_device(program.batches),
  }
  rest = peak(compiled.memory_analysis()) - sum(held.values())
  return held | {'activations': max(0, rest)}


def peak(analysis) -> int:
  """Bytes on a device when it is fullest, the program itself included."""
  code = analysis.generated_code_size_in_bytes
  found, scratch = getattr(analysis, 'peak_memory_in_bytes', 0), analysis.temp_size_in_bytes
  kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
  kept -= analysis.alias_size_in_bytes
  # A CPU's compiler leaves scratch space out of its peak, but for a few bytes of alignment.
  return code + (found if found - kept > scratch // 100 else kept + scratch)


def expected(label: str, program, compiled) -> str:
  """What a person reads at the start of a stage."""
  found = parts(program, compiled)
  text = ', '.join(f'{name} {size(n)}' for name, n in found.items() if name != 'batch')
  return f'{label}: a device will hold {text}: {size(sum(found.values()))} in all'


def measured(label: str) -> str:
  """What a person reads after the first step: what was in use when it was most, so far.

  On this process's first device; where that does not count its bytes (a CPU), in the process.
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
