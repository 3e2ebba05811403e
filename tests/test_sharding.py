"""Where arrays lie on a mesh, and that the mesh does not change what is learnt."""

import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import hf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from disranker_jax import config, losses
from disranker_jax.data import batches
from disranker_jax.data.records import Click, Document, Group
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import families, hf, load, tiny, tree
from disranker_jax.models.network import Network
from disranker_jax.models.settings import defaults as model_settings
from disranker_jax.rankers import pointwise
from disranker_jax.stages import cpt, distill, roles, sft
from disranker_jax.training import optimizer, train
from disranker_jax.training.settings import defaults as training_settings

DEVICES, STEPS = 8, 3
MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))


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
  with pytest.raises(UserError, match=r'config\.mesh'):
    mesh_of(*sizes)


def test_the_default_mesh_is_data_parallel_over_all_devices():
  mesh = sharding.make_mesh(config.defaults().mesh)
  assert dict(mesh.shape) == {'data': jax.device_count(), 'fsdp': 1, 'model': 1}


# On eight devices


def make_groups(count) -> list[Group]:
  """Queries with a document of grade 1 and two or three of grade 0."""
  words = ['value', 'list', 'string', 'object', 'key', 'index', 'number', 'item']
  groups = []
  for i in range(count):
    rng = np.random.default_rng(i)
    texts = [' '.join(rng.choice(words, 1 + (i + n) % 5)) for n in range(3 + i % 2)]
    docs = tuple(Document(str(n), 'title', t, int(n == i % 3)) for n, t in enumerate(texts))
    groups.append(Group(f'q{i}', ' '.join(rng.choice(words, 2)), docs))
  return groups


def label_loss(side):
  scores = pointwise.score_fn(side.network)
  per_group = functools.partial(losses.pairwise_hinge.per_group, margin=1.0)
  return functools.partial(sft.label_loss, scores, per_group)


def host_variables(side):
  """With matrices so large that documents differ in their scores."""
  variables = jax.tree.map(np.array, side.pretrained(0, mesh_of(-1, 1, 1)))
  return jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, variables)


@functools.cache
def decoder(kind: str) -> Path:
  """The folder of a small random decoder of another type, with the tokenizer of 'tiny-decoder'."""
  folder = Path(tempfile.mkdtemp())
  tiny.write_tokenizer(folder, bert=False)
  ids = {'vocab_size': tiny.VOCABULARY, 'bos_token_id': 1, 'eos_token_id': 2}
  network = Network(families.from_hf(reference.config(kind, **ids).to_dict()), head='lm')
  hf.save(folder / 'model', network, network.init(jax.random.key(0)), tokenizer_folder=folder)
  return folder / 'model'


def settings(**changes):
  """A config of tiny models, whose stages take steps that can be told apart."""
  c = config.defaults()
  sizes = {'precision': 'float32', 'max_len': 32, 'max_query_len': 8, 'row_len': 32}
  c.teacher.update(model='tiny-decoder', remat='full', lora_rank=2, **sizes)
  c.student.update(model='tiny-encoder', layers=(), **sizes)
  for stage in (c.cpt, c.sft, c.distill):
    stage.update(
      epochs=9.0,
      batch_rows=32,
      learning_rate=3e-3,
      warmup_ratio=0.0,
      schedule='constant',
      skip_step_norm_ratio=0.0,
    )
    stage.update({'data_shards': DEVICES, 'save_every': 100, 'max_steps': STEPS})
    stage.update({k: v for k, v in changes.items() if k in stage})
  c.teacher.update({k: v for k, v in changes.items() if k in c.teacher})
  if 'kind' in changes:
    c.teacher.model = str(decoder(changes['kind']))
  c.sft.update(group_size=4, margin=1.0)
  c.distill.update(group_size=4, hard_label_weight=1.0, hard_label_margin=1.0)
  return c


def encoded(prompt, group):
  return batches.encode_group(prompt, group, np.arange(len(group.docs), dtype=np.float32) % 3)


