"""Converts a llama.cpp file (GGUF) of a decoder to a Hugging Face model folder."""

import pathlib
import tempfile

import numpy as np

from disranker_jax.errors import UserError, reason
from disranker_jax.models import families, gguf_tokenizer, hf, tree
from disranker_jax.models.network import Network
from disranker_jax.models.rope import Rope
from disranker_jax.models.tensors import rows_of

VERSION = 2  # part of the cached folders' names: raise it when other content is written
# The `model_type` of an architecture. Mistral's files are those of 'llama'.
TYPES = {
  'llama': 'llama',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'gemma': 'gemma',
  'gemma3': 'gemma3_text',
}
ROPE_FACTORS = 'rope_freqs.weight'  # Llama 3's scaling, by which frequencies are divided


def convert(path: str | pathlib.Path, folder: str | pathlib.Path) -> str:
  """Writes `folder` (config.json, fp32 model.safetensors, tokenizer) from a GGUF file.

  Returns the licence that the file states, '' if it states none.

  Weights are dequantised exactly as llama.cpp does. Its rows of q and k are reordered where it has
  rotary pairs side by side, and its norms are stored as Hugging Face does.

  Raises: UserError for another architecture, tokenizer or tensor set.
  """
  import gguf  # only conversion needs it

  with tempfile.TemporaryDirectory() as scratch:
    try:
      reader = gguf.GGUFReader(path)
      meta = Metadata(reader)
      tensors = {tensor.name: tensor for tensor in reader.tensors}
      network = Network(families.from_hf(_config(meta, tensors)), head='lm')
      gguf_tokenizer.write(meta, pathlib.Path(scratch), network.config)
      params = _params(tensors, network, meta)
    except UserError as error:
      raise UserError(f'{path}: {error}') from None
    except Exception as error:  # of the parsers, which raise many types for a damaged file
      raise UserError(f'{path} is not a readable GGUF file: {reason(error)}') from None
    hf.save(folder, network, {'params': params}, tokenizer_folder=scratch)
  return str(meta('general.license', ''))


class Metadata:
  """The metadata of a file by name."""

  def __init__(self, reader):
    self.fields = reader.fields
    self.architecture = self('general.architecture')
    if self.architecture not in TYPES:
      known = ', '.join(TYPES)
      raise UserError(f'architecture {self.architecture!r} is not supported: only {known} are')

  def __call__(self, name, *default):
    if name in self.fields:
      return self.fields[name].contents()
    if default:
      return default[0]
    raise UserError(f'metadata {name} is missing')

  def own(self, name, *default):
    """What has the architecture's name before it."""
    value = self(f'{self.architecture}.{name}', *default)
    if isinstance(value, list):
      raise UserError(f'{name} differs between layers, which is not supported')
    return value


