"""Settings of the process that make this machine fast and quiet; called first by every command."""

import ctypes
import os
import sys
import warnings


def prepare() -> None:
  """Before the first array: memory is kept between steps, and libraries say only what matters."""
  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'true')
  os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
  warnings.filterwarnings('ignore', category=UserWarning, module='orbax|jax')
  keep_freed_memory()


def keep_freed_memory() -> None:
  """Tells glibc not to give memory back: XLA on a CPU maps its scratch space anew for every step.

  Measured at 1.35 times the speed of a forward pass in bf16; without glibc nothing happens.
  """
  if not sys.platform.startswith('linux'):
    return
  try:
    libc = ctypes.CDLL('libc.so.6')
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
  except OSError:
    pass