def task(stage: str, c):
  """(side, what the stage computes, how its records are read)."""
  if stage == 'cpt':
    side = load.open_model(c.teacher, 'lm')
    clicks = [Click(g.query, g.docs[0].title, g.docs[0].summary) for g in make_groups(48)]
    return side, cpt.task(c, side.network), clicks, batches.encode_click
  if stage == 'sft':
    side = roles.open_role(c, 'teacher')
    return side, sft.task(c, side.network), make_groups(48), encoded
  side = load.open_model(c.student)
  return side, distill.task(c, side.network), make_groups(48), encoded


def logged(folder, stage, sizes, **changes) -> list[float]:
  """The losses of a few steps of a stage on a mesh."""
  c = settings(**changes)
  mesh = mesh_of(*sizes)
  side, what, source, encode = task(stage, c)
  run = SimpleNamespace(config=c, mesh=mesh, folder=lambda _: Path(folder))
  job, feed = roles.job(run, stage, what, source, functools.partial(encode, side.prompt()))
  train.fit(job, feed, host_variables(side), mesh)
  lines = (Path(folder) / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['loss'] for line in lines]


def part_gradients(side, variables, batch):
  """Sums of loss and weight, and gradients of the loss sum."""

  def total(variables):
    loss_sum, weight, _ = label_loss(side)(variables, batch)
    return loss_sum, weight

  (loss_sum, weight), grads = jax.value_and_grad(total, has_aux=True)(variables)
  return loss_sum, weight, grads


def pmap_gradients(side, variables, parts):
  """Each device packs and sees rows of its own; sums are added over all of them."""

  def step(variables, batch):
    loss_sum, weight, grads = part_gradients(side, variables, batch)
    loss_sum, weight, grads = jax.lax.psum((loss_sum, weight, grads), 'devices')
    return loss_sum / weight, jax.tree.map(lambda g: g / weight, grads)

  stacked = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
  out = jax.pmap(step, axis_name='devices', in_axes=(None, 0))(variables, stacked)
  return jax.tree.map(lambda x: np.asarray(x[0]), out)


def mesh_gradients(side, variables, parts):
  """The gradients of `train` on the same rows as one batch, on the data mesh."""
  mesh = mesh_of(DEVICES, 1, 1)
  whole = batches.join(parts)
  trained = sharding.put(tree.flatten(variables), mesh)
  batch = sharding.put_batch(whole, mesh, blocks=len(parts))
  assert len(batch['tokens_BT'].sharding.device_set) == DEVICES
  assert batch['tokens_BT'].addressable_shards[0].data.shape[0] * DEVICES == len(parts)
  step = jax.jit(lambda t, b: train.gradients(label_loss(side), t, {}, [b]))
  with jax.set_mesh(mesh):
    grads, means = step(trained, batch)
  return np.asarray(means['loss']), jax.tree.map(np.asarray, grads)


def gradients() -> dict:
  """How far `jax.pmap` and the data mesh are from each other, and how much there is to differ."""
  side = opened('tiny-encoder')
  variables = host_variables(side)
  prompt = side.prompt()
  encoded = [batches.encode_group(prompt, group) for group in make_groups(12)]
  shape = batches.Shape(1, 256, docs=4)
  parts = []
  cuts = (0, 1, 3, 6, 7, 8, 10, 11, 12)
  for queries in (encoded[i:j] for i, j in itertools.pairwise(cuts)):
    packer = batches.Packer(shape)
    assert all(packer.add(group) for group in queries)
    parts.append(packer.batch())
  theirs_loss, theirs = pmap_gradients(side, variables, parts)
  ours_loss, ours = mesh_gradients(side, variables, parts)
  theirs = tree.flatten(theirs)
  return {
    'weights': [int(part['mask_GN'].any(1).sum()) for part in parts],
    'loss': [float(ours_loss), float(theirs_loss)],
    'norm': float(optax.tree.norm(theirs)),
    'difference': max(float(np.abs(ours[k] - theirs[k]).max()) for k in ours | theirs),
  }


