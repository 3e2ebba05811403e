"""GGUF files of each family: the model that was written, its tokenizer, and what is refused.

The files are written as llama.cpp's converter writes them: its names, its order of rotary pairs,
its norms, and its scaling.
"""

import json
import math
import re

import gguf
import hf_reference as reference
import jax
import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.models import gguf as module
from disranker_jax.models import hf, network, weights

NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}
GEMMA3_NAMES = NAMES | {
  'post_attention_layernorm': 'post_attention_norm',
  'pre_feedforward_layernorm': 'ffn_norm',
  'post_feedforward_layernorm': 'post_ffw_norm',
}
WHOLE = {'use_sliding_window': False}  # llama.cpp's Qwen has no window
LLAMA3 = {
  'rope_type': 'llama3', 'rope_theta': 500000.0, 'factor': 32.0, 'low_freq_factor': 1.0,
  'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192,
}  # fmt: skip
GEMMA3 = {
  'query_pre_attn_scalar': 32,
  'rope_parameters': {
    'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 5000.0},
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 10000.0},
  },
}
CASES = {
  'llama': ('llama', 'llama', {}),
  'linear': ('linear', 'llama', {}),
  'llama3': ('llama3', 'llama', {'rope_parameters': LLAMA3}),
  'mistral': ('mistral', 'llama', {'sliding_window': None}),
  'qwen2': ('qwen2', 'qwen2', WHOLE),
  'qwen3': ('qwen3', 'qwen3', {'tie_word_embeddings': True}),
  'gemma': ('gemma', 'gemma', {}),
  'gemma3': ('gemma3', 'gemma3', GEMMA3),
}
BYTES = [f'<0x{i:02X}>' for i in range(256)]
PIECES = ['▁', 'a', 'b', 'n', 'd', 'e', 'an', '▁an', 'and', '▁and', 'nd', '▁a', 'en', 'ende', 'de']


def _theirs(case):
  kind, arch, changes = CASES[case]
  changes = {'vocab_size': 320, 'max_position_embeddings': 512} | changes
  return reference.model(kind, 'CausalLM', bos_token_id=1, eos_token_id=2, **changes), arch


def _rope_factors(head_dim):
  """Written from the three rules of the scaling, not as this package computes it."""
  for i in range(0, head_dim, 2):
    wavelength = 2 * math.pi * LLAMA3['rope_theta'] ** (i / head_dim)
    if wavelength < 8192 / 4:
      yield 1.0
    elif wavelength > 8192:
      yield 32.0
    else:
      smooth = (8192 / wavelength - 1) / (4 - 1)
      yield 1 / ((1 - smooth) / 32 + smooth)


def _tensors(model, arch):
  c = model.config
  names = GEMMA3_NAMES if arch == 'gemma3' else NAMES
  for name, value in model.state_dict().items():
    value = value.numpy()
    if name == 'lm_head.weight' and c.tie_word_embeddings:
      continue
    layer, base, ending = re.fullmatch(r'(model\.layers\.\d+\.)?(.*)\.(\w+)', name).groups()
    prefix = f'blk.{re.findall("[0-9]+", layer)[0]}.' if layer else ''
    if arch == 'llama' and base in ('self_attn.q_proj', 'self_attn.k_proj'):
      heads = c.num_attention_heads if 'q_proj' in base else c.num_key_value_heads
      pairs = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
      value = pairs.swapaxes(1, 2).reshape(value.shape)
    if arch.startswith('gemma') and 'norm' in base:
      value = value + 1
    yield f'{prefix}{names[base]}.{ending}', value


def _header(writer, config, arch):
  c = config
  writer.add_block_count(c.num_hidden_layers)
  writer.add_context_length(c.max_position_embeddings)
  writer.add_embedding_length(c.hidden_size)
  writer.add_feed_forward_length(c.intermediate_size)
  writer.add_head_count(c.num_attention_heads)
  writer.add_head_count_kv(c.num_key_value_heads)
  writer.add_layer_norm_rms_eps(c.rms_norm_eps)
  head_dim = getattr(c, 'head_dim', None) or c.hidden_size // c.num_attention_heads
  writer.add_key_length(head_dim)
  writer.add_value_length(head_dim)
  rope = c.rope_parameters.get('full_attention', c.rope_parameters)
  writer.add_rope_freq_base(rope['rope_theta'])
  if rope['rope_type'] == 'linear':
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(rope['factor'])
  if rope['rope_type'] == 'llama3':
    writer.add_tensor('rope_freqs.weight', np.array([*_rope_factors(head_dim)], np.float32))
  if arch == 'gemma3':
    writer.add_sliding_window(c.sliding_window)


