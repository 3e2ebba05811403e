"""ModernBERT against transformers, on texts longer than its windows; packing, kernels, files."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import hf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import families, hf, kinds, network, tensors, tree
from disranker_jax.models.network import Network

VOCAB = 61
KEY = jax.random.key(0)
FULL, SLIDING = kinds.FULL, kinds.SLIDING
SIZES = {
  'vocab_size': VOCAB, 'pad_token_id': 0, 'bos_token_id': 2, 'eos_token_id': 3, 'cls_token_id': 2,
  'sep_token_id': 3, 'num_labels': 1,
}  # fmt: skip
BIASES = ('norm_bias', 'attention_bias', 'mlp_bias', 'classifier_bias')
CASES = {
  # As published, but narrow: every third layer is global, no biases.
  'cls': {
    **SIZES, 'hidden_size': 30, 'intermediate_size': 22, 'num_hidden_layers': 5,
    'num_attention_heads': 5, 'local_attention': 10,
  },
  'mean': {
    **SIZES, 'hidden_size': 24, 'intermediate_size': 40, 'num_hidden_layers': 4,
    'num_attention_heads': 3, 'local_attention': 28, 'global_attn_every_n_layers': 2,
    'classifier_pooling': 'mean', 'hidden_activation': 'gelu_new',
    'classifier_activation': 'relu', 'norm_eps': 1e-3, **dict.fromkeys(BIASES, True),
  },
  # One theta for all layers, as mmBERT; a pattern that is not periodic, as that of a student.
  'irregular': {
    **SIZES, 'hidden_size': 28, 'intermediate_size': 18, 'num_hidden_layers': 4,
    'num_attention_heads': 7, 'local_attention': 7, 'classifier_pooling': 'mean',
    'local_rope_theta': 160_000.0, 'attention_bias': True,
    'layer_types': [SLIDING, FULL, FULL, SLIDING],
  },
}  # fmt: skip


@functools.cache
def theirs(name, kind='ForSequenceClassification'):
  """A random torch model of a case."""
  import torch

  settings = transformers.AutoConfig.for_model('modernbert', **CASES[name])
  settings._attn_implementation = 'eager'
  torch.manual_seed(len(name))
  model = getattr(transformers, f'ModernBert{kind}')(settings).eval()
  for path, weight in model.named_parameters():
    centre = 1.0 if 'norm' in path and path.endswith('weight') else 0.0
    weight.data.normal_(centre, 0.25)
  return model


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The folder that transformers saved, by the name of a case."""
  pytest.importorskip('torch')

  @functools.cache
  def saved(name):
    path = tmp_path_factory.mktemp(name)
    theirs(name).save_pretrained(path)
    return path

  return saved


LOCAL = {'local': CASES['cls'] | {'num_hidden_layers': 1, 'layer_types': [SLIDING]}}


@functools.cache
def ours(name, **options):
  """A random network of a case; its matrices are large enough that attention matters."""
  model = Network(
    families.from_hf({'model_type': 'modernbert', **(CASES | LOCAL)[name]}), **options
  )
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda x: np.asarray(x + rng.normal(0, 0.2, x.shape), np.float32),
    jax.tree.map(np.asarray, model.init(KEY)),
  )
  return model, variables


def padded(lengths):
  """A batch with one text a row, and its index of documents."""
  batch = reference.rows(reference.sequences(lengths, VOCAB))
  rows, length = batch['tokens_BT'].shape
  return batch | {'index_AX': np.arange(rows)[None] * length, 'mask_GN': np.ones((1, rows), bool)}


def packed(lengths, length):
  """The same texts in one row."""
  batch, starts = reference.packed(reference.sequences(lengths, VOCAB), length)
  return batch | {
    'index_AX': np.array([starts]),
    'mask_GN': np.ones((1, len(starts)), bool),
  }, starts


LENGTHS = (310, 170, 9)


