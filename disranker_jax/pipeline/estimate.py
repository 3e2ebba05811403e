"""What the stages to come will take: time, from a short measurement on this machine, and memory.

Time is FLOPs by the speed of a large matrix product and the share of it that a step reaches. Memory
is what a step holds and what its traced program computes. A token that is written also takes
the time of reading parameters and caches. Nothing is compiled but the product.
"""

import dataclasses
import functools
import math
import resource
from collections.abc import Callable, Sequence

import jax

from disranker_jax.data import batches
from disranker_jax.data.records import Click, Group
from disranker_jax.data.spaced import spaced
from disranker_jax.devices import memory, sharding, speed
from disranker_jax.models import attention_choice
from disranker_jax.pipeline import manifest, opening, steps, systems
from disranker_jax.pipeline.opening import Opened
from disranker_jax.pipeline.stage import Run, saved_steps
from disranker_jax.pipeline.steps import Step
from disranker_jax.progress import amount, clock, say
from disranker_jax.stages import prepare
from disranker_jax.training.remedies import as_sentence
from disranker_jax.training.settings import LEAST, shortened
from disranker_jax.training.validation import STEP, interval

SAMPLE = 64  # records whose texts are tokenised
FULL = 0.92  # of a batch's positions hold a token
# Share of the product's speed that a step reaches (docs/performance.md has measurements), and the
# seconds that a model takes to load and to compile.
EFFICIENCY = {'training': 0.45, 'scoring': 0.55, 'writing': 0.55}
START_S = {'training': 8.0, 'scoring': 3.0, 'writing': 12.0}