def _config(meta, tensors) -> dict:
  """The config.json that the file was written from, as far as it says."""
  heads, width = meta.own('attention.head_count'), meta.own('embedding_length')
  head_dim = meta.own('attention.key_length', width // heads)
  for name in ('attention.value_length', 'rope.dimension_count'):
    if meta.own(name, head_dim) != head_dim:
      raise UserError(f'{name} is {meta.own(name)}, not the size of a head, {head_dim}')
  eos = meta('tokenizer.ggml.eos_token_id')
  pads = [meta(f'tokenizer.ggml.{name}_token_id', None) for name in ('padding', 'unknown')]
  if 'token_embd.weight' not in tensors:
    raise UserError('tensor token_embd.weight is missing')
  if meta.own('block_count') > hf.MAX_LAYERS:
    raise UserError(f'block_count is {meta.own("block_count")}, more than {hf.MAX_LAYERS}')
  config = {
    'model_type': TYPES[meta.architecture],
    'vocab_size': int(tensors['token_embd.weight'].shape[-1]),
    'hidden_size': width,
    'intermediate_size': meta.own('feed_forward_length'),
    'num_hidden_layers': meta.own('block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': meta.own('attention.head_count_kv', heads),
    'head_dim': head_dim,
    # Stored as float32; this restores the decimal number that it was written from.
    'rms_norm_eps': float(f'{meta.own("attention.layer_norm_rms_epsilon"):.6g}'),
    'tie_word_embeddings': 'output.weight' not in tensors,
    'attention_bias': 'blk.0.attn_output.bias' in tensors,
    'max_position_embeddings': meta.own('context_length'),
    # SmolLM2's base model has <|endoftext|> for both. This file's model is tuned for chat, and its
    # sequences start with <|im_start|> and end with <|im_end|>.
    'bos_token_id': meta('tokenizer.ggml.bos_token_id', None),
    'eos_token_id': eos,
    # Files often pad with eos; then code that looks for the last token cannot find a real eos.
    'pad_token_id': next(i for i in (*pads, 0, 1) if i not in (None, eos)),
    'rope_theta': float(meta.own('rope.freq_base', 10000.0)),
    'rope_scaling': _scaling(meta, tensors, head_dim),
    'is_causal': bool(meta.own('attention.causal', True)),
  }
  return config | (_of_gemma3(meta, config) if meta.architecture == 'gemma3' else {})


def _of_gemma3(meta, config) -> dict:
  """What llama.cpp knows without the file: the pattern of layers, and the scale of the 27B."""
  is_27b = config['num_hidden_layers'] == 62
  return {
    'sliding_window': meta.own('attention.sliding_window'),
    'sliding_window_pattern': meta.own('attention.sliding_window_pattern', 6),
    'rope_local_base_freq': float(meta.own('rope.freq_base_swa', 10000.0)),
    'query_pre_attn_scalar': (
      config['hidden_size'] // config['num_attention_heads'] if is_27b else config['head_dim']
    ),
    'final_logit_softcapping': meta.own('final_logit_softcapping', None),
  }


def _scaling(meta, tensors, head_dim: int) -> dict | None:
  """`rope_scaling` of config.json."""
  kind = meta.own('rope.scaling.type', 'none')
  if ROPE_FACTORS in tensors:
    return _llama3(meta, tensors[ROPE_FACTORS].data, head_dim)
  if kind == 'none':
    return None
  if kind != 'linear':
    raise UserError(f'rope scaling {kind!r} is not supported: only linear and that of Llama 3 are')
  return {'rope_type': 'linear', 'factor': float(meta.own('rope.scaling.factor'))}


def _llama3(meta, factors_E, head_dim: int) -> dict:
  """Llama 3's scaling, of which the file has only the result.

  Its other three numbers are the same in all of its versions; others are refused.
  """
  theta = float(meta.own('rope.freq_base', 10000.0))
  rope = Rope(theta, 'llama3', float(np.max(factors_E)))
  expected_E = Rope(theta).frequencies(head_dim) / rope.frequencies(head_dim)
  if expected_E.shape != factors_E.shape or not np.allclose(expected_E, factors_E, rtol=1e-4):
    raise UserError(f'{ROPE_FACTORS} is not of the rope scaling of Llama 3')
  return rope.to_hf()['rope_scaling']


def _params(tensors, network, meta) -> dict:
  """The parameters, from all tensors of the file."""
  import gguf

  rows = rows_of(network)
  names = _names(rows, meta, network.config.layers)
  unknown = sorted(set(tensors) - set(names.values()) - {ROPE_FACTORS})
  missing = sorted(set(names.values()) - set(tensors))
  if unknown or missing:
    raise UserError(f'unknown tensors {unknown}, missing {missing}')
  flat = {}
  for name, row in rows.items():
    [path] = row.paths  # of decoders
    tensor = tensors[names[name]]
    value = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    if value.shape != row.shape:
      raise UserError(f'{tensor.name} is {list(value.shape)}, expected {list(row.shape)}')
    if meta.architecture == 'llama' and path.startswith(('blocks/q/', 'blocks/k/')):
      value = _rotate_half_order(value, network.config.head_dim)
    if path.endswith('norm/scale'):
      value = value - np.float32(network.config.norm_offset)  # the file has what is multiplied
    value = value.T if path.endswith('/kernel') else value
    if row.layer is None:
      flat[path] = value
    else:
      shape = (network.config.layers, *value.shape)
      flat.setdefault(path, np.empty(shape, np.float32))[row.layer] = value
  return tree.unflatten(flat)


def _names(rows, meta, layers: int) -> dict[str, str]:
  """{Hugging Face name: name in the file} of the network's tensors."""
  import gguf

  kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == meta.architecture)
  table = gguf.get_tensor_name_map(kind, layers)
  names = {}
  for name in rows:
    base, _, ending = name.rpartition('.')
    names[name] = f'{table.get_name(base)}.{ending}'
  return names


def _rotate_half_order(rows, head_dim):
  """llama.cpp stores rotary pairs side by side; Hugging Face half a head apart."""
  pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
  return pairs.swapaxes(1, 2).reshape(rows.shape)
