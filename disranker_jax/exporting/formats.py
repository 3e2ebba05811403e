"""What an exported folder holds beside its safetensors: ONNX files and StableHLO programs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from safetensors import safe_open

from disranker_jax.errors import UserError
from disranker_jax.exporting import graph, quantised, stablehlo
from disranker_jax.models import hf

ONNX = {
  'onnx': 'onnx/model.onnx',
  'onnx_fp16': 'onnx/model_fp16.onnx',
  'onnx_int8': 'onnx/model_int8.onnx',
}
FORMATS = (*ONNX, 'stablehlo')
# A protobuf file ends at 2 GiB; beyond half of that the tensors go into a file beside it.
INSIDE_BYTES = 1 << 30


def write(folder: Path, names) -> None:
  """Adds the named formats to a folder that hf.save wrote; only encoders have them."""
  for name in names:
    if name == 'stablehlo':
      stablehlo.write(folder)
    else:
      save_onnx(build_onnx(folder, name), folder / ONNX[name])


def build_onnx(folder: Path, name: str) -> onnx.ModelProto:
  """The ONNX model of a folder's safetensors; UserError if it is not a BERT with one label."""
  config = hf.read_config(folder)
  if config['model_type'] != 'bert':
    raise UserError(f'{folder}: {name} is for BERT students; this is {config["model_type"]!r}')
  kinds: dict[str, Callable] = {
    'onnx': lambda c, t: graph.Bert(c, t).model(),
    'onnx_fp16': lambda c, t: graph.Bert(c, t, np.float16).model(),
    'onnx_int8': quantised.build,
  }
  try:
    return kinds[name](config, tensors(folder))
  except KeyError as e:
    raise UserError(f'{folder}: has no tensor {e}; name an exported student') from None


def tensors(folder: Path) -> dict[str, np.ndarray]:
  """Every tensor of the folder's safetensors in fp32, by its Hugging Face name."""
  found = {}
  for file in hf.weight_files(folder):
    if not file.exists():
      raise UserError(f'{file} is missing: an exported model folder is needed')
    with safe_open(file, 'np') as opened:
      found |= {name: opened.get_tensor(name).astype(np.float32) for name in opened.keys()}  # noqa: SIM118 (not a dict)
  return found


def save_onnx(model: onnx.ModelProto, file: Path) -> None:
  """Writes a model that onnx's own checker accepts."""
  file.parent.mkdir(exist_ok=True)
  large = model.ByteSize() > INSIDE_BYTES
  onnx.save(model, str(file), save_as_external_data=large, location=f'{file.name}_data')
  onnx.checker.check_model(str(file))


def config(folder: Path) -> dict:
  """config.json as it was written."""
  return json.loads((folder / 'config.json').read_text())


def lengths(folder: Path, max_len: int = 0) -> dict[str, int]:
  """max_len and max_query_len as the model was trained (config.json), or another max_len."""
  given = config(folder)
  trained = given.get('disranker_jax', {})
  most = given['max_position_embeddings']
  max_len = max_len or min(trained.get('max_len', most), most)
  return {'max_len': max_len, 'max_query_len': min(trained.get('max_query_len', 64), max_len - 4)}
