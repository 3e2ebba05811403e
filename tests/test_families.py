"""The protocol of model families, by a family that only this file knows: a bag of words.

It has its own config, tensor names and network, no token types, and positions that start at 2.
"""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import disranker_jax
from disranker_jax import config as configs
from disranker_jax.data import python_docs
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.exporting import formats
from disranker_jax.models import families, hf, layers, load, tiny, tree
from disranker_jax.models.attention import attention_mask
from disranker_jax.models.network import Network, from_hf
from disranker_jax.pipeline import runner
from disranker_jax.rankers import backends
from disranker_jax.stages import roles
from disranker_jax.stages.result_rows import ROWS
from disranker_jax.training import checkpoint

OFFSET = 2


@dataclasses.dataclass(frozen=True)
class BagConfig:
  """Sizes of a bag of words."""

  vocab: int
  width: int
  layers: int
  max_positions: int
  pad_id: int = 0
  model_type: str = 'bag'


class Block(nn.Module):
  """Adds a projection of the mean of the segment's tokens to each of them."""

  options: dict

  @nn.compact
  def __call__(self, x_BTD, segments_BT):
    mask_BTS = attention_mask(segments_BT, segments_BT, causal=False)
    weights_BTS = mask_BTS / mask_BTS.sum(-1, keepdims=True)
    mean_BTD = jnp.einsum('bts,bsd->btd', weights_BTS.astype(x_BTD.dtype), x_BTD)
    return x_BTD + jnp.tanh(layers.Linear(x_BTD.shape[-1], name='mix', **self.options)(mean_BTD)), 0


class BagModule(nn.Module):
  """Embeddings of words and positions, layers of means, one score."""

  config: BagConfig
  options: dict

  def setup(self):
    c, precision = self.config, self.options['precision']
    self.words = layers.Embed(c.vocab, c.width, precision)
    self.places = layers.Embed(c.max_positions, c.width, precision)
    over_layers = layers.scanned(Block, c.layers, 'none', True, in_axes=(nn.broadcast,))
    self.blocks = over_layers(self.options)
    self.out = layers.Linear(1, use_bias=True)

  def __call__(self, tokens_BT, segments_BT, positions_BT):
    x_BTD = self.words(tokens_BT) + self.places(positions_BT)
    return self.blocks(x_BTD, segments_BT)[0]

  def score(self, hidden_PD):
    return self.out(hidden_PD.astype(jnp.float32))[:, 0]

  def everything(self, *arrays):
    return self.score(self(*arrays)[:, 0])


class Bag(families.Family):
  """The one class that a new family writes."""

  architecture = 'Bag'
  tensors = {  # noqa: RUF012
    'words.weight': 'words/embedding',
    'places.weight': 'places/embedding',
    'layer.{}.mix.weight': 'blocks/mix/kernel',
    'out.weight': 'out/kernel',
    'out.bias': 'out/bias',
  }
  fresh = ('out/',)
  title = 'bag of words'
  formats = ('stablehlo',)

  def from_hf(self, config):
    c = config
    return BagConfig(c['vocab_size'], c['width'], c['depth'], c['table'], c['pad_token_id'])

  def to_hf(self, config):
    c = config
    sizes = {'vocab_size': c.vocab, 'width': c.width, 'depth': c.layers, 'table': c.max_positions}
    return {'model_type': 'bag', **sizes, 'pad_token_id': c.pad_id}

  def module(self, config, *, head, states, **options):
    return BagModule(config, {k: options[k] for k in ('precision', 'lora_rank', 'lora_alpha')})

  def position_offset(self, config):
    return OFFSET

  def canonical(self, name):
    return name.removeprefix('bag.')


