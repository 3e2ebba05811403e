"""How the server computes scores: ONNX Runtime or JAX, both from one exported folder.

A backend says how many callers it wants at a time (`workers`), how many tokens a call had best be
(`part_tokens`), and turns encoded pairs into scores.
"""

import os
from pathlib import Path

import numpy as np

from disranker_jax.data.batches import EncodedGroup, Packer
from disranker_jax.data.prompts import Encoded
from disranker_jax.errors import UserError
from disranker_jax.exporting import formats

BACKENDS = ('onnx-int8', 'onnx', 'jax')


def open_backend(folder: Path, name: str, max_len: int = 0):
  """The named backend; UserError if it is unknown or the folder does not fit.

  `max_len` is the longest pair's tokens, if not the folder's own number.
  """
  if name == 'jax':
    return Jax(folder, max_len=max_len)
  if name not in BACKENDS:
    raise UserError(f'--backend {name}: choose one of auto, {", ".join(BACKENDS)}')
  return Onnx(folder, name.replace('-', '_'))


def best(folder: Path) -> str:
  """What is fastest here: 8 bits by ONNX Runtime on a CPU, JAX on an accelerator."""
  import jax

  if jax.default_backend() != 'cpu':
    return 'jax'
  # A folder without the file was exported without it, maybe because it failed the parity check.
  if (folder / formats.ONNX['onnx_int8']).exists():
    return 'onnx-int8'
  return 'onnx' if 'onnx' in formats.family(folder).formats else 'jax'


def cores() -> int:
  """How many this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


class Onnx:
  """ONNX Runtime on the CPU: as many calls at a time as there are cores, one thread each.

  Small parts on one core each are faster than large ones spread over all: what a layer gives stays
  in the core's cache (measured: 512 tokens, 1.4 times the speed of 2,600), and nothing waits.
  """

  part_tokens = 512

  def __init__(self, folder: Path, name: str):
    import onnxruntime

    self.workers = cores()
    self.name = name.replace('_', '-')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    file = folder / formats.ONNX[name]
    model = str(file) if file.exists() else formats.build_onnx(folder, name).SerializeToString()
    providers = ['CPUExecutionProvider']
    self._session = onnxruntime.InferenceSession(model, options, providers=providers)

  def warm(self) -> None:
    """Nothing is compiled; a first call takes the memory."""
    self.score([Encoded(np.array([0] * 8, np.int32), np.zeros(8, np.int32), 0)] * 8)

  def score(self, encoded: list[Encoded]) -> tuple[np.ndarray, int]:
    """(scores, tokens computed with padding) of pairs of similar lengths."""
    shape = len(encoded), max(map(len, encoded))
    ids, mask, types = np.zeros((3, *shape), np.int64)
    for i, pair in enumerate(encoded):
      ids[i, : len(pair)], types[i, : len(pair)], mask[i, : len(pair)] = pair.ids, pair.types, 1
    feeds = {'input_ids': ids, 'attention_mask': mask, 'token_type_ids': types}
    [logits] = self._session.run(['logits'], feeds)
    return logits[:, 0], ids.size


class Jax:
  """JAX on whatever it finds: packed rows in a few static shapes, all compiled by `warm`."""

  workers = 1  # XLA uses every core by itself

  def __init__(self, folder: Path, part_tokens: int = 4096, max_len: int = 0):
    import jax

    from disranker_jax.config import model as model_settings
    from disranker_jax.devices import sharding
    from disranker_jax.models.load import open_model
    from disranker_jax.rankers import pointwise

    self.name = 'jax'
    lengths = formats.lengths(folder, max_len)
    self._row_len = max(128, lengths['max_len'])
    settings = model_settings(model=str(folder), row_len=self._row_len, **lengths)
    side = open_model(settings)
    mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': -1})
    self._variables = side.pretrained(0, mesh)
    self._run = jax.jit(pointwise.score_fn(side.network))
    most = max(1, part_tokens // self._row_len)
    self._shapes = [
      pointwise.score_shape('eos', 1 << i, self._row_len) for i in range(most.bit_length())
    ]
    # First fit leaves some room at rows' ends.
    self.part_tokens = int(self._shapes[-1].rows * self._row_len * 0.9)

  def warm(self) -> None:
    for shape in self._shapes:
      self._run(self._variables, self._inputs(shape.zeros())).block_until_ready()

  def score(self, encoded: list[Encoded]) -> tuple[np.ndarray, int]:
    """(scores, tokens computed with padding), in as few rows as they fit."""
    tokens = sum(map(len, encoded))
    for shape in self._shapes:
      if shape.rows * shape.row_len < tokens:
        continue
      packer = Packer(shape)
      if all(packer.add(EncodedGroup.alone(pair)) for pair in encoded):
        scores_GN = self._run(self._variables, self._inputs(packer.batch()))
        return np.asarray(scores_GN)[: len(encoded), 0], shape.rows * shape.row_len
    half = len(encoded) // 2
    parts = self.score(encoded[:half]), self.score(encoded[half:])
    return np.concatenate([p[0] for p in parts]), parts[0][1] + parts[1][1]

  @staticmethod
  def _inputs(batch: dict) -> dict:
    return {k: v for k, v in batch.items() if k not in ('labels_GN', 'teacher_GN')}
