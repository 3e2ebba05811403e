"""Rerankers that sentence-transformers saves as modules, such as Ettin's: its scores are ours."""

import json
import shutil

import jax
import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import processors

import disranker_jax
from disranker_jax.errors import UserError
from disranker_jax.models import hf, modules, network

torch = pytest.importorskip('torch')
sentence_transformers = pytest.importorskip('sentence_transformers')

WIDTH = 24
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'red', 'shoe', 'shoes', 'for', 'kids', 'in', 'blue']
PAIRS = [
  ('red shoe', 'shoes for kids'), ('kids', 'red'), ('blue', ''),
  ('red shoes', 'blue shoes for kids in red ' * 19),
]  # fmt: skip


def write_base(folder, **settings):
  """A bare ModernBERT with random weights, and its tokenizer."""
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, '[UNK]')
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.post_processor = processors.TemplateProcessing(
    single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B [SEP]',
    special_tokens=[('[CLS]', 2), ('[SEP]', 3)],
  )  # fmt: skip
  names = {f'{name}_token': f'[{name.upper()}]' for name in ('pad', 'unk', 'cls', 'sep')}
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, model_max_length=512, **names
  ).save_pretrained(folder)
  config = transformers.ModernBertConfig(
    vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=20, num_hidden_layers=4,
    num_attention_heads=3, local_attention=6, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    cls_token_id=2, sep_token_id=3, **settings,
  )  # fmt: skip
  randomised(transformers.ModernBertModel(config)).save_pretrained(folder)
  return folder


def randomised(model):
  torch.manual_seed(1)
  for name, weight in model.named_parameters():
    weight.data.normal_(1.0 if 'norm' in name and name.endswith('weight') else 0.0, 0.3)
  return model


def write(folder, base, pooling='cls', activation=None, bias=False):
  """A reranker, saved by sentence-transformers."""
  from sentence_transformers.base.modules import Dense, Transformer
  from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

  identity = torch.nn.Identity()
  parts = [
    Transformer(str(base)), Pooling(WIDTH, pooling),
    Dense(WIDTH, WIDTH, bias=bias, activation_function=activation or torch.nn.GELU()),
    LayerNorm(WIDTH), Dense(WIDTH, 1, activation_function=identity, module_output_name='scores'),
  ]  # fmt: skip
  for part in parts[2:]:
    randomised(part)
  model = sentence_transformers.CrossEncoder(modules=parts, device='cpu', activation_fn=identity)
  model.save_pretrained(str(folder))
  return folder


@pytest.fixture(scope='module')
def ettin(tmp_path_factory):
  """A folder as those of the Ettin rerankers."""
  folder = tmp_path_factory.mktemp('ettin')
  return write(folder / 'reranker', write_base(folder / 'base'))


def theirs(folder):
  return sentence_transformers.CrossEncoder(str(folder), device='cpu').predict(PAIRS)


def assert_scores(folder, wanted):
  assert np.std(wanted) > 0.01
  scale = 1e-4 * np.abs(wanted).max()
  for backend in ('onnx', 'jax'):
    scores = disranker_jax.load(folder, backend=backend, max_len=128).score(PAIRS)
    np.testing.assert_allclose(scores, wanted, atol=scale)


def test_the_scores_are_those_of_sentence_transformers(ettin):
  assert_scores(ettin, theirs(ettin))


def test_other_poolings_activations_and_biases(tmp_path):
  base = write_base(tmp_path / 'base', norm_bias=True, attention_bias=True)
  folder = write(tmp_path / 'reranker', base, 'mean', torch.nn.ReLU(), bias=True)
  assert_scores(folder, theirs(folder))


def test_what_is_saved_is_a_classifier_with_the_same_scores(ettin, tmp_path):
  model = network.from_hf(ettin)
  variables = hf.load(ettin, model, jax.random.key(0))
  hf.save(tmp_path, model, variables, tokenizer_folder=ettin)
  loaded, report = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert type(loaded).__name__ == 'ModernBertForSequenceClassification'
  assert not any(report.values()), report
  wanted = theirs(ettin)
  np.testing.assert_allclose(theirs(tmp_path), wanted, atol=1e-4 * np.abs(wanted).max())
  assert_scores(tmp_path, wanted)


def test_poolings_of_earlier_versions_are_understood(ettin, tmp_path):
  folder = shutil.copytree(ettin, tmp_path / 'm')
  (folder / '1_Pooling' / 'config.json').write_text(
    json.dumps({'word_embedding_dimension': WIDTH, 'pooling_mode_mean_tokens': True})
  )
  assert_scores(folder, theirs(folder))


def test_modules_of_an_embedding_model_are_no_head(ettin, tmp_path, caplog):
  folder = shutil.copytree(ettin, tmp_path / 'm')
  edit(folder / 'config_sentence_transformers.json', model_type='SentenceTransformer')
  assert modules.head(folder) == []
  with caplog.at_level('INFO', 'absl'):
    hf.load(folder, network.from_hf(folder), jax.random.key(0))
  assert 'freshly initialised' in caplog.text and 'dense/kernel' in caplog.text


