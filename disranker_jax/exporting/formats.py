"""The formats that an exported folder can have besides safetensors: ONNX files and StableHLO."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import Message
from safetensors import SafetensorError, safe_open

from disranker_jax.data import contents
from disranker_jax.errors import UserError, reason
from disranker_jax.exporting import stablehlo
from disranker_jax.models import hf

ONNX = {
  'onnx': 'onnx/model.onnx',
  'onnx_fp16': 'onnx/model_fp16.onnx',
  'onnx_int8': 'onnx/model_int8.onnx',
}
FORMATS = (*ONNX, 'stablehlo')
# A protobuf file cannot exceed 2 GiB; from half of that the tensors go into a second file.
INSIDE_BYTES = 1 << 30


def write(folder: Path, names) -> None:
  """Adds the named formats to a folder that hf.save wrote.

  Raises: UserError for a format that the model's family does not have.
  """
  for name in names:
    if name == 'stablehlo':
      refuse_missing(folder, name)
      stablehlo.write(folder)
    else:
      save_onnx(build_onnx(folder, name), folder / ONNX[name])


def refuse_missing(folder: Path, name: str) -> None:
  """Raises UserError if the family of the folder's model does not have the format."""
  if name not in hf.family(folder).formats:
    kind = hf.open_config(folder).model_type
    raise UserError(f'{folder}: {kind} models have no format {name!r}; export without it')


def build_onnx(folder: Path, name: str) -> onnx.ModelProto:
  """The ONNX model of a folder's safetensors.

  Raises: UserError if the family has no such format, or if the folder lacks a tensor.
  """
  refuse_missing(folder, name)
  kind = hf.family(folder)
  by_name = {kind.canonical(name): value for name, value in tensors(folder).items()}
  try:
    return kind.onnx(name, hf.read_config(folder), by_name)
  except KeyError as e:
    raise UserError(f'{folder}: has no tensor {e}; name an exported student') from None


def tensors(folder: Path) -> dict[str, np.ndarray]:
  """Every tensor of the folder in fp32, by its Hugging Face name as exports have it."""
  by_name, canonical = hf.head_tensors(folder), hf.family(folder).canonical
  for file in hf.weight_files(folder):
    if not file.exists():
      raise UserError(f'{file} is missing: an exported model folder is needed')
    try:
      with safe_open(file, 'np') as opened:
        for name in opened.keys():  # noqa: SIM118 (not a dict)
          by_name[canonical(name)] = opened.get_tensor(name).astype(np.float32)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
      raise UserError(f'{file} is truncated or corrupt, fetch it again: {error}') from None
  return by_name


def save_onnx(model: onnx.ModelProto, file: Path) -> None:
  """Writes a model and runs onnx's checker on the file."""
  file.parent.mkdir(exist_ok=True)
  large = model.ByteSize() > INSIDE_BYTES
  onnx.save(model, str(file), save_as_external_data=large, location=f'{file.name}_data')
  onnx.checker.check_model(str(file))


def checked_onnx(file: Path) -> str:
  """The path of an ONNX file, for a runtime, after a check that its tensors lie beside it.

  The runtime opens the files that a model names. Raises: UserError if one is not a plain file of
  the same folder, or if the file is not ONNX.
  """
  try:
    model = onnx.load(file, load_external_data=False)
  except Exception as error:  # protobuf raises many types
    what = f'is not an ONNX file ({reason(error)}); export it again'
    raise UserError(f'{file}: {what}') from None
  for name in external_files(model):
    other = file.parent / name if contents.is_name(name) else None
    if other is None or other.is_symlink() or not other.is_file():
      what = f'names the file {name!r:.200}, which is not beside it'
      raise UserError(f'{file}: {what}; export it again')
  return str(file)


def external_files(message: Message) -> Iterator[str]:
  """The files that tensors of an ONNX model name, wherever in the model they are."""
  if isinstance(message, onnx.TensorProto):
    yield from (entry.value for entry in message.external_data if entry.key == 'location')
    return
  for field, value in message.ListFields():
    if field.type == field.TYPE_MESSAGE:
      for inner in value if isinstance(value, Iterable) else (value,):
        yield from external_files(inner)
