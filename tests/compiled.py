"""Where compiled programs are kept between sessions of tests."""

import hashlib
import shutil
from pathlib import Path

import jax


def processor() -> str:
  """What compiled programs depend on beside JAX, as 16 letters; many machines may share a disk."""
  cpuinfo = Path('/proc/cpuinfo')
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
  facts = sorted({line for line in lines if line.startswith(('model name', 'flags', 'Features'))})
  return hashlib.sha256('\n'.join(facts).encode()).hexdigest()[:16]


def folder(root: Path) -> Path:
  """The folder of this processor and this version of JAX."""
  return root / f'{processor()}-{jax.__version__}'


def delete_former(root: Path) -> None:
  """Deletes what other versions of JAX compiled for this processor: nothing reads it again.

  JAX's own limit of the size is not used. It lists all entries under a lock whenever it writes one.
  """
  for other in root.glob(f'{processor()}*'):
    if other != folder(root):
      shutil.rmtree(other, ignore_errors=True)
