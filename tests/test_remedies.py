"""What takes less memory: nothing that is set is advised, and what is advised can be set."""

import contextlib
import shlex
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from disranker_jax import config as configs
from disranker_jax.devices import memory, sharding
from disranker_jax.generative.retriever import Retriever
from disranker_jax.models import load
from disranker_jax.models.settings import defaults as model_settings
from disranker_jax.pipeline import systems
from disranker_jax.rankers import pointwise
from disranker_jax.stages import roles, writer
from disranker_jax.training import remedies, train

MATRIX = 'params/blocks/q/kernel'
MESH = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
STAGES = [
  ('disranker', 'sft'), ('disranker', 'distill'), ('disranker', 'score'), ('dgr', 'memorise'),
  ('query_rewriting', 'rewrite'),
]  # fmt: skip


def found(config, stage: str, mesh=MESH) -> list[remedies.Remedy]:
  declared = systems.find(config, stage)
  model = config[declared.role]
  paths = [MATRIX, *(['lora/blocks/q/a'] if model.lora_rank else [])]
  return remedies.remedies(
    stage, declared.role, config[stage], model, paths, trains=declared.task is not None, mesh=mesh
  )


def of_four(mesh) -> jax.sharding.AbstractMesh:
  """The mesh of four devices for a section `mesh`."""
  fsdp = 4 if mesh.fsdp == -1 else 1
  return jax.sharding.AbstractMesh((4 // fsdp, fsdp, 1), sharding.AXES)


@pytest.mark.parametrize(('system', 'stage'), STAGES)
def test_what_is_advised_can_be_set_and_is_then_advised_no_more(system, stage):
  config = configs.defaults(system)
  config[systems.find(config, stage).role].attention = 'xla'
  if 'ema' in config[stage]:
    config[stage].ema = 0.5
  first = found(config, stage, of_four(config.mesh))
  lessened = {remedy.lessens for remedy in first}
  assert lessened >= {remedies.COPIES, remedies.PARAMETERS, remedies.ACTIVATIONS}
  for remedy in first:
    config.update_from_flattened_dict(remedy.changes)
  # A batch can be halved again, until it has a row per device or a query per micro-batch.
  config[stage]['prompts' if stage == 'rewrite' else 'batch_rows'] = 1
  assert found(config, stage, of_four(config.mesh)) == []


@pytest.mark.parametrize(('system', 'stage'), STAGES)
def test_the_arguments_of_a_command_line_say_the_same(system, stage):
  config = configs.defaults(system)
  every = found(config, stage)
  for remedy, words in zip(every, remedies.as_flags(every), strict=True):
    pairs = [word.removeprefix('--config.').split('=', 1) for word in shlex.split(words)]
    assert pairs == [[key, str(value)] for key, value in remedy.changes.items()]


def test_a_batch_of_one_row_is_not_halved():
  config = configs.defaults()
  config.score.batch_rows = 1
  assert not any('batch_rows' in words for words in remedies.as_flags(found(config, 'score')))


@pytest.mark.parametrize(
  ('rows', 'blocks', 'smaller'),
  [
    (32, 1, '--config.sft.batch_rows=16 --config.sft.gradient_accumulation_steps=2'),
    (12, 1, '--config.sft.batch_rows=4 --config.sft.gradient_accumulation_steps=3'),
    (16, 8, '--config.sft.batch_rows=8 --config.sft.gradient_accumulation_steps=2'),
    (8, 8, ''),
    (4, 1, ''),
  ],
)
def test_a_smaller_batch_is_split_among_devices_too_and_has_the_update_of_before(
  rows, blocks, smaller
):
  """A step of four devices that ignores this is refused, or each of them has all rows."""
  config, mesh = configs.defaults(), jax.sharding.AbstractMesh((4, 1, 1), sharding.AXES)
  config.sft.update(batch_rows=rows, data_shards=blocks)
  assert batches_in(found(config, 'sft', mesh)) == ([smaller] if smaller else [])
  config.score.batch_rows = rows
  half = {32: 16, 12: 4, 16: 8, 8: 4}.get(rows)
  words = [f'--config.score.batch_rows={half}'] if half else []
  assert batches_in(found(config, 'score', mesh)) == words


def batches_in(every: list[remedies.Remedy]) -> list[str]:
  return remedies.as_flags(remedy for remedy in every if remedy.lessens == remedies.BATCH)


@pytest.mark.parametrize(('prompts', 'blocks', 'parts'), [(12, 2, 2), (9, 1, 3), (6, 6, 0)])
def test_micro_batches_have_equally_many_queries(prompts, blocks, parts):
  config = configs.defaults('query_rewriting')
  config.rewrite.update(prompts=prompts, data_shards=blocks)
  words = ' '.join(remedies.as_flags(found(config, 'rewrite')))
  assert (f'--config.rewrite.gradient_accumulation_steps={parts} ' in words) == bool(parts)
  assert ('accumulation' in words) == bool(parts)


def test_a_sentence_has_all_but_the_batch_that_the_caller_names():
  every = [
    remedies.Remedy({'sft.batch_rows': 2}, remedies.BATCH),
    remedies.Remedy({'teacher.remat': 'full'}, remedies.ACTIVATIONS),
  ]
  assert remedies.as_sentence(every, 'lower config.sft.batch_rows (now 4)') == (
    'lower config.sft.batch_rows (now 4), set config.teacher.remat=full, or '
    f'{remedies.MORE_DEVICES}'
  )
  assert remedies.as_sentence([], last='take a smaller model') == 'take a smaller model'


# Messages of a run that is out of memory


@pytest.fixture
def advice(monkeypatch):
  """Calls something that iterates or trains; returns what it would advise without memory."""

  class Exhausted(Exception):
    pass

  @contextlib.contextmanager
  def limited(label, needed, lower):
    raise Exhausted(lower)
    yield

  def call(steps) -> str:
    with pytest.raises(Exhausted) as caught:
      next(steps)
    return str(caught.value)

  monkeypatch.setattr(memory, 'limited', limited)
  return call


def model(dtype: str):
  return SimpleNamespace(settings=model_settings(model='', param_dtype=dtype))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('what', ['scores', 'queries', 'pages'])
def test_what_does_not_train_is_told_of_bf16_unless_it_has_it(what, dtype, advice, monkeypatch):
  if what == 'scores':
    opened = load.open_model(model_settings(model='tiny-encoder', max_len=32, row_len=32))
    variables = load.shapes(opened.network, dtype)
    prompt, sizes = opened.prompt(), (4, 32)
    ranker = pointwise.PointwiseRanker(opened.network, variables, prompt, MESH, *sizes)
    said, name = advice(ranker.parts([])), "the model's param_dtype"
  elif what == 'queries':
    monkeypatch.setattr(writer, 'prompts', lambda *_: [[1]])
    monkeypatch.setattr(writer, 'ends', lambda *_: frozenset())
    settings = configs.defaults().generate
    writes = writer.QueryWriter(model(dtype), {}, MESH, settings, seed=0)
    said, name = advice(writes([], [])), 'config.teacher.param_dtype'
  else:
    c, searcher = configs.defaults('dgr').retrieve, SimpleNamespace(needs=dict)
    searches = SimpleNamespace(c=c, model=model(dtype), searcher=searcher, watchdog_s=0)
    said, name = advice(Retriever.__call__(searches, ['q'])), 'config.retriever.param_dtype'
  assert (f'set {name}=bfloat16' in said) == (dtype == 'float32') == ('param_dtype' in said)
  assert 'batch_rows' in said and 'config.mesh.' in said


def test_bf16_is_a_matter_of_matrices_that_are_no_heads():
  variables = {
    'params': {
      'embed': {'embedding': jnp.ones(2, jnp.bfloat16)},
      'norm': {'scale': jnp.ones(2)},
      'score': {'kernel': jnp.ones(2)},
    }
  }
  assert remedies.param_dtype_of(variables) == 'bfloat16'
  variables['params']['blocks'] = {'q': {'kernel': jnp.ones(2)}}
  assert remedies.param_dtype_of(variables) == 'float32'


@pytest.mark.parametrize(
  ('changes', 'has'),
  [({'remat': 'none'}, ('remat=full', 'lora_rank=16', 'trainable=', 'param_dtype=')),
   ({'remat': 'full', 'param_dtype': 'bfloat16'}, ('lora_rank=16', 'trainable='))],
)  # fmt: skip
def test_a_stage_that_trains_is_told_what_its_model_lacks(changes, has, monkeypatch):
  """Also one that trains all parameters, which then are fp32 whatever param_dtype says."""
  config = configs.defaults()
  config.teacher.update(changes)
  monkeypatch.setattr(roles, 'training_data', lambda *_: None)
  monkeypatch.setattr(roles, 'OfflineFeed', lambda *_: None)
  monkeypatch.setattr(train, 'steps', lambda *_: 1)
  run = SimpleNamespace(config=config, mesh=MESH, folder=lambda name: None)
  todo, _ = roles.job(run, 'sft', SimpleNamespace(loss=None), [], None)
  said = train.needs_less(todo, {'params': {'blocks': {'q': {'kernel': jnp.zeros(2)}}}}, MESH)
  assert said.startswith(f'lower config.sft.batch_rows (now {config.sft.batch_rows}; ')
  keys = ('remat=full', 'lora_rank=16', 'trainable=', 'param_dtype=')
  assert tuple(key for key in keys if key in said) == has
  assert "the model's" not in said
