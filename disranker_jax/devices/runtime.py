"""Process settings for speed and quiet logs; every command calls `prepare` first."""

import ctypes
import os
import sys
import warnings

from disranker_jax.devices import processor


def prepare() -> None:
  """Keeps freed memory in the process and silences library noise; call before the first array."""
  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'true')
  os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
  warnings.filterwarnings('ignore', category=UserWarning, module='orbax|jax')
  if processor.cores() < processor.affinity():
    os.environ.setdefault('PJRT_NPROC', str(processor.cores()))  # XLA's threads on a CPU
  keep_freed_memory()


def restart_with_huge_pages() -> None:
  """Re-executes this Python with huge pages for glibc's memory.

  XLA on a CPU allocates its scratch space for every step. Faulting it in page by page takes a
  sixth of a training step (measured: 1.2 times the speed). glibc reads the setting only at start.
  """
  if sys.platform.startswith('linux') and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, sys.orig_argv)


def keep_freed_memory() -> None:
  """Stops glibc from returning freed memory to the system, which costs page faults later."""
  if not sys.platform.startswith('linux'):
    return
  try:
    libc = ctypes.CDLL('libc.so.6')
  except OSError:  # another C library
    return
  m_trim_threshold, m_mmap_max = -1, -4
  libc.mallopt(m_mmap_max, 0)
  libc.mallopt(m_trim_threshold, -1)
