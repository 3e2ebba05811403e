"""Small random models in transformers + torch, and token rows to feed both sides."""

import functools

import jax
import numpy as np
import transformers
from safetensors.numpy import load_file, save_file

from disranker_jax.models import families, hf
from disranker_jax.models.network import Network

SMALL = {
  'vocab_size': 61,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'pad_token_id': 0,
}
DECODERS = {
  'mistral': {'sliding_window': 4, 'num_key_value_heads': 2, 'head_dim': 16},
  'llama': {'num_key_value_heads': 1, 'tie_word_embeddings': True, 'attention_bias': True},
  'qwen2': {
    'num_key_value_heads': 2,
    'use_sliding_window': True,
    'sliding_window': 5,
    'max_window_layers': 0,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0},
  },
  # A window in the last two of three layers.
  'local_global': {
    'num_attention_heads': 6,
    'hidden_size': 48,
    'num_key_value_heads': 3,
    'use_sliding_window': True,
    'sliding_window': 5,
    'max_window_layers': 1,
  },
  'qwen3': {'num_key_value_heads': 2, 'head_dim': 12, 'num_attention_heads': 6},
  # Frequencies on both sides of the original context's limits, within a few tokens.
  'llama3': {
    'num_key_value_heads': 2,
    'head_dim': 16,
    'rope_parameters': {
      'rope_type': 'llama3',
      'rope_theta': 500.0,
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 16,
    },
  },
  'linear': {
    'head_dim': 8,
    'rope_parameters': {'rope_type': 'linear', 'rope_theta': 100.0, 'factor': 3.0},
  },
  'gemma': {
    'hidden_size': 48,
    'num_attention_heads': 3,
    'num_key_value_heads': 1,
    'head_dim': 32,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0},
  },
  # The sixth layer of seven is global. Neither scale is head_dim^-1/2, and the rotations differ.
  'gemma3': {
    'hidden_size': 48,
    'num_hidden_layers': 7,
    'num_attention_heads': 3,
    'num_key_value_heads': 1,
    'head_dim': 32,
    'query_pre_attn_scalar': 50,
    'sliding_window': 9,
    'rope_parameters': {
      'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 5000.0},
      'sliding_attention': {'rope_type': 'default', 'rope_theta': 300.0},
    },
  },
  # Local layers are those without rotary positions: 3 and 5 of five.
  'smollm3': {
    'hidden_size': 48,
    'num_hidden_layers': 5,
    'num_attention_heads': 3,
    'num_key_value_heads': 1,
    'no_rope_layers': [1, 1, 0, 1, 0],
    'use_sliding_window': True,
    'sliding_window': 7,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0},
  },
  'ministral': {
    'num_key_value_heads': 2,
    'head_dim': 16,
    'num_attention_heads': 6,
    'sliding_window': 6,
    'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
  },
  'ministral3': {
    'num_key_value_heads': 2,
    'head_dim': 16,
    'rope_parameters': {
      'rope_type': 'yarn',
      'rope_theta': 500.0,
      'factor': 16.0,
      'original_max_position_embeddings': 400,
      'beta_fast': 32.0,
      'beta_slow': 1.0,
      'mscale': 1.0,
      'mscale_all_dim': 0.5,
      'llama_4_scaling_beta': 0.1,
    },
  },
  'phi3': {
    'num_attention_heads': 6,
    'num_key_value_heads': 2,
    'hidden_size': 48,
    'sliding_window': 6,
  },
  'bert': {'max_position_embeddings': 40},
  'roberta': {'max_position_embeddings': 40, 'type_vocab_size': 1, 'pad_token_id': 1},
  'xlm-roberta': {
    'max_position_embeddings': 40,
    'type_vocab_size': 1,
    'pad_token_id': 3,
    'layer_norm_eps': 1e-5,
  },
  'electra': {'max_position_embeddings': 40, 'embedding_size': 20},
  'distilbert': {'max_position_embeddings': 40, 'hidden_dim': 48},
}


