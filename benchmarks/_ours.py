"""Our side of the benches: the stage's compiled step on its own feed, and the scorer from texts."""

import concurrent.futures
import dataclasses
import resource
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import _power as power
from benchmarks._work import Window, Work
from disranker_jax.data.batches import join
from disranker_jax.data.pool import pack
from disranker_jax.devices import memory, processor, sharding, speed
from disranker_jax.models import flops, tree
from disranker_jax.models.load import TextModel
from disranker_jax.rankers.work import Work as Books
from disranker_jax.stages import roles, sft
from disranker_jax.training import optimizer, train
from disranker_jax.training.checkpoint import Checkpoints


class Train:
  """A training stage: turns of steps in the order of `train.fit`, without its logs."""

  def __init__(self, work: Work, steps: int, checkpoint: bool = True):
    self._work, self._steps, self._checkpoint = work, steps, checkpoint

  def start(self) -> dict:
    """Compiles and runs the first step; returns the facts of this side."""
    config, settings = self._work.config, self._work.config[self._work.stage]
    self._mesh = sharding.make_mesh(config.mesh)
    self._side = self._work.open_side()
    job, self._feed = self._work.job(self._side, self._mesh)
    variables = self._side.pretrained(config.seed, self._mesh, settings.trainable)
    jax.block_until_ready(variables)
    if self._work.stage == 'sft':
      variables |= sft.task(config, self._side.network).more(variables)
    peaks = peak_after('loading')
    program = train.Program(
      job.loss, settings, job.steps, variables, self._feed.shapes(), self._feed.blocks, self._mesh
    )
    self._trained, self._frozen = (
      sharding.put(x, self._mesh) for x in optimizer.split(variables, settings.trainable)
    )
    del variables
    self._state = program.start(self._trained)
    begin = time.perf_counter()
    self.compiled = program.lower().compile()
    compile_s = time.perf_counter() - begin
    peaks |= peak_after('compiling')
    self._flags = sharding.flags(self._mesh, stop=False, failed=False)
    self._waiter = concurrent.futures.ThreadPoolExecutor(1)
    self._drawn = self._feed.next()[0]
    count = model_flops(self._side.network, self._drawn[0], settings.trainable)
    begin = time.perf_counter()
    loss = self.warm()['loss']
    first_step_s = time.perf_counter() - begin
    return (
      described(self._mesh, self._side)
      | peaks
      | {
        'compile_s': compile_s,
        'first_step_s': first_step_s,
        'first_loss': loss,
        'compiled_bytes': memory.peak(self.compiled.memory_analysis()),
        'flops': count * settings.gradient_accumulation_steps,
      }
    )

  def _begin(self) -> tuple[list[dict], dict]:
    """Dispatches the waiting batches; returns them and the metrics of the step."""
    drawn = self._drawn
    self._trained, self._state, metrics = self.compiled(
      self._trained, self._state, self._frozen, drawn, self._flags
    )
    return drawn, metrics

  def warm(self) -> dict:
    """Runs one step."""
    loss = float(self._begin()[1]['loss'])
    self._drawn = self._feed.next()[0]
    return {'loss': loss}

  def turn(self) -> dict:
    """Runs some steps; the next step's batches are read meanwhile, as in a run."""
    window = Window(self._steps, on_accelerator())
    begin = last = time.perf_counter()
    cpu = time.process_time()
    batches, flight, idle, done = [], None, 0.0, 0
    while window(done):
      done += 1
      step_begin = time.perf_counter()
      drawn, metrics = self._begin()
      batches += drawn
      ready = self._waiter.submit(finished, metrics)
      if flight is not None:
        last = flight.result()
        idle += max(0.0, step_begin - last)
      flight = ready
      self._drawn = self._feed.next()[0]
    seconds, cpu_s = flight.result() - begin, time.process_time() - cpu
    tokens = sum(int(np.sum(np.asarray(b['segments_BT']) > 0)) for b in batches)
    places = sum(b['segments_BT'].size for b in batches)
    peak = speed.matmul_peak(self._side.network.precision, self._mesh)
    return {
      'seconds': seconds, 'steps': done, 'tokens': tokens, 'places': places,
      'idle_s': idle, 'cpu_s': cpu_s, 'peak_flops': peak,
    }  # fmt: skip

  def end(self) -> dict:
    """Memory, and how long the loop waits for a checkpoint: the second of two."""
    if not self._checkpoint:
      return used()
    state = self._state | {'positions_A': self._feed.positions()}
    params = tree.unflatten(self._trained)
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / 'c') as checkpoints:
      for step in (1, 2):
        begin = time.perf_counter()
        checkpoints.save(step, params, state)
        stall = time.perf_counter() - begin
        checkpoints.wait()
      written = time.perf_counter() - begin
    return used() | {'checkpoint_stall_s': stall, 'checkpoint_write_s': written}


