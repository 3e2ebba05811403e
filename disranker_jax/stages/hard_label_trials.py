"""The weight of the hard labels, chosen on held-out labelled queries: one whole training for each.

Each training has a folder of its own below the stage's, so the stage continues where it was
stopped. The files of the best one become those of the stage.
"""

import dataclasses
import shutil
from pathlib import Path

from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.models import files
from disranker_jax.pipeline.stage import Run, saved_steps
from disranker_jax.progress import say
from disranker_jax.stages import held_out, prepare
from disranker_jax.stages.held_out import NDCG
from disranker_jax.training.validation import title

KEY = 'config.distill.hard_label_weights'
TRIALS = 'trials'


def weights(config) -> tuple[float, ...]:
  """The weights with which the stage trains."""
  c = config.distill
  return tuple(map(float, c.hard_label_weights)) or (c.hard_label_weight,)


def runs(run: Run) -> dict[float, tuple[Run, Path]]:
  """{weight: (the run with this weight alone, where its training writes)}."""
  own = run.folder('distill')
  if not run.config.distill.hard_label_weights:
    return {run.config.distill.hard_label_weight: (run, own)}
  found = {}
  for weight in weights(run.config):
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
      config.distill.update({'hard_label_weight': weight, 'hard_label_weights': ()})
    found[weight] = dataclasses.replace(run, config=config), own / TRIALS / f'{weight:g}'
  return found


def best(run: Run, results: dict[float, dict]) -> dict:
  """The results of the best training, which becomes the stage's; the first of equal ones."""
  if not run.config.distill.hard_label_weights:
    return next(iter(results.values()))
  values = {weight: found['validation'][NDCG] for weight, found in results.items()}
  weight = max(values, key=lambda w: values[w])
  listed = ', '.join(f'{w:g}: {value:.3f}' for w, value in values.items())
  say(f'distill: hard_label_weight={weight:g} is the best ({title(NDCG)} by weight: {listed})')
  processes.first_alone('the best weight', lambda: take(run.folder('distill'), weight))
  tried = {f'{w:g}': value for w, value in values.items()}
  return results[weight] | {'hard_label_weight': weight, 'tried': tried}


def take(folder: Path, weight: float) -> None:
  """Links the checkpoints and logs of a training as those of the stage."""
  source = folder / TRIALS / f'{weight:g}'
  with files.replacing(folder / 'checkpoints') as new:
    files.link_tree(source / 'checkpoints', new)
  for file in source.glob('*'):
    if file.is_file():
      shutil.copy(file, folder / file.name)


def count(config) -> int:
  """How often the student is trained."""
  return len(weights(config))


def kept(run: Run) -> str:
  """What is on disk of the stage, as text."""
  own = run.folder('distill')
  if step := max(saved_steps(own / 'checkpoints'), default=0):
    return f'step {step} is saved'
  trials = [f'{f.name} to step {max(steps)}' for f in sorted((own / TRIALS).glob('*'))
            if (steps := saved_steps(f / 'checkpoints'))]  # fmt: skip
  return f'saved by hard_label_weight: {", ".join(trials)}' if trials else ''


def check(config) -> None:
  """Raises: UserError if there is nothing to choose a weight by."""
  c = config.distill
  if not c.hard_label_weights:
    return
  if not config.validation.share or 'judgements' not in prepare.kinds(config):
    raise UserError(
      f'{KEY}: are chosen on held-out labelled queries; set config.validation.share above 0 and '
      'list a stage that reads judgements'
    )


def check_records(run: Run) -> None:
  """Raises: UserError if too few labelled queries are held out."""
  if run.config.distill.hard_label_weights and not held_out.labelled(run):
    raise UserError(
      f'{KEY}: {held_out.FEW}; raise config.validation.share={run.config.validation.share:g}'
    )
