"""The only training loop: restore, step, save; stops cleanly on SIGTERM, Ctrl-C and NaN."""

import contextlib
import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import optax

from disranker_jax import optimizer, sharding, tree
from disranker_jax.checkpoint import Checkpoints, abstract
from disranker_jax.data import batches
from disranker_jax.errors import UserError
from disranker_jax.progress import Progress, say


class Stopped(Exception):
  """Asked to stop: everything so far is on disk and the same command goes on from there."""


@dataclasses.dataclass(frozen=True)
class Job:
  """One training stage: what is optimised on which data, and where its results go.

  `loss(variables, batch) -> (loss_sum, weight, metrics)`: sums over a batch, so that micro-batches
  add up exactly; `metrics` are means over the batch. `dataset` gives batches without end.
  """

  label: str
  folder: Path
  loss: Callable
  dataset: grain.IterDataset
  settings: object  # a config.training() section
  steps: int
  unit: str = 'pairs'


def steps(settings, dataset: grain.IterDataset, rows: int) -> int:
  """Steps for the asked epochs, from the queries that the first batches hold; at least one."""
  per_step = batches.groups_per_batch(dataset) * settings.accumulate
  count = max(1, round(settings.epochs * rows / per_step))
  return min(count, settings.max_steps) if settings.max_steps else count


def train_step(loss, tx, trained, opt, frozen, micro_batches):
  """One update from micro-batches: sums of losses, weights and gradients, divided once."""

  def total(trained, batch):
    loss_sum, weight, metrics = loss(tree.unflatten(trained | frozen), batch)
    return loss_sum, (weight, metrics)

  loss_sum, weight, grads, metrics = 0.0, 0.0, None, None
  for batch in micro_batches:
    (part, (w, m)), g = jax.value_and_grad(total, has_aux=True)(trained, batch)
    loss_sum, weight = loss_sum + part, weight + w
    grads = g if grads is None else jax.tree.map(jnp.add, grads, g)
    metrics = m if metrics is None else jax.tree.map(jnp.add, metrics, m)
  scale = 1 / jnp.maximum(weight, 1e-9)
  grads = jax.tree.map(lambda g: g * scale, grads)
  updates, opt = tx.update(grads, opt, trained)
  means = {k: v / len(micro_batches) for k, v in metrics.items()}
  means |= {'loss': loss_sum * scale, 'grad_norm': optax.tree.norm(grads)}
  return optax.apply_updates(trained, updates), opt, means


def fit(job: Job, variables, mesh) -> dict:
  """Trains to `job.steps`, from the last checkpoint if there is one; returns the variables.

  Those that were passed in are used up.

  Raises Stopped after SIGTERM or Ctrl-C, and UserError if the loss is no longer finite; in both
  cases the folder holds checkpoints from which the same command goes on to the same result.
  """
  c = job.settings
  trained, frozen = optimizer.split(variables, c.trainable)
  tx = optimizer.adamw(c, job.steps)
  trained, frozen = sharding.put(trained, mesh), sharding.put(frozen, mesh)
  opt = jax.jit(tx.init)(trained)
  where = sharding.shardings(trained, mesh), sharding.shardings(opt, mesh)
  opt = jax.device_put(opt, where[1])
  compiled = jax.jit(
    lambda t, o, f, b: train_step(job.loss, tx, t, o, f, b),
    donate_argnums=(0, 1),
    out_shardings=(*where, None),
  )
  data = iter(job.dataset)
  data.initial_state = data.get_state()
  job.folder.mkdir(parents=True, exist_ok=True)
  with Checkpoints(job.folder / 'checkpoints') as checkpoints, graceful_stop() as stop:
    nested = abstract(tree.unflatten(trained), tree.unflatten(where[0]))
    step, saved, train = checkpoints.restore(nested, {'opt': abstract(opt, where[1])}, data)
    if step:
      trained, opt = tree.flatten(saved), train['opt']
      say(f'{job.label} goes on from step {step}')
    log = MetricsLog(job.folder / 'metrics.jsonl', step)
    late = None  # metrics are read one step late, so that the device never waits for the host
    with Progress(job.label, job.steps, job.unit, step) as progress, log:
      while step < job.steps:
        drawn = [next(data) for _ in range(c.accumulate)]
        examples = sum(int(b['mask_GN'].sum()) for b in drawn)
        placed = [sharding.put_batch(b, mesh) for b in drawn]
        trained, opt, metrics = compiled(trained, opt, frozen, placed)
        step += 1
        report(late, log, progress)
        late = (step, examples, metrics)
        if step % c.save_every == 0 or step == job.steps or stop():
          report(late, log, progress)
          late = None
          checkpoints.save(step, tree.unflatten(trained), {'opt': opt}, data)
        if stop():
          checkpoints.wait()
          raise Stopped(f'{job.label}: stopped at step {step} of {job.steps}')
      checkpoints.wait()
  return tree.unflatten(trained | frozen)


def report(late, log, progress) -> None:
  """Writes a finished step's metrics; a loss that is not finite ends the run."""
  if late is None:
    return
  step, examples, metrics = late
  values = {k: float(v) for k, v in metrics.items()}
  for name in ('loss', 'grad_norm'):
    if not math.isfinite(values[name]):
      raise UserError(
        f'{name} is {values[name]} at step {step}; lower the learning rate or look at the data, '
        'then run again: it goes on from the last checkpoint'
      )
  log.write(step, examples, values)
  progress.update(step, examples, loss=values['loss'])


class MetricsLog:
  """metrics.jsonl, a line a step; lines after the step that is resumed from are cut off."""

  def __init__(self, file: Path, step: int):
    kept = []
    if file.exists():
      lines = file.read_text().splitlines()
      kept = [line for line in lines if line.endswith('}') and json.loads(line)['step'] <= step]
    file.write_text(''.join(line + '\n' for line in kept))
    self._file = file.open('a')
    self._begin = time.monotonic()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._file.close()

  def write(self, step: int, examples: int, values: dict[str, float]) -> None:
    row = {'step': step, 'examples': examples, **values}
    row['seconds'] = round(time.monotonic() - self._begin, 3)
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()


@contextlib.contextmanager
def graceful_stop():
  """Yields a function that says whether SIGTERM or Ctrl-C came; a second Ctrl-C is immediate."""
  asked = []

  def handler(number, frame):
    if asked:
      raise KeyboardInterrupt
    asked.append(number)
    say('stopping after this step; once more to stop at once')

  try:
    before = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:  # not the main thread, as in a notebook's or a server's worker
    before = {}
  try:
    yield lambda: bool(asked)
  finally:
    for number, old in before.items():
      signal.signal(number, old)