def _bpe(writer, tokens=320, pre='qwen2'):
  from tokenizers import pre_tokenizers

  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  whole = ['<unk>', '<s>', '</s>', *letters, 'th', 'the', 'Ġthe', '<tool>']
  whole += [f'<unused{i}>' for i in range(tokens - len(whole))]
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(whole)
  kinds = [3 if t in whole[:3] else 4 if t == '<tool>' else 1 for t in whole]
  writer.add_token_types(kinds)
  writer.add_token_merges(['t h', 'th e', 'Ġ the'])


def _sentencepiece(writer, tokens=320, runs=('  ', '\n\n')):
  whole = ['<unk>', '<s>', '</s>', *runs, *BYTES, *PIECES]
  whole += [f'<unused{i}>' for i in range(tokens - len(whole))]
  scores = [-1000.0] * (len(BYTES) + 3 + len(runs))
  scores += [-float(i) for i in range(tokens - len(scores))]
  kinds = [2, 3, 3, *[4] * len(runs), *[6] * 256, *[1] * len(PIECES)]
  writer.add_tokenizer_model('llama')
  writer.add_tokenizer_pre('default')
  writer.add_token_list(whole)
  writer.add_token_scores(scores)
  writer.add_token_types(kinds + [3] * (tokens - len(kinds)))


def _write(path, case, tokenizer=_bpe, change=None, **settings):
  """A file of a random model; returns the model. `change` edits its tensors, {name: array}."""
  model, arch = _theirs(case)
  writer = gguf.GGUFWriter(path, arch)
  _header(writer, model.config, arch)
  tokenizer(writer, **settings)
  for name, id in (('bos', 1), ('eos', 2), ('unk', 0)):
    getattr(writer, f'add_{name}_token_id')(id)
  tensors = dict(_tensors(model, arch))
  for name, value in ((change or dict)(tensors) or tensors).items():
    writer.add_tensor(name, np.ascontiguousarray(value))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return model


@pytest.mark.parametrize('case', CASES)
def test_a_file_is_the_model_that_it_was_written_from(case, tmp_path):
  torch = pytest.importorskip('torch')
  theirs = _write(tmp_path / 'x.gguf', case)
  module.convert(tmp_path / 'x.gguf', tmp_path / 'hf')
  model = network.from_hf(tmp_path / 'hf', head='lm')
  variables = hf.load(tmp_path / 'hf', model, jax.random.key(0))
  ids = reference.sequences((40,), vocab=320)
  with torch.no_grad():
    logits = theirs(torch.tensor(ids)).logits[0].numpy()
  hidden = jax.jit(model.hidden)(variables, reference.rows(ids))[0]
  reference.assert_close(model.module.apply(variables, hidden, method='logits'), logits)


def test_the_27b_of_gemma3_scales_its_queries_in_its_own_way(tmp_path):
  """llama.cpp knows it by its number of layers."""
  pytest.importorskip('torch')
  for layers, scalar in ((26, 32), (62, 16)):
    meta = {
      'general.architecture': 'gemma3', 'gemma3.attention.head_count': 3,
      'gemma3.embedding_length': 48, 'gemma3.attention.key_length': 32,
      'gemma3.block_count': layers, 'gemma3.feed_forward_length': 8,
      'gemma3.attention.layer_norm_rms_epsilon': 1e-6, 'gemma3.context_length': 64,
      'gemma3.attention.sliding_window': 8, 'tokenizer.ggml.eos_token_id': 1,
    }  # fmt: skip
    fields = {name: Field(value) for name, value in meta.items()}
    tensors = {'token_embd.weight': np.zeros((48, 9))}
    config = module._config(module.Metadata(Fields(fields)), tensors)
    assert config['query_pre_attn_scalar'] == scalar


class Field:
  def __init__(self, value):
    self.value = value

  def contents(self):
    return self.value


class Fields:
  def __init__(self, fields):
    self.fields = fields


TEXTS = (
  'and ende',
  'an  and   a\n\n\nb',
  'banana é 北 🙂 <unk>',
  'the and the 12345 x</s>',
  "THE don't <tool>the\t\r\n the",
  '',
)


