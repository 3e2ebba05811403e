"""What a stage's step costs on a slice: memory, traffic, time, chip-hours; as text and as JSON."""

import dataclasses
import json
import math
import re

import jax

from disranker_jax.commands.plan import chips, hlo, prompts, rollouts, stages
from disranker_jax.devices import memory, sharding
from disranker_jax.devices.memory import size
from disranker_jax.models import flops, tree
from disranker_jax.models.flops import Flops
from disranker_jax.pipeline import systems
from disranker_jax.pipeline.steps import GATE, Step
from disranker_jax.progress import amount, clock
from disranker_jax.report.tables import significant
from disranker_jax.rewriting.rollouts import draws
from disranker_jax.rewriting.stages import rewrite
from disranker_jax.training.settings import lacking


@dataclasses.dataclass(frozen=True)
class Cost:
  """The compiler's figures for one step on one device."""

  fits: bool
  bytes: int  # peak memory
  held: dict[str, int]  # by part, see memory.held
  moved: hlo.Moved | None  # None if it does not fit, since then there is no program

  @property
  def temporaries(self) -> int:
    return max(0, self.bytes - sum(self.held.values()))


def compile_step(step: stages.Step, where: chips.Slice) -> Cost:
  """Compiles with the devices' own compiler; running out of memory is a result, not an error."""
  try:
    compiled = step.lower().compile()
  except jax.errors.JaxRuntimeError as e:
    used = exhausted(str(e))
    if used is None:
      raise
    return Cost(False, used, step.held, None)
  analysis = compiled.memory_analysis()
  used, held = memory.peak(analysis), dict(step.held)
  # The compiler keeps only those arrays of a batch that the step reads.
  # Scoring in 8 bits begins with the parameters in full precision.
  used += held.get(GATE, 0)
  rest = sum(n for part, n in held.items() if part not in ('batch', GATE))
  held['batch'] = max(0, analysis.argument_size_in_bytes - rest)
  moved = hlo.Program(compiled.as_text()).moved(where.size)
  return Cost(used <= where.chip.hbm_bytes, used, held, moved)


def exhausted(message: str) -> int | None:
  """Bytes that a program would need, from the compiler's out-of-memory message; None without."""
  number = r'([\d.]+)([KMGT]?)'
  match = re.search(rf'Total hbm usage >= {number}', message)
  match = match or re.search(rf'Used {number} of [\d.]+[KMGT]? hbm', message)
  if not match:
    return None
  return int(float(match[1]) * 1024 ** ' KMGT'.index(match[2] or ' '))


def plan(config, stage: str, where: chips.Slice, mesh, rows: int = 0, pair_tokens: int = 0) -> dict:
  """The whole answer, as `--json` prints it.

  `rows` is the size of the data, 0 for the paper's; `pair_tokens` the length of a pair, 0 for the
  config's limit.
  """
  mesh = stages.mesh_of(config, stage, mesh)
  step = stages.trace(config, stage, mesh)
  cost = compile_step(step, where)
  count = step.flops
  answer = {
    'stage': stage,
    'topology': where.name,
    'devices': where.size,
    'mesh': dict(mesh.shape),
    'fits': cost.fits,
    'bytes_per_device': cost.bytes,
    'hbm_bytes': where.chip.hbm_bytes,
    'memory': cost.held | {'temporaries': cost.temporaries},
    'flops': dataclasses.asdict(count),
    'efficiency': where.chip.efficiency,
  }
  sampled = rollouts.find(config, stage, step, mesh)
  if sampled:
    answer['phases'] = {'update': cost.bytes, 'sampling': sampled.bytes}
    if sampled.bytes > cost.bytes:
      answer |= {'bytes_per_device': sampled.bytes, 'memory': sampled.held}
      answer['fits'] = cost.fits and sampled.bytes <= where.chip.hbm_bytes
  if not answer['fits']:
    options = [] if cost.fits else remedies(config, stage, step, where, mesh)
    if sampled and sampled.bytes > where.chip.hbm_bytes:
      options = [*rollouts.remedies(config, where.size, mesh), *options]
    return answer | {'try': list(dict.fromkeys(options))}
  seconds = times(count, cost.moved, where)
  asked = prompts.find(config, stage)
  if asked and asked.decodes:
    # Each pass reads the parameters again, and gathers those of other chips.
    each = max(cost.held['parameters'] / where.chip.hbm_rate, seconds['ici'])
    seconds['decoding'] = asked.passes * each
    seconds['step'] += seconds['decoding']
  if sampled:
    more = sampled.seconds(seconds['step'], where)
    seconds |= {'update': seconds['step'], **more, 'step': seconds['step'] + sum(more.values())}
  peaks = [where.size * peak for peak in (where.chip.peak, where.chip.peak_int8)]
  reached = [peak * where.chip.efficiency for peak in peaks]
  answer |= {
    'collectives': {
      kind: {'count': cost.moved.counts[kind], 'bytes': cost.moved.bytes[kind]}
      for kind in sorted(cost.moved.counts)
    },
    'hbm_traffic': cost.moved.hbm,
    'seconds': seconds,
    'bound': max((k for k in seconds if k not in ('step', 'update')), key=seconds.get),
    'mfu': Flops(count.model, in_8_bits=count.in_8_bits).seconds(*peaks) / seconds['step'],
    'hints': hints(config, stage, mesh),
  }
  answer |= saving(step, *reached)
  return answer | work(config, stage, where, step, seconds['step'], rows, pair_tokens)


