"""Hugging Face folders: read in every variant, refused with all reasons, written for others."""

import itertools
import json

import hf_reference as reference
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from disranker_jax.errors import UserError
from disranker_jax.models import families, files, hf, network, tree
from disranker_jax.models.network import Network

KEY = jax.random.key(0)


_saved, _edit, _assert_equal = reference.saved, reference.edit, reference.assert_equal


@pytest.mark.parametrize(
  'kind, head',
  [
    ('bert', 'rank'),
    ('mistral', 'rank'),
    ('mistral', 'lm'),
    ('llama', 'lm'),
    ('qwen2', 'rank'),
    ('qwen3', 'rank'),
    ('llama3', 'lm'),
    ('gemma', 'lm'),
    ('gemma3', 'rank'),
    ('roberta', 'rank'),
    ('electra', 'rank'),
    ('distilbert', 'rank'),
  ],
)
def test_round_trip_is_bit_equal(kind, head, tmp_path):
  model, variables = _saved(tmp_path / 'm', kind, head=head)
  again = network.from_hf(tmp_path / 'm', head=head)
  assert (again.config.layers, again.config.width) == (model.config.layers, model.config.width)
  _assert_equal(hf.load(tmp_path / 'm', again, KEY), variables)


@pytest.mark.parametrize('kind', ['bert', 'mistral'])
def test_a_large_model_is_written_in_several_files_that_hold_it_whole(kind, tmp_path, monkeypatch):
  model, variables = _saved(tmp_path / 'one', kind)
  whole = load_file(tmp_path / 'one' / 'model.safetensors')
  monkeypatch.setattr(files, 'FILE_BYTES', 20_000)
  hf.save(tmp_path / 'many', model, variables)
  index = json.loads((tmp_path / 'many' / 'model.safetensors.index.json').read_text())
  written = sorted((tmp_path / 'many').glob('*.safetensors'))
  assert len(written) > 2 and {f.name for f in written} == set(index['weight_map'].values())
  parts = {f.name: load_file(f) for f in written}
  held = [n for part in parts.values() for n in part]
  assert sorted(held) == sorted(whole)
  for name, file in index['weight_map'].items():
    np.testing.assert_array_equal(parts[file][name], whole[name])
  largest = max(t.nbytes for t in whole.values())
  assert all(sum(t.nbytes for t in p.values()) <= max(20_000, largest) for p in parts.values())
  assert index['metadata']['total_size'] == sum(t.nbytes for t in whole.values())
  _assert_equal(hf.load(tmp_path / 'many', model, KEY), variables)


class Quarters:
  """A sharding that a fake array is cut by: every axis in two, as four devices might hold it."""

  def pieces(self, shape):
    halves = [[slice(0, n // 2), slice(n // 2, None)] if n > 1 else [slice(None)] for n in shape]
    return itertools.product(*halves)


@pytest.mark.parametrize('kind, dtype', [('bert', 'float32'), ('mistral', 'bfloat16')])
def test_a_device_is_given_its_part_of_a_parameter_and_no_more_is_read(
  kind, dtype, tmp_path, monkeypatch
):
  model, variables = _saved(tmp_path, kind)
  asked = []

  def make(shape, sharding, read):
    out = np.empty(shape, dtype)
    for piece in sharding.pieces(shape):
      part = read(piece)
      assert part.shape == out[piece].shape
      asked.append(part.size)
      out[piece] = part
    return out

  monkeypatch.setattr(jax, 'make_array_from_callback', make)
  paths = tree.flatten(variables['params'])
  found = hf.load(tmp_path, model, KEY, dtype=dtype, shardings=dict.fromkeys(paths, Quarters()))
  _assert_equal(found['params'], jax.tree.map(lambda x: x.astype(dtype), variables['params']))
  assert max(asked) < max(x.size for x in paths.values())


def test_sharded_files_and_low_precision_are_read(tmp_path):
  model, variables = _saved(tmp_path, 'mistral')
  tensors = load_file(tmp_path / 'model.safetensors')
  (tmp_path / 'model.safetensors').unlink()
  names, index = sorted(tensors), {}
  for shard, dtype in enumerate((ml_dtypes.bfloat16, np.float16)):
    file = f'model-{shard + 1}-of-2.safetensors'
    save_file({n: tensors[n].astype(dtype) for n in names[shard::2]}, tmp_path / file)
    index |= dict.fromkeys(names[shard::2], file)
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
  loaded = hf.load(tmp_path, model, KEY)
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(loaded))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8, atol=1e-7), loaded, variables
  )
  low = hf.load(tmp_path, model, KEY, dtype='bfloat16')
  assert all(x.dtype == ml_dtypes.bfloat16 for x in jax.tree.leaves(low))
  (tmp_path / 'model-2-of-2.safetensors').unlink()
  with pytest.raises(UserError, match=r'model-2-of-2\.safetensors is missing'):
    hf.load(tmp_path, model, KEY)


