"""What a stage's step costs on a slice: memory, traffic, time, chip-hours; as text and as JSON."""

import dataclasses
import json
import re

import jax

from disranker_jax.commands.plan import chips, hlo, rollouts, stages, workload
from disranker_jax.devices import memory, sharding
from disranker_jax.devices.memory import size
from disranker_jax.models import flops, tree
from disranker_jax.models.flops import Flops
from disranker_jax.pipeline import systems
from disranker_jax.pipeline.steps import GATE, Step
from disranker_jax.progress import amount, clock
from disranker_jax.report.tables import significant
from disranker_jax.training import remedies as less


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
  work = workload.of(config, stage, step, mesh, pair_tokens)
  sampling = sum(work.sampling.values())
  if sampling:
    answer['phases'] = {'update': cost.bytes, 'sampling': sampling}
  if sampling > cost.bytes:
    answer |= {'bytes_per_device': sampling, 'memory': work.sampling}
    answer['fits'] = cost.fits and sampling <= where.chip.hbm_bytes
  if not answer['fits']:
    options = [] if cost.fits else remedies(config, stage, step, mesh)
    if sampling > where.chip.hbm_bytes:
      options = [*rollouts.remedies(config, where.size, mesh), *options]
    return answer | {'try': list(dict.fromkeys(options))}
  seconds = work.seconds(times(count, cost.moved, where), where)
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
  return answer | workload.totals(config, stage, work, where.size, seconds['step'], rows)


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


def duration(answer: dict) -> str:
  """The time of the whole stage in words, and its steps."""
  if 'hours' not in answer:
    return 'how many rows it has is not known; set --rows for the time of the whole stage'
  return f'{clock(max(1, 3600 * answer["hours"]))}: {in_steps(answer)}'


def in_steps(answer: dict) -> str:
  """The steps in words, and of how many rows they are."""
  said = f'{answer["steps"]:,} step{"s"[: answer["steps"] != 1]}'
  if limit := answer.get('steps_from'):
    return f'{said} ({limit})'
  epochs = f'{answer["epochs"]:g} epoch{"s"[: answer["epochs"] != 1]}'
  return f'{said}, {amount(answer["rows"], "row")} ({answer["rows_from"]}), {epochs}'


def remedies(config, stage: str, step: Step, mesh) -> list[str]:
  """What to try if it does not fit, the smallest loss of speed first."""
  section = stage.partition(':')[0]
  declared = systems.find(config, section)
  role, trains = declared.role or 'teacher', declared.task is not None
  found = less.remedies(
    section, role, config[section], config[role], tree.flatten(step.network.shapes()),
    trains=trains, mesh=mesh,
  )  # fmt: skip
  return [*less.as_flags(found), 'a larger slice']


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
  each = workload.unit(answer)
  lines.append(('FLOPs', f'{f["model"]:.3g} per {each}, and {beyond:.3g} {also}, over all layers'))
  if not answer['fits']:
    lines.append(('try', '; or '.join(answer['try'])))
  else:
    lines += _speed(answer)
  return '\n'.join(f'{name:14}{line}' for name, line in lines)


def _speed(answer: dict) -> list[tuple[str, str]]:
  s, work, each = answer['seconds'], workload.kind(answer), workload.unit(answer)
  whole = f'{significant(answer["chip_hours"])} chip-hours, ' if 'chip_hours' in answer else ''
  of_which = '' if each == 'step' else f' by the FLOPs of the {each}'
  moved = [f'{k} {v["count"]} ({size(v["bytes"])})' for k, v in answer['collectives'].items()]
  return [
    ('collectives', ', '.join(moved) + f' per {each} and chip' if moved else 'none'),
    ('HBM traffic', f'{size(answer["hbm_traffic"])} per {each} and chip'),
    ('step', f'{s["step"]:.3g} s by {answer["bound"]}: compute {s["compute"]:.3g} s at an assumed '
             f'{answer["efficiency"]:.0%} of peak, HBM {s["hbm"]:.3g} s, ICI {s["ici"]:.3g} s'
             + work.beside(s)),
    ('speed', f'{work.words(answer)}, MFU {answer["mfu"]:.0%}{of_which}'),
    ('cost', whole + duration(answer)),
    *([('8 bits', saved(answer['in_8_bits']))] if 'in_8_bits' in answer else []),
    *(('hint', hint) for hint in answer['hints']),
  ]  # fmt: skip


def as_json(answer: dict) -> str:
  """One line of JSON, numbers with six digits."""

  def short(x):
    if isinstance(x, dict):
      return {k: short(v) for k, v in x.items()}
    return float(f'{x:.6g}') if isinstance(x, float) else x

  return json.dumps(short(answer))
