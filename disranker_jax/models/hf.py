"""Hugging Face model folders in and out; the only file that knows their tensor names."""

import contextlib
import functools
import json
import pathlib
import re
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open

from disranker_jax.errors import UserError
from disranker_jax.models.files import replacing, write_tensors
from disranker_jax.models.tree import flatten, unflatten

# Hugging Face name -> our path. '{}' is the layer; kernels are transposed, layers are stacked.
DECODER = {
  'model.embed_tokens.weight': 'embed/embedding',
  'model.norm.weight': 'norm/scale',
  'model.layers.{}.input_layernorm.weight': 'blocks/attn_norm/scale',
  'model.layers.{}.post_attention_layernorm.weight': 'blocks/mlp_norm/scale',
  **{
    f'model.layers.{{}}.self_attn.{n}_proj.{theirs}': f'blocks/{n}/{ours}'
    for n in 'qkvo'
    for theirs, ours in (('weight', 'kernel'), ('bias', 'bias'))
  },
  'model.layers.{}.mlp.gate_proj.weight': 'blocks/gate/kernel',
  'model.layers.{}.mlp.up_proj.weight': 'blocks/up/kernel',
  'model.layers.{}.mlp.down_proj.weight': 'blocks/down/kernel',
  'lm_head.weight': 'lm_head/kernel',
  'score.weight': 'score/kernel',
}
ENCODER = {
  'bert.embeddings.word_embeddings.weight': 'words/embedding',
  'bert.embeddings.position_embeddings.weight': 'places/embedding',
  'bert.embeddings.token_type_embeddings.weight': 'types/embedding',
  **{
    f'{theirs}.{kind}': f'{ours}/{"scale" if norm else "kernel"}'
    if kind == 'weight'
    else f'{ours}/bias'
    for theirs, ours, norm in (
      ('bert.embeddings.LayerNorm', 'embed_norm', True),
      ('bert.encoder.layer.{}.attention.self.query', 'blocks/q', False),
      ('bert.encoder.layer.{}.attention.self.key', 'blocks/k', False),
      ('bert.encoder.layer.{}.attention.self.value', 'blocks/v', False),
      ('bert.encoder.layer.{}.attention.output.dense', 'blocks/o', False),
      ('bert.encoder.layer.{}.attention.output.LayerNorm', 'blocks/attn_norm', True),
      ('bert.encoder.layer.{}.intermediate.dense', 'blocks/up', False),
      ('bert.encoder.layer.{}.output.dense', 'blocks/down', False),
      ('bert.encoder.layer.{}.output.LayerNorm', 'blocks/mlp_norm', True),
      ('bert.pooler.dense', 'pooler', False),
      ('classifier', 'classifier', False),
    )
    for kind in ('weight', 'bias')
  },
}
# A file without these is a base model; the ranker starts them fresh.
FRESH = ('score/', 'classifier/', 'pooler/')
# Buffers and heads of other tasks, and the heads this ranker does not use.
IGNORED = re.compile(
  r'(.*\.)?(position_ids|inv_freq)$|cls\.(predictions|seq_relationship)\.|lm_head\.weight$|score\.weight$'
)
ARCHITECTURES = {'bert': 'Bert', 'mistral': 'Mistral', 'llama': 'Llama', 'qwen2': 'Qwen2'}
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
FLOATS = ('F64', 'F32', 'F16', 'BF16')


class Row(NamedTuple):
  """Where one tensor of the file goes."""

  path: str
  layer: int | None  # index in our stack
  shape: tuple[int, ...]  # as the file has it


def read_config(folder):
  """config.json of a model folder as a dict, with transformers' defaults filled in."""
  path = pathlib.Path(folder) / 'config.json'
  try:
    raw = json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f'{path} is missing: a Hugging Face model folder is needed') from None
  except (ValueError, OSError) as error:
    raise UserError(f'{path} cannot be read: {error}') from None
  from transformers import AutoConfig  # Seconds to import, and half the callers never need it.

  try:
    return AutoConfig.for_model(**raw).to_dict() | {'model_type': raw['model_type']}
  except (KeyError, ValueError, TypeError) as error:
    raise UserError(f'{path} is not a model config: {error}') from None


def tensor_rows(network, layers=None):
  """Every tensor of the ranker as {Hugging Face name: Row}."""
  shapes = flatten(jax.eval_shape(network.init, jax.random.key(0))['params'])
  layers = range(network.config.layers) if layers is None else layers
  rows, todo = {}, set(shapes)
  for template, path in (DECODER if network.is_decoder else ENCODER).items():
    if path not in shapes:
      continue
    todo.discard(path)
    stacked = '{}' in template
    shape = shapes[path].shape[1:] if stacked else shapes[path].shape
    shape = shape[::-1] if path.endswith('/kernel') else shape
    for ours, theirs in enumerate(layers if stacked else (None,)):
      rows[template.format(theirs)] = Row(path, ours if stacked else None, shape)
  assert not todo, f'no Hugging Face name for {sorted(todo)}'
  return rows