Records = Callable[[str], Sequence[Click | Group]]  # those of a kind


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one stage takes: seconds and bytes of this process, and how much work that is."""

  stage: str
  seconds: float
  bytes: int
  work: str


class Estimate:
  """The estimate for the models of the stages to come, in one process."""

  def __init__(self, run: Run, opened: Sequence[Opened]):
    self._run, self.opened = run, opened
    # What a process on a CPU holds before the first stage, the libraries; devices start empty.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    self._before = before if jax.default_backend() == 'cpu' else 0

  @functools.cached_property
  def _peaks(self) -> dict[str, float]:
    """FLOP/s by precision."""
    names = {one.model.network.precision for one in self.opened}
    names |= {one.step.quantize for one in self.opened if one.step.quantize}
    return {name: speed.matmul_typical(name, self._run.mesh) for name in sorted(names)}

  @functools.cached_property
  def _rate(self) -> float:
    """Bytes per second that a device reads."""
    return speed.reading(self._run.mesh)

  @functools.cached_property
  def bytes_of(self) -> list[int]:
    """Per model, the most bytes that its step takes."""
    split = sharding.parts(self._run.mesh)
    return [
      self._before + memory.of_process(sum(one.step.held.values()) + live(one.step) // split)
      for one in self.opened
    ]

  def say_memory(self) -> None:
    """A line if a stage will probably not fit, and a warning for each such stage.

    The table of `say_time` has the memory of all stages.
    """
    most: dict[str, int] = {}
    largest: dict[str, Opened] = {}
    for one, needed in zip(self.opened, self.bytes_of, strict=True):
      if needed > most.get(one.stage.name, 0):
        most[one.stage.name], largest[one.stage.name] = needed, one
    limit = memory.limit()
    too_large = [name for name, needed in most.items() if limit and needed > limit]
    if too_large:
      listed = ', '.join(f'{name} {gib(needed)}' for name, needed in most.items())
      say(f'estimate: memory of a device, of {gib(limit)}: {listed}')
    for name in too_large:
      one = largest[name]
      keys = opening.rows_of(self._run.config, one.stage, one.use)
      less = opening.remedies_of(self._run, one)
      advice = as_sentence(less, f"lower {keys} or the model's row_len")
      say(f'warning: {name} will probably not fit into {gib(limit)}: {advice}')

  def say_time(self, records: Records) -> None:
    """A table of the stages, once the data are prepared."""
    costs = self.costs(records)
    if not costs:
      return
    rates = ', '.join(f'{peak / 1e9:,.0f} GFLOP/s in {name}' for name, peak in self._peaks.items())
    say(f'estimate for {manifest.device()} (matrix products: {rates}):')
    for cost in [*costs, whole(costs)]:
      say(f'  {cost.stage:12}{clock(cost.seconds):>8}  {gib(cost.bytes):>9}  {cost.work}'.rstrip())

  def costs(self, records: Records) -> list[Cost]:
    """One per stage, in order."""
    by_stage: dict[str, list[Cost]] = {}
    for one, needed in zip(self.opened, self.bytes_of, strict=True):
      by_stage.setdefault(one.stage.name, []).append(self._cost(one, needed, records))
    return [
      Cost(name, sum(c.seconds for c in costs), max(c.bytes for c in costs),
           ', '.join(c.work for c in costs[:1]) + f', {len(costs)} models' * (len(costs) > 1))
      for name, costs in by_stage.items()
    ]  # fmt: skip

  def _cost(self, one: Opened, needed: int, records: Records) -> Cost:
    seconds, said = 0.0, []
    if not one.step.texts:
      count, work = steps_of(self._run, one, records)
      seconds += START_S[kind_of(one.step)] + count * self._seconds(one, one.step)
      said.append(work)
    if one.use.writes:
      batches, work = one.use.writes(self._run, one.model)
      for texts, count in batches:
        model = one.model
        step = steps.writer(model.settings, model.network, texts, self._run.mesh)
        seconds += START_S[kind_of(step)] + count * self._seconds(one, step)
      said.append(work)
    return Cost(one.stage.name, seconds, needed, ', '.join(filter(None, said)))

  def _seconds(self, one: Opened, step: Step) -> float:
    """The time of a step with the model."""
    network = step.network
    if network.attention == 'auto':
      where, size = attention_choice.device_of(self._run.mesh), network.config.head_dim
      kernel, _ = attention_choice.choose('auto', where, network.precision, size)
      step = dataclasses.replace(step, network=dataclasses.replace(network, attention=kernel))
    precision = one.model.network.precision
    names = precision, step.quantize or precision
    return seconds_of(step, [self._peaks[name] for name in names], lambda: self._rate)


def seconds_of(step: Step, peaks: Sequence[float], rate: Callable[[], float]) -> float:
  """The time of a step.

  Args:
    peaks: FLOP/s of the products that are not of 8 bits, and of those that are.
    rate: gives the bytes per second that a device reads; it is called only for what writes.
  """
  reached = (peak * EFFICIENCY[kind_of(step)] for peak in peaks)
  return step.flops.seconds(*reached) + (step.read / rate() if step.read else 0.0)


def kind_of(step: Step) -> str:
  """The kind of work, a key of EFFICIENCY."""
  return 'training' if step.trained else 'writing' if step.texts else 'scoring'


def whole(costs: Sequence[Cost]) -> Cost:
  return Cost('in all', sum(c.seconds for c in costs), max(c.bytes for c in costs), '')


def gib(count: int) -> str:
  """As many digits as an estimate deserves."""
  return f'{count / 2**30:.1f} GiB'


def live(step: Step) -> int:
  """The most bytes of values that a step computes, over all devices."""
  return memory.live(step.trace().jaxpr.jaxpr)


def steps_of(run: Run, one: Opened, records_of: Records) -> tuple[float, str]:
  """(steps to come, what they do) of a model, from the prepared records."""
  config = run.config[one.stage.section]
  kinds = one.use.kinds or one.stage.reads_records(run.config)
  if one.use.tokens:
    computed, said = one.use.tokens(run)
    return math.ceil(computed / (one.step.batch['tokens_BT'].size * FULL)), said
  queries, pairs, tokens = 0, 0.0, 0.0
  for records in filter(len, map(records_of, kinds)):
    picks = spaced(len(records), SAMPLE)
    counted = [lengths(one, records[i], config.get('group_size', 0)) for i in picks]
    each = len(records) / len(counted)
    queries += len(records)
    pairs += each * sum(map(len, counted))
    tokens += each * sum(map(sum, counted))
  if not tokens:
    return 0, 'nothing'
  places = one.step.batch['tokens_BT'].size * FULL
  most = 'at most ' if any(prepare.is_to_come(run, kind) for kind in kinds) else ''
  if not one.step.trained:
    share = min(1.0, one.use.pairs / pairs) if one.use.pairs else 1.0
    batches = math.ceil(tokens * share / places) * one.use.times
    return batches, f'{most}{amount(round(pairs * share), "pair")}'
  fit = min(places * queries / tokens, one.step.batch['mask_GN'].shape[0]) * one.step.accumulate
  held_out = run.config.validation.share * queries
  epoch = (queries - held_out) / fit
  steps = max(1, round(config.epochs * epoch))
  steps = min(steps, config.max_steps or steps)
  saved = max(saved_steps(run.folder(one.stage.name) / 'checkpoints'), default=0)
  done = f', from step {saved} on' if saved else ''
  checks, work = validations(run.config, config, held_out, tokens / pairs / places, steps)
  to_come = max(0, steps - saved)
  said = f', {amount(checks, "validation")}' if checks else ''
  times = one.stage.trainings(run.config)
  often = f'{times} times ' if times > 1 else ''
  said = f'{often}{most}{amount(steps, "step")}{shortened(config, epoch)}{said}{done}'
  return times * (to_come + work * to_come / steps), said


def expected(run: Run) -> Records:
  """Opens the records of a kind; as many as there can be of those that a stage has yet to make.

  It opens each kind once: those to come are made from a whole collection.
  """

  @functools.cache
  def records(kind: str) -> Sequence[Click | Group]:
    if prepare.is_to_come(run, kind):
      return systems.find(run.config, prepare.MADE_BY[kind]).expected(run)
    return prepare.records(run, kind)

  return records


def validations(whole, config, held_out: float, batches: float, steps: int) -> tuple[int, float]:
  """(how often a stage validates, the work of it in steps of training).

  Args:
    whole, config: the whole config and the stage's section.
    held_out: queries that are held out.
    batches: that one document takes.
  """
  if held_out < LEAST:
    return 0, 0.0
  c = whole.validation
  documents = c.documents if 'group_size' in config else 1  # clicks have one
  each = math.ceil(min(held_out, c.max_queries) * documents * batches)
  checks = math.ceil(steps / interval(config, steps, each))
  return checks, checks * each / (STEP * config.gradient_accumulation_steps)


def lengths(one: Opened, record: Click | Group, size: int) -> list[int]:
  """Tokens of each document of a record that the model reads; at most `size` of them, 0: all."""
  prompt = one.model.prompt()
  if isinstance(record, Click):
    return [len(doc) for doc in batches.encode_click(prompt, record).docs]
  docs = [doc for doc in record.docs if doc.in_pool or one.step.trained]
  return [len(doc) for doc in prompt.encode(record.query, docs[: size or len(docs)])]