@pytest.mark.parametrize(
  'case, tokenizer, settings',
  [
    ('llama', _sentencepiece, {'runs': ()}),
    ('gemma3', _sentencepiece, {}),
    *(('llama', _bpe, {'pre': pre}) for pre in ('llama-bpe', 'qwen2', 'tekken')),
  ],
)
def test_tokens_are_those_of_transformers_own_reading(case, tokenizer, settings, tmp_path):
  import transformers

  pytest.importorskip('torch')
  _write(tmp_path / 'x.gguf', case, tokenizer, **settings)
  module.convert(tmp_path / 'x.gguf', tmp_path / 'hf')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file='x.gguf')
  ours = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  for text in TEXTS:
    expected = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text, add_special_tokens=False) == expected, text
    assert ours.decode(expected) == text
  started = tokenizer is _sentencepiece or settings['pre'] != 'qwen2'
  assert (ours.encode('a')[0] == ours.bos_token_id) == started


def test_qwens_tokenizer_has_no_start(tmp_path):
  pytest.importorskip('torch')
  import transformers

  _write(tmp_path / 'x.gguf', 'qwen3')
  module.convert(tmp_path / 'x.gguf', tmp_path / 'hf')
  ours = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  assert ours.bos_token is None and ours.encode('the') == [ours.convert_tokens_to_ids('the')]
  # Texts are normalised first, as Qwen's own tokenizer does and llama.cpp does not.
  assert ours.encode('e\u0301') == ours.encode('\u00e9')


@pytest.mark.parametrize(
  'case, change, message',
  [
    ('qwen2', lambda t: t | {'blk.0.attn_q_norm.weight': np.zeros(8, np.float32)},
     r"x\.gguf: unknown tensors \['blk.0.attn_q_norm.weight'\], missing \[\]"),
    ('gemma3', lambda t: {n: x for n, x in t.items() if n != 'blk.6.post_ffw_norm.weight'},
     r"missing \['blk.6.post_ffw_norm.weight'\]"),
    ('gemma', lambda t: t | {'output_norm.weight': np.zeros(47, np.float32)},
     r'output_norm.weight is \[47\], expected \[48\]'),
    ('llama', lambda t: t | {'rope_freqs.weight': np.array([1, 2, 3, 9], np.float32)},
     'rope_freqs.weight is not of the rope scaling of Llama 3'),
  ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(case, change, message, tmp_path):
  pytest.importorskip('torch')
  _write(tmp_path / 'x.gguf', case, change=change)
  with pytest.raises(UserError, match=message):
    module.convert(tmp_path / 'x.gguf', tmp_path / 'hf')
  assert not (tmp_path / 'hf').exists()


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
  pytest.importorskip('torch')
  _write(tmp_path / 'x.gguf', 'gemma')
  whole = (tmp_path / 'x.gguf').read_bytes()
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(60):
    damaged = bytearray(whole)
    damaged[rng.integers(0, 2500)] = rng.integers(0, 256)  # in the header
    (tmp_path / 'y.gguf').write_bytes(damaged[: rng.integers(len(whole) // 2, len(whole))])
    try:
      module.convert(tmp_path / 'y.gguf', tmp_path / 'hf')
    except UserError as error:
      assert 'y.gguf' in str(error) and '\n' not in str(error)
      refused += 1
  assert refused > 50


def test_a_file_of_the_user_is_converted_once_and_its_licence_is_kept(tmp_path, monkeypatch):
  pytest.importorskip('torch')
  monkeypatch.setenv('DISRANKER_CACHE', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)

  def tokenizer(writer):
    writer.add_license('gemma')
    _sentencepiece(writer)

  _write(tmp_path / 'x.gguf', 'gemma3', tokenizer)
  folder = weights.find('x.gguf')
  assert json.loads((folder / 'config.json').read_text())['model_type'] == 'gemma3_text'
  assert weights.origin(folder)['license'] == 'gemma'
  assert weights.hub_id('x.gguf', folder) == ''
  with monkeypatch.context() as patch:
    patch.setattr(module, 'convert', None)
    assert weights.find(tmp_path / 'x.gguf') == folder
  with monkeypatch.context() as patch:
    patch.setattr(module, 'VERSION', module.VERSION + 1)  # as by another program
    assert weights.find('x.gguf') != folder
  _write(tmp_path / 'x.gguf', 'gemma3', _sentencepiece)
  assert weights.find('x.gguf') != folder
