"""Reads and writes Hugging Face model folders; a model's family knows its tensor names."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open

from disranker_jax.data import contents
from disranker_jax.errors import UserError, reason
from disranker_jax.models import families, modules, recorded, tokenizer_files
from disranker_jax.models.files import replacing, write_tensors
from disranker_jax.models.tensors import InMemory, Part, constants, parts, rows_of
from disranker_jax.models.tree import flatten, unflatten
from disranker_jax.progress import amount

if TYPE_CHECKING:
  from disranker_jax.models.network import Network

# Buffers that some files hold and no network here reads.
BUFFERS = r'(.*\.)?(position_ids|inv_freq)$'
TOKENIZER_FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'vocab.txt',
  'vocab.json',
  'merges.txt',
  'tokenizer.model',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
)
MAX_LAYERS = 1000  # before a file is opened, there is a list of all tensors of all layers
FLOATS = ('F64', 'F32', 'F16', 'BF16')


def read_config(folder: str | pathlib.Path) -> dict:
  """config.json of a model folder as a dict, with transformers' defaults if it knows the type.

  Of a model that reads images too it is the config of the text model. If the folder has its head in
  modules of sentence-transformers, the dict describes that head too.

  Raises: UserError for a file that is missing or broken, or of an unsupported `model_type`.
  """
  config = _network_config(folder)
  if found := modules.head(folder):
    family = families.find(config['model_type'])
    config |= modules.classifier(found, family.head_modules, config)
  return config


def head_tensors(folder: str | pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors in modules of sentence-transformers, by Hugging Face name; usually none."""
  found = modules.head(folder)
  return modules.tensors(found, bool(read_config(folder).get('norm_bias'))) if found else {}


def _network_config(folder) -> dict:
  path = pathlib.Path(folder) / 'config.json'
  raw = recorded.config(folder)
  try:
    raw = families.of_text(raw)
    for key in ('num_hidden_layers', 'n_layers'):
      if raw.get(key, 0) > MAX_LAYERS:
        raise ValueError(f'{key} is {raw[key]}, more than {MAX_LAYERS}')
    model_type = raw['model_type']
    families.find(model_type)
    import transformers  # takes seconds to import, and half the callers never need it

    if model_type not in transformers.CONFIG_MAPPING:
      return raw
    return transformers.AutoConfig.for_model(**raw).to_dict() | {'model_type': model_type}
  except Exception as error:  # the classes of transformers raise many types for wrong values
    raise UserError(f'{path} is not a model config: {reason(error, 300)}') from None


def open_config(folder: str | pathlib.Path) -> families.Config:
  """The config of the network in a model folder.

  Raises: UserError that names the file, for a model that is not supported.
  """
  config = read_config(folder)
  try:
    return families.from_hf(config)
  except UserError as error:
    raise UserError(f'{folder}/config.json: {error}') from None
  except KeyError as error:
    raise UserError(f'{folder}/config.json: {error} is missing') from None
  except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
    raise UserError(f'{folder}/config.json is not a model config: {error}') from None


def family(folder: str | pathlib.Path) -> families.Family:
  """The family of a folder's model. Raises: UserError if there is none."""
  return families.find(families.of_text(recorded.config(folder)).get('model_type'))


