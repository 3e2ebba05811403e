"""Opens everything that the stages to come need, before the first of them starts.

An error in a name or a size costs seconds here; at its own stage it would cost the hours before it.
No parameters are read and nothing is computed.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from disranker_jax.devices import memory, processes
from disranker_jax.errors import UserError
from disranker_jax.models import hf, tree
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline import steps, systems
from disranker_jax.pipeline.stage import Run, Stage, Use, saved_steps
from disranker_jax.progress import say
from disranker_jax.report import tables
from disranker_jax.training import logs, optimizer, remedies
from disranker_jax.training.settings import ADAPTERS

# Checkpoints of a stage that are on disk at a time: two, and one that is being written. With
# validation.keep_best there is one more, the best one.
KEPT = 3
SMALLER = 'take a smaller model or more devices with a larger config.mesh.fsdp'


@dataclasses.dataclass(frozen=True)
class Opened:
  """A model of a stage, and the step that the stage runs with it."""

  stage: Stage
  use: Use
  model: TextModel
  step: steps.Step


def everything(run: Run, stages: Sequence[Stage], rerun: Sequence[str] = ()) -> list[Opened]:
  """Opens the models of the stages and checks what they will meet; the same in every process.

  Models whose part of a stage is done are left out, unless `rerun` names the stage.

  Raises: UserError that names the key of the config, in every process if one of them fails.
  """
  opened, error = [], None
  try:
    opened = [one for stage in stages for one in models_of(run, stage, stage.name in rerun)]
    refuse_too_large(run, opened)
    if processes.is_first():
      refuse_full_disk(run, opened)
      if any(stage.task for stage in stages):
        logs.check_login(run.config.wandb_project)
  except UserError as e:
    error = e
  if processes.any_of(error is not None):
    raise error or UserError('another process cannot open the models; see its message')
  describe(opened)
  return opened


def models_of(run: Run, stage: Stage, again: bool = False) -> list[Opened]:
  """The models that a stage opens; `again`: also those whose part of it is done."""
  config, found = run.config, {}
  for use in stage.uses(config):
    if use.is_done(run) and not again:
      continue
    with naming(config, use.role):
      model = use.open()
      hf.check(model.folder, model.network, list(config[use.role].layers) or None)
      model.prompt()
    found[use.label] = use, model
  stage.check_models(config, {label: model for label, (_, model) in found.items()})
  return [
    Opened(stage, use, model, step_of(run, stage, use, model)) for use, model in found.values()
  ]


def step_of(run: Run, stage: Stage, use: Use, model: TextModel) -> steps.Step:
  """What the stage runs with the model: it trains its own and scores with any other."""
  config = run.config
  with naming_stage(config, stage, use):
    if stage.task and use.role == stage.role:
      return steps.training(config, stage, model.network, run.mesh)
    if use.texts:
      return steps.writer(model.settings, model.network, use.texts(model), run.mesh)
    settings, kind = config[use.role], model.scorer
    opened = steps.by_pairs(settings, kind, use.rows, run.mesh)
    return steps.scoring(settings, model.network, opened, run.mesh, use.quantize)


@contextlib.contextmanager
def naming_stage(config: ConfigDict, stage: Stage, use: Use | None = None) -> Iterator[None]:
  """Adds to an error about a key of a step, such as batch_rows, in which section the key is."""
  try:
    yield
  except UserError as e:
    if str(e).startswith('config.'):
      raise
    keys = rows_of(config, stage, use)
    if keys.endswith('.batch_rows'):
      raise UserError(f'{keys.removesuffix("batch_rows")}{e}') from e
    raise UserError(f'{keys}: the rows of its batches follow from this: {e}') from e


def rows_of(config: ConfigDict, stage: Stage, use: Use | None = None) -> str:
  """The keys from which the rows of a stage's batches follow, such as 'config.cpt.batch_rows'."""
  if use and use.made_of:
    return ' or '.join(f'config.{key}' for key in use.made_of)
  if stage.rows != 'batch_rows' or 'batch_rows' in config[stage.section]:
    return f'config.{stage.section}.{stage.rows}'
  return f'config.{systems.of(config).table.stage}.{stage.rows}'