def edit(file, **changes):
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
  'file, changes, message',
  [
    ('1_Pooling', {'pooling_mode': 'max'}, "pooling_mode 'max' is neither cls nor mean"),
    ('1_Pooling', {'pooling_mode': ['cls', 'mean']}, 'is neither cls nor mean'),
    ('2_Dense', {'out_features': 7}, 'out_features 7 is not 24'),
    ('2_Dense', {'module_output_name': 'other'}, "'other' is not sentence_embedding"),
    ('2_Dense', {'activation_function': 'torch.nn.modules.activation.SiLU'}, 'SiLU.* is not gelu'),
    ('2_Dense', {'activation_function': ['x']}, 'is not gelu or relu'),
    ('2_Dense', {'use_residual': True}, 'use_residual is not supported'),
    ('3_LayerNorm', {'dimension': 7}, 'dimension is not 24'),
    ('4_Dense', {'out_features': 3}, 'out_features 3 is not 1'),
    ('4_Dense', {'activation_function': 'torch.nn.modules.activation.ReLU'}, 'is not identity'),
    ('.', {'norm_eps': 1e-3}, r'its epsilon is 1e-05, that of the network 0\.001'),
  ],
)  # fmt: skip
def test_modules_that_compute_something_else_are_refused(ettin, tmp_path, file, changes, message):
  folder = shutil.copytree(ettin, tmp_path / 'm')
  edit(folder / file / 'config.json', **changes)
  with pytest.raises(UserError, match=message) as error:
    network.from_hf(folder)
  assert str(folder) in str(error.value)


def change_rows(folder, change):
  file = folder / 'modules.json'
  rows = json.loads(file.read_text())
  change(rows)
  file.write_text(json.dumps(rows))


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda rows: rows.pop(3), 'the modules Pooling, Dense, Dense are not supported'),
    (lambda rows: rows.pop(0), 'the first module must be a Transformer'),
    (lambda rows: rows.clear(), 'the first module must be a Transformer'),
    (lambda rows: rows[2].update(path='../2_Dense'), "'../2_Dense' is not the name of a folder"),
    (lambda rows: rows[2].update(path='/etc'), "'/etc' is not the name of a folder"),
    (lambda rows: rows[2].pop('type'), 'is not a module'),
  ],
)
def test_lists_that_name_something_else_are_refused(ettin, tmp_path, change, message):
  folder = shutil.copytree(ettin, tmp_path / 'm')
  change_rows(folder, change)
  with pytest.raises(UserError, match=message):
    network.from_hf(folder)


def test_a_text_before_each_pair_is_refused(ettin, tmp_path):
  folder = shutil.copytree(ettin, tmp_path / 'm')
  settings = {'prompts': {'web': 'Rank the page: '}, 'default_prompt_name': 'web'}
  edit(folder / 'config_sentence_transformers.json', **settings)
  with pytest.raises(UserError, match=r"the prompt 'web' before each text"):
    network.from_hf(folder)


def test_a_head_that_another_family_has_is_refused_by_its_name(ettin, tmp_path):
  folder = shutil.copytree(ettin, tmp_path / 'm')
  config = transformers.BertConfig(
    vocab_size=11, hidden_size=WIDTH, intermediate_size=20, num_hidden_layers=1,
    num_attention_heads=3,
  )  # fmt: skip
  (folder / 'config.json').write_text(json.dumps(config.to_dict()))
  with pytest.raises(UserError, match='a bert model has its own head only'):
    network.from_hf(folder)


def test_an_embedding_model_of_an_early_version_has_no_head(ettin, tmp_path):
  """Before version 2 sentence-transformers wrote modules.json alone."""
  folder = shutil.copytree(ettin, tmp_path / 'm')
  (folder / 'config_sentence_transformers.json').unlink()
  assert not modules.head(folder)
  bare = network.from_hf(folder)
  assert {'head.dense.weight', 'classifier.weight'} <= set(hf.lacking(folder, bare))


def test_missing_and_broken_files_are_named(ettin, tmp_path):
  folder = shutil.copytree(ettin, tmp_path / 'm')
  model = network.from_hf(folder)
  weights = folder / '2_Dense' / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:50])
  with pytest.raises(UserError, match=r'2_Dense/model\.safetensors is damaged'):
    hf.load(folder, model, jax.random.key(0))
  shutil.copyfile(ettin / '3_LayerNorm' / 'model.safetensors', weights)
  with pytest.raises(UserError, match=r'2_Dense/model\.safetensors .* lacks a tensor'):
    hf.load(folder, model, jax.random.key(0))
  weights.unlink()
  with pytest.raises(UserError, match=r'2_Dense/model\.safetensors is missing'):
    hf.check(folder, model, None)
  (folder / 'modules.json').write_text('[{')
  with pytest.raises(UserError, match=r'modules\.json cannot be read'):
    network.from_hf(folder)
