"""How an exported folder computes scores: ONNX Runtime or JAX.

A backend has `workers`, the number of calls that run at a time, `part_tokens`, the number of tokens
at which a call is fastest, and `score(encoded) -> (scores, tokens computed with padding)`.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from disranker_jax.data.batches import EncodedGroup, Packer
from disranker_jax.data.encoded import Encoded
from disranker_jax.devices import processor
from disranker_jax.errors import UserError, first_line
from disranker_jax.models import hf
from disranker_jax.models.load import TextModel

BACKENDS = ('onnx-int8', 'onnx', 'jax')


def open_backend(model: TextModel, name: str = 'auto', fast: bool = False):
  """The named backend of an exported model, with its programs compiled.

  'auto' is what `choose` returns. Raises: UserError if the name is unknown, the folder unfit.
  """
  if name not in ('auto', *BACKENDS):
    raise UserError(f'backend {name!r}: choose one of auto, {", ".join(BACKENDS)}')
  name = choose(model.folder, fast) if name == 'auto' else name
  return Jax(model) if name == 'jax' else Onnx(model.folder, name)


def choose(folder: Path, fast: bool) -> str:
  """JAX on an accelerator and for decoders; on a CPU ONNX Runtime, in 8 bits if `fast`.

  Both are exact in fp32. On a CPU ONNX Runtime starts sooner, because it compiles nothing.
  """
  import jax

  if jax.default_backend() != 'cpu' or 'onnx' not in hf.family(folder).formats:
    return 'jax'
  from disranker_jax.exporting import formats  # imports onnx, which JAX does not need

  # Without the file, 8 bits may have failed the parity check at export.
  return 'onnx-int8' if fast and (folder / formats.ONNX['onnx_int8']).exists() else 'onnx'


class Onnx:
  """ONNX Runtime on the CPU: one single-threaded call per core.

  Small parts on one core each are faster than large ones spread over all cores, because a layer's
  output stays in the core's cache (measured: parts of 512 tokens are 1.4 times as fast as 2,600).
  """

  part_tokens = 512

  def __init__(self, folder: Path, name: str):
    import onnxruntime

    from disranker_jax.exporting import formats

    self.workers, self.name = processor.cores(), name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    kind = name.replace('-', '_')
    file = folder / formats.ONNX[kind]
    if file.exists():
      model = formats.checked_onnx(file)
    else:
      model = formats.build_onnx(folder, kind).SerializeToString()
    providers = ['CPUExecutionProvider']
    try:
      self._session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as e:  # onnxruntime's exceptions have no common base class
      raise UserError(f'{file}: ONNX Runtime cannot load it: {first_line(e)}') from e
    self._inputs = [each.name for each in self._session.get_inputs()]
    # The first call allocates memory.
    self.score([Encoded(np.zeros(8, np.int32), np.zeros(8, np.int32), 0)] * 8)

  def score(self, encoded: Sequence[Encoded]) -> tuple[np.ndarray, int]:
    """(scores, tokens computed with padding) of pairs of similar lengths."""
    shape = len(encoded), max(map(len, encoded))
    ids, mask, types = np.zeros((3, *shape), np.int64)
    for i, pair in enumerate(encoded):
      ids[i, : len(pair)], types[i, : len(pair)], mask[i, : len(pair)] = pair.ids, pair.types, 1
    feeds = {'input_ids': ids, 'attention_mask': mask, 'token_type_ids': types}
    [logits] = self._session.run(['logits'], {name: feeds[name] for name in self._inputs})
    return logits[:, 0], ids.size


class Jax:
  """JAX on this process's devices: packed rows in a few static shapes, compiled at the start."""

  workers = 1  # XLA uses every core by itself
  name = 'jax'

  def __init__(self, model: TextModel, part_tokens: int = 4096):
    import jax

    from disranker_jax.devices import sharding
    from disranker_jax.rankers import pointwise

    row_len, scorer = model.settings.row_len, model.scorer
    # Only local devices: one process of several may score by itself.
    self._mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': -1}, jax.local_devices())
    self._variables = model.pretrained(0, self._mesh)
    self._step = jax.jit(pointwise.score_fn(model.network, scorer))
    most = max(1, part_tokens // row_len)
    self._shapes = [
      pointwise.score_shape(scorer, 1 << i, row_len) for i in range(most.bit_length())
    ]
    # First-fit packing leaves some room at the ends of rows.
    self.part_tokens = int(self._shapes[-1].rows * row_len * 0.9)
    for shape in self._shapes:
      self._run(shape.zeros())

  def score(self, encoded: Sequence[Encoded]) -> tuple[np.ndarray, int]:
    """(scores, tokens computed with padding), in the smallest shape that holds the pairs."""
    tokens = sum(map(len, encoded))
    for shape in self._shapes:
      if shape.rows * shape.row_len < tokens:
        continue
      packer = Packer(shape)
      if all(packer.add(EncodedGroup.alone(pair)) for pair in encoded):
        return self._run(packer.batch())[: len(encoded), 0], shape.rows * shape.row_len
    half = len(encoded) // 2
    parts = self.score(encoded[:half]), self.score(encoded[half:])
    return np.concatenate([p[0] for p in parts]), parts[0][1] + parts[1][1]

  def _run(self, batch: dict) -> np.ndarray:
    import jax

    inputs = {k: v for k, v in batch.items() if k not in ('labels_GN', 'teacher_GN')}
    with jax.set_mesh(self._mesh):
      return np.asarray(self._step(self._variables, inputs))


def divide(lengths: Sequence[int], backend) -> list[list[int]]:
  """Splits sequences into calls of the backend: indices, longest first, none of them empty.

  The calls have about equal numbers of tokens, so that all workers end together: their number is a
  multiple of the workers where there are enough sequences.
  """
  if not lengths:
    return []
  tokens = sum(lengths)
  count = math.ceil(tokens / backend.part_tokens / backend.workers) * backend.workers
  count = min(count, len(lengths))
  parts, part, room = [], [], tokens / count
  for n, i in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
    part.append(i)
    room -= lengths[i]
    left = len(lengths) - n - 1
    if len(parts) < count - 1 and (room <= 0 or left == count - 1 - len(parts)):
      parts.append(part)
      tokens -= sum(lengths[k] for k in part)
      part, room = [], tokens / (count - len(parts))
  return [*parts, part] if part else parts
