"""The models of a run: opening them, and where their parameters come from."""

import hashlib
import re
from collections.abc import Iterable

import jax.numpy as jnp
from ml_collections import ConfigDict

from disranker_jax.data import streams
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import eight_bits, hf, tiny, tree
from disranker_jax.models import load as models
from disranker_jax.models.load import TextModel
from disranker_jax.models.tensors import rows_of
from disranker_jax.pipeline import inputs, manifest, systems
from disranker_jax.rankers.pointwise import PointwiseRanker
from disranker_jax.stages import earlier
from disranker_jax.training import checkpoint, train
from disranker_jax.training.feed import OfflineFeed
from disranker_jax.training.remedies import is_matrix


def open_role(config: ConfigDict, role: str) -> TextModel:
  """The model of a role's section of the config, without parameters."""
  return models.open_model(config[role])


def open_zero_shot(config: ConfigDict) -> TextModel:
  """The teacher's pretrained model, which ranks by the likelihood of the query.

  Raises: UserError if it cannot compute one.
  """
  settings = config.teacher.copy_and_resolve_references()
  template = settings.zero_shot_template or settings.template
  settings.update({'scorer': 'query_likelihood', 'template': template, 'init_from': ''})
  settings.update({'ready': False, 'input': 'template', 'bidirectional': False})
  if not models.is_language_model(settings.model):
    raise UserError(
      "config.evaluate.models: 'zero_shot' ranks by the likelihood of the query, which "
      f'{settings.model!r} does not compute; leave it out'
    )
  return models.open_model(settings, 'lm')


def open_pretrained(config: ConfigDict, role: str, head: str = '') -> TextModel:
  """The model of a role, to start from the pretrained parameters whatever `init_from` says.

  `head` is as of `models.open_model`.
  """
  settings = config[role].copy_and_resolve_references()
  settings.init_from = ''
  return models.open_model(settings, head)


def trained(
  run, role: str, model: TextModel, stages: tuple[str, ...], own=None, *, trains: str
) -> dict:
  """The pretrained parameters, overlaid with those that the given stages trained, in order.

  They are on the run's mesh, or on `own`, a sharding.local mesh of each process. Those that the
  stage `trains` goes on to train ('' for a stage that only reads them) are fp32. Of the others,
  those of the folder have the model's `param_dtype`, and those of stages are as `kept` says.

  How parameters are initialised; the first source that has a parameter gives its value:
    1 resume              the stage's own last checkpoint; `train.fit` restores it after this
    2 earlier stages      the last of `stages` that the config lists and that trained it
    3 an earlier run      what it trained, if the model's settings name one in `init_from`
    4 pretrained folder   the safetensors of `model.folder`
    5 random              a head that the folder lacks and LoRA, from the seeds of run and model
  """
  where = run.mesh if own is None else own
  trainable = run.config[trains].trainable if trains else None
  flat = tree.flatten(model.pretrained(run.config.seed, where, trainable))  # 4 and 5
  folders = earlier.start(run, role) if model.settings.init_from else []
  folders += [run.folder(s) / 'checkpoints' for s in stages if s in run.config.stages]
  for folder in folders:
    saved = checkpoint.load_params(folder, run.mesh)
    saved = saved if own is None else sharding.on_local(saved, own)
    # The stage may have trained a head that this model does not have.
    flat |= {k: kept(k, v, flat[k].dtype) for k, v in tree.flatten(saved).items() if k in flat}
  return tree.unflatten(flat)


def kept(path: str, value, dtype):
  """A parameter that a stage trained, for one that reads it with others of type `dtype`.

  The matrices of the layers and the embeddings have that type: they are almost all of a model, and
  a product in bf16 rounds them anyway. Others are as they were saved: adapters, heads, norms and
  biases have small updates that bf16 would round away.
  """
  return value.astype(dtype if is_matrix(path) else jnp.promote_types(value.dtype, dtype))


def load(run, role: str) -> tuple[TextModel, dict, str]:
  """(model, variables, way of scoring) of a role's model as the run has trained it."""
  model, stages = open_role(run.config, role), systems.trained_stages(run.config, role)
  return model, trained(run, role, model, tuple(stages), trains=''), model.scorer


def made_by(run, role: str, model: TextModel, stages: Iterable[str]) -> dict:
  """What a model's outputs depend on apart from what it reads, for the notes of shards.

  Args:
    model: that of the role, opened as it is used.
    stages: those whose parameters it has.
  """
  settings = model.settings
  start = settings.init_from and earlier.fingerprint(run.config, run.workdir, role)
  return {
    'model': settings.model,
    **inputs.noted(settings.model),
    'parameters': [
      *([start] if start else []),
      *(manifest.read(run.folder(stage))['fingerprint'] for stage in stages),
    ],
    'precision': model.network.precision,
    'tokenizer': digest(model.tokenizer.backend_tokenizer.to_str()),
  }