@pytest.mark.parametrize('name', CASES)
def test_states_of_all_layers_and_scores_match_transformers(name, folder):
  import torch

  model = network.from_hf(folder(name))
  variables = hf.load(folder(name), model, KEY)
  batch = padded(LENGTHS)
  real = batch['segments_BT'] > 0
  with torch.no_grad():
    wanted = theirs(name)(**reference.torch_inputs(batch), output_hidden_states=True)
  states = jax.jit(dataclasses.replace(model, states=True).hidden)(variables, batch)
  assert len(states) == len(wanted.hidden_states) == model.config.layers + 1
  for state, state_wanted in zip(states, wanted.hidden_states, strict=True):
    reference.assert_close(state[real], state_wanted.numpy()[real])
  np.testing.assert_array_equal(states[-1], jax.jit(model.hidden)(variables, batch))
  scores = wanted.logits[:, 0].numpy()
  assert scores.std() > 0.01
  reference.assert_close(jax.jit(model.scores)(variables, batch)[0], scores)


@pytest.mark.parametrize('name', CASES)
def test_gradients_match_transformers(name, folder):
  import torch

  model = network.from_hf(folder(name))
  variables = hf.load(folder(name), model, KEY)
  batch = padded((200, 120))
  torch_model = theirs(name)
  torch_model.zero_grad()
  scores = torch_model(**reference.torch_inputs(batch)).logits[:, 0]
  torch.nn.functional.softplus(scores[1] - scores[0]).backward()  # RankNet's loss of one pair

  def loss(variables):
    [[first, second]] = model.scores(variables, batch)
    return jax.nn.softplus(second - first)

  slopes = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(variables)['params'])
  wanted = {name: value.grad for name, value in torch_model.named_parameters()}
  rows = tensors.rows_of(model)
  assert rows.keys() == wanted.keys()
  flat = tree.flatten(slopes)
  for file_name, row in rows.items():
    each = [flat[path] if row.layer is None else flat[path][row.layer] for path in row.paths]
    each = [x.T if path.endswith('/kernel') else x for x, path in zip(each, row.paths, strict=True)]
    theirs_ = wanted[file_name].numpy()
    # The gradients of tensors of this kind in all layers have one scale.
    alike = [np.abs(wanted[n].numpy()).max() for n in rows if rows[n].paths == row.paths]
    np.testing.assert_allclose(np.concatenate(each), theirs_, atol=1e-3 * max(alike) + 1e-7)
  # The first layer has no norm of its input, so what fills its place learns nothing.
  assert not flat['blocks/attn_norm/scale'][0].any() and flat['blocks/attn_norm/scale'][1].any()


@pytest.mark.parametrize('name', CASES)
def test_texts_packed_into_a_row_score_as_alone(name):
  model, variables = ours(name)
  batch, starts = packed((70, 40, 35), 150)
  hidden = jax.jit(model.hidden)(variables, batch)[0]
  scores = jax.jit(model.scores)(variables, batch)[0]
  assert len(set(np.round(scores, 3).tolist())) == 3
  for i, (length, start) in enumerate(zip((70, 40, 35), starts, strict=True)):
    alone = reference.rows([batch['tokens_BT'][0, start : start + length].tolist()], length=150)
    alone |= {'index_AX': np.array([[0]]), 'mask_GN': np.ones((1, 1), bool)}
    there = jax.jit(model.hidden)(variables, alone)[0, :length]
    np.testing.assert_allclose(hidden[start : start + length], there, atol=5e-5)
    np.testing.assert_allclose(jax.jit(model.scores)(variables, alone)[0, 0], scores[i], atol=5e-5)


def test_a_local_layer_sees_half_the_window_on_each_side():
  model, variables = ours('local')
  batch = padded((40,))
  changed = batch | {'tokens_BT': batch['tokens_BT'].copy()}
  changed['tokens_BT'][0, 20] = 1 + changed['tokens_BT'][0, 20] % 60
  a, b = (np.asarray(model.hidden(variables, x))[0] for x in (batch, changed))
  assert np.flatnonzero((a != b).any(-1)).tolist() == list(range(15, 26))


