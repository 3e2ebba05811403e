"""Model folders of strangers: they never run code and never reach files outside of the folder."""

import json
import shutil

import numpy as np
import onnx
import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

import disranker_jax
from disranker_jax.commands import describe
from disranker_jax.data.prompts import PairPrompt, TextPrompt
from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.exporting import formats
from disranker_jax.models import hf, load, recorded, weights
from disranker_jax.rankers import backends
from disranker_jax.rewriting import loaded as rewriters


@pytest.fixture
def folder(tmp_path):
  """A model folder with random weights, to be spoilt."""
  return shutil.copytree(weights.find('tiny-encoder'), tmp_path / 'model')


def with_external(name: str, inside: str = 'initializer') -> onnx.ModelProto:
  """A model with a tensor in another file."""
  tensor = onnx.TensorProto(name='w', data_type=onnx.TensorProto.UINT8, dims=[4])
  tensor.data_location = onnx.TensorProto.EXTERNAL
  tensor.external_data.add(key='location', value=name)
  out = onnx.helper.make_tensor_value_info('logits', onnx.TensorProto.UINT8, [4])
  node = onnx.helper.make_node('Constant', [], ['logits'], value=tensor)
  if inside == 'initializer':
    identity = onnx.helper.make_node('Identity', ['w'], ['logits'])
    return onnx.helper.make_model(onnx.helper.make_graph([identity], 'g', [], [out], [tensor]))
  if inside == 'branch':
    branch = onnx.helper.make_graph([node], 'b', [], [out])
    node = onnx.helper.make_node('If', ['c'], ['logits'], then_branch=branch, else_branch=branch)
  return onnx.helper.make_model(onnx.helper.make_graph([node], 'g', [], [out]))


@pytest.mark.parametrize('inside', ['initializer', 'node', 'branch'])
@pytest.mark.parametrize(
  'name', ['../../secret.txt', '/etc/hostname', '*/_ORT_MEM_ADDR_/*', 'link']
)
def test_an_onnx_file_names_only_files_beside_it(folder, name, inside):
  (folder.parent / 'secret.txt').write_text('TOKEN')
  (folder / 'onnx').mkdir()
  (folder / 'onnx' / 'link').symlink_to(folder.parent / 'secret.txt')
  onnx.save(with_external(name, inside), folder / 'onnx' / 'model.onnx')
  with pytest.raises(
    UserError, match=r'onnx/model\.onnx: names the file .*, which is not beside it'
  ):
    backends.Onnx(folder, 'onnx')


def test_an_onnx_file_may_have_its_tensors_in_a_file_beside_it(tmp_path):
  (tmp_path / 'model.onnx_data').write_bytes(b'abcd')
  file = tmp_path / 'model.onnx'
  onnx.save(with_external('model.onnx_data'), file)
  assert formats.checked_onnx(file) == str(file)
  file.write_bytes(b'\xff' * 9)
  with pytest.raises(UserError, match='is not an ONNX file'):
    formats.checked_onnx(file)


@pytest.mark.parametrize(
  ('weight_map', 'said'),
  [
    ({'a': '../other/model.safetensors'}, "'../other/model.safetensors' is not the name of a file"),
    ({'a': '/other/model.safetensors'}, "'/other/model.safetensors' is not the name of a file"),
    ({'a': 5}, '5 is not the name of a file'), ({'a': '..'}, "'..' is not"), ([], 'AttributeError'),
    (None, 'AttributeError'),
  ],
)  # fmt: skip
def test_an_index_names_only_files_of_its_folder(folder, weight_map, said):
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': weight_map}))
  with pytest.raises(UserError, match='is not a safetensors index') as error:
    hf.weight_files(folder)
  assert said in str(error.value)


EVIL = """
open('PWNED', 'w').close()
from transformers import PreTrainedTokenizerFast
class Evil(PreTrainedTokenizerFast):
  pass
"""


