"""Converts a llama.cpp file (GGUF) of the Llama family to a Hugging Face model folder."""

import json
import pathlib
import tempfile

import numpy as np

from disranker_jax.errors import UserError
from disranker_jax.models import hf, tree
from disranker_jax.models.families.decoder import DecoderConfig
from disranker_jax.models.kinds import Kind
from disranker_jax.models.network import Network
from disranker_jax.models.rope import Rope

# GGUF name -> our path; '{}' is the layer.
TENSORS = {
  'token_embd.weight': 'embed/embedding',
  'output_norm.weight': 'norm/scale',
  'output.weight': 'lm_head/kernel',
  'blk.{}.attn_norm.weight': 'blocks/attn_norm/scale',
  'blk.{}.ffn_norm.weight': 'blocks/mlp_norm/scale',
  'blk.{}.attn_q.weight': 'blocks/q/kernel',
  'blk.{}.attn_k.weight': 'blocks/k/kernel',
  'blk.{}.attn_v.weight': 'blocks/v/kernel',
  'blk.{}.attn_output.weight': 'blocks/o/kernel',
  'blk.{}.ffn_gate.weight': 'blocks/gate/kernel',
  'blk.{}.ffn_up.weight': 'blocks/up/kernel',
  'blk.{}.ffn_down.weight': 'blocks/down/kernel',
}
CONTROL = 3  # token type of special tokens


def convert(path: str | pathlib.Path, folder: str | pathlib.Path) -> None:
  """Writes `folder` (config.json, fp32 model.safetensors, tokenizer) from a GGUF file.

  Weights are dequantised exactly as llama.cpp does, and rows of q and k are reordered from
  interleaved to rotate-half.

  Raises: UserError for another architecture, tokenizer or tensor set.
  """
  import gguf  # only conversion needs it

  try:
    reader = gguf.GGUFReader(path)
  except (ValueError, OSError, IndexError) as error:
    raise UserError(f'{path} is not a readable GGUF file: {error}') from None
  meta = _Metadata(reader, path)
  if meta('general.architecture') != 'llama' or meta('tokenizer.ggml.model') != 'gpt2':
    raise UserError(
      f'{path}: architecture {meta("general.architecture")!r} with tokenizer '
      f"{meta('tokenizer.ggml.model')!r} is not supported: only 'llama' with 'gpt2' (byte BPE)"
    )
  config = _config(meta, tied=all(t.name != 'output.weight' for t in reader.tensors))
  params = _params(reader, config, path)
  with tempfile.TemporaryDirectory() as scratch:
    _tokenizer(meta, pathlib.Path(scratch), config)
    hf.save(folder, Network(config, head='lm'), {'params': params}, tokenizer_folder=scratch)


class _Metadata:
  def __init__(self, reader, path):
    self.fields, self.path = reader.fields, path

  def __call__(self, name, *default):
    if name in self.fields:
      return self.fields[name].contents()
    if default:
      return default[0]
    raise UserError(f'{self.path}: metadata {name} is missing')


def _config(meta, tied):
  heads = meta('llama.attention.head_count')
  width = meta('llama.embedding_length')
  tokens = meta('tokenizer.ggml.tokens')
  eos = meta('tokenizer.ggml.eos_token_id')
  if meta('llama.rope.scaling.type', 'none') != 'none':
    raise UserError(f'{meta.path}: rope scaling is not supported')
  rotary = Rope(float(meta('llama.rope.freq_base', 10000.0)))
  return DecoderConfig(
    vocab=len(tokens),
    width=width,
    ffn=meta('llama.feed_forward_length'),
    layers=meta('llama.block_count'),
    heads=heads,
    kv_heads=meta('llama.attention.head_count_kv', heads),
    head_dim=meta('llama.attention.key_length', width // heads),
    model_type='llama',
    kinds=(Kind(rope=rotary),) * meta('llama.block_count'),
    # Stored as float32; this restores the decimal number that it was written from.
    norm_eps=float(f'{meta("llama.attention.layer_norm_rms_epsilon"):.6g}'),
    tied=tied,
    max_positions=meta('llama.context_length'),
    # SmolLM2's base model has <|endoftext|> for both. This file's model is tuned for chat, and its
    # sequences start with <|im_start|> and end with <|im_end|>.
    bos_id=meta('tokenizer.ggml.bos_token_id'),
    eos_id=eos,
    # Files often pad with eos; then code that looks for the last token cannot find a real eos.
    pad_id=next(i for i in (meta('tokenizer.ggml.unknown_token_id', 0), 0, 1) if i != eos),
  )


def _params(reader, config, path):
  import gguf

  flat, unknown = {}, []
  paths = {
    t.replace('{}', str(i)): (p, i) for t, p in TENSORS.items() for i in range(config.layers)
  }
  for tensor in reader.tensors:
    if tensor.name not in paths:
      unknown.append(tensor.name)
      continue
    where, layer = paths[tensor.name]
    value = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    if where in ('blocks/q/kernel', 'blocks/k/kernel'):
      value = _rotate_half_order(value, config.head_dim)
    value = value.T if where.endswith('/kernel') else value
    if where.startswith('blocks/'):
      flat.setdefault(where, np.full((config.layers, *value.shape), np.nan, np.float32))
      flat[where][layer] = value
    else:
      flat[where] = value
  needed = set(TENSORS.values()) - ({'lm_head/kernel'} if config.tied else set())
  missing = sorted(needed - set(flat)) + [p for p, x in flat.items() if np.isnan(x).any()]
  if unknown or missing:
    raise UserError(f'{path}: unknown tensors {unknown}, missing or incomplete {missing}')
  return tree.unflatten(flat)


def _rotate_half_order(rows, head_dim):
  """llama.cpp stores rotary pairs side by side; Hugging Face half a head apart."""
  pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
  return pairs.swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(meta, folder, config):
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

  tokens, types = meta('tokenizer.ggml.tokens'), meta('tokenizer.ggml.token_type')
  merges = [tuple(m.split(' ')) for m in meta('tokenizer.ggml.merges')]
  pre = meta('tokenizer.ggml.pre', 'default')
  if pre != 'smollm':
    raise UserError(f"{meta.path}: pre-tokenizer {pre!r} is not supported: only 'smollm' is")
  tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  special = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL]
  tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
  tokenizer.save(str(folder / 'tokenizer.json'))
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': config.max_positions,
    'clean_up_tokenization_spaces': False,
    'bos_token': tokens[config.bos_id],
    'eos_token': tokens[config.eos_id],
    'unk_token': tokens[meta('tokenizer.ggml.unknown_token_id', 0)],
    'pad_token': tokens[config.pad_id],
  }
  template = meta('tokenizer.chat_template', None)
  settings |= {'chat_template': template} if template else {}
  text = json.dumps(settings, indent=2, ensure_ascii=False)
  (folder / 'tokenizer_config.json').write_text(text + '\n', encoding='utf-8')
