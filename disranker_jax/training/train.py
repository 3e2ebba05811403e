"""The only training loop: restore, step, save; it stops cleanly on request and skips bad steps."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from disranker_jax.data import batches, streams
from disranker_jax.devices import memory, processes, sharding
from disranker_jax.errors import UserError
from disranker_jax.models import tree
from disranker_jax.progress import Progress, amount, say
from disranker_jax.training import averaging, optimizer
from disranker_jax.training.checkpoint import Checkpoints
from disranker_jax.training.feed import Feed
from disranker_jax.training.logs import Logs
from disranker_jax.training.remedies import as_sentence, called, remedies
from disranker_jax.training.validation import Validation, shown

# A step is bad if its loss or gradient is not finite, or if its gradient norm is more than
# `skip_step_norm_ratio` times the running mean over this many steps. It changes nothing. The mean
# is of the steps that have something to learn from; see Task.
NORM_STEPS = 20
BAD_IN_A_ROW = 3


@dataclasses.dataclass(frozen=True)
class Task:
  """What a stage computes, whatever the data: its loss, and the shape of its batches.

  `loss(variables, batch) -> (loss_sum, weight, metrics)`: sums over a batch, so that micro-batches
  add up exactly. `metrics['examples']` is how many examples the batch holds; all other metrics are
  means over the batch. `metrics['equal_groups']`, if there is one, is the share of the queries that
  teach nothing. `more(variables)` are the variables that the loss needs besides a model's own;
  those in the collection optimizer.FROZEN are never trained.
  """

  loss: Callable
  shape: batches.Shape
  more: Callable[[dict], dict] = lambda variables: {}


@dataclasses.dataclass(frozen=True)
class Job:
  """One training stage: what is optimised, for how long, and where its results go."""

  label: str
  folder: Path
  loss: Callable  # see Task
  settings: object  # a config.training() section
  steps: int
  unit: str = 'pairs'  # of examples, for the progress line
  watchdog_s: float = 0.0  # see processes.Watchdog
  tensorboard: bool = False  # see logs.Logs
  wandb_project: str = ''
  lower: str = ''  # what makes a batch smaller; '': a smaller `batch_rows` or `row_len`
  role: str = ''  # the section of the model
  model: Mapping = dataclasses.field(default_factory=dict)  # the settings in it


def steps(settings, data: streams.Training, rows: int) -> int:
  """Steps for the configured epochs, from the queries in the first batches; at least one."""
  per_step = data.queries_per_batch() * settings.gradient_accumulation_steps
  count = max(1, round(settings.epochs * rows / per_step))
  return min(count, settings.max_steps) if settings.max_steps else count


def gradients(loss, trained, frozen, micro_batches):
  """(gradients, metrics) of the mean loss: sums of losses, weights and gradients, divided once."""

  def total(trained, batch):
    loss_sum, weight, metrics = loss(tree.unflatten(trained | frozen), batch)
    return loss_sum, (weight, metrics)

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


def train_step(loss, tx, skip_norm_ratio, trained, state, frozen, micro_batches, flags):
  """One update of (trained, state) from micro-batches, unless the step is bad; and its metrics.

  `flags` are booleans per process; the metrics hold each one's OR, the same for all processes.
  """
  grads, means = gradients(loss, trained, frozen, micro_batches)
  norm = means['grad_norm']
  good = jnp.isfinite(means['loss']) & jnp.isfinite(norm)
  if skip_norm_ratio:
    good &= (state['good'] < NORM_STEPS) | (norm <= skip_norm_ratio * state['norm'])
  with jax.named_scope('update'):
    updates, opt = tx.update(grads, state['opt'], trained)
  # Where nothing is learned, the norm is 0 or that of a regularizer. With a mean of such norms
  # every step that learns would be bad.
  counted = (norm > 0) & (means.get('equal_groups', 0.0) < 1)
  share = counted / jnp.minimum(state['good'] + 1, NORM_STEPS)
  after = {
    'opt': opt,
    'norm': state['norm'] + share * (norm - state['norm']),
    'good': state['good'] + counted,
    'bad': state['bad'],
  }
  with jax.named_scope('update'):
    after = optax.apply_updates(trained, updates), after
    keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
    trained, kept = jax.tree.map(keep, after, (trained, state))
  kept['bad'] = jnp.where(good, 0, state['bad'] + 1)  # in a row
  means |= {'skipped': 1.0 - good, 'bad': kept['bad']}
  return trained, kept, means | {k: jnp.any(v) for k, v in flags.items()}


class Program:
  """A stage's step, compiled once for the shapes and shardings of its arrays.

  `variables` and `batch` may be arrays or shapes. `trained`, `state`, `frozen`, `batches` and
  `flags` describe everything that a step takes: shapes with shardings.
  """

  def __init__(self, loss, settings, steps: int, variables, batch, blocks: int, mesh):
    self.mesh = mesh
    self.compiled = None
    self.tx = optimizer.make(settings, steps)
    trained, frozen = optimizer.split(variables, settings.trainable)
    self.trained, self.frozen = sharding.abstract(trained, mesh), sharding.abstract(frozen, mesh)
    self.state = sharding.abstract(jax.eval_shape(self._start, self.trained), mesh)
    where = sharding.batch_shardings(batch, mesh, blocks)
    shapes = {
      k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where[k]) for k, v in batch.items()
    }
    self.batches = [shapes] * settings.gradient_accumulation_steps
    spread = NamedSharding(mesh, PartitionSpec(sharding.AXES))
    flag = jax.ShapeDtypeStruct((mesh.size,), bool, sharding=spread)
    self.flags = {'stop': flag, 'failed': flag}
    self._loss = loss
    self._step = functools.partial(train_step, loss, self.tx, settings.skip_step_norm_ratio)

  def _start(self, trained):
    zero = jnp.zeros((), jnp.int32)
    return {'opt': self.tx.init(trained), 'norm': jnp.zeros(()), 'good': zero, 'bad': zero}

  @property
  def average(self) -> dict | None:
    """The part of `state` that is the average of the parameters, if there is one."""
    return averaging.of(self.state)

  def start(self, trained):
    """The state before the first step, created sharded."""
    where = jax.tree.map(lambda x: x.sharding, self.state)
    return jax.jit(self._start, out_shardings=where)(trained)

  def trace_gradients(self):
    """The gradients alone, traced: the part of a step that holds the most at a time."""
    with jax.set_mesh(self.mesh):
      return jax.jit(functools.partial(gradients, self._loss)).trace(
        self.trained, self.frozen, self.batches
      )

  def lower(self):
    """The step, traced: `.compile()` gives what is called with (trained, state, ...)."""
    everywhere = NamedSharding(self.mesh, PartitionSpec())
    kept = jax.tree.map(lambda x: x.sharding, (self.trained, self.state))
    step = jax.jit(self._step, donate_argnums=(0, 1), out_shardings=(*kept, everywhere))
    with jax.set_mesh(self.mesh):
      return step.lower(self.trained, self.state, self.frozen, self.batches, self.flags)


def fit(job: Job, feed: Feed, variables: dict, mesh, validation: Validation | None = None) -> dict:
  """Trains to `job.steps`, from the last checkpoint if there is one.

  Args:
    feed: the batches; see feed.Feed.
    variables: the parameters to start from; they are donated.
    validation: the stage's; afterwards it has the values. None: nothing is held out.

  Returns: the trained variables, averaged with `ema`; those of the best step with `keep_best`.

  Raises: Stopped after SIGTERM or Ctrl-C, and UserError after three bad steps in a row or without
    enough device memory. The folder then holds the checkpoints from which the same command
    continues to the same result.
  """
  c = job.settings
  program = Program(job.loss, c, job.steps, variables, feed.shapes(), feed.blocks, mesh)
  job.folder.mkdir(parents=True, exist_ok=True)
  with (
    memory.limited(
      job.label, lambda: memory.parts(program, program.compiled), needs_less(job, variables, mesh)
    ),
    Checkpoints(job.folder / 'checkpoints', validation) as checkpoints,
    processes.StopRequest() as request,
    processes.Watchdog(job.label, job.watchdog_s) as watchdog,
  ):
    trained, frozen = (sharding.put(x, mesh) for x in optimizer.split(variables, c.trainable))
    del variables
    step, trained, state = begin(job, program, checkpoints, feed, trained)
    if validation:
      validation.restore(job.folder, step)
    compiled = program.compiled = program.lower().compile()
    say(memory.expected(job.label, program, compiled))
    with (
      Progress(job.label, job.steps, job.unit, step, of='steps') as progress,
      Logs(job.folder, step, job.tensorboard, job.wandb_project) as logs,
    ):
      # Reads metrics one step late, so that the device does not wait for the host.
      report = Report(job.label, logs, progress)
      while step < job.steps and not (validation and validation.is_over):
        drawn, names = draw(feed, tree.unflatten(trained | frozen), report)
        flags = sharding.flags(mesh, stop=bool(request), failed=report.failure is not None)
        trained, state, metrics = compiled(trained, state, frozen, drawn, flags)
        step += 1
        stop, is_best = report.late(step, names, metrics), False
        if validation and validation.is_due(step):
          variables = tree.unflatten(averaging.result(trained, state) | frozen)
          stop |= report.now(validation.take(step, variables))
          is_best = validation.keeps_best and validation.best == step
        stop |= bool(request) and jax.process_count() == 1
        watchdog.beat()
        ends = step == job.steps or bool(validation and validation.is_over)
        if step % c.save_every == 0 or ends or stop or is_best:
          stop |= report.now()
          logs.sync()
          params, rest = averaging.swapped(trained, state)
          if ends and validation:
            params = best_of(checkpoints, validation, step, params, mesh)
            trained, state = averaging.swapped(params, rest)
          place = rest | {'positions_A': feed.positions()}
          checkpoints.save(step, tree.unflatten(params), place)
        if stop and not ends:
          checkpoints.wait()
          raise request.stopped(f'{job.label}: stopped at step {step} of {job.steps}')
      checkpoints.wait()
  return tree.unflatten(averaging.result(trained, state) | frozen)


def needs_less(job: Job, variables: dict, mesh) -> str:
  """What makes a step fit into memory."""
  c, paths = job.settings, tree.flatten(optimizer.own(variables))
  batch = job.lower or (
    f'lower config.{job.label}.batch_rows (now {c.batch_rows}; gradient_accumulation_steps keeps '
    f"the update's size) or {called(job.role, 'row_len')}"
  )
  found = remedies(job.label, job.role, c, job.model, paths, trains=True, mesh=mesh)
  return as_sentence(found, batch)


def begin(job: Job, program: Program, checkpoints: Checkpoints, feed: Feed, trained: dict):
  """(step, trained, state) of the last checkpoint, else of the start from `trained`."""
  step, params, state = restore(checkpoints, program, feed)
  if not step:
    return 0, trained, program.start(trained)
  say(f'{job.label} continues from step {step}')
  return step, params, state


def draw(feed: Feed, variables: dict, report: 'Report'):
  """(the next batch, its names); if it fails in one of several processes, one without rows.

  All processes take the step that tells the others of it.
  """
  try:
    return feed.next(variables)
  except UserError as e:
    if jax.process_count() == 1:
      raise
    report.failure = e
    return feed.nothing()


def best_of(checkpoints: Checkpoints, validation: Validation, step: int, params: dict, mesh):
  """What is saved as the last parameters: those of the best step if it is kept and readable."""
  if not validation.keeps_best or validation.best in (0, step):
    return params
  checkpoints.wait()
  if best := checkpoints.load(validation.best, mesh):
    return tree.flatten(best)
  say(f'the best checkpoint, step {validation.best}, cannot be read; the last one is used')
  return params


def restore(checkpoints: Checkpoints, program: Program, feed: Feed):
  """(step, trained, state) of the newest readable checkpoint; moves the feed to its place."""
  positions = feed.positions()
  like = jax.ShapeDtypeStruct(positions.shape, positions.dtype, sharding=positions.sharding)
  params, rest = averaging.swapped(program.trained, program.state)
  wanted = rest | {'positions_A': like}
  step, params, state = checkpoints.restore(tree.unflatten(params), wanted)
  if not step:
    return 0, None, None
  feed.seek(state.pop('positions_A'))
  return step, *averaging.swapped(tree.flatten(params), state)


class Report:
  """Passes finished steps' metrics to the logs; ends a run after too many bad steps."""

  def __init__(self, label: str, logs: Logs, progress: Progress):
    self._label, self._logs, self._progress = label, logs, progress
    self._first = True
    self.failure: UserError | None = None  # of this process, until all processes know of it
    self._waiting = None
    self._shown: dict[str, float] = {}  # the last held-out values
    self._bad: list[list[str]] = []

  def late(self, step: int, names: list[str], metrics: dict) -> bool:
    """Takes a step that has just started and reports the previous one; whether all must stop."""
    stop = self.now()
    self._waiting = step, names, metrics
    return stop

  def now(self, held_out: dict[str, float] | None = None) -> bool:
    """Reports the waiting step, with what was measured after it; blocks until it is finished."""
    if self._waiting is None:
      return False
    (step, names, metrics), self._waiting = self._waiting, None
    values = {k: float(v) for k, v in metrics.items()}
    if values.pop('failed'):
      raise self.failure or UserError('another process stopped with an error; see its message')
    stop = bool(values.pop('stop'))
    examples, bad = int(values.pop('examples')), int(values.pop('bad'))
    if held_out:
      values |= held_out
      self._shown = shown(held_out)
    self._logs.write(step, examples, values)
    self._progress.update(step, examples, loss=values['loss'], **self._shown)
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
      queries = ', '.join(repr(n) for batch in self._bad for n in batch[:8])
      raise UserError(
        f'{amount(bad, "bad step")} in a row, the last one step {step} ({what}); lower the '
        f'learning rate or look at the data; the batches held the queries {queries}'
      )