def test_other_spellings_and_other_tasks_heads_are_understood(tmp_path):
  model, variables = _saved(tmp_path)

  def old_spelling(tensors):
    out = {}
    for name, value in tensors.items():
      name = name.removeprefix('bert.')
      name = name.replace('LayerNorm.weight', 'LayerNorm.gamma')
      out[name.replace('LayerNorm.bias', 'LayerNorm.beta')] = value
    out['embeddings.position_ids'] = np.arange(40)
    out['cls.predictions.bias'] = out['cls.seq_relationship.weight'] = np.zeros(3, np.float32)
    return out

  _edit(tmp_path, old_spelling)
  _assert_equal(hf.load(tmp_path, model, KEY), variables)
  model, variables = _saved(tmp_path, 'llama')
  _edit(
    tmp_path,
    lambda t: (
      {n.removeprefix('model.'): x for n, x in t.items()} | {'lm_head.weight': t['score.weight']}
    ),
  )
  _assert_equal(hf.load(tmp_path, model, KEY), variables)


def test_missing_heads_start_fresh_from_the_key_and_are_logged(tmp_path, caplog):
  model, variables = _saved(tmp_path)
  _edit(
    tmp_path, lambda t: {n: x for n, x in t.items() if 'pooler' not in n and 'classifier' not in n}
  )
  with caplog.at_level('INFO', 'absl'):
    a, b = (hf.load(tmp_path, model, jax.random.key(seed))['params'] for seed in (1, 2))
  assert 'classifier/kernel, pooler/bias, pooler/kernel' in caplog.text
  assert not np.array_equal(a['pooler']['kernel'], b['pooler']['kernel'])
  assert 0 < a['classifier']['kernel'].std() < 0.05 and not a['classifier']['bias'].any()
  _assert_equal(a['blocks'], variables['params']['blocks'])


def test_every_problem_is_listed_at_once(tmp_path):
  model, _ = _saved(tmp_path)

  def spoil(tensors):
    tensors['bert.encoder.layer.3.output.dense.bias'] = np.zeros(32, np.float32)
    tensors['embeddings.LayerNorm.bias'] = np.zeros(32, np.float32)
    del tensors['bert.encoder.layer.1.attention.self.key.weight']
    tensors['classifier.weight'] = np.zeros((3, 32), np.float32)
    tensors['bert.pooler.dense.bias'] = np.zeros(32, np.int8)

  _edit(tmp_path, spoil)
  with pytest.raises(UserError) as error:
    hf.load(tmp_path, model, KEY)
  for part in (
    '5 tensors',
    'unknown: bert.encoder.layer.3.output.dense.bias',
    'set twice: bert.embeddings.LayerNorm.bias',
    'missing: bert.encoder.layer.1.attention.self.key.weight',
    'shape of classifier.weight: [3, 32], expected [1, 32]',
    'type of bert.pooler.dense.bias: I8',
  ):
    assert part in str(error.value)


