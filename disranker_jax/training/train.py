"""The only training loop: restore, step, save; stops cleanly when asked to, and skips bad steps."""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from disranker_jax.data import batches
from disranker_jax.devices import memory, processes, sharding
from disranker_jax.errors import UserError
from disranker_jax.models import tree
from disranker_jax.progress import Progress, say
from disranker_jax.training import optimizer
from disranker_jax.training.checkpoint import Checkpoints

# A step is bad if its loss or gradient is not finite, or if its gradient's norm is `explode` times
# the running mean, once that is one of this many steps. It changes nothing and is counted.
NORM_STEPS = 20
BAD_IN_A_ROW = 3


@dataclasses.dataclass(frozen=True)
class Task:
  """What a stage computes, whatever the data: its loss, and the shape of the batches it takes.

  `loss(variables, batch) -> (loss_sum, weight, metrics)`: sums over a batch, so that micro-batches
  add up exactly; `metrics` are means over the batch.
  """

  loss: Callable
  shape: batches.Shape


@dataclasses.dataclass(frozen=True)
class Job:
  """One training stage: what is optimised on which data, and where its results go."""

  label: str
  folder: Path
  loss: Callable  # see Task
  data: batches.Training  # batches without end
  settings: object  # a config.training() section
  steps: int
  unit: str = 'pairs'
  watchdog_s: float = 0.0  # see processes.Watchdog


def steps(settings, data: batches.Training, rows: int) -> int:
  """Steps for the asked epochs, from the queries that the first batches hold; at least one."""
  per_step = data.queries_per_batch() * settings.gradient_accumulation_steps
  count = max(1, round(settings.epochs * rows / per_step))
  return min(count, settings.max_steps) if settings.max_steps else count


def gradients(loss, trained, frozen, micro_batches):
  """(gradients, metrics) of the mean loss: sums of losses, weights and gradients, divided once."""

  def total(trained, batch):
    loss_sum, weight, metrics = loss(tree.unflatten(trained | frozen), batch)
    return loss_sum, (weight, metrics | {'examples': jnp.sum(batch['mask_GN'])})

  def add(sums, batch):
    (loss_sum, (weight, metrics)), grads = jax.value_and_grad(total, has_aux=True)(trained, batch)
    new = (loss_sum, weight, grads, metrics)
    return jax.tree.map(lambda s, n: s + n.astype(s.dtype), sums, new), None

  if len(micro_batches) == 1:
    (loss_sum, (weight, metrics)), grads = jax.value_and_grad(total, has_aux=True)(
      trained, micro_batches[0]
    )
  else:
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *micro_batches)
    like = jax.eval_shape(total, trained, micro_batches[0])
    zeros = lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))  # noqa: E731
    start = (zeros(like[0]), zeros(like[1][0]), *jax.tree.map(zeros, (trained, like[1][1])))
    (loss_sum, weight, grads, metrics), _ = jax.lax.scan(add, start, stacked)
  scale = 1 / jnp.maximum(weight, 1e-9)
  grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
  examples = metrics.pop('examples')
  means = {k: v / len(micro_batches) for k, v in metrics.items()}
  means |= {'loss': loss_sum * scale, 'grad_norm': optax.tree.norm(grads), 'examples': examples}
  return grads, means


def train_step(loss, tx, explode, trained, state, frozen, micro_batches, asked):
  """One update of (trained, state) from micro-batches, unless the step is bad; and its metrics.

  `asked` are the processes' flags; the metrics hold their maximum, so that all see the same.
  """
  grads, means = gradients(loss, trained, frozen, micro_batches)
  norm = means['grad_norm']
  good = jnp.isfinite(means['loss']) & jnp.isfinite(norm)
  if explode:
    good &= (state['good'] < NORM_STEPS) | (norm <= explode * state['norm'])
  with jax.named_scope('update'):
    updates, opt = tx.update(grads, state['opt'], trained)
  share = 1 / jnp.minimum(state['good'] + 1, NORM_STEPS)
  after = {
    'opt': opt,
    'norm': state['norm'] + share * (norm - state['norm']),
    'good': state['good'] + 1,
    'bad': state['bad'],
  }
  with jax.named_scope('update'):
    after = optax.apply_updates(trained, updates), after
    keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
    trained, kept = jax.tree.map(keep, after, (trained, state))
  kept['bad'] = jnp.where(good, 0, state['bad'] + 1)  # in a row
  means |= {'skipped': 1.0 - good, 'bad': kept['bad']}
  return trained, kept, means | {k: jnp.any(v) for k, v in asked.items()}


