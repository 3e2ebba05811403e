"""How many bytes a training step takes on a device: expected from shapes, and as compiled."""

import math

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
  return {
    'parameters': per_device((program.trained, program.frozen)),
    'moments': per_device(program.state),
    'batch': per_device(program.batches),
    'activations': compiled.memory_analysis().temp_size_in_bytes,
  }


def measured() -> int | None:
  """Bytes in use on this process's first device; None where the device does not count."""
  stats = jax.local_devices()[0].memory_stats()
  return stats.get('bytes_in_use') if stats else None


def line(label: str, program, compiled) -> str:
  """What a person reads at the start of a stage."""
  found = parts(program, compiled)
  text = ', '.join(f'{name} {size(n)}' for name, n in found.items() if name != 'batch')
  in_use = measured()
  now = f'; in use now {size(in_use)}' if in_use is not None else ''
  return f'{label}: a device holds {text}: {size(sum(found.values()))} in all{now}'


def size(count: int) -> str:
  """1536 -> '1.5 KiB'."""
  for unit in ('B', 'KiB', 'MiB'):
    if count < 1024:
      return f'{count:.4g} {unit}'
    count /= 1024
  return f'{count:.4g} GiB'