def test_damaged_and_absent_files_are_named(tmp_path):
  model, _ = _saved(tmp_path)
  path = tmp_path / 'model.safetensors'
  whole = path.read_bytes()
  for damaged in (whole[:-100], whole[:4], b''):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r'model\.safetensors is truncated or corrupt'):
      hf.load(tmp_path, model, KEY)
  path.rename(tmp_path / 'pytorch_model.bin')
  with pytest.raises(UserError, match=r'convert pytorch_model\.bin'):
    hf.load(tmp_path, model, KEY)
  (tmp_path / 'config.json').write_text('{"model_type": ')
  with pytest.raises(UserError, match=r'config\.json cannot be read'):
    hf.read_config(tmp_path)
  (tmp_path / 'config.json').write_text('{"model_type": "nonesuch"}')
  with pytest.raises(UserError, match=r'config\.json.*nonesuch'):
    network.from_hf(tmp_path)


def test_a_shallow_student_takes_the_named_layers(tmp_path):
  _, variables = _saved(tmp_path)
  student = network.from_hf(tmp_path, layers=[2, 0])
  loaded = hf.load(tmp_path, student, KEY, layers=[2, 0])['params']
  picked = jax.tree.map(lambda x: x[np.array([2, 0])], variables['params']['blocks'])
  _assert_equal(loaded['blocks'], picked)
  _assert_equal(loaded['words'], variables['params']['words'])
  # A tensor that no layer has is a mistake even in a layer that is left out.
  _edit(tmp_path, lambda t: t | {'bert.encoder.layer.1.adapter.weight': t['classifier.weight']})
  with pytest.raises(UserError, match=r'unknown: bert.encoder.layer.1.adapter'):
    hf.load(tmp_path, student, KEY, layers=[2, 0])


@pytest.mark.parametrize(
  'kind, rank',
  [
    ('bert', 0),
    ('bert', 2),
    ('mistral', 2),
    ('llama', 2),
    ('qwen2', 2),
    ('qwen3', 2),
    ('llama3', 2),
    ('gemma', 2),
    ('gemma3', 2),
    ('smollm3', 2),
    ('ministral', 2),
    ('ministral3', 2),
    ('phi3', 2),
    ('roberta', 2),
    ('xlm-roberta', 2),
    ('electra', 2),
    ('distilbert', 2),
  ],
)
def test_torch_loads_what_we_save_and_gives_our_scores(kind, rank, tmp_path):
  torch = pytest.importorskip('torch')
  import transformers

  model, variables = _saved(tmp_path, kind, lora_rank=rank)
  batch = reference.rows(reference.sequences((9, 6, 3)))
  is_encoder = not model.family.causal
  if is_encoder:
    # Padding has the model's own id, and no text has it: RoBERTa finds positions by it.
    pad, ids = model.config.pad_id, batch['tokens_BT']
    ids[ids == pad] = 4
    ids[batch['segments_BT'] == 0] = pad
  last = np.array([0, 0, 0]) if is_encoder else np.array([8, 5, 2])
  batch |= {'index_AX': (np.arange(3) * 9 + last)[None], 'mask_GN': np.ones((1, 3), bool)}
  ours = jax.jit(model.scores)(variables, batch)[0]
  theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(report.values()), report
  assert type(theirs).__name__.endswith('ForSequenceClassification')
  with torch.no_grad():
    logits = theirs.eval()(
      **reference.torch_inputs(batch, types=kind in ('bert', 'electra'))
    ).logits
  reference.assert_close(ours, logits[:, 0].numpy())
  if rank:
    plain = jax.jit(Network(model.config).scores)(variables, batch)[0]
    assert np.abs(plain - ours).max() > 1e-2


def test_a_language_model_is_saved_as_one(tmp_path):
  torch = pytest.importorskip('torch')
  import transformers

  model, variables = _saved(tmp_path, 'mistral', head='lm')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
  assert type(theirs).__name__ == 'MistralForCausalLM'
  batch = reference.rows(reference.sequences((9,)))
  ours = model.module.apply(variables, model.hidden(variables, batch)[0], method='logits')
  with torch.no_grad():
    reference.assert_close(ours, theirs(**reference.torch_inputs(batch)).logits[0].numpy())