def digest(text: str) -> str:
  """A short name of a text, for notes."""
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def teacher_stages(config: ConfigDict) -> tuple[str, ...]:
  """The stages that train the teacher, in order."""
  return ('cpt', 'sft')


def student_stages(config: ConfigDict) -> tuple[str, ...]:
  """The stages that train the distilled student, in order."""
  start = config.distill.init_from
  return (start, 'distill') if start else ('distill',)


def check_head(config, stage: str, role: str, model: TextModel) -> None:
  """Raises: UserError if the head that gives the score would stay at its random start."""
  network, pattern = model.network, config[stage].trainable
  if config[role].init_from:
    return
  rows = rows_of(network)
  missing = [path for name in hf.lacking(model.folder, network) for path in rows[name].paths]
  # Biases start at 0, norms at 1.
  random = [path for path in missing if path.endswith('/kernel')]
  left = [path for path in random if not re.search(pattern, f'params/{path}')]
  if left and any(re.search(pattern, path) for path in tree.flatten(network.shapes())):
    more = '|'.join([pattern, *dict.fromkeys(path.partition('/')[0] for path in left)])
    raise UserError(
      f'config.{stage}.trainable={pattern!r}: leaves a part of the head that scores '
      f'({", ".join(left)}) at its random start, since {model.folder} has none; write {more!r}'
    )


def check_scored_head(config, role: str, model: TextModel) -> None:
  """Raises: UserError if the head that scores is neither the folder's nor trained by a stage."""
  network = model.network
  given = 'sft' in config.stages or config[role].init_from
  if network.head != 'rank' or given or config[role].model in tiny.CONFIGS:  # random in any case
    return
  if missing := hf.lacking(model.folder, network):
    likelihood = f"config.{role}.scorer='query_likelihood' for a decoder"
    trains = any(stage.name == 'sft' for stage in systems.of(config).stages)
    advice = f'list sft, name a reranker, or set {likelihood}'
    raise UserError(
      f'config.stages: lists score{" without sft" if trains else ""}, and {model.folder} has no '
      f'head of its own ({", ".join(missing)} missing), so the scores would be random; '
      f'{advice if trains else f"set {likelihood}, or name a reranker"}'
    )


def check_student(model: TextModel) -> None:
  """Raises: UserError for a decoder."""
  if 'lm' in model.network.family.heads:
    raise UserError(
      f'config.student.model: {model.folder} is a decoder, and a student is an encoder '
      '(docs/models.md has the models)'
    )


def training_data(run, stage: str, task: train.Task, source, encode, draw=None) -> streams.Training:
  """The batches of a stage, in an order that depends on its seeds and the size of its source."""
  seed = run.config.seed + systems.model_settings(run.config, stage).seed
  blocks = run.config[stage].data_shards
  return streams.training(source, encode, task.shape, seed=seed, draw=draw, blocks=blocks)


def job(
  run, stage: str, task: train.Task, source, encode, draw=None, unit='pairs'
) -> tuple[train.Job, OfflineFeed]:
  """A stage's task for the configured number of steps, and the feed of its records."""
  c, data = run.config[stage], training_data(run, stage, task, source, encode, draw)
  role = systems.find(run.config, stage).role
  steps = train.steps(c, data, len(source))
  logs = run.config.tensorboard, run.config.wandb_project
  folder, watchdog_s = run.folder(stage), run.config.watchdog_s
  todo = train.Job(
    stage, folder, task.loss, c, steps, unit, watchdog_s, *logs, role=role, model=run.config[role]
  )
  return todo, OfflineFeed(data, run.mesh, c.gradient_accumulation_steps)


def scorer(
  run,
  model: TextModel,
  variables: dict,
  kind: str,
  *,
  rows: int,
  workers: int = 0,
  quantize: str = '',
) -> PointwiseRanker:
  """A ranker that scores by `kind` in batches of `rows` packed rows: `scorer(run, *load(...))`.

  With `quantize` its kernels are of 8 bits, and those of `variables` are deleted.
  """
  network, variables = models.merged(model.network, variables)
  variables = eight_bits.quantised(variables, quantize)
  row_len, watchdog_s = model.settings.row_len, run.config.watchdog_s
  return PointwiseRanker(
    network,
    variables,
    model.prompt(),
    run.mesh,
    rows,
    row_len,
    kind,
    watchdog_s,
    workers,
    model.settings.max_len,
  )