def weight_files(folder: str | pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files that a model folder should have; they may be missing.

  As in transformers, one whole file counts more than the index of several.
  """
  folder = pathlib.Path(folder)
  index = folder / 'model.safetensors.index.json'
  whole = folder / 'model.safetensors'
  if not index.exists():
    return [whole]
  try:
    names = list(json.loads(index.read_text())['weight_map'].values())
    if strange := [name for name in names if not contents.is_name(name)]:
      raise ValueError(f'{strange[0]!r:.200} is not the name of a file in the folder')
    return [whole] if whole.exists() else [folder / name for name in sorted(set(names))]
  except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
    raise UserError(f'{index} is not a safetensors index: {error!r}') from None


def _open_all(folder, stack):
  """Opens the safetensors of a folder: a list of (file name, open file)."""
  files, paths = [], weight_files(folder)
  if missing := [path for path in paths if not path.exists()]:
    others = ', '.join(path.name for path in missing[1:])
    raise UserError(f'{missing[0]} is missing{", and " * bool(others)}{others}{_hint(missing[0])}')
  for path in paths:
    try:
      files.append((path.name, stack.enter_context(safe_open(path, 'np'))))
    except (SafetensorError, OSError) as error:
      raise UserError(f'{path} is truncated or corrupt, fetch it again: {error}') from None
  if tensors := head_tensors(folder):
    files.append(('modules.json', InMemory(tensors)))
  return files


def _hint(missing: pathlib.Path) -> str:
  """What to do about a file that is missing, if its neighbours tell."""
  if missing.with_name('pytorch_model.bin').exists():
    return ': convert pytorch_model.bin to safetensors first'
  if any(missing.parent.glob('model-*-of-*.safetensors')):
    return ': fetch all files of the model again, model.safetensors.index.json among them'
  return ''


def _match(files, rows, network, all_layers):
  """Pairs the file's tensors with rows: {name in rows: (file, raw name)} and a list of problems."""
  sources, problems = {}, []
  family = network.family
  ignored = re.compile(f'{BUFFERS}|{family.ignored}' if family.ignored else BUFFERS)
  for name, file in files:
    for raw in file.keys():  # noqa: SIM118 (not a dict)
      canonical = family.canonical(raw)
      if canonical not in rows:
        if not (ignored.match(canonical) or _unpicked(canonical, rows, all_layers)):
          problems.append(f'unknown: {raw}')
        continue
      if canonical in sources:
        problems.append(f'set twice: {canonical} ({raw} in {name})')
        continue
      view = file.get_slice(raw)
      shape, dtype = tuple(view.get_shape()), view.get_dtype()
      if shape != rows[canonical].shape:
        problems.append(f'shape of {raw}: {list(shape)}, expected {list(rows[canonical].shape)}')
      elif dtype not in FLOATS:
        problems.append(f'type of {raw}: {dtype}, expected a float')
      sources[canonical] = (file, raw)
  missing = [n for n in rows if n not in sources and not rows[n].paths[0].startswith(family.fresh)]
  return sources, problems + [f'missing: {name}' for name in missing]


def _unpicked(name, rows, all_layers):
  """Whether the tensor belongs to a layer of the file that `layers` left out."""
  layer = re.search(r'layers?\.(\d+)\.', name)
  if not layer or int(layer[1]) >= all_layers:
    return False
  start, end = layer.span(1)
  pattern = re.compile(re.escape(name[:start]) + r'\d+' + re.escape(name[end:]))
  return any(pattern.fullmatch(known) for known in rows)


def check(folder: str | pathlib.Path, network: Network, layers: Sequence[int] | None) -> None:
  """Compares names and shapes of a folder's tensors with the network; reads no parameters.

  Raises: UserError as `load` does.
  """
  with contextlib.ExitStack() as stack:
    _matched(folder, rows_of(network, layers), network, layers, stack)


def lacking(folder: str | pathlib.Path, network: Network) -> list[str]:
  """The tensors of the head that a folder lacks, and that `load` makes at random."""
  family = network.family
  head = [n for n, row in rows_of(network).items() if row.paths[0].startswith(family.fresh)]
  with contextlib.ExitStack() as stack:
    files = _open_all(folder, stack)
    held = {family.canonical(raw) for _, file in files for raw in file.keys()}  # noqa: SIM118
  return [name for name in head if name not in held]


def _matched(folder, rows, network, layers, stack) -> dict:
  """Where each of `rows` is: {name: (open file, raw name)}. Raises: UserError, see `load`."""
  all_layers = network.config.layers if layers is None else open_config(folder).layers
  matched, problems = _match(_open_all(folder, stack), rows, network, all_layers)
  if problems:
    shown = '; '.join(problems[:20]) + (f'; and {len(problems) - 20} more' * (len(problems) > 20))
    raise UserError(
      f'{folder}: {amount(len(problems), "tensor does", "tensors do")} not fit the model: {shown}'
    )
  return matched


def load(
  folder: str | pathlib.Path,
  network: Network,
  key: jax.Array,
  layers: Sequence[int] | None = None,
  dtype: str | Callable[[str], str] = 'float32',
  shardings: dict | None = None,
) -> dict:
  """Reads a model folder's weights as the network's variables.

  `dtype` is that of all parameters but LoRA, which is fp32, or gives that of a path.

  With `shardings`, {path of a parameter: Sharding}, they are placed arrays, and each process reads
  only what its devices hold. Without, they are numpy arrays on the host. `layers` names the file's
  layers that become the network's, in order (a shallow student of a deep model). LoRA, and heads
  that the file lacks (for BERT the pooler too), are initialised from `key`, as numpy arrays.

  Raises: UserError with every tensor that is unknown, missing, set twice, or of another shape, or
  with the name of a truncated file.
  """
  rows = rows_of(network, layers)
  type_of = dtype if callable(dtype) else lambda path: dtype
  shapes = network.shapes()['params']
  flat_shapes, sources, flat = flatten(shapes), constants(network, layers), {}
  with contextlib.ExitStack() as stack:
    matched = _matched(folder, rows, network, layers, stack)
    for name, (file, raw) in matched.items():
      for path, start, _ in parts(network, rows[name]):
        sources.setdefault(path, {})[rows[name].layer] = Part(file.get_slice(raw), start)
    for path, views in sources.items():
      shape = flat_shapes[path].shape
      read = functools.partial(_read, views, path.endswith('/kernel'), shape, type_of(path))
      if shardings is None:
        flat[path] = read((slice(None),) * len(shape))
      else:
        flat[path] = jax.make_array_from_callback(shape, shardings[path], read)
  fresh = [path for path in flat_shapes if path not in flat]
  made = _fresh(network, key, fresh)
  if fresh:
    logging.info('%s: freshly initialised, not in the file: %s', folder, ', '.join(fresh))
  flat |= {path: x.astype(type_of(path)) for path, x in made.get('params', {}).items()}
  variables = {'params': unflatten(flat)}
  return variables | ({'lora': unflatten(made['lora'])} if network.lora_rank else {})


def _read(views, transposed, shape, dtype, index):
  """A piece of a parameter: of one tensor of the file, or of a stack of layers' tensors."""
  index = tuple(slice(*i.indices(size)) for i, size in zip(index, shape, strict=True))
  stacked = None not in views
  inner = index[1:] if stacked else index

  def one(view):
    piece = view[inner[::-1]].T if transposed else view[inner]
    return piece.astype(dtype, copy=False)

  if not stacked:
    return np.ascontiguousarray(one(views[None]))
  sizes = [i.stop - i.start for i in index]
  out = np.empty(sizes, dtype)
  for at, layer in enumerate(range(index[0].start, index[0].stop)):
    out[at] = one(views[layer])
  return out


def _fresh(network, key, paths):
  """Initial values of some paths and of all LoRA; jit drops the rest before it is made."""

  def init(key):
    variables = network.init(key)
    params = flatten(variables['params'])
    lora = {'lora': flatten(variables['lora'])} if network.lora_rank else {}
    return {'params': {path: params[path] for path in paths}} | lora

  return jax.tree.map(np.asarray, jax.jit(init)(key))


def save(
  folder: str | pathlib.Path,
  network: Network,
  variables: dict,
  tokenizer_folder: str | pathlib.Path | None = None,
  extra_config: dict | None = None,
  dtype: str = 'float32',
  typed: bool = True,
) -> None:
  """Writes a folder that transformers, sentence-transformers, TEI and vLLM load; LoRA is merged.

  A 'rank' head becomes XForSequenceClassification with one label, an 'lm' head XForCausalLM. The
  folder appears whole or not at all, and replaces an older model folder of that name. `typed` is
  False if the model reads no token types (see PairPrompt).

  Raises: UserError if the folder holds something else than a model.
  """
  folder = pathlib.Path(folder)
  if folder.exists() and any(folder.iterdir()) and not (folder / 'config.json').exists():
    raise UserError(f'{folder} exists and is not a model folder: choose another or remove it')
  params = variables['params']
  if network.lora_rank:
    params = network.merge_lora(params, variables['lora'])
  tensors = _tensors(network, flatten(params), dtype)
  if jax.process_index():
    for _ in tensors:  # takes part in gathering arrays that are sharded over processes
      pass
    return
  with replacing(folder) as temporary:
    write_tensors(temporary, tensors)
    config = _config(network, dtype) | (extra_config or {})
    (temporary / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
    for file in temporary.glob('*.safetensors'):
      # safetensors writes for the owner only, whatever the umask.
      shutil.copymode(temporary / 'config.json', file)
    if tokenizer_folder:
      for name in TOKENIZER_FILES:
        if (pathlib.Path(tokenizer_folder) / name).exists():
          shutil.copyfile(pathlib.Path(tokenizer_folder) / name, temporary / name)
      tokenizer_files.fit(temporary, network.family, config, typed)


def _tensors(network, flat, dtype):
  """(Hugging Face name, tensor on the host) one by one, a layer at a time."""
  for name, row in rows_of(network).items():
    held = []
    for path in row.paths:
      value = flat[path] if row.layer is None else flat[path][row.layer]
      value = value.astype(dtype)
      if isinstance(value, jax.Array) and not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
      held.append(np.asarray(value).T if path.endswith('/kernel') else np.asarray(value))
    yield name, np.ascontiguousarray(np.concatenate(held) if len(held) > 1 else held[0])


def _config(network, dtype):
  family = network.family
  config = family.to_hf(network.config)
  if network.head == 'lm':
    return {'architectures': [family.class_name('CausalLM')], 'dtype': dtype} | config
  return {
    'architectures': [family.class_name('SequenceClassification')],
    'dtype': dtype,
    # TEI needs both maps, with one entry; 'num_labels' is for people who read the file.
    'num_labels': 1,
    'id2label': {'0': 'LABEL_0'},
    'label2id': {'LABEL_0': 0},
    # Without it sentence-transformers puts a sigmoid on the score.
    'sentence_transformers': {'activation_fn': 'torch.nn.modules.linear.Identity'},
  } | family.scoring_config(config)
