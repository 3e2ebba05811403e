"""What a planned step works on: rows, prompts of an LLM ranker, texts that it writes, or rollouts.

Each kind says how many steps the stage takes, how fast it is, and what a step does beside what
is compiled or traced.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Protocol

from ml_collections import ConfigDict

from disranker_jax.commands.plan import chips, prompts, rollouts
from disranker_jax.devices import sharding
from disranker_jax.pipeline import systems
from disranker_jax.pipeline.steps import Step
from disranker_jax.progress import amount
from disranker_jax.rewriting.rollouts import draws
from disranker_jax.rewriting.stages import rewrite
from disranker_jax.training.settings import shortened

MAX_STEPS = 'max_steps'


class Workload(Protocol):
  """What a step works on. A step that does nothing beside itself keeps the methods with a body.

  step  one step of it, compiled or traced
  """

  step: Step

  @property
  def sampling(self) -> Mapping[str, int]:
    """Bytes of a device in the phase before the step, by part; empty if there is none."""
    return {}

  def seconds(self, compiled: dict[str, float], where: chips.Slice) -> dict[str, float]:
    """Seconds of a step on a slice: 'step', and its parts.

    Args:
      compiled: the same of the compiled step; empty for one that is computed.
    """
    return compiled

  def measured(self, seconds: Callable[[Step], float]) -> float:
    """Seconds of a step on this machine; `seconds` are those of a traced step."""
    return seconds(self.step)

  def steps(self, rows: int) -> tuple[int, str]:
    """(steps for so many rows of data, the key that limits them or '')."""
    ...

  def fields(self, step_s: float) -> dict:
    """What is done in a second, and in which portions, as `--json` prints it."""
    ...

  @staticmethod
  def words(answer: Mapping) -> str:
    """The same of an answer, as text."""
    ...

  @staticmethod
  def beside(seconds: Mapping[str, float]) -> str:
    """What a step takes beside what is compiled, as the end of a line."""
    return ''


@dataclasses.dataclass(frozen=True)
class Rows(Workload):
  """Rows of tokens, packed with pairs, that are learned from or scored.

  c       the section of the stage
  length  tokens of a pair
  """

  c: ConfigDict
  step: Step
  length: int

  @property
  def pairs(self) -> int:
    """Pairs of a step."""
    row_count, row_len = self.step.batch['tokens_BT'].shape
    return row_count * max(1, row_len // self.length) * self.step.accumulate

  def steps(self, rows: int) -> tuple[int, str]:
    wanted = max(1, math.ceil(rows * self._epochs / self.pairs))
    most = self.c.get('max_steps', 0)
    return (most, MAX_STEPS) if 0 < most < wanted else (wanted, '')

  def fields(self, step_s: float) -> dict:
    return {
      'tokens_per_s': self.step.batch['tokens_BT'].size * self.step.accumulate / step_s,
      'pairs_per_s': self.pairs / step_s,
      'pair_tokens': self.length,
      'epochs': self._epochs,
    }

  @property
  def _epochs(self) -> float:
    return self.c.get('epochs', 1.0)

  @staticmethod
  def words(answer: Mapping) -> str:
    return (
      f'{answer["tokens_per_s"]:,.0f} tokens/s, {answer["pairs_per_s"]:,.1f} pairs/s of '
      f'{answer["pair_tokens"]} tokens'
    )


@dataclasses.dataclass(frozen=True)
class Prompts(Workload):
  """Prompts of an LLM ranker, of `length` tokens each."""

  asked: prompts.Asked
  step: Step
  length: int

  def seconds(self, compiled: dict[str, float], where: chips.Slice) -> dict[str, float]:
    if not self.asked.decodes:
      return compiled
    # Each pass reads the parameters again, and gathers those of other chips.
    each = max(self.step.held['parameters'] / where.chip.hbm_rate, compiled['ici'])
    more = self.asked.passes * each
    return compiled | {'decoding': more, 'step': compiled['step'] + more}

  @property
  def per_step(self) -> int:
    return self.asked.per_step(*self.step.batch['tokens_BT'].shape, self.length)

  def steps(self, rows: int) -> tuple[int, str]:
    return self.asked.steps(rows, self.per_step), ''

  def fields(self, step_s: float) -> dict:
    asked, queries = self.asked, self.per_step / self.asked.per_query
    return {
      'tokens_per_s': self.per_step * self.length / step_s,
      'pairs_per_s': queries * asked.documents / step_s,
      'queries_per_s': queries / step_s,
      'pair_tokens': self.length,
      'method': asked.method,
      'documents': asked.documents,
      'prompts_per_query': asked.per_query,
    }

  @staticmethod
  def words(answer: Mapping) -> str:
    return (
      f'{answer["method"]}: {answer["queries_per_s"]:,.3g} queries/s of {answer["documents"]} '
      f'documents, {answer["prompts_per_query"]:,.0f} prompts of about {answer["pair_tokens"]:,} '
      f'tokens each, {answer["tokens_per_s"]:,.0f} tokens/s'
    )

  @staticmethod
  def beside(seconds: Mapping[str, float]) -> str:
    more = seconds.get('decoding')
    return '' if more is None else f'; decoding {more:.3g} s more'


@dataclasses.dataclass(frozen=True)
class Texts(Workload):
  """Texts that a decoder writes."""

  step: Step
  mesh: object

  def seconds(self, compiled: dict[str, float], where: chips.Slice) -> dict[str, float]:
    """Computed from FLOPs and bytes.

    A written token waits for parameters and caches, and for the parameters of other chips if
    `fsdp` splits them.
    """
    chip, texts = where.chip, self.step.texts
    used = sharding.even_parts(self.mesh, texts.rows) * self.mesh.shape['model']
    others = texts.max_new * self.step.held['operands'] * (self.mesh.shape['fsdp'] - 1)
    parts = {
      'compute': self.step.flops.seconds(chip.peak, chip.peak_int8) / (used * chip.efficiency),
      'hbm': self.step.read / chip.hbm_rate,
      'ici': others / where.ici_rate if others else 0.0,
    }
    return parts | {'step': sum(parts.values())}

  def steps(self, rows: int) -> tuple[int, str]:
    return math.ceil(rows / self.step.texts.rows), ''

  def fields(self, step_s: float) -> dict:
    texts = self.step.texts
    return {
      'prompts': texts.prompts,
      'samples': texts.samples,
      'texts_per_s': texts.rows / step_s,
      'tokens_per_s': texts.rows * texts.max_new / step_s,
      'prompt_tokens': texts.longest,
    }

  @staticmethod
  def words(answer: Mapping) -> str:
    return (
      f'{answer["texts_per_s"]:,.3g} texts/s, {answer["tokens_per_s"]:,.0f} written tokens/s, '
      f'batches of {amount(answer["prompts"], "prompt")} of '
      f'{amount(answer["prompt_tokens"], "token")} x {amount(answer["samples"], "text")}'
    )


@dataclasses.dataclass(frozen=True)
class Rollouts(Workload):
  """Samples that are drawn, rewarded and learned from; the step is the update."""

  config: ConfigDict
  step: Step
  mesh: object
  sampled: rollouts.Sampled

  @property
  def sampling(self) -> Mapping[str, int]:
    return self.sampled.held

  def seconds(self, compiled: dict[str, float], where: chips.Slice) -> dict[str, float]:
    update = compiled['step']
    more = self.sampled.seconds(update, where)
    return compiled | {'update': update, **more, 'step': update + sum(more.values())}

  def measured(self, seconds: Callable[[Step], float]) -> float:
    c = self.config.rewrite
    samples = seconds(rollouts.samples(self.config, self.step, self.mesh)) / c.iterations
    return seconds(self.step) * (1 + rewrite.reference(c)) + samples

  def steps(self, rows: int) -> tuple[int, str]:
    c = self.config.rewrite
    is_limited = shortened(c, rows * c.iterations / c.prompts)
    return rewrite.steps(c, rows), MAX_STEPS if is_limited else ''

  def fields(self, step_s: float) -> dict:
    c = self.config.rewrite
    samples = c.prompts * draws(c) / c.iterations
    return {
      'epochs': c.epochs,
      'prompts': c.prompts,
      'samples': draws(c),
      'samples_learned': c.samples,
      'samples_per_s': samples / step_s,
      'tokens_per_s': samples * c.max_new / step_s,
    }

  @staticmethod
  def words(answer: Mapping) -> str:
    drawn, learned = answer['samples'], answer['samples_learned']
    which = f' ({learned} are learned from)' if learned < drawn else ''
    return (
      f'{amount(answer["prompts"], "query", "queries")} x {drawn} samples{which}, '
      f'{answer["samples_per_s"]:,.3g} samples/s, {answer["tokens_per_s"]:,.0f} written tokens/s '
      '(tokens of prompts and of the update are not counted)'
    )

  @staticmethod
  def beside(seconds: Mapping[str, float]) -> str:
    s = seconds
    return (
      f'; update {s["update"]:.3g} s, prefill {s["prefill"]:.3g} s, decoding {s["decoding"]:.3g} s '
      f'(each token reads parameters and caches), pass of the reference {s["reference"]:.3g} s; '
      'rewards are not counted'
    )


# By a key that an answer of the kind has. Those of prompts have pairs too, so rows are last.
KINDS = {
  'method': Prompts, 'texts_per_s': Texts, 'samples_per_s': Rollouts, 'pairs_per_s': Rows,
}  # fmt: skip


def kind(answer: Mapping) -> type[Workload]:
  """The kind of work that an answer is about."""
  return next(found for key, found in KINDS.items() if key in answer)


def of(config: ConfigDict, stage: str, step: Step, mesh, tokens: int) -> Workload:
  """What the step of a planned stage works on.

  Args:
    tokens: of a pair, or of a prompt; 0: as many as the config allows.
  """
  if asked := prompts.find(config, stage):
    return Prompts(asked, step, tokens or asked.expected.max_len)
  if texts := step.texts:
    shorter = dataclasses.replace(texts, longest=min(tokens or texts.longest, texts.longest))
    return Texts(dataclasses.replace(step, texts=shorter), mesh)
  if sampled := rollouts.find(config, stage, step, mesh):
    return Rollouts(config, step, mesh, sampled)
  return Rows(config[stage], step, tokens or systems.model_settings(config, stage).max_len)


def unit(answer: Mapping) -> str:
  """What the compiled program of an answer does: a whole step, or the update of one."""
  return 'update' if 'phases' in answer else 'step'


def totals(
  config: ConfigDict, stage: str, work: Workload, devices: int, step_s: float, rows: int
) -> dict:
  """An answer's fields of throughput and of the whole stage, as `--json` prints them.

  Args:
    devices: how many there are.
    step_s: seconds of a step.
    rows: of the data; 0: as many as the paper has. For a stage that the paper does not have, the
      time of the whole stage is not known then.
  """
  rows_from = '--rows' if rows else 'the paper'
  rows = rows or systems.find(config, stage.partition(':')[0]).paper_rows
  if not rows:
    return {'epochs': 1.0, **work.fields(step_s)}
  count, limit = work.steps(rows)
  hours = count * step_s / 3600
  return {
    'rows': rows, 'rows_from': rows_from, 'epochs': 1.0, **work.fields(step_s),
    **({'steps_from': limit} if limit else {}), 'steps': count, 'hours': hours,
    'chip_hours': hours * devices,
  }  # fmt: skip


def names(config: ConfigDict) -> list[str]:
  """What of a system can be planned: the stages with a step, and evaluate:METHOD."""
  declared = systems.of(config).stages
  return [s.name for s in declared if s.task or s.scores_records or s.texts] + prompts.names(config)