class Score:
  """A scoring stage: turns of queries from their texts to their scores."""

  def __init__(self, work: Work, steps: int):
    self._work, self._steps = work, steps

  def start(self) -> dict:
    config, stage = self._work.config, self._work.stage
    self._mesh = sharding.make_mesh(config.mesh)
    side = self._work.open_side()
    variables = jax.block_until_ready(side.pretrained(config.seed, self._mesh))
    peaks = peak_after('loading')
    rows, run = config[stage].batch_rows, self._work.run(self._mesh)
    quantize = config.score.quantize if stage == 'score' else ''
    self._scorer = roles.scorer(
      run, side, variables, self._work.scorer, rows=rows, quantize=quantize
    )
    self._groups = self._work.groups()
    places = self._steps * rows * side.settings.row_len
    self._queries = self._groups.queries(self._scorer.prompt, places)
    begin = time.perf_counter()
    list(self._scorer([self._groups[0]]))
    took = time.perf_counter() - begin
    peaks |= peak_after('compiling')
    docs = (
      (bundle, numbers)
      for group in (self._groups[i] for i in range(self._queries))
      for bundle, numbers in self._scorer.bundles(group)
    )
    block = next(pack(docs, self._scorer.shape))[1]
    batch = join([block] * self._scorer.blocks)
    self._places = batch['tokens_BT'].size
    return (
      described(self._mesh, side)
      | peaks
      | {
        'compile_s': took - self._scorer.work.seconds,
        'compiled_bytes': memory.peak(self.compiled.memory_analysis()),
        'flops': model_flops(self._scorer.network, batch),
      }
    )

  @property
  def compiled(self):
    """The compiled step; available after the first call."""
    return self._scorer.compiled

  def warm(self) -> dict:
    """Scores about one batch."""
    list(self._scorer(self._groups.take(max(1, self._queries // self._steps))))
    return {}

  def turn(self) -> dict:
    scorer = self._scorer
    scorer.work = work = Books()
    with power.Meter() as meter:
      begin, cpu = time.perf_counter(), time.process_time()
      for _ in scorer(self._stream()):
        pass
      seconds, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    return meter.facts() | {
      'seconds': seconds, 'steps': work.places / self._places, 'tokens': work.tokens,
      'places': work.places, 'pairs': work.scored, 'idle_s': seconds - work.seconds,
      'busy_s': work.seconds + work.idle, 'cpu_s': cpu_s,
      'peak_flops': speed.matmul_peak(scorer.network.precision, self._mesh),
    }  # fmt: skip

  def _stream(self):
    window, done = Window(1, on_accelerator()), 0
    while window(done):
      yield from self._groups.take(self._queries)
      done += 1

  def end(self) -> dict:
    return used()


def model_flops(network, batch: dict, trained: str | None = None) -> float:
  """FLOPs of one real batch; independent of the attention kernel, which may be 'auto'."""
  network = dataclasses.replace(network, attention='xla')
  return flops.count(network, flops.filled(batch), trained).model


def finished(metrics: dict) -> float:
  """Waits for a step's metrics; returns the time."""
  jax.block_until_ready(metrics)
  return time.perf_counter()


def described(mesh, side: TextModel) -> dict:
  return {
    'device': device_kind(),
    'devices': mesh.size,
    'precision': side.network.precision,
    'parameters': side.network.count_params(),
  }


def device_kind() -> str:
  """The accelerator's kind, or the processor with its cores."""
  kind = jax.devices()[0].device_kind
  return kind if jax.default_backend() != 'cpu' else f'cpu: {processor.described()}'


def on_accelerator() -> bool:
  return jax.default_backend() != 'cpu'


def peak_after(phase: str) -> dict[str, int]:
  """The most bytes that the first device has held up to the end of a phase, if it counts them.

  The count cannot be reset, so a later phase shows only what exceeds the earlier ones.
  """
  peak = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
  return {f'{phase}_peak_bytes': peak} if peak else {}


def used() -> dict:
  """Peak memory of the first device, if it counts its bytes, and of the process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  device = stats.get('peak_bytes_in_use')
  return {'memory_bytes': device or process, 'device_bytes': device, 'process_bytes': process}