def _tokenizer(folder, pad='[PAD]'):
  """A word-level tokenizer of BERT's special tokens and a few words."""
  import tokenizers
  import transformers
  from tokenizers import processors

  words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'red', 'shoe', 'shoes', 'for', 'kids']
  inner = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, '[UNK]')
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  inner.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner,
    pad_token=pad,
    unk_token='[UNK]',
    cls_token='[CLS]',
    sep_token='[SEP]',
    model_max_length=40,
  ).save_pretrained(folder)


def test_sentence_transformers_gives_our_raw_score(tmp_path):
  pytest.importorskip('torch')
  cross_encoder = pytest.importorskip('sentence_transformers').CrossEncoder
  _tokenizer(tmp_path / 'tokenizer')
  model, variables = _saved(tmp_path / 'm')
  variables['params']['classifier']['bias'] = np.array([7.5], np.float32)
  hf.save(tmp_path / 'm', model, variables, tokenizer_folder=tmp_path / 'tokenizer')
  pairs = [('red shoe', 'shoes for kids'), ('kids', 'red')]
  theirs = cross_encoder(str(tmp_path / 'm'), device='cpu').predict(pairs)
  ids = [[2, 4, 5, 3, 6, 7, 8, 3], [2, 8, 3, 4, 3]]
  batch = reference.rows(ids, types=[[0] * 4 + [1] * 4, [0] * 3 + [1] * 2])
  batch |= {'index_AX': np.array([[0, 8]]), 'mask_GN': np.ones((1, 2), bool)}
  ours = jax.jit(model.scores)(variables, batch)[0]
  # Beyond what a sigmoid can give.
  assert ours.min() > 1.5
  reference.assert_close(ours, theirs)


def test_config_says_what_servers_need(tmp_path):
  _saved(tmp_path / 'bert')
  config = json.loads((tmp_path / 'bert' / 'config.json').read_text())
  assert config['id2label'] == {'0': 'LABEL_0'} and config['label2id'] == {'LABEL_0': 0}
  assert config['num_labels'] == 1 and config['architectures'] == ['BertForSequenceClassification']
  identity = 'torch.nn.modules.linear.Identity'
  assert config['sentence_transformers'] == {'activation_fn': identity}


def test_a_decoder_never_pads_with_its_end_token(tmp_path):
  _tokenizer(tmp_path / 'tokenizer', pad='[SEP]')
  config = families.from_hf(reference.config('mistral', eos_token_id=3, pad_token_id=3).to_dict())
  model = Network(config)
  variables = jax.jit(model.init)(KEY)
  hf.save(tmp_path / 'm', model, variables, tmp_path / 'tokenizer', {'note': 'mine'})
  config = json.loads((tmp_path / 'm' / 'config.json').read_text())
  assert config['pad_token_id'] == 0 and config['note'] == 'mine'
  import transformers

  assert transformers.AutoTokenizer.from_pretrained(tmp_path / 'm').pad_token_id == 0


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
  model, variables = _saved(tmp_path / 'm')
  before = (tmp_path / 'm' / 'config.json').read_text()

  def fail(*args, **kwargs):
    raise OSError('disk full')

  with monkeypatch.context() as patch, pytest.raises(OSError, match='disk full'):
    patch.setattr(files, 'save_file', fail)
    hf.save(tmp_path / 'm', model, variables, extra_config={'note': 'new'})
  assert (tmp_path / 'm' / 'config.json').read_text() == before
  hf.save(tmp_path / 'm', model, variables, extra_config={'note': 'new'}, dtype='bfloat16')
  assert '"note": "new"' in (tmp_path / 'm' / 'config.json').read_text()
  assert [p.name for p in tmp_path.iterdir()] == ['m']
  (tmp_path / 'papers').mkdir()
  (tmp_path / 'papers' / 'thesis.tex').touch()
  with pytest.raises(UserError, match='not a model folder'):
    hf.save(tmp_path / 'papers', model, variables)