@pytest.mark.parametrize(
  'name, options',
  [
    *((name, {'attention': 'splash_interpret'}) for name in CASES),
    ('mean', {'remat': 'full', 'scan': False}),
    ('irregular', {'remat': 'dots'}),
  ],
)
def test_kernels_and_ways_to_run_layers_give_the_same_scores_and_gradients(name, options):
  model, variables = ours(name)
  batch, _ = packed((60, 40, 20), 128)

  def run(model):
    def loss(variables):
      scores = model.scores(variables, batch)
      return jnp.sum(scores * jnp.array([[1.0, -2.0, 3.0]])), scores

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

  (_, scores), grads = run(model)
  (_, again), grads_again = run(dataclasses.replace(model, **options))
  np.testing.assert_allclose(again, scores, atol=2e-5)
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * largest), grads, grads_again
  )


@pytest.mark.parametrize('precision', ['bfloat16', 'bfloat16_dots'])
@pytest.mark.parametrize('name', CASES)
def test_lower_precisions_give_nearly_the_same_scores(name, precision):
  model, variables = ours(name)
  batch = padded(LENGTHS)
  exact = jax.jit(model.scores)(variables, batch)
  low = jax.jit(dataclasses.replace(model, precision=precision).scores)(variables, batch)
  assert low.dtype == jnp.float32
  np.testing.assert_allclose(low, exact, atol=0.1 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize('rank', [0, 2])
@pytest.mark.parametrize('name', CASES)
def test_transformers_loads_what_we_save_and_gives_our_scores(name, rank, tmp_path):
  torch = pytest.importorskip('torch')
  model, variables = ours(name, lora_rank=rank)
  hf.save(tmp_path, model, variables)
  loaded, report = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path, output_loading_info=True, attn_implementation='eager'
  )
  assert not any(report.values()), report
  batch = padded(LENGTHS)
  with torch.no_grad():
    wanted = loaded.eval()(**reference.torch_inputs(batch)).logits[:, 0].numpy()
  scores = jax.jit(model.scores)(variables, batch)[0]
  reference.assert_close(scores, wanted)
  if rank:
    kernels = {'q', 'k', 'v', 'o', 'gate', 'up', 'down'}
    assert set(variables['lora']['blocks']) == kernels
    plain = jax.jit(Network(model.config).scores)(variables, batch)[0]
    assert np.abs(plain - scores).max() > 1e-2
  else:
    again = network.from_hf(tmp_path)
    assert again.config == model.config
    back = hf.load(tmp_path, again, KEY)['params']
    # Nothing is written of the first layer's norm; ones and zeros fill its place.
    parts = variables['params']['blocks']['attn_norm']
    filled = {
      part: np.concatenate([np.full_like(x[:1], part == 'scale'), x[1:]])
      for part, x in parts.items()
    }
    blocks = variables['params']['blocks'] | {'attn_norm': filled}
    jax.tree.map(np.testing.assert_array_equal, back, variables['params'] | {'blocks': blocks})


def test_shards_of_a_fused_tensor_are_read_in_place(tmp_path):
  """Each device of a mesh reads its own columns of q, k and v, which one tensor holds."""
  model, variables = ours('mean')
  hf.save(tmp_path, model, variables)
  whole = hf.load(tmp_path, model, KEY)['params']
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1})
  shardings = tree.flatten(sharding.shardings(model.shapes(), mesh)['params'])
  placed = hf.load(tmp_path, model, KEY, shardings=shardings)['params']
  jax.tree.map(np.testing.assert_array_equal, placed, whole)
  low = hf.load(tmp_path, model, KEY, dtype='bfloat16')['params']
  assert {str(x.dtype) for x in jax.tree.leaves(low)} == {'bfloat16'}


@pytest.mark.parametrize('kind', ['Model', 'ForMaskedLM'])
def test_a_pretrained_file_becomes_a_student_with_a_new_classifier(kind, tmp_path, caplog):
  pytest.importorskip('torch')
  pretrained = theirs('cls', kind)
  pretrained.save_pretrained(tmp_path)
  model = network.from_hf(tmp_path)
  with caplog.at_level('INFO', 'absl'):
    params = hf.load(tmp_path, model, KEY)['params']
  assert 'classifier/bias, classifier/kernel' in caplog.text
  # A language model has a head of the same form, from which transformers starts a classifier too.
  assert ('dense/kernel' in caplog.text) == (kind == 'Model')
  torch_params = dict(pretrained.named_parameters())
  prefix = '' if kind == 'Model' else 'model.'
  fused = torch_params[f'{prefix}layers.3.attn.Wqkv.weight'].detach().numpy()
  for i, part in enumerate('qkv'):
    kernel = params['blocks'][part]['kernel'][3]
    np.testing.assert_array_equal(kernel, fused[30 * i : 30 * (i + 1)].T)