TYPES = {
  'llama3': 'llama',
  'linear': 'llama',
  'local_global': 'qwen2',
  'gemma3': 'gemma3_text',
}  # the others are called as their type


def config(kind, **overrides):
  """A transformers config of three narrow layers."""
  settings = SMALL | DECODERS[kind] | overrides
  return transformers.AutoConfig.for_model(TYPES.get(kind, kind), **settings)


def model(kind, head, seed=0, **overrides):
  """A random torch model; `head` is SequenceClassification or CausalLM."""
  import torch

  labels = {'num_labels': 1} if head == 'SequenceClassification' else {}
  settings = config(kind, **labels, **overrides)
  settings._attn_implementation = 'eager'
  name = families.find(TYPES.get(kind, kind)).class_name(head)
  torch.manual_seed(seed)
  out = getattr(transformers, name)(settings).eval()
  for path, weight in out.named_parameters():
    # Norm scales near one, everything else large enough that no term is lost in the tolerance.
    centre = 1.0 if 'norm' in path.lower() and path.endswith('weight') else 0.0
    weight.data.normal_(centre, 0.15)
  return out


@functools.cache
def network(kind='mistral', scale=1.0, **options):
  """A small random Ranker and its variables, numpy arrays; `scale` multiplies the matrices."""
  settings = config(kind).to_dict()
  out = Network(families.from_hf(settings), **options)
  variables = jax.tree.map(np.asarray, jax.jit(out.init)(jax.random.key(0)))
  return out, jax.tree.map(lambda x: x * np.float32(scale) if x.ndim > 1 else x, variables)


def saved(folder, kind='bert', **options):
  """A random ranker saved to a folder; returns it and its variables."""
  model, variables = network(kind, **options)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(x.dtype), variables)
  hf.save(folder, model, variables)
  return model, variables


def edit(folder, change):
  path = folder / 'model.safetensors'
  tensors = load_file(path)
  save_file(change(tensors) or tensors, path)


def assert_equal(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def sequences(lengths, vocab=61, seed=0):
  """Random token ids without 0, one list a length."""
  rng = np.random.default_rng(seed)
  return [rng.integers(1, vocab, n).tolist() for n in lengths]


def rows(ids, length=None, types=None):
  """One sequence a row, padded on the right: our batch, without documents."""
  length = length or max(map(len, ids))
  batch = {key: np.zeros((len(ids), length), np.int32) for key in KEYS}
  for row, tokens in enumerate(ids):
    place(batch, row, 0, 1, tokens, types and types[row])
  return batch


KEYS = ('tokens_BT', 'segments_BT', 'positions_BT', 'types_BT')


def place(batch, row, start, segment, tokens, types=None):
  """Put a sequence into a packed row."""
  span = slice(start, start + len(tokens))
  batch['tokens_BT'][row, span] = tokens
  batch['segments_BT'][row, span] = segment
  batch['positions_BT'][row, span] = np.arange(len(tokens))
  batch['types_BT'][row, span] = types or 0


def packed(ids, length):
  """All sequences in one row; returns the batch and the slot each starts in."""
  batch = {key: np.zeros((1, length), np.int32) for key in KEYS}
  starts = np.cumsum([0, *map(len, ids)])[:-1].tolist()
  for segment, (start, tokens) in enumerate(zip(starts, ids, strict=True), 1):
    place(batch, 0, start, segment, tokens)
  return batch, starts


def torch_inputs(batch, types=False):
  """The same rows as keyword arguments of a torch model."""
  import torch

  out = {
    'input_ids': torch.tensor(batch['tokens_BT'], dtype=torch.long),
    'attention_mask': torch.tensor(batch['segments_BT'] > 0, dtype=torch.long),
  }
  return out | ({'token_type_ids': torch.tensor(batch['types_BT']).long()} if types else {})


def assert_close(ours, theirs, tolerance=1e-4):
  """Equal to `tolerance` of the larger side's scale."""
  ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
  assert ours.shape == theirs.shape
  assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
