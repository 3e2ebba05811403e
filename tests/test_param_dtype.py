"""What a stage trains is fp32 with its moments, whatever `param_dtype` is; the rest is in it."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_averaging
import test_train
import trainer
from ml_collections import ConfigDict

from disranker_jax.devices import memory, sharding
from disranker_jax.models import families, load, tree
from disranker_jax.models.settings import defaults as model_settings
from disranker_jax.pipeline import opening, steps, systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.rankers import pointwise
from disranker_jax.stages import roles
from disranker_jax.training import optimizer, train
from disranker_jax.training.checkpoint import Checkpoints
from disranker_jax.training.settings import ADAPTERS
from disranker_jax.training.settings import defaults as training_settings

MESH = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
STEPS = 6
RATE = 1e-5  # of the teacher; below half a step of bf16 beside .5


def fit(folder, dtype='bfloat16', steps=STEPS):
  todo = test_train.job(folder, steps=steps)
  todo.settings.learning_rate = RATE
  return train.fit(todo, test_train.Rows(), test_averaging.half(dtype), MESH)['params']['w']


def types(variables) -> dict[str, str]:
  return {path: str(x.dtype) for path, x in tree.flatten(variables).items()}


# Training


def test_small_updates_are_kept(tmp_path):
  """In bf16 each of them would be rounded away."""
  found = fit(tmp_path / 'bf16')
  assert np.all(found != 0.5) and np.all(found.astype(jnp.bfloat16) == 0.5)
  np.testing.assert_array_equal(found, fit(tmp_path / 'fp32', 'float32'))
  saved = trainer.saved(tmp_path / 'bf16', STEPS)
  assert {x.dtype for name, x in saved.items() if 'params' in name} == {np.dtype('float32')}


@pytest.mark.parametrize('mu', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shapes', [False, True])
def test_moments_are_fp32_but_for_a_first_one_that_is_set(shapes, mu):
  variables = test_averaging.half() | {'lora': {'a': jnp.ones(2)}}
  variables['params']['frozen'] = jnp.ones((), jnp.bfloat16)
  variables = jax.eval_shape(lambda: variables) if shapes else variables
  trained, frozen = optimizer.split(variables, 'w|lora')
  assert types(trained) == {'params/w': 'float32', 'lora/a': 'float32'}
  assert types(frozen) == {'params/frozen': 'bfloat16'}
  tx = optimizer.make(training_settings(adam_mu_dtype=mu), 10)
  adam = jax.eval_shape(tx.init, trained)[1]
  assert set(types(adam.nu).values()) == {'float32'} and set(types(adam.mu).values()) == {mu}


def test_a_run_whose_checkpoint_is_in_bf16_goes_on_in_fp32(tmp_path):
  """Earlier versions trained in bf16."""
  fit(tmp_path, 'float32', steps=4)
  before = trainer.saved(tmp_path, 4)
  program = train.Program(
    test_train.loss, training_settings(trainable='params/w'), STEPS, test_averaging.half(),
    test_train.make_batch(0), 1, MESH,
  )  # fmt: skip
  like = program.state | {'positions_A': jax.ShapeDtypeStruct((1,), np.int32)}
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    _, params, state = checkpoints.restore(tree.unflatten(program.trained), like)
  # The parameters and their moments.
  lower = lambda x: x.astype(jnp.bfloat16) if x.shape == (3,) else x  # noqa: E731
  low = jax.tree.map(lower, (params, state))
  other = tmp_path / 'before'
  with Checkpoints(other / 'checkpoints') as checkpoints:
    checkpoints.save(4, *low)
    checkpoints.wait()
  assert trainer.saved(other, 4)["params['params']['w']"].dtype == jnp.bfloat16
  found = fit(other)
  assert found.dtype == np.float32
  after = np.abs(np.asarray(found) - before["params['params']['w']"].astype(jnp.bfloat16))
  assert np.all(after > 0) and np.all(after < 3 * RATE)


# Loading


@pytest.fixture(scope='module')
def model():
  return load.open_model(model_settings(model='tiny-decoder', param_dtype='bfloat16', lora_rank=2))


@pytest.mark.parametrize('trainable', [None, ADAPTERS, '.*', 'norm'])
def test_parameters_are_loaded_in_the_type_that_the_estimate_counts(model, trainable):
  found = types(model.pretrained(0, MESH, trainable))
  assert found == types(steps.shapes(model.network, 'bfloat16', trainable))
  for path, dtype in found.items():
    full = path.startswith('lora/') or (trainable and re.search(trainable, path))
    assert dtype == ('float32' if full else 'bfloat16'), path


@pytest.mark.parametrize('trainable', ['', ADAPTERS, '.*'])
def test_what_was_trained_is_rounded_only_in_frozen_matrices(model, trainable, monkeypatch):
  trained = jax.tree.map(lambda x: np.full(x.shape, 1 + 2**-12, np.float32), model.network.shapes())
  monkeypatch.setattr(roles.checkpoint, 'load_params', lambda *_: sharding.put(trained, MESH))
  config = ConfigDict({'seed': 0, 'stages': ('cpt',), 'sft': {'trainable': trainable}})
  run = SimpleNamespace(mesh=MESH, folder=lambda name: Path(name), config=config)
  trains = 'sft' if trainable else ''
  found = tree.flatten(roles.trained(run, 'teacher', model, ('cpt',), trains=trains))
  rounded = {path for path, x in found.items() if (np.asarray(x, np.float32) == 1).all()}
  assert rounded == {
    path for path, x in found.items()
    if path.endswith(('kernel', 'embedding')) and 'score' not in path and trainable != '.*'
  }  # fmt: skip
  # As the estimate counts these.
  counted = types(steps.shapes(model.network, 'bfloat16', trainable or None))
  assert all(counted[path] == str(x.dtype) for path, x in found.items() if path in rounded)


def test_rounded_matrices_give_the_same_scores_in_bf16(tmp_path):
  network = load.open_model(model_settings(model='tiny-decoder', precision='bfloat16')).network
  full = network.init(jax.random.key(0))
  flat = tree.flatten(full)
  low = tree.unflatten({path: roles.kept(path, x, jnp.bfloat16) for path, x in flat.items()})
  assert types(low) != types(full)
  shape = pointwise.score_shape('score_head', 2, 16)
  batch = shape.zeros(1)
  batch['tokens_BT'] = np.arange(32, dtype=np.int32).reshape(2, 16) + 5
  batch['segments_BT'] = np.ones((2, 16), np.int32)
  batch['index_AX'][:] = 15
  scores = pointwise.score_fn(network)
  np.testing.assert_array_equal(scores(low, batch), scores(full, batch))


def test_the_next_stage_starts_from_what_was_trained_without_rounding_it(tmp_path):
  result = fit(tmp_path / 'cpt')
  config = ConfigDict({'seed': 0, 'stages': ('cpt',), 'sft': {'trainable': 'w'}})
  run = SimpleNamespace(mesh=MESH, folder=lambda name: tmp_path / name, config=config)

  def pretrained(seed, mesh, trainable):
    return test_averaging.half('float32' if trainable else 'bfloat16')

  opened = SimpleNamespace(settings=SimpleNamespace(init_from=''), pretrained=pretrained)
  found = roles.trained(run, 'teacher', opened, ('cpt',), trains='sft')['params']['w']
  np.testing.assert_array_equal(found, result)
  found = roles.trained(run, 'teacher', opened, ('cpt',), trains='')['params']['w']
  np.testing.assert_array_equal(found, result)


# Estimates and advice


def held(tmp_path, **changes) -> dict[str, int]:
  config = test_averaging.tiny(trainable=changes.pop('trainable', '.*'))
  config.teacher.update(changes)
  [found] = opening.models_of(Run(config, tmp_path, MESH), systems.find(config, 'sft'))
  return found.step.held


def test_the_estimate_of_training_counts_what_is_trained_in_fp32(tmp_path):
  assert held(tmp_path, param_dtype='bfloat16') == held(tmp_path)
  only = {'trainable': ADAPTERS, 'lora_rank': 2}
  half, full = held(tmp_path, param_dtype='bfloat16', **only), held(tmp_path, **only)
  assert half.pop('parameters') < 0.6 * full.pop('parameters') and half == full


def test_messages_about_memory_name_all_keys_of_adapters_in_bf16(tmp_path, monkeypatch):
  config = test_averaging.tiny()
  [found] = opening.models_of(Run(config, tmp_path, MESH), systems.find(config, 'sft'))
  monkeypatch.setattr(memory, 'limit', lambda: 1000)
  with pytest.raises(opening.UserError) as caught:
    opening.refuse_too_large(Run(config, tmp_path, MESH), [found])
  keys = (
    f'(config.teacher.lora_rank=16, config.sft.trainable={ADAPTERS!r}, '
    'config.teacher.param_dtype=bfloat16)'
  )
  assert keys in str(caught.value)


LOW, ALONE = 'config.teacher.param_dtype=bfloat16', f"config.sft.trainable='{ADAPTERS}'"


@pytest.mark.parametrize(
  ('trainable', 'rank', 'dtype', 'keys'),
  [
    ('.*', 0, 'float32', ['config.teacher.lora_rank=16', ALONE, LOW]),
    ('.*', 0, 'bfloat16', ['config.teacher.lora_rank=16', ALONE]),
    ('.*', 2, 'float32', [ALONE, LOW]),
    ('lora|q/|score', 2, 'bfloat16', [ALONE]),
    (ADAPTERS, 2, 'float32', [LOW]),
    (ADAPTERS, 2, 'bfloat16', []),
    ('lora|norm|score', 2, 'bfloat16', []),
  ],
)
def test_advice_about_memory_leaves_out_what_is_so_already(
  trainable, rank, dtype, keys, tmp_path, monkeypatch
):
  from disranker_jax.commands.plan import report

  config = test_averaging.tiny(trainable=trainable, optimizer='adafactor')
  config.teacher.update(lora_rank=rank, param_dtype=dtype)
  [found] = opening.models_of(Run(config, tmp_path, MESH), systems.find(config, 'sft'))
  options = report.remedies(config, 'sft', found.step, MESH)
  words = ' '.join('--' + key for key in keys)
  said = [one for one in options if 'trainable' in one or 'param_dtype' in one or 'lora' in one]
  assert said == ([words] if keys else [])
  monkeypatch.setattr(memory, 'limit', lambda: 1000)
  with pytest.raises(opening.UserError) as caught:
    opening.refuse_too_large(Run(config, tmp_path, MESH), [found])
  assert ', '.join(keys) in str(caught.value) and 'adafactor' not in str(caught.value)
  every = ('lora_rank=', 'trainable=', 'param_dtype=')
  assert sum(str(caught.value).count(key) for key in every) == len(keys)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_stage_that_only_reads_is_told_of_bf16_unless_it_has_it(dtype, tmp_path, monkeypatch):
  config = test_averaging.tiny()
  config.teacher.param_dtype = dtype
  [found] = opening.models_of(Run(config, tmp_path, MESH), systems.find(config, 'score'))
  monkeypatch.setattr(memory, 'limit', lambda: 1000)
  with pytest.raises(opening.UserError) as caught:
    opening.refuse_too_large(Run(config, tmp_path, MESH), [found])
  assert (LOW in str(caught.value)) == (dtype == 'float32')


@pytest.mark.parametrize(
  ('trainable', 'rank', 'warns'),
  [('.*', 2, True), ('lora|q/|score', 2, True), (ADAPTERS, 2, False), ('params/.*', 2, False),
   ('lora|norm|embed|score', 2, False), ('.*', 0, False)],
)  # fmt: skip
def test_adapters_that_are_trained_with_their_kernels_get_a_line(
  trainable, rank, warns, tmp_path, capsys
):
  config = test_averaging.tiny(trainable=trainable)
  config.teacher.lora_rank = rank
  opening.describe(opening.models_of(Run(config, tmp_path, MESH), systems.find(config, 'sft')))
  said = capsys.readouterr().err
  line = f'config.sft.trainable={trainable!r} trains the adapters of config.teacher.lora_rank=2 and'
  assert (line in said) == warns and ('warning' in said) == warns


@pytest.mark.parametrize('name', sorted(families.FAMILIES))
def test_the_advised_pattern_trains_adapters_and_heads_only(name):
  family = families.FAMILIES[name]
  assert all(re.search(ADAPTERS, f'params/{path}') for path in family.fresh)


@pytest.mark.parametrize('name', ['tiny-decoder', 'tiny-encoder'])
def test_the_advised_pattern_trains_no_layer(name):
  network = load.open_model(model_settings(model=name, lora_rank=2)).network
  trained, frozen = optimizer.split(network.shapes(), ADAPTERS)
  assert {path.split('/')[1] for path in frozen} & {'blocks', 'layers'}
  assert not any(path.startswith('params/blocks') for path in trained)
