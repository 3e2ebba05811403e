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
import numpy as np
import optax
import pytest

from disranker_jax import config, losses
from disranker_jax.data import batches
from disranker_jax.data.records import Click, Document, Group
from disranker_jax.devices import sharding
from disranker_jax.models import families, hf, load, tiny, tree
from disranker_jax.models.network import Network
from disranker_jax.models.settings import defaults as model_settings
from disranker_jax.rankers import pointwise
from disranker_jax.stages import cpt, distill, roles, sft
from disranker_jax.training import train

DEVICES, STEPS = 8, 3
MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))


def mesh_of(*sizes):
  return sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))


def opened(model, head='rank', **changes):
  settings = model_settings(
    model=model, precision='float32', max_len=32, max_query_len=8, row_len=32
  )
  settings.update(changes)
  return load.open_model(settings, head=head)


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