def stack(network, tensors):
  """The ranker's params, traced or not, of {Hugging Face name: array}; all must be there."""
  layers = {}
  for name, row in tensor_rows(network).items():
    value = tensors[name].astype(np.float32)
    layers.setdefault(row.path, []).append(value.T if row.path.endswith('/kernel') else value)
    stacked = row.layer is not None
    if stacked and row.layer == network.config.layers - 1:
      layers[row.path] = [jnp.stack(layers[row.path])]
  return unflatten({path: value for path, [value] in layers.items()})


def _canonical(name, is_decoder):
  """The name with the prefix and norm suffixes of today's files, whatever wrote it."""
  if is_decoder:
    bare = re.match(r'(layers\.\d|embed_tokens\.|norm\.)', name)
    return f'model.{name}' if bare else name
  # TensorFlow-born BERTs, the original ones among them, call norms gamma and beta.
  name = re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', name)
  name = re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', name)
  return f'bert.{name}' if re.match(r'(embeddings|encoder|pooler)\.', name) else name


def weight_files(folder):
  """The safetensors files a model folder should have, there or not."""
  folder = pathlib.Path(folder)
  index = folder / 'model.safetensors.index.json'
  if not index.exists():
    return [folder / 'model.safetensors']
  try:
    weight_map = json.loads(index.read_text())['weight_map']
    return [folder / name for name in sorted(set(weight_map.values()))]
  except (ValueError, KeyError, AttributeError) as error:
    raise UserError(f'{index} is not a safetensors index: {error!r}') from None


def _open_all(folder, stack):
  """Open the safetensors of a folder: a list of (file name, open file)."""
  files = []
  for path in weight_files(folder):
    if not path.exists():
      torch_file = path.with_name('pytorch_model.bin').exists()
      hint = ': convert pytorch_model.bin to safetensors first' if torch_file else ''
      raise UserError(f'{path} is missing{hint}')
    try:
      files.append((path.name, stack.enter_context(safe_open(path, 'np'))))
    except (SafetensorError, OSError) as error:
      raise UserError(f'{path} is truncated or corrupt, fetch it again: {error}') from None
  return files


def _match(files, rows, network, all_layers):
  """Pair the file's tensors with rows: {our row: (file, raw name)} and a list of problems."""
  found, problems = {}, []
  for name, file in files:
    for raw in file.keys():  # noqa: SIM118 (not a dict)
      canonical = _canonical(raw, network.is_decoder)
      if canonical not in rows:
        if not (IGNORED.match(canonical) or _unpicked(canonical, rows, all_layers)):
          problems.append(f'unknown: {raw}')
        continue
      if canonical in found:
        problems.append(f'set twice: {canonical} ({raw} in {name})')
        continue
      view = file.get_slice(raw)
      shape, dtype = tuple(view.get_shape()), view.get_dtype()
      if shape != rows[canonical].shape:
        problems.append(f'shape of {raw}: {list(shape)}, expected {list(rows[canonical].shape)}')
      elif dtype not in FLOATS:
        problems.append(f'type of {raw}: {dtype}, expected a float')
      found[canonical] = (file, raw)
  missing = [n for n in rows if n not in found and not rows[n].path.startswith(FRESH)]
  return found, problems + [f'missing: {name}' for name in missing]


def _unpicked(name, rows, all_layers):
  """Whether the tensor belongs to a layer of the file that `layers` left out."""
  layer = re.search(r'layers?\.(\d+)\.', name)
  if not layer or int(layer[1]) >= all_layers:
    return False
  start, end = layer.span(1)
  pattern = re.compile(re.escape(name[:start]) + r'\d+' + re.escape(name[end:]))
  return any(pattern.fullmatch(known) for known in rows)


def load(folder, network, key, layers=None, dtype='float32', shardings=None):
  """Read a model folder's weights as the ranker's variables.

  With `shardings`, {path of a parameter: Sharding}, they are arrays in their places, of which each
  process reads only what its devices hold; without, numpy arrays on the host. `layers` names the
  file's layers that become the ranker's, in order (a shallow student of a deep model). Ranking
  heads that the file lacks, a BERT pooler among them, and LoRA start fresh from `key`, as numpy.
  UserError lists every tensor that is unknown, missing, set twice, or of another shape, and names
  a truncated file.
  """
  all_layers = network.config.layers if layers is None else read_config(folder)['num_hidden_layers']
  rows = tensor_rows(network, layers)
  shapes = jax.eval_shape(network.init, jax.random.key(0))['params']
  flat_shapes, sources, flat = flatten(shapes), {}, {}
  with contextlib.ExitStack() as stack:
    files = _open_all(folder, stack)
    found, problems = _match(files, rows, network, all_layers)
    if problems:
      shown = '; '.join(problems[:20]) + (f'; and {len(problems) - 20} more' * (len(problems) > 20))
      raise UserError(f'{folder}: {len(problems)} tensors do not fit the model: {shown}')
    for name, (file, raw) in found.items():
      sources.setdefault(rows[name].path, {})[rows[name].layer] = file.get_slice(raw)
    for path, views in sources.items():
      shape = flat_shapes[path].shape
      read = functools.partial(_read, views, path.endswith('/kernel'), shape, dtype)
      if shardings is None:
        flat[path] = read((slice(None),) * len(shape))
      else:
        flat[path] = jax.make_array_from_callback(shape, shardings[path], read)
  fresh = [path for path in flat_shapes if path not in flat]
  made = _fresh(network, key, fresh)
  if fresh:
    logging.info('%s: freshly initialised, not in the file: %s', folder, ', '.join(fresh))
  flat |= {path: x.astype(dtype) for path, x in made.get('params', {}).items()}
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