def saving(step: stages.Step, peak: float, peak_8_bits: float) -> dict:
  """What scoring in 8 bits saves, under 'in_8_bits'; {} for other steps. Peaks as for seconds."""
  if not step.quantize:
    return {}
  parameters = step.held['parameters']
  return {
    'in_8_bits': {
      'format': step.quantize,
      'parameters': parameters,
      'parameters_before': parameters + step.held[GATE],
      'compute_s': step.flops.seconds(peak, peak_8_bits),
      'compute_s_before': dataclasses.replace(step.flops, mixed=0.0).seconds(peak, peak),
    }
  }


def saved(s: dict) -> str:
  """What 8 bits save, in a line."""
  times = s['compute_s_before'] / s['compute_s']
  return (
    f'{s["format"]}: parameters {size(s["parameters"])} instead of {size(s["parameters_before"])}, '
    f'compute {s["compute_s"]:.3g} s instead of {s["compute_s_before"]:.3g} s ({times:.2f} times '
    'as fast)'
  )


def times(count: flops.Flops, moved: hlo.Moved, where: chips.Slice) -> dict[str, float]:
  """Seconds of a step: the slowest of its three parts, assuming that they overlap perfectly."""
  chip = where.chip
  parts = {
    'compute': count.seconds(chip.peak, chip.peak_int8) / (where.size * chip.efficiency),
    'hbm': moved.hbm / chip.hbm_rate,
    'ici': sum(moved.bytes.values()) / where.ici_rate if where.size > 1 else 0.0,
  }
  return parts | {'step': max(parts.values())}


