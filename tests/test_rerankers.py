"""Ready rerankers as sentence-transformers writes them: its raw scores, or a refusal."""

import json

import jax
import numpy as np
import pytest
from ready_rerankers import transformers_folder

import disranker_jax
from disranker_jax.commands import rerank
from disranker_jax.errors import UserError
from disranker_jax.models import hf, load, network, rerankers
from disranker_jax.serve import __main__ as serve

torch = pytest.importorskip('torch')
CrossEncoder = pytest.importorskip('sentence_transformers').CrossEncoder

ENCODERS = ('bert', 'electra', 'distilbert', 'xlm-roberta')
QUERY = 'return the string'
TEXTS = [
  'Return a copy of the string.', 'title : and a summary', 'x', 'the string ' * 60,
  'unknown: 中文 é', 'Return a copy.',
]  # fmt: skip


def written(folder, kind: str, **options):
  """The same as sentence-transformers writes it: (folder, its CrossEncoder)."""
  encoder = CrossEncoder(str(transformers_folder(folder / 'base', kind)), device='cpu', **options)
  encoder.save_pretrained(str(folder / 'saved'))
  return folder / 'saved', encoder


def raw(encoder) -> np.ndarray:
  pairs = [(QUERY, text) for text in TEXTS]
  return encoder.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)


@pytest.mark.parametrize(
  'kind, backend',
  [*((kind, backend) for kind in ENCODERS for backend in ('onnx', 'jax')), ('qwen3', 'jax'),
   ('llama', 'jax')],
)  # fmt: skip
def test_raw_scores_are_those_of_sentence_transformers(kind, backend, tmp_path):
  folder, encoder = written(tmp_path, kind)
  expected = raw(encoder)
  assert np.ptp(expected) > 0.01
  ours = disranker_jax.load(folder, backend).score([(QUERY, text) for text in TEXTS])
  np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize('names', ['gamma', 'bare', 'wrapped'])
def test_older_names_of_tensors_score_the_same_in_both_backends(names, tmp_path):
  from safetensors.numpy import load_file, save_file

  folder, encoder = written(tmp_path, 'bert')
  tensors = load_file(folder / 'model.safetensors')

  def older(name: str) -> str:
    if names == 'gamma':
      name = name.replace('LayerNorm.weight', 'LayerNorm.gamma')
      return name.replace('LayerNorm.bias', 'LayerNorm.beta')
    return name.removeprefix('bert.') if names == 'bare' else f'model.{name}'

  save_file({older(name): value for name, value in tensors.items()}, folder / 'model.safetensors')
  for backend in ('onnx', 'jax'):
    ours = disranker_jax.load(folder, backend).score([(QUERY, text) for text in TEXTS])
    np.testing.assert_allclose(ours, raw(encoder), atol=1e-4)


def change(file, **values):
  file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
  'file, key',
  [
    ('config_sentence_transformers.json', 'activation_fn'),
    ('config.json', 'sbert_ce_default_activation_function'),
    ('config.json', 'sentence_transformers'),
  ],
)
def test_an_activation_may_not_change_the_order(file, key, tmp_path):
  folder, _ = written(tmp_path, 'bert')
  (folder / 'config_sentence_transformers.json').write_text('{"model_type": "CrossEncoder"}')

  def name(value):
    change(folder / file, **{key: {'activation_fn': value} if key == file else value})
    if key == 'sentence_transformers':
      change(folder / file, sentence_transformers={'activation_fn': value})

  for kept in ('torch.nn.modules.linear.Identity', 'torch.nn.modules.activation.Sigmoid'):
    name(kept)
    rerankers.check(folder)
  name('torch.nn.modules.activation.Hardshrink')
  with pytest.raises(UserError, match=r'Hardshrink.*may change the order'):
    disranker_jax.load(folder)
  name('mine.Own')  # sentence-transformers takes its default then, a sigmoid
  rerankers.check(folder)


