"""The rules that say where parameters lie on a mesh, and which meshes there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from disranker_jax import config
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import load, tree
from disranker_jax.models.settings import defaults as model_settings
from disranker_jax.training import optimizer
from disranker_jax.training.settings import defaults as training_settings


class Sizes:
  """A mesh of which only the sizes are asked, so that rules need no devices."""

  def __init__(self, data=1, fsdp=1, model=1):
    self.shape = {'data': data, 'fsdp': fsdp, 'model': model}


def mesh_of(*sizes):
  return sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))


def specs(variables, monkeypatch, **sizes) -> dict[str, P]:
  """The spec of every path of a tree on a mesh of the given sizes."""
  monkeypatch.setattr(sharding, 'NamedSharding', lambda mesh, spec: spec)
  out = {}

  def keep(path, spec):
    out[jax.tree_util.keystr(path, simple=True, separator='/')] = spec

  found = sharding.shardings(variables, Sizes(**sizes))
  jax.tree.map_with_path(keep, found, is_leaf=lambda x: isinstance(x, P))
  return out


def shapes(model, **changes):
  """The shapes of a tiny model's variables."""
  side = opened(model, **changes)
  return jax.eval_shape(side.network.init, jax.random.key(0))


def opened(model, head='rank', **changes):
  settings = model_settings(
    model=model, precision='float32', max_len=32, max_query_len=8, row_len=32
  )
  settings.update(changes)
  return load.open_model(settings, head=head)


# Rules. The tiny networks are 32 wide, 64 in the feed-forward; two layers; 600 tokens.


def test_a_decoders_kernels_are_split_by_input_and_output(monkeypatch):
  found = specs(shapes('tiny-decoder', head='both', lora_rank=2), monkeypatch, fsdp=2, model=4)
  blocks = 'params/blocks'
  into, out_of = P(None, 'fsdp', 'model'), P(None, 'model', 'fsdp')
  expected = {f'{blocks}/{name}/kernel': into for name in ('q', 'k', 'v', 'gate', 'up')}
  expected |= {f'{blocks}/{name}/kernel': out_of for name in ('o', 'down')}
  expected |= {
    'params/embed/embedding': P('model', 'fsdp'),
    'params/lm_head/kernel': P('fsdp', 'model'),
  }
  assert {path: found[path] for path in expected} == expected
  # Norms, the score and adapters lie everywhere.
  others = found.keys() - expected.keys()
  assert {'params/norm/scale', 'params/score/kernel', 'lora/blocks/q/lora_a'} <= others
  assert {found[path] for path in others} == {P()}


def test_an_encoders_kernels_are_split_and_its_biases_norms_and_heads_are_not(monkeypatch):
  found = specs(shapes('tiny-encoder'), monkeypatch, fsdp=2, model=4)
  blocks = 'params/blocks'
  into, out_of = P(None, 'fsdp', 'model'), P(None, 'model', 'fsdp')
  expected = {f'{blocks}/{name}/kernel': into for name in ('q', 'k', 'v', 'up')}
  expected |= {f'{blocks}/{name}/kernel': out_of for name in ('o', 'down')}
  expected |= {f'params/{name}/embedding': P('model', 'fsdp') for name in ('words', 'places')}
  expected['params/types/embedding'] = P(None, 'fsdp')  # two rows do not divide by four
  assert {path: found[path] for path in expected} == expected
  others = found.keys() - expected.keys()
  assert {f'{blocks}/q/bias', 'params/pooler/kernel'} <= others
  assert {found[path] for path in others} == {P()}


def test_the_optimizers_moments_lie_where_their_parameters_do(monkeypatch):
  flat = tree.flatten(shapes('tiny-encoder'))
  tx = optimizer.make(training_settings(), 10)
  ours = specs(flat, monkeypatch, fsdp=2, model=4)
  opt = specs(jax.eval_shape(tx.init, flat), monkeypatch, fsdp=2, model=4)
  for moment in ('mu', 'nu'):
    found = {k.partition(f'/{moment}/')[2]: v for k, v in opt.items() if f'/{moment}/' in k}
    assert found == ours
  counts = [spec for path, spec in opt.items() if path.endswith('count')]
  assert counts and set(counts) == {P()}


# Fitting


@pytest.mark.parametrize(
  'spec, shape, expected',
  [
    (P(None, 'fsdp', 'model'), (3, 6, 8), P(None, 'fsdp', 'model')),
    (P(None, 'fsdp', 'model'), (3, 7, 8), P(None, None, 'model')),  # 7 does not divide by 2
    (P(None, 'fsdp', 'model'), (3, 6, 9), P(None, 'fsdp')),  # trailing None is left out
    (P(None, 'fsdp', 'model'), (3, 7, 9), P()),
    (P('model'), (8, 5, 5), P('model')),
    (P(('data', 'fsdp')), (12, 5), P(('data', 'fsdp'))),
    (P(('data', 'fsdp')), (9, 5), P()),  # by 3 but not by 3 * 2
    (P(), (8, 8), P()),
  ],
)
def test_axes_that_do_not_divide_are_left_out(spec, shape, expected):
  found = sharding.fit(spec, shape, Sizes(data=3, fsdp=2, model=4), 'path')
  assert found == expected and len(found) == len(expected)


# Meshes


def test_minus_one_takes_the_devices_that_are_left(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 24)
  made = []
  monkeypatch.setattr(jax, 'make_mesh', lambda shape, *args, **kwargs: made.append(shape))
  for sizes in ((-1, 2, 3), (2, -1, 1), (4, 3, -1), (24, -1, 1), (4, 3, 2)):
    mesh_of(*sizes)
  assert made == [(4, 2, 3), (2, 12, 1), (4, 3, 2), (24, 1, 1), (4, 3, 2)]


@pytest.mark.parametrize('sizes', [(5, 2, 1), (4, 3, 1), (-1, 5, 1), (-1, 24, 2), (-1, -1, 1)])
def test_a_mesh_that_is_not_the_devices_is_refused(monkeypatch, sizes):
  monkeypatch.setattr(jax, 'device_count', lambda: 24)
  said = 'must be positive sizes' if sizes.count(-1) > 1 else r'devices?, not for 24; set sizes '
  with pytest.raises(UserError, match=rf'config\.mesh.* {said}'):
    mesh_of(*sizes)


def test_the_default_mesh_is_data_parallel_over_all_devices():
  mesh = sharding.make_mesh(config.defaults().mesh)
  assert dict(mesh.shape) == {'data': jax.device_count(), 'fsdp': 1, 'model': 1}


def test_blocks_must_fit_the_mesh():
  mesh = Sizes(data=3, fsdp=2)
  rows = {'tokens_BT': np.zeros((8, 4)), 'mask_GN': np.zeros((8, 2))}
  wrong = 'data_shards=4 must be a multiple of mesh data x fsdp = 6, or 1'
  with pytest.raises(UserError, match=wrong):
    sharding.batch_shardings(rows, mesh, 4)
  with pytest.raises(UserError, match='batch_rows=8 must be a multiple of mesh data x fsdp = 6'):
    sharding.batch_shardings(rows, mesh, 1)


def test_placing_keeps_the_values_and_the_tree():
  mesh = mesh_of(-1, 1, 1)
  variables = {'params': {'blocks': {'q': {'kernel': jnp.arange(24.0).reshape(2, 3, 4)}}}}
  placed = sharding.put(variables, mesh)
  jax.tree.map(np.testing.assert_array_equal, placed, variables)
  assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(placed))
