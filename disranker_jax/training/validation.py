"""Validation in the training loop: held-out values by step, the best step, and when to stop.

What is measured is a stage's `Measure`; how often, and what follows from it, is the same for all.
Nothing here changes what a step computes. The decisions depend on the values in metrics.jsonl only,
so a run that is continued takes the same ones.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from disranker_jax.data.batches import Shape, join
from disranker_jax.data.bundles import Bundle
from disranker_jax.data.pool import pack
from disranker_jax.devices import processes, sharding
from disranker_jax.errors import UserError
from disranker_jax.progress import amount, say
from disranker_jax.training import logs

PREFIX = 'validation/'  # of its values in metrics.jsonl and TensorBoard
LOSS = 'loss'  # the only value of which less is better
TITLES = {'ndcg': 'nDCG', 'pnr': 'PNR'}  # of kinds of values; others are shown as they are
# With `every=0`: the share of the training's work that validation takes, the work of a step in that
# of a forward pass, and how often it validates.
COST, STEP, LEAST, MOST = 0.05, 3, 2, 20


class Measure(Protocol):
  """What a stage measures on its held-out queries; the same in every process.

  names    of the values, the first one decides; see `title`
  queries  how many there are
  labelled  how many of them have labels, by which rankings are measured
  made_of  a fingerprint of these, '' if there are none
  batches  how many batches it computes
  """

  names: tuple[str, ...]
  queries: int
  labelled: int
  made_of: str
  batches: int

  def __call__(self, variables: dict) -> dict[str, float]:
    """{name: value}; values that are not finite mean nothing."""


class Forward:
  """A function of variables and a batch, on documents that are packed once.

  Args:
    function: (variables, batch) -> arrays. The results are the same in every process.
    documents: (bundle, keys of its documents), the same in every process.
    shape: of a batch, over all devices.
  """

  def __init__(
    self, function: Callable, documents: Iterable[tuple[Bundle, Sequence]], shape: Shape, mesh
  ):
    self._mesh, self._parts = mesh, sharding.even_parts(mesh, shape.rows)
    self._shape = shape.block(self._parts)
    self._packed = list(pack(documents, self._shape))
    self.batches = math.ceil(len(self._packed) / self._parts)
    everywhere = NamedSharding(mesh, PartitionSpec())
    self._function = jax.jit(function, out_shardings=everywhere)

  def __call__(self, variables: dict) -> Iterator[tuple[list[tuple[int, object]], object]]:
    """Per batch: ((the document's row in the results, its key) of all documents, the results)."""
    own, empty = sharding.own_blocks(self._mesh, self._parts), ([], self._shape.zeros())
    for start in range(0, len(self._packed), self._parts):
      blocks = self._packed[start : start + self._parts]
      blocks += [empty] * (self._parts - len(blocks))
      batch = sharding.put_batch(join([blocks[b][1] for b in own]), self._mesh, self._parts)
      with jax.set_mesh(self._mesh):
        found = jax.device_get(self._function(variables, batch))
      size = self._shape.groups  # rows of results per block
      rows = [(b * size + i, k) for b, (keys, _) in enumerate(blocks) for i, k in enumerate(keys)]
      yield rows, found


def interval(settings, steps: int, batches: int) -> int:
  """Steps between validations; with `every=0` as often as costs about COST of the training."""
  if settings.validation.every:
    return settings.validation.every
  times = int(COST * STEP * steps * settings.gradient_accumulation_steps / max(batches, 1))
  return math.ceil(steps / min(max(times, LEAST), MOST))


class Validation:
  """The held-out values of a stage by step, and what follows from them.

  Args:
    label: the stage, for messages.
    settings: its section, with `validation`.
  """

  def __init__(self, label: str, measure: Measure, settings, steps: int):
    c = settings.validation
    self.measure, self.keeps_best, self._patience = measure, c.keep_best, c.patience
    self._label, self._steps = label, steps
    self.every = interval(settings, steps, measure.batches)
    self.main = c.metric or measure.names[0]
    if self.main not in measure.names:
      raise UserError(
        f'config.{label}.validation.metric={self.main!r}: is not measured here; choose of '
        f'{", ".join(measure.names)}'
      )
    self.history: dict[int, dict[str, float]] = {}
    self.seconds = 0.0

  def is_due(self, step: int) -> bool:
    return step % self.every == 0 or step == self._steps

  def take(self, step: int, variables: dict) -> dict[str, float]:
    """Measures after a step; returns the values under their names in the logs."""
    begin = time.monotonic()
    found = self.measure(variables)
    # Rounded as they are when processes share them, so that a restart compares the same numbers.
    values = {k: float(np.float32(v)) for k, v in found.items() if is_value(k, v)}
    self.history[step] = values
    self.seconds += time.monotonic() - begin
    return {PREFIX + name: value for name, value in values.items()}

  def restore(self, folder: Path, step: int) -> None:
    """Takes the values up to a step from the stage's metrics.jsonl, which process 0 reads."""
    if step:
      rows = read(folder / logs.FILE, step) if processes.is_first() else {}
      self.history = shared(rows, self.measure.names)

  @property
  def best(self) -> int:
    """The step with the best value so far, the first one of equal ones; 0: none."""
    best, value = 0, -math.inf
    for step, values in sorted(self.history.items()):
      if self._gain(values) > value:
        best, value = step, self._gain(values)
    return best

  def _gain(self, values: dict[str, float]) -> float:
    value = values.get(self.main, math.nan)
    return -math.inf if math.isnan(value) else -value if self.main == LOSS else value

  @property
  def is_over(self) -> bool:
    """Whether the last `patience` validations brought no gain."""
    since = sum(step > self.best for step in self.history)
    return bool(self._patience) and since >= self._patience

  def results(self) -> dict:
    """What the manifest says about a stage that has ended; says it too."""
    last = max(self.history, default=self._steps)
    step = self.best if self.keeps_best and self.best else last
    values = self.history.get(step, {})
    how = f'the best of {len(self.history)}, ' if step != last else ''
    early = f'; stopped at step {last} of {self._steps}, without gain' if last < self._steps else ''
    say(
      f'{self._label}: {amount(self.measure.queries, "held-out query", "held-out queries")} at '
      f'step {step} ({how}{self.seconds:.1f} s in all): {described(values)}{early}'
    )
    return {
      'steps': last,
      'validation': {
        'queries': self.measure.queries, 'labelled': self.measure.labelled,
        'made_of': self.measure.made_of, 'step': step, 'best_step': self.best,
        'metric': self.main, 'seconds': round(self.seconds, 1),
        # JSON has no infinity; as text, as in results.json.
        **{k: v if math.isfinite(v) else str(v) for k, v in values.items()},
      }
    }  # fmt: skip


def is_value(name: str, value: float) -> bool:
  """Whether a measured number is a value: an infinite PNR is, that of a perfect order."""
  return math.isfinite(value) or (name != LOSS and value == math.inf)


def title(name: str) -> str:
  """The name of a held-out value in texts: 'ndcg@5' -> 'nDCG@5'."""
  kind, at, depth = name.partition('@')
  return TITLES.get(kind, kind) + at + depth


def ndcg(values: Iterable[str]) -> str:
  """The name of the nDCG among the names of held-out values, such as 'ndcg@10'; '': none."""
  return next((name for name in values if name.partition('@')[0] == 'ndcg'), '')


def shown(logged: dict[str, float]) -> dict[str, float]:
  """The values of the logs under the names that the progress line has, beside the training's."""
  values = {title(name.removeprefix(PREFIX)): value for name, value in logged.items()}
  return {f'held-out {k}' if k == title(LOSS) else k: value for k, value in values.items()}


def described(values: dict[str, float]) -> str:
  """'loss 0.31, nDCG@5 0.72'."""
  return ', '.join(f'{title(name)} {value:.4g}' for name, value in values.items())


def read(file: Path, last: int) -> dict[int, dict[str, float]]:
  """The held-out values in a metrics.jsonl up to a step: {step: {name: value}}."""
  return of_steps(logs.read(file), last)


def of_steps(rows: Iterable[dict], last: float = math.inf) -> dict[int, dict[str, float]]:
  """The held-out values in the rows of `logs.read`."""
  found = {}
  for row in rows:
    values = {k.removeprefix(PREFIX): v for k, v in row.items() if k.startswith(PREFIX)}
    if values and row['step'] <= last:
      found[row['step']] = values
  return found


def shared(rows: dict[int, dict[str, float]], names: tuple[str, ...]) -> dict:
  """Process 0's values, in every process."""
  count = int(processes.broadcast(np.array(len(rows))))
  table = np.full((count, 1 + len(names)), np.nan, np.float32)
  for i, (step, values) in enumerate(rows.items()):
    table[i] = [step, *(values.get(name, math.nan) for name in names)]
  table = processes.broadcast(table) if count else table
  return {
    int(step): {n: v for n, v in zip(names, values, strict=True) if not math.isnan(v)}
    for step, *values in table.tolist()
  }