def test_a_student_keeps_the_kinds_of_its_layers(folder, tmp_path):
  import torch

  student = network.from_hf(folder('cls'), layers=[0, 1, 3])
  variables = hf.load(folder('cls'), student, KEY, layers=[0, 1, 3])
  hf.save(tmp_path, student, variables)
  loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
  assert loaded.config.layer_types == [FULL, SLIDING, FULL]
  # Earlier versions of transformers know periodic patterns only, and would compute another one.
  assert '"global_attn_every_n_layers": 2' in (tmp_path / 'config.json').read_text()
  source = theirs('cls')
  for ours_, theirs_ in enumerate((0, 1, 3)):
    weight = source.model.layers[theirs_].mlp.Wi.weight
    assert torch.equal(loaded.model.layers[ours_].mlp.Wi.weight, weight)
  batch = padded(LENGTHS)
  with torch.no_grad():
    wanted = loaded(**reference.torch_inputs(batch)).logits[:, 0].numpy()
  reference.assert_close(jax.jit(student.scores)(variables, batch)[0], wanted)


@pytest.mark.parametrize('layers', [[1, 2], [1, 0], [3]])
def test_only_a_student_that_begins_with_the_first_layer_can_be_made(layers, folder):
  with pytest.raises(UserError, match=r'the first layer must be 0.*without a norm'):
    network.from_hf(folder('cls'), layers=layers)


# Several devices

DEVICES = 4


def case_on_a_mesh():
  model, variables = ours('irregular', lora_rank=2)
  # Seven heads do not divide; the first case has eight.
  wide = dataclasses.replace(model.config, heads=2)
  model = dataclasses.replace(model, config=wide)
  batch = padded((70, 64, 33, 20))
  # Smaller matrices, because the gradients of larger ones are ill-conditioned.
  return model, jax.tree.map(lambda x: x * np.float32(0.3) if x.ndim > 2 else x, variables), batch


def gradients(model, variables, batch):
  def loss(variables):
    scores = model.scores(variables, batch)
    return jnp.sum(scores * jnp.array([[1.0, -2.0, 3.0, 0.5]])), scores

  (_, scores), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
  return {'scores': scores} | tree.flatten(grads)


def on_a_mesh(file):
  """What the subprocess runs."""
  assert jax.device_count() == DEVICES
  model, variables, batch = case_on_a_mesh()
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 2, 'model': 2})
  placed = sharding.put(variables, mesh)
  q = placed['params']['blocks']['q']['kernel']
  assert q.addressable_shards[0].data.shape == (4, 14, 14)
  batch = sharding.put_batch(batch, mesh)
  with jax.set_mesh(mesh):
    for kernel in ('xla', 'splash_interpret'):
      found = gradients(dataclasses.replace(model, attention=kernel), placed, batch)
      np.savez(
        file.with_name(f'{kernel}.npz'), **{k.replace('/', '|'): v for k, v in found.items()}
      )


@pytest.mark.slow  # a process of its own with four devices
def test_a_mesh_with_a_model_axis_gives_the_same_scores_and_gradients(tmp_path):
  program = (
    'import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import conftest; '
    'import test_modernbert; test_modernbert.on_a_mesh(Path(sys.argv[2]))'
  )
  environment = os.environ | {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={DEVICES}', 'JAX_PLATFORMS': 'cpu',
  }  # fmt: skip
  command = [sys.executable, '-c', program, str(Path(__file__).parent), str(tmp_path / 'x')]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  alone = gradients(*case_on_a_mesh())
  for kernel in ('xla', 'splash_interpret'):
    found = np.load(tmp_path / f'{kernel}.npz')
    for path, value in alone.items():
      there = found[path.replace('/', '|')]
      np.testing.assert_allclose(there, value, atol=2e-5 * max(1.0, float(jnp.abs(value).max())))