class Program:
  """A stage's step, compiled once for the shapes and places of its arrays.

  `variables` and `batch` may be arrays or shapes. Everything that a step takes is described by
  `trained`, `state`, `frozen`, `batches` and `asked`: shapes with shardings.
  """

  def __init__(self, loss, settings, steps: int, variables, batch, blocks: int, mesh):
    self.mesh = mesh
    self.tx = optimizer.make(settings, steps)
    trained, frozen = optimizer.split(variables, settings.trainable)
    self.trained, self.frozen = sharding.abstract(trained, mesh), sharding.abstract(frozen, mesh)
    self.state = sharding.abstract(jax.eval_shape(self._start, self.trained), mesh)
    where = sharding.batch_shardings(batch, mesh, blocks)
    shapes = {
      k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where[k]) for k, v in batch.items()
    }
    self.batches = [shapes] * settings.gradient_accumulation_steps
    flag = NamedSharding(mesh, PartitionSpec(sharding.AXES))
    said = jax.ShapeDtypeStruct((mesh.size,), bool, sharding=flag)
    self.asked = {'stop': said, 'failed': said}
    self._step = functools.partial(train_step, loss, self.tx, settings.skip_step_norm_ratio)

  def _start(self, trained):
    none = jnp.zeros((), jnp.int32)
    return {'opt': self.tx.init(trained), 'norm': jnp.zeros(()), 'good': none, 'bad': none}

  def start(self, trained):
    """The state before the first step, born where it belongs."""
    where = jax.tree.map(lambda x: x.sharding, self.state)
    return jax.jit(self._start, out_shardings=where)(trained)

  def lower(self):
    """The step, traced: `.compile()` gives what is called with (trained, state, ...)."""
    everywhere = NamedSharding(self.mesh, PartitionSpec())
    kept = jax.tree.map(lambda x: x.sharding, (self.trained, self.state))
    step = jax.jit(self._step, donate_argnums=(0, 1), out_shardings=(*kept, everywhere))
    with jax.set_mesh(self.mesh):
      return step.lower(self.trained, self.state, self.frozen, self.batches, self.asked)


class Feed:
  """Batches on the mesh, read by this process for its own blocks; knows where it is in the data."""

  def __init__(self, data: batches.Training, mesh, accumulate: int):
    self._mesh, self._blocks, self._accumulate = mesh, data.blocks, accumulate
    self._streams = [data.stream(b) for b in sharding.own_blocks(mesh, data.blocks)]
    self._shape = data.shape

  def next(self) -> tuple[list[dict], list[str]]:
    """(micro-batches, names of this process's queries in them)."""
    placed, names = [], []
    for _ in range(self._accumulate):
      drawn = [stream.next() for stream in self._streams]
      names += [name for _, block in drawn for name in block]
      whole = batches.join([block for block, _ in drawn])
      placed.append(sharding.put_batch(whole, self._mesh, self._blocks))
    return placed, names

  def nothing(self) -> tuple[list[dict], list[str]]:
    """Batches without queries, for a process that has failed but that others still wait for."""
    empty = self._shape.zeros(len(self._streams))
    placed = sharding.put_batch(empty, self._mesh, self._blocks)
    return [placed] * self._accumulate, []

  def positions(self) -> jax.Array:
    """How many queries each block has used, [A]: the place in the data, on any number of hosts."""
    own = np.array([s.position for s in self._streams], np.int32)
    return sharding.put_batch({'positions_A': own}, self._mesh, self._blocks)['positions_A']

  def seek(self, positions_A: jax.Array) -> None:
    own = sharding.own_part(positions_A, self._mesh, self._blocks)
    for stream, position in zip(self._streams, own.tolist(), strict=True):
      stream.seek(position)