@pytest.fixture(scope='module')
def registered():
  """The line that a new family adds to FAMILIES."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(families.FAMILIES, 'bag', Bag())
    yield


@pytest.fixture(scope='module')
def base(registered, tmp_path_factory):
  """A base model's folder: no head, tensor names with a prefix, and the tiny BERT's tokenizer."""
  folder = tmp_path_factory.mktemp('base') / 'bag'
  folder.mkdir()
  tiny.write_tokenizer(folder, bert=True)
  network = Network(BagConfig(tiny.VOCABULARY, 16, 2, 48 + OFFSET))
  hf.save(folder.parent / 'saved', network, network.init(jax.random.key(0)))
  tensors = formats.tensors(folder.parent / 'saved')
  hf.write_tensors(folder, ((f'bag.{k}', v) for k, v in tensors.items() if 'out' not in k))
  config = json.loads((folder.parent / 'saved' / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


@pytest.fixture(scope='module')
def run(base, tmp_path_factory):
  """A run that trains the bag on labels, evaluates and exports it."""
  c = configs.defaults()
  c.stages = ('prepare', 'student_sft', 'evaluate', 'export')
  c.data.limit.update({'judgements': 16, 'test': 6})
  c.student.update({'model': str(base), 'layers': (1,), 'precision': 'float32'})
  c.student.update({'max_len': 48, 'max_query_len': 16, 'row_len': 48})
  c.student_sft.update({'batch_rows': 16, 'max_steps': 40, 'learning_rate': 3e-2})
  c.evaluate.update({'models': ('student_sft',), 'batch_rows': 8})
  c.export.update({'models': ('student_sft',), 'formats': ('onnx', 'stablehlo')})
  c.export.parity_pairs = 20
  workdir = tmp_path_factory.mktemp('run')
  runner.run(c, workdir)
  return runner.Run(c, workdir, sharding.make_mesh(c.mesh))


@pytest.fixture(scope='module')
def exported(run):
  return run.folder('export') / 'student_sft'


def test_an_unknown_type_is_refused_with_the_list_of_families(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "nonesuch"}')
  with pytest.raises(
    UserError, match=r"config\.json.*'nonesuch'.*bert, distilbert, electra, .*llama, .*mistral"
  ):
    from_hf(tmp_path)


def test_every_family_names_each_of_its_parameters_once():
  for name, family in families.FAMILIES.items():
    held = ((value,) if isinstance(value, str) else value for value in family.tensors.values())
    paths = [path for each in held for path in each]
    assert len(set(paths)) == len(paths), name


def test_a_head_that_a_family_does_not_have_is_refused(registered):
  with pytest.raises(UserError, match="head 'lm': a bag model has only rank"):
    Network(BagConfig(9, 4, 1, 8), head='lm')
  with pytest.raises(UserError, match='does not return hidden states'):
    Network(BagConfig(9, 4, 1, 8), states=True)


def test_the_first_token_of_each_segment_reads_the_position_of_the_offset(registered):
  network = Network(BagConfig(9, 4, 1, 8))
  variables = network.init(jax.random.key(0))
  batch = {
    'tokens_BT': np.array([[1, 2, 3, 4]]),
    'segments_BT': np.array([[1, 1, 2, 2]]),
    'positions_BT': np.array([[0, 1, 0, 1]]),
  }
  slopes = jax.grad(lambda v: jnp.sum(network.hidden(v, batch) ** 2))(variables)
  moved = np.abs(slopes['params']['places']['embedding']).sum(-1) > 0
  assert moved.tolist() == [False, False, True, True, False, False, False, False]


def test_the_longest_text_leaves_room_for_the_offset(base):
  assert load.lengths(base)['max_len'] == 48


def test_a_stage_trains_it_from_the_named_layers_of_its_folder(run, base):
  lines = (run.folder('student_sft') / 'metrics.jsonl').read_text().splitlines()
  losses = [json.loads(line)['loss'] for line in lines]
  assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
  saved = checkpoint.load_params(run.folder('student_sft') / 'checkpoints', run.mesh)
  mix = saved['params']['blocks']['mix']['kernel']
  before = formats.tensors(base)['layer.1.mix.weight'].T
  assert mix.shape == (1, 16, 16) and 0 < np.abs(mix[0] - before).max() < 1


def test_it_is_written_under_its_own_tensor_names_and_read_back(run, exported):
  tensors = formats.tensors(exported)
  assert set(tensors) == {
    'words.weight', 'places.weight', 'layer.0.mix.weight', 'out.weight', 'out.bias'
  }  # fmt: skip
  read = tree.flatten(hf.load(exported, from_hf(exported), jax.random.key(0)))
  saved = checkpoint.load_params(run.folder('student_sft') / 'checkpoints', run.mesh)
  for path, value in tree.flatten(saved).items():
    np.testing.assert_array_equal(read[path], value)


def test_formats_that_it_does_not_have_are_left_out_or_refused(exported):
  assert (exported / 'stablehlo' / 'score').exists() and not (exported / 'onnx').exists()
  with pytest.raises(UserError, match="bag models have no format 'onnx'"):
    formats.write(exported, ('onnx',))
  card = (exported / 'README.md').read_text()
  assert 'A bag of words that ranks' in card and 'sentence_transformers' not in card


def test_the_python_api_and_the_servers_backend_score_as_the_run_does(run, exported):
  group = next(iter(python_docs.groups('test')))
  [(_, scores)] = roles.scorer(run, *ROWS['student_sft'].load(run), rows=4)([group])
  assert np.std(scores) > 0.01
  assert backends.choose(exported, fast=True) == 'jax'
  ranker = disranker_jax.load(exported)
  served = ranker.score([(group.query, doc) for doc in group.docs])
  np.testing.assert_allclose(served, scores, atol=1e-5)
  with pytest.raises(UserError, match='takes from 5 to 48 tokens'):
    disranker_jax.load(exported, max_len=48 + OFFSET)