@pytest.mark.parametrize(
  'file, values, said',
  [
    ('config.json', {'architectures': 5}, ''),
    ('config.json', {'id2label': 5}, 'with one label'),
    ('config.json', {'id2label': None, 'num_labels': 'x'}, 'with one label'),
    ('config.json', {'sentence_transformers': [1]}, ''),
    ('config_sentence_transformers.json', {'activation_fn': 5}, ''),
    ('modules.json', [5], ''),
  ],
)
def test_values_of_other_types_are_no_crash(file, values, said, tmp_path):
  folder = transformers_folder(tmp_path, 'bert')
  (folder / 'config_sentence_transformers.json').write_text('{"model_type": "CrossEncoder"}')
  (folder / 'modules.json').write_text('[]')
  before = json.loads((folder / file).read_text())
  changed = before | values if isinstance(values, dict) else values
  (folder / file).write_text(json.dumps(changed))
  if not said:
    rerankers.check(folder)
    return
  with pytest.raises(UserError, match=said):
    rerankers.check(folder)


def test_several_labels_are_refused(tmp_path):
  folder = transformers_folder(tmp_path, 'bert', labels=3)
  for attempt in (rerankers.check, disranker_jax.load):
    with pytest.raises(UserError, match='not a sequence classifier with one label, it has 3'):
      attempt(folder)


def test_a_head_of_other_modules_is_refused(tmp_path):
  folder, _ = written(tmp_path, 'bert')
  modules = json.loads((folder / 'modules.json').read_text())
  pooling = {'idx': 1, 'name': '1', 'path': '1_Pooling', 'type': 'sentence_transformers.x.Pooling'}
  (folder / 'modules.json').write_text(json.dumps([*modules, pooling]))
  with pytest.raises(
    UserError, match='modules Pooling are not supported: a bert model has its own'
  ):
    disranker_jax.load(folder)
  (folder / 'modules.json').write_text(json.dumps(modules))
  change(folder / 'sentence_bert_config.json', transformer_task='text-generation')
  with pytest.raises(UserError, match=r'another head.*\(text-generation in'):
    disranker_jax.load(folder)


def test_a_classifier_without_its_head_is_refused(tmp_path):
  from safetensors.numpy import load_file, save_file

  folder, _ = written(tmp_path, 'qwen3')
  tensors = load_file(folder / 'model.safetensors')
  del tensors['score.weight']
  save_file(tensors, folder / 'model.safetensors')
  with pytest.raises(UserError, match=r'no head of its own that gives a score \(score\.weight'):
    disranker_jax.load(folder)


def test_a_model_without_token_types_is_saved_as_one(tmp_path):
  folder, encoder = written(tmp_path, 'electra')
  model = network.from_hf(folder)
  variables = hf.load(folder, model, jax.random.key(0))
  hf.save(tmp_path / 'again', model, variables, tokenizer_folder=folder, typed=False)
  again = CrossEncoder(str(tmp_path / 'again'), device='cpu')
  expected = raw(encoder)
  np.testing.assert_allclose(raw(again), expected, atol=1e-4)
  ours = disranker_jax.load(tmp_path / 'again', 'jax').score([(QUERY, text) for text in TEXTS])
  np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_the_commands_take_one(tmp_path, capsys):
  folder, encoder = written(tmp_path, 'bert')
  docs = tmp_path / 'docs.jsonl'
  rows = [{'doc_id': str(i), 'title': 't', 'summary': text} for i, text in enumerate(TEXTS)]
  docs.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  rerank.main(['--model', str(folder), '--query', QUERY, '--docs', str(docs), '--json'])
  ranked = {row['doc_id']: row['score'] for row in json.loads(capsys.readouterr().out)}
  expected = encoder.predict(
    [(QUERY, f't : {text}') for text in TEXTS],
    activation_fn=torch.nn.Identity(),
    show_progress_bar=False,
  )
  np.testing.assert_allclose([ranked[str(i)] for i in range(len(TEXTS))], expected, atol=1e-4)
  service = serve.service(serve.parse_args(['--model', str(folder), '--backend', 'onnx']))
  assert service.name == 'saved'
  with pytest.raises(UserError, match=r"weights 'no-such/model' not found"):
    rerank.main(['--model', 'no-such/model', '--query', QUERY])


def test_a_model_that_records_no_length_reads_what_its_tokenizer_allows(tmp_path):
  folder = transformers_folder(tmp_path, 'bert', max_position_embeddings=80)
  assert load.lengths(folder) == {'max_len': 64, 'max_query_len': 60}
  change(folder / 'tokenizer_config.json', model_max_length=int(1e30))
  assert load.lengths(folder)['max_len'] == 80