@contextlib.contextmanager
def naming(config: ConfigDict, role: str) -> Iterator[None]:
  """Adds to an error which key of the config it is about: by default the model's name."""
  try:
    yield
  except UserError as e:
    key, text = str(e).partition('=')[0], str(e)
    if text.startswith('config.'):
      raise
    if key in config[role]:
      raise UserError(f'config.{role}.{text}') from e
    raise UserError(f'config.{role}.model={config[role].model!r}: {text}') from e


def describe(opened: Sequence[Opened]) -> None:
  """One line per model: its name, how many of its layers are used, its size.

  One more for a stage that trains adapters with all that they are added to, as the default does.
  """
  said = set()
  for one in opened:
    settings, network = one.model.settings, one.model.network
    if one.use.role in said:
      continue
    said.add(one.use.role)
    have = hf.open_config(one.model.folder).layers
    some = f'{network.config.layers} of its {have}' if settings.layers else f'all {have}'
    size = tables.short(network.count_params())
    say(f'{one.use.role}: {settings.model}, {some} layers, {size} parameters')
  for one in opened:
    if one.step.trained and optimizer.adapted(one.model.network.shapes(), one.step.trained):
      stage, role, rank = one.stage.name, one.use.role, one.model.network.lora_rank
      say(
        f'warning: config.{stage}.trainable={one.step.trained!r} trains the adapters of '
        f'config.{role}.lora_rank={rank} and the parameters that they are added to; write '
        f'{ADAPTERS!r} for adapters and heads alone'
      )


def refuse_too_large(run: Run, opened: Sequence[Opened]) -> None:
  """Raises: UserError if parameters and moments alone exceed the memory."""
  limit = memory.limit()
  for one in opened:
    held = {k: n for k, n in one.step.held.items() if k != 'batch'}
    needed = memory.of_process(sum(held.values()))
    if limit and needed > limit:
      less = [remedy for remedy in remedies_of(run, one) if remedy.lessens in remedies.HELD]
      raise UserError(
        f'config.{one.use.role}.model={one.model.settings.model!r}: {one.stage.name} needs '
        f'{memory.listed(held)} per device, before activations, and this machine has '
        f'{memory.size(limit)}; {remedies.as_sentence(less, last=SMALLER)}'
      )


def remedies_of(run: Run, one: Opened) -> list[remedies.Remedy]:
  """What makes the step smaller, the smallest loss of speed first."""
  section, role, trains = one.stage.section, one.use.role, bool(one.step.trained)
  paths = tree.flatten(one.model.network.shapes()) if trains else ()
  settings, model = run.config.get(section, {}), run.config[role]
  return remedies.remedies(section, role, settings, model, paths, trains=trains, mesh=run.mesh)


def refuse_full_disk(run: Run, opened: Sequence[Opened]) -> None:
  """Raises: UserError if the disk of the workdir has no room for the checkpoints to come."""
  needed = 0
  for one in opened:
    there = len(saved_steps(run.folder(one.stage.name) / 'checkpoints'))
    best = 1 if one.step.trained and run.config[one.stage.name].validation.keep_best else 0
    times = one.stage.trainings(run.config)
    needed += one.step.saved * max(times * (KEPT + best) - there, 0)
  place = next(p for p in [run.workdir, *run.workdir.parents] if p.exists())
  free = shutil.disk_usage(place).free
  if needed > free:
    names = ', '.join(dict.fromkeys(o.stage.name for o in opened if o.step.saved))
    raise UserError(
      f'--workdir {run.workdir}: has {memory.size(free)} free, and the checkpoints of {names} need '
      f'{memory.size(needed)}; free some, write elsewhere (--workdir), or train fewer parameters '
      f'(lora_rank=16 of a model with trainable={ADAPTERS!r} of its stages)'
    )
