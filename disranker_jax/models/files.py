"""Writes and links folders; tensors go into files of a bounded size."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
from safetensors.numpy import save_file

from disranker_jax import disks
from disranker_jax.data import contents

FILE_BYTES = 4 << 30  # largest safetensors file, except for a tensor that is larger


@contextlib.contextmanager
def replacing(folder: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary folder that replaces `folder` if the body succeeds, and is deleted if it fails."""
  folder = pathlib.Path(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  scratch = pathlib.Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
  try:
    new, old = scratch / 'new', scratch / 'old'
    new.mkdir()
    yield new
    if folder.exists():
      os.rename(folder, old)
    os.rename(new, folder)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def link_tree(
  source: pathlib.Path, target: pathlib.Path, without: str = '', *, copied: bool = False
) -> None:
  """A folder under two names, file by file, without what has a name; `target` may exist.

  With `copied` the files are copies, for a folder in which files are changed later.
  """
  ignored = shutil.ignore_patterns(without) if without else None
  copy = shutil.copy2 if copied else contents.link
  shutil.copytree(
    source, target, symlinks=True, copy_function=copy, dirs_exist_ok=True, ignore=ignored
  )


def write_tensors(folder: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
  """Writes (name, tensor) pairs as model.safetensors, or several files and an index if too large.

  Only one file's tensors are in memory at a time.
  """
  held, files, size, total = {}, [], 0, 0

  def write():
    files.append((folder / f'part{len(files)}', list(held)))
    with disks.writing(folder):
      save_file(held, files[-1][0], metadata={'format': 'pt'})

  for name, tensor in tensors:
    if held and size + tensor.nbytes > FILE_BYTES:
      write()
      held, size = {}, 0
    held[name] = tensor
    size, total = size + tensor.nbytes, total + tensor.nbytes
  write()
  if len(files) == 1:
    os.rename(files[0][0], folder / 'model.safetensors')
    return
  where = {}
  for i, (file, names) in enumerate(files, 1):
    final = f'model-{i:05d}-of-{len(files):05d}.safetensors'
    os.rename(file, folder / final)
    where |= dict.fromkeys(names, final)
  index = {'metadata': {'total_size': total}, 'weight_map': where}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index, indent=2) + '\n')