def work(config, stage: str, where, step, step_s: float, rows: int, pair_tokens: int) -> dict:
  """Throughput, and the cost of the whole stage."""
  row_count, row_len = step.batch['tokens_BT'].shape
  declared = systems.find(config, stage.partition(':')[0])
  total = rows or declared.paper_rows
  found = {'rows': total, 'rows_from': '--rows' if rows else 'the paper', 'epochs': 1.0}
  if asked := prompts.find(config, stage):
    length = pair_tokens or asked.expected.max_len
    each = asked.per_step(row_count, row_len, length)
    steps, queries = asked.steps(total, each), each / asked.per_query
    return found | {
      'tokens_per_s': each * length / step_s,
      'pairs_per_s': queries * asked.documents / step_s,
      'queries_per_s': queries / step_s,
      'pair_tokens': length,
      'method': asked.method,
      'documents': asked.documents,
      'prompts_per_query': asked.per_query,
      **_whole(steps, step_s, where),
    }
  if texts := step.texts:
    return found | {
      'prompts': texts.prompts,
      'samples': texts.samples,
      'texts_per_s': texts.rows / step_s,
      'tokens_per_s': texts.rows * texts.max_new / step_s,
      'prompt_tokens': texts.longest,
      **_whole(math.ceil(total / texts.rows), step_s, where),
    }
  if rollouts.is_asked(config, stage):
    c = config.rewrite
    samples = c.prompts * draws(c) / c.iterations
    return found | {
      'epochs': c.epochs,
      'prompts': c.prompts,
      'samples': draws(c),
      'samples_per_s': samples / step_s,
      'tokens_per_s': samples * c.max_new / step_s,
      **_whole(rewrite.steps(c, total), step_s, where),
    }
  c, side = config[stage], systems.model_settings(config, stage)
  length = pair_tokens or side.max_len
  pairs = row_count * max(1, row_len // length) * step.accumulate
  steps = max(1, math.ceil(total * c.get('epochs', 1.0) / pairs))
  if 0 < c.get('max_steps', 0) < steps:
    steps = c.max_steps
    found['steps_from'] = 'max_steps'
  return found | {
    'tokens_per_s': row_count * row_len * step.accumulate / step_s,
    'pairs_per_s': pairs / step_s,
    'pair_tokens': length,
    'epochs': c.get('epochs', 1.0),
    **_whole(steps, step_s, where),
  }


def prompts_of(step: stages.Step, tokens: int) -> stages.Step:
  """The step with prompts of so many tokens; 0: of as many as the config allows."""
  longest = min(tokens or step.texts.longest, step.texts.longest)
  return dataclasses.replace(step, texts=dataclasses.replace(step.texts, longest=longest))


def writing(config, stage: str, where: chips.Slice, mesh, step: stages.Step, rows: int) -> dict:
  """Time on a slice of a stage that writes, computed from its FLOPs and bytes.

  A written token waits for parameters and caches, and for the parameters of other chips if `fsdp`
  splits them.
  """
  chip, count = where.chip, step.flops
  split = 1 if step.texts.rows % sharding.parts(mesh) else sharding.parts(mesh)
  used = split * mesh.shape['model']
  others = step.texts.max_new * step.held['operands'] * (mesh.shape['fsdp'] - 1)
  seconds = {
    'compute': count.seconds(chip.peak, chip.peak_int8) / (used * chip.efficiency),
    'hbm': step.read / chip.hbm_rate,
    'ici': others / where.ici_rate if others else 0.0,
  }
  step_s = sum(seconds.values())
  return {'seconds': seconds | {'step': step_s}} | work(config, stage, where, step, step_s, rows, 0)


def _whole(steps: int, step_s: float, where) -> dict:
  hours = steps * step_s / 3600
  return {'steps': steps, 'hours': hours, 'chip_hours': hours * where.size}


def in_steps(answer: dict) -> str:
  """The steps in words, and of how many rows they are."""
  said = f'{answer["steps"]:,} step{"s"[: answer["steps"] != 1]}'
  if limit := answer.get('steps_from'):
    return f'{said} ({limit})'
  epochs = f'{answer["epochs"]:g} epoch{"s"[: answer["epochs"] != 1]}'
  return f'{said}, {amount(answer["rows"], "row")} ({answer["rows_from"]}), {epochs}'


def speed(answer: dict) -> str:
  """The throughput in words."""
  if 'texts_per_s' in answer:
    return (
      f'{answer["texts_per_s"]:,.3g} texts/s, {answer["tokens_per_s"]:,.0f} written tokens/s, '
      f'batches of {amount(answer["prompts"], "prompt")} of '
      f'{amount(answer["prompt_tokens"], "token")} x {amount(answer["samples"], "text")}'
    )
  if 'samples_per_s' in answer:
    return (
      f'{amount(answer["prompts"], "query", "queries")} x {amount(answer["samples"], "sample")}, '
      f'{answer["samples_per_s"]:,.3g} samples/s, {answer["tokens_per_s"]:,.0f} written tokens/s'
    )
  if 'method' not in answer:
    return (
      f'{answer["tokens_per_s"]:,.0f} tokens/s, {answer["pairs_per_s"]:,.1f} pairs/s of '
      f'{answer["pair_tokens"]} tokens'
    )
  return (
    f'{answer["method"]}: {answer["queries_per_s"]:,.3g} queries/s of {answer["documents"]} '
    f'documents, {answer["prompts_per_query"]:,.0f} prompts of about {answer["pair_tokens"]:,} '
    f'tokens each, {answer["tokens_per_s"]:,.0f} tokens/s'
  )


def remedies(config, stage: str, step: Step, where: chips.Slice, mesh) -> list[str]:
  """What to try if it does not fit, the smallest loss of speed first."""
  section = stage.partition(':')[0]
  declared, c = systems.find(config, section), config[section]
  name, training, options = declared.role or 'teacher', declared.task is not None, []
  side = config[name]
  if mesh.shape['fsdp'] * mesh.shape['model'] < where.size:
    options.append('--config.mesh.fsdp=-1 --config.mesh.data=1')
  if side.attention == 'xla':
    options.append(f'--config.{name}.attention=auto')
  if training and side.remat != 'full':
    options.append(f'--config.{name}.remat=full')
  if training and c.ema:
    options.append(f'--config.{stage}.ema=0')
  if training and c.optimizer == 'adamw' and c.adam_mu_dtype == 'float32':
    options.append(f'--config.{stage}.adam_mu_dtype=bfloat16')
  if training and c.get('batch_rows', 0) > mesh.shape['data'] * mesh.shape['fsdp']:
    options.append(
      f'--config.{stage}.batch_rows={c.batch_rows // 2} '
      f'--config.{stage}.gradient_accumulation_steps={2 * c.gradient_accumulation_steps}'
    )
  steps = 2 * c.gradient_accumulation_steps if training else 1
  if training and c.get('prompts', 1) % (steps * c.data_shards) == 0:
    options.append(f'--config.{stage}.gradient_accumulation_steps={steps}')
  if not training:
    low = side.param_dtype == 'bfloat16'
    options += [] if low else [f'--config.{name}.param_dtype=bfloat16']
    options.append(f'--config.{section}.batch_rows={c.batch_rows // 2}')
  if training and c.optimizer == 'adamw':
    options.append(f'--config.{stage}.optimizer=adafactor')
  if training:
    missing = lacking(tree.flatten(step.network.shapes()), c.trainable, side.param_dtype)
    keys = {k: (stage, f"'{v}'") if k == 'trainable' else (name, v) for k, v in missing.items()}
    words = [f'--config.{of}.{key}={value}' for key, (of, value) in keys.items()]
    options += [' '.join(words)] if words else []
  return [*options, 'a larger slice']


def hints(config, stage: str, mesh) -> list[str]:
  """Changes that are likely to be faster, for a step that fits."""
  c, parts = config[stage.partition(':')[0]], sharding.parts(mesh)
  if c.get('data_shards', parts) == 1 < parts and c.get('batch_rows', 1) % parts == 0:
    # Positions count from the start of the whole batch, so all of it is sent to every device.
    return [f'--config.{stage}.data_shards={parts}, so that devices gather no rows of others']
  return []


def text(answer: dict) -> str:
  """The answer as a short table."""
  share = answer['bytes_per_device'] / answer['hbm_bytes']
  verdict = 'fits' if answer['fits'] else 'does NOT fit'
  mesh = ', '.join(f'{axis} {n}' for axis, n in answer['mesh'].items())
  lines = [
    ('stage', f'{answer["stage"]} on {answer["topology"]}, {amount(answer["devices"], "chip")}; '
              f'mesh {mesh}'),
    ('memory', f'{verdict}: {size(answer["bytes_per_device"])} per chip, {share:.0%} of its '
               f'{size(answer["hbm_bytes"])}'),
    ('', ', '.join(f'{k} {size(n)}' for k, n in answer['memory'].items() if n)),
  ]  # fmt: skip
  if 'phases' in answer:
    phases = ', '.join(f'{k} {size(n)}' for k, n in answer['phases'].items())
    lines.append(('', f'{phases}; the larger is listed'))
  f = answer['flops']
  beyond = f['recomputed'] + f['masked'] + f['mixed']
  also = 'masked or mixed for 8 bits' if f['mixed'] else 'recomputed or masked'
  lines.append(
    (
      'FLOPs per step',
      f'{f["model"]:.3g}, and {beyond:.3g} {also}, over all layers',
    )
  )
  if not answer['fits']:
    lines.append(('try', '; or '.join(answer['try'])))
  else:
    lines += _speed(answer)
  return '\n'.join(f'{name:14}{line}' for name, line in lines)


def _speed(answer: dict) -> list[tuple[str, str]]:
  s = answer['seconds']
  moved = [f'{k} {v["count"]} ({size(v["bytes"])})' for k, v in answer['collectives'].items()]
  return [
    ('collectives', ', '.join(moved) + ' per step and chip' if moved else 'none'),
    ('HBM traffic', f'{size(answer["hbm_traffic"])} per step and chip'),
    ('step', f'{s["step"]:.3g} s by {answer["bound"]}: compute {s["compute"]:.3g} s at an assumed '
             f'{answer["efficiency"]:.0%} of peak, HBM {s["hbm"]:.3g} s, ICI {s["ici"]:.3g} s'
             + _beside(s)),
    ('speed', f'{speed(answer)}, MFU {answer["mfu"]:.0%}'),
    ('cost', f'{significant(answer["chip_hours"])} chip-hours, '
             f'{clock(max(1, 3600 * answer["hours"]))}: {in_steps(answer)}'),
    *([('8 bits', saved(answer['in_8_bits']))] if 'in_8_bits' in answer else []),
    *(('hint', hint) for hint in answer['hints']),
  ]  # fmt: skip


def _beside(s: dict) -> str:
  """What a step takes beside its pass or its update."""
  if 'update' in s:
    return (
      f'; update {s["update"]:.3g} s, prefill {s["prefill"]:.3g} s, decoding {s["decoding"]:.3g} s '
      f'(each token reads parameters and caches), pass of the reference {s["reference"]:.3g} s; '
      'rewards are not counted'
    )
  return f'; decoding {s["decoding"]:.3g} s more' if 'decoding' in s else ''


def as_json(answer: dict) -> str:
  """One line of JSON, numbers with six digits."""

  def short(x):
    if isinstance(x, dict):
      return {k: short(v) for k, v in x.items()}
    return float(f'{x:.6g}') if isinstance(x, float) else x

  return json.dumps(short(answer))