def save(folder, network, variables, tokenizer_folder=None, extra_config=None, dtype='float32'):
  """Write a folder that transformers, sentence-transformers, TEI and vLLM load; LoRA is merged.

  A 'rank' head becomes XForSequenceClassification with one label, an 'lm' head XForCausalLM. The
  folder appears whole or not at all, and replaces an older model folder of that name.
  """
  folder = pathlib.Path(folder)
  if folder.exists() and any(folder.iterdir()) and not (folder / 'config.json').exists():
    raise UserError(f'{folder} exists and is not a model folder: choose another or remove it')
  params = variables['params']
  if network.lora_rank:
    params = network.merge_lora(params, variables['lora'])
  tensors = _tensors(network, flatten(params), dtype)
  if jax.process_index():
    for _ in tensors:  # takes part in gathering what is spread over processes
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
      _fit_tokenizer(temporary, network.is_decoder, config)


def _tensors(network, flat, dtype):
  """(Hugging Face name, tensor on the host) one by one, a layer at a time."""
  for name, row in tensor_rows(network).items():
    value = flat[row.path] if row.layer is None else flat[row.path][row.layer]
    value = value.astype(dtype)
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
      value = multihost_utils.process_allgather(value, tiled=True)
    value = np.asarray(value)
    yield name, np.ascontiguousarray(value.T if row.path.endswith('/kernel') else value)


def _config(network, dtype):
  config = network.config.to_hf()
  family = ARCHITECTURES[config['model_type']]
  if network.head == 'lm':
    return {'architectures': [f'{family}ForCausalLM'], 'dtype': dtype} | config
  if network.is_decoder:
    # Hugging Face scores the last token that is not pad: with pad = </s> it would skip our </s>.
    eos = (
      config['eos_token_id']
      if isinstance(config['eos_token_id'], list)
      else [config['eos_token_id']]
    )
    pads = (config['pad_token_id'], 0, 1, 2)
    config['pad_token_id'] = next(i for i in pads if i is not None and i not in eos)
  return {
    'architectures': [f'{family}ForSequenceClassification'],
    'dtype': dtype,
    # TEI needs both maps, with one entry; 'num_labels' is for readers of the file.
    'num_labels': 1,
    'id2label': {'0': 'LABEL_0'},
    'label2id': {'LABEL_0': 0},
    # Without it sentence-transformers puts a sigmoid on the score.
    'sentence_transformers': {'activation_fn': 'torch.nn.modules.linear.Identity'},
  } | config


def _fit_tokenizer(folder, is_decoder, model_config):
  """Make the copied tokenizer read as the model was trained: padding, length, BERT's two texts."""
  paths = folder / 'tokenizer.json', folder / 'tokenizer_config.json'
  if not all(path.exists() for path in paths):
    return
  tokenizer, config = (json.loads(path.read_text()) for path in paths)
  if not is_decoder:
    # Generic tokenizer classes leave token types out, and the scores would be quietly different.
    names = config.setdefault('model_input_names', [])
    inputs = ('input_ids', 'token_type_ids', 'attention_mask')
    names += [name for name in inputs if name not in names]
  vocab = tokenizer['model'].get('vocab')
  tokens = {i: token for token, i in vocab.items()} if isinstance(vocab, dict) else {}
  tokens |= {token['id']: token['content'] for token in tokenizer.get('added_tokens', ())}
  if model_config.get('pad_token_id') in tokens:
    config['pad_token'] = tokens[model_config['pad_token_id']]
  if max_len := model_config.get('disranker_jax', {}).get('max_len'):
    # Clients cut at what the tokenizer says.
    config['model_max_length'] = max_len
  if tokenizer.get('padding') or tokenizer.get('truncation'):
    # What some other task left there; those who read this file alone would get its lengths.
    tokenizer |= {'padding': None, 'truncation': None}
    paths[0].write_text(json.dumps(tokenizer, ensure_ascii=False) + '\n')
  paths[1].write_text(json.dumps(config, indent=2, ensure_ascii=False) + '\n')