def test_a_tokenizers_own_code_is_never_run(folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('builtins.input', lambda *_: 'y')  # `yes | disranker describe ...`
  monkeypatch.setenv('HF_MODULES_CACHE', str(tmp_path / 'modules'))
  (folder / 'evil_tok.py').write_text(EVIL)
  (folder / 'config.json').write_text(json.dumps({'model_type': 'unheard-of'}))
  config = {'tokenizer_class': 'Evil', 'auto_map': {'AutoTokenizer': [None, 'evil_tok.Evil']}}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  (tmp_path / 'f.jsonl').write_text('{}\n')
  with pytest.raises(UserError):
    describe.main(['jsonl:f.jsonl', '--tokenizer', str(folder)])
  with pytest.raises(UserError, match='no usable tokenizer'):
    load.open_tokenizer(folder)
  assert not (tmp_path / 'PWNED').exists()


@pytest.mark.parametrize(
  'changes',
  [
    {'id2label': 5}, {'torch_dtype': 'os.system'}, {'num_hidden_layers': 10**9},
    {'num_hidden_layers': 'x'}, {'hidden_size': None},
    {'model_type': ['bert']},
  ],
)  # fmt: skip
def test_a_config_of_wrong_values_is_one_line(folder, changes):
  file = folder / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))
  with pytest.raises(UserError, match=r'model/config\.json') as error:
    hf.open_config(folder)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('text', ['[' * 100_000, '5', 'nonsense', '{"model_type": "bert"'])
def test_a_config_that_is_no_object_is_one_line(folder, text):
  (folder / 'config.json').write_text(text)
  for read in (hf.read_config, recorded.config):
    with pytest.raises(UserError, match=r'model/config\.json'):
      read(folder)


@pytest.mark.parametrize(
  ('record', 'said'),
  [
    ({'max_len': '64'}, r"\.max_len='64': must be 8 or more"),
    ({'max_len': True}, r'\.max_len=True: must be 8 or more'),
    ({'max_query_len': -1}, r'\.max_query_len=-1: must be 1 or more'),
    ({'scorer': 'magic'}, r"\.scorer='magic': must be 'score_head', 'query_likelihood'"),
    ({'template': 5}, r'\.template=5: must be a text'),
    ({'input': ['pair']}, r"\.input=\['pair'\]: must be 'template', 'prompt', 'pair'"),
    ({'task': None}, r'\.task=None: must be a task'),
    (['max_len'], r" is \['max_len'\], not an object"),
  ],
)
def test_a_record_of_wrong_values_is_one_line(folder, record, said):
  """Wherever it is read, before anything is computed."""
  file = folder / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'disranker_jax': record}))
  for read in (disranker_jax.load, load.open_exported, load.lengths, rewriters.settings_of):
    with pytest.raises(UserError, match=r'model/config\.json: disranker_jax' + said):
      read(folder)


def test_weights_that_are_no_safetensors_are_one_line(folder):
  (folder / 'model.safetensors').write_bytes(np.full(100, 255, np.uint8).tobytes())
  with pytest.raises(UserError, match=r'model\.safetensors is truncated or corrupt'):
    formats.tensors(folder)


def test_a_tokenizer_that_panics_is_one_line(folder, capfd):
  tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))
  tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex('(a+)+$'), 'isolated')
  tokenizer.save(str(folder / 'tokenizer.json'))
  opened = load.open_tokenizer(folder)
  doc = Document('d', '', 'a' * 200 + 'b')
  pair = PairPrompt(opened, 64, 16)
  with pytest.raises(UserError, match=r'the tokenizer gives up .*retry-limit'):
    pair.encode('q', [doc])
  with pytest.raises(UserError, match='the tokenizer gives up'):
    pair.lengths('q', [doc])
  opened.bos_token = opened.eos_token = '[SEP]'
  text = TextPrompt(opened, 64, 16, '{query} : {title} : {summary}')
  with pytest.raises(UserError, match='the tokenizer gives up'):
    text.encode('q', [doc])