# (stage, mesh, changes of settings); every combination takes seconds to compile.
STAGES = ('cpt', 'sft', 'distill')
RUNS = [(stage, MESHES[3], {}) for stage in STAGES]
SLOW = [(stage, sizes, {}) for stage in STAGES for sizes in MESHES[:3]]
SLOW += [
  ('sft', (4, 2, 1), {'data_shards': 1}),
  ('cpt', (2, 2, 2), {'gradient_accumulation_steps': 2}),
]
SLOW += [('cpt', (2, 1, 4), {'shard_sequence': True})]
SLOW += [('sft', (2, 2, 2), {'kind': 'gemma3'})]  # one key head, which no axis divides
SLOW += [('sft', (1, 4, 2), {'optimizer': 'adafactor', 'adam_mu_dtype': 'bfloat16'})]


def on_eight_devices(folder, slow: bool) -> None:
  """What the subprocess runs; a file for each kind of result."""
  assert jax.device_count() == DEVICES
  if not slow:
    (folder / 'gradients.json').write_text(json.dumps(gradients()))
  for i, (stage, sizes, changes) in enumerate(SLOW if slow else RUNS):
    found = logged(folder / str(i), stage, sizes, **changes)
    (folder / f'{name(stage, sizes, changes)}.json').write_text(json.dumps(found))


def name(stage, sizes, changes) -> str:
  return '-'.join(map(str, (stage, *sizes, *changes, *changes.values())))


def subprocess_results(folder, slow: bool):
  """Reads what `on_eight_devices` wrote, in a process whose CPU counts as eight devices."""
  program = (
    'import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import conftest; '
    f'import test_sharding; test_sharding.on_eight_devices(Path(sys.argv[2]), {slow})'
  )
  environment = os.environ | {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={DEVICES}', 'JAX_PLATFORMS': 'cpu',
  }  # fmt: skip
  command = [sys.executable, '-c', program, str(Path(__file__).parent), str(folder)]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)

  def read(name):
    file = folder / f'{name}.json'
    assert file.exists(), done.stderr[-1500:]
    return json.loads(file.read_text())

  return read


@pytest.fixture(scope='module')
def eight(tmp_path_factory):
  return subprocess_results(tmp_path_factory.mktemp('eight'), slow=False)


@pytest.fixture(scope='module')
def eight_slow(tmp_path_factory):
  return subprocess_results(tmp_path_factory.mktemp('eight_slow'), slow=True)


@pytest.fixture(scope='module')
def single(tmp_path_factory):
  """The same stages on one device, each once."""

  @functools.cache
  def losses(stage, **changes):
    return logged(tmp_path_factory.mktemp(stage), stage, (-1, 1, 1), **changes)

  return losses


def assert_as_alone(found, alone):
  assert len(alone) == STEPS and np.ptp(alone) > 1e-2, 'steps that can be told apart'
  np.testing.assert_allclose(found, alone, atol=1e-4)


@pytest.mark.parametrize('stage, sizes, changes', RUNS)
def test_every_mesh_learns_as_one_device_does(eight, single, stage, sizes, changes):
  assert_as_alone(eight(name(stage, sizes, changes)), single(stage, **changes))


@pytest.mark.slow
@pytest.mark.parametrize('stage, sizes, changes', SLOW)
def test_every_axis_alone_learns_as_one_device_does(eight_slow, single, stage, sizes, changes):
  """Also with one block, accumulation, a lean optimizer, or positions over the model axis."""
  alone = single(stage, **changes)
  if set(changes) - {'shard_sequence'}:
    assert alone != single(stage), 'the change matters'
  assert_as_alone(eight_slow(name(stage, sizes, changes)), alone)


def test_pmap_gives_the_gradients_of_the_data_mesh(eight):
  found = eight('gradients')
  assert len(set(found['weights'])) > 1, 'else a mean of the devices means were the same gradient'
  ours, theirs = found['loss']
  assert ours == pytest.approx(theirs, abs=1e-5)
  assert found['norm'] > 0.1 and found['difference'] < 1e-5


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