def fit(job: Job, variables, mesh) -> dict:
  """Trains to `job.steps`, from the last checkpoint if there is one; returns the variables.

  Those that were passed in are used up.

  Raises Stopped after SIGTERM or Ctrl-C, and UserError after three bad steps in a row; in both
  cases the folder holds checkpoints from which the same command goes on to the same result.
  """
  c = job.settings
  empty = job.data.shape.zeros(job.data.blocks)
  program = Program(job.loss, c, job.steps, variables, empty, job.data.blocks, mesh)
  trained, frozen = (sharding.put(x, mesh) for x in optimizer.split(variables, c.trainable))
  del variables
  feed = Feed(job.data, mesh, c.gradient_accumulation_steps)
  job.folder.mkdir(parents=True, exist_ok=True)
  with (
    Checkpoints(job.folder / 'checkpoints') as checkpoints,
    processes.StopRequest() as asked,
    processes.Watchdog(job.label, job.watchdog_s) as watchdog,
  ):
    step, params, saved = restore(checkpoints, program, feed)
    if step:
      trained, state = params, saved
      say(f'{job.label} goes on from step {step}')
    else:
      state = program.start(trained)
    compiled = program.lower().compile()
    say(memory.expected(job.label, program, compiled))
    with Progress(job.label, job.steps, job.unit, step) as progress, MetricsLog(job, step) as log:
      # It reads a step late, so that the device waits for no host.
      report = Report(job.label, log, progress)
      while step < job.steps:
        try:
          drawn, names = feed.next()
        except UserError as e:
          if jax.process_count() == 1:
            raise
          drawn, names = feed.nothing()
          report.failure = e
        flags = sharding.flags(mesh, stop=bool(asked), failed=report.failure is not None)
        trained, state, metrics = compiled(trained, state, frozen, drawn, flags)
        step += 1
        stop = report.late(step, names, metrics) or (bool(asked) and jax.process_count() == 1)
        watchdog.beat()
        if step % c.save_every == 0 or step == job.steps or stop:
          report.now()
          log.sync()
          place = state | {'positions_A': feed.positions()}
          checkpoints.save(step, tree.unflatten(trained), place)
        if stop and step < job.steps:
          checkpoints.wait()
          raise asked.stopped(f'{job.label}: stopped at step {step} of {job.steps}')
      checkpoints.wait()
  return tree.unflatten(trained | frozen)


def restore(checkpoints: Checkpoints, program: Program, feed: Feed):
  """(step, trained, state) of the newest readable checkpoint, and the data at its place."""
  positions = feed.positions()
  like = jax.ShapeDtypeStruct(positions.shape, positions.dtype, sharding=positions.sharding)
  wanted = program.state | {'positions_A': like}
  step, params, state = checkpoints.restore(tree.unflatten(program.trained), wanted)
  if not step:
    return 0, None, None
  feed.seek(state.pop('positions_A'))
  return step, tree.flatten(params), state


class Report:
  """Finished steps' metrics, to the log and to the person; ends a run whose steps are all bad."""

  def __init__(self, label: str, log: 'MetricsLog', progress: Progress):
    self._label, self._log, self._progress = label, log, progress
    self._first = True
    self.failure: UserError | None = None  # of this process, until all have been told
    self._waiting = None
    self._bad: list[list[str]] = []

  def late(self, step: int, names: list[str], metrics: dict) -> bool:
    """Takes a step that was just begun and reports the one before; whether to stop, for all."""
    stop = self.now()
    self._waiting = step, names, metrics
    return stop

  def now(self) -> bool:
    """Reports the step that waits; waits for the device."""
    if self._waiting is None:
      return False
    (step, names, metrics), self._waiting = self._waiting, None
    values = {k: float(v) for k, v in metrics.items()}
    if values.pop('failed'):
      raise self.failure or UserError('another process stopped with an error; see its message')
    stop = bool(values.pop('stop'))
    examples, bad = int(values.pop('examples')), int(values.pop('bad'))
    self._log.write(step, examples, values)
    self._progress.update(step, examples, loss=values['loss'])
    if self._first:
      self._first = False
      say(memory.measured(self._label))
    self._bad = [*self._bad, names] if bad else []
    if bad:
      self._say_bad(step, bad, values)
    return stop

  def _say_bad(self, step: int, bad: int, values: dict[str, float]) -> None:
    what = f'loss {values["loss"]:.4g}, gradient norm {values["grad_norm"]:.4g}'
    say(f'step {step} is bad ({what}) and changes nothing')
    if bad >= BAD_IN_A_ROW:
      named = ', '.join(repr(n) for batch in self._bad for n in batch[:8])
      raise UserError(
        f'{bad} bad steps in a row, the last one step {step} ({what}); lower the learning '
        f'rate or look at the data; the batches held the queries {named}'
      )


class MetricsLog:
  """metrics.jsonl, a line a step; lines after the step that is resumed from are cut off."""

  def __init__(self, job: Job, step: int):
    self._file = None
    self._begin = time.monotonic()
    if not processes.is_first():
      return
    file = job.folder / 'metrics.jsonl'
    kept = []
    if file.exists():
      lines = file.read_text().splitlines()
      kept = [line for line in lines if line.endswith('}') and json.loads(line)['step'] <= step]
    file.write_text(''.join(line + '\n' for line in kept))
    self._file = file.open('a')

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._file:
      self._file.close()

  def write(self, step: int, examples: int, values: dict[str, float]) -> None:
    if not self._file:
      return
    row = {'step': step, 'examples': examples, **values}
    row['seconds'] = round(time.monotonic() - self._begin, 3)
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()

  def sync(self) -> None:
    """Before a checkpoint: what it will not do again must be on disk, also on a mounted bucket."""
    if self._file:
      os.fsync(self._file.fileno())
