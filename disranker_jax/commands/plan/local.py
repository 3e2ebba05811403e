"""Whether the stages fit this machine, or GPUs of a given memory, and how long they take here.

Memory is computed from the traced step, so that GPUs can be planned without one. Time needs a
measurement, so it is known for this machine only.
"""

import resource

import jax
from ml_collections import ConfigDict

from disranker_jax.commands.plan import report, rollouts, stages, workload
from disranker_jax.commands.plan.machine import Machine
from disranker_jax.devices import memory, sharding, speed
from disranker_jax.devices.memory import size
from disranker_jax.pipeline import estimate, manifest
from disranker_jax.report import tables


def here() -> Machine:
  """The devices of this process."""
  platform = jax.default_backend()
  rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  limit, count = memory.limit(), jax.device_count()
  return Machine(manifest.device(), platform, count, limit, rss * (platform == 'cpu'), True)


def plan(config: ConfigDict, names: list[str], machine: Machine, rows: int, tokens: int) -> list:
  """An answer per stage, as `--json` prints them; `rows` and `tokens` as in report.plan."""
  mesh = sharding.make_mesh(config.mesh)
  return [_stage(config, name, machine, mesh, rows, tokens) for name in names]


def planned(config: ConfigDict) -> list[str]:
  """The listed stages that have a step."""
  return [name for name in workload.names(config) if name.partition(':')[0] in config.stages]


def _stage(config, name: str, machine: Machine, mesh, rows: int, tokens: int) -> dict:
  step = stages.trace(config, name, mesh, machine.platform)
  held = {k: n for k, n in step.held.items() if k != 'batch'}
  parts = held | {'activations': estimate.live(step) // sharding.parts(mesh)}
  # A CPU's devices share its memory.
  shared = mesh.size if machine.platform == 'cpu' else 1
  fits = lambda n: machine.limit is None or machine.before + shared * n <= machine.limit  # noqa: E731
  needed, phases, options = sum(parts.values()) + step.held['batch'], {}, []
  if not fits(needed):
    options = report.remedies(config, name, step, mesh)[:-1]
  work = workload.of(config, name, step, mesh, tokens)
  if sampling := sum(work.sampling.values()):
    phases = {'phases': {'update': needed, 'sampling': sampling}}
    parts = work.sampling if sampling > needed else parts
    needed = max(needed, sampling)
    if not fits(sampling):
      options = [*rollouts.remedies(config, machine.size, mesh), *options]
  answer = {
    'stage': name,
    'topology': machine.name,
    'devices': machine.size,
    'mesh': dict(mesh.shape),
    'fits': fits(needed),
    'bytes_per_device': machine.before + shared * needed,
    'limit_bytes': machine.limit,
    'memory': parts,
    **phases,
  }
  if not answer['fits']:
    answer['try'] = [*dict.fromkeys(options), 'a smaller model']
  if machine.measured:
    names = step.network.precision, step.quantize or step.network.precision
    peaks = [speed.matmul_typical(n, mesh) for n in names]
    seconds = lambda step: estimate.seconds_of(step, peaks, lambda: speed.reading(mesh))  # noqa: E731
    step_s = work.measured(seconds)
    answer |= workload.totals(config, name, work, machine.size, step_s, rows)
    reached = estimate.EFFICIENCY[estimate.kind_of(step)]
    answer |= report.saving(step, *(peak * reached for peak in peaks))
  elif machine.slice:
    answer['seconds'] = work.seconds({}, machine.slice)
    step_s = answer['seconds']['step']
    answer |= workload.totals(config, name, work, machine.size, step_s, rows)
  return answer


def text(machine: Machine, answers: list[dict]) -> str:
  """A few lines per stage."""
  # A CPU's devices share its memory.
  each = ' each' if machine.size > 1 and machine.platform != 'cpu' else ''
  limit = f', {size(machine.limit)} of memory{each}' if machine.limit else ''
  lines = [f'{machine.name}{limit}; estimates without compiling']
  width = max(12, *(len(a['stage']) + 1 for a in answers))
  for a in answers:
    verdict = 'fits' if a['fits'] else 'does NOT fit'
    parts = ', '.join(f'{k} {size(n)}' for k, n in a['memory'].items())
    lines.append(f'{a["stage"]:{width}}{verdict}: {size(a["bytes_per_device"])} ({parts})')
    if 'tokens_per_s' in a:
      speed_said = workload.kind(a).words(a)
      lines.append(f'{"":{width}}about {speed_said}; {report.duration(a)}')
    if 'in_8_bits' in a:
      lines.append(f'{"":{width}}{report.saved(a["in_8_bits"])}')
    if not a['fits']:
      lines.append(f'{"":{width}}try {"; or ".join(a["try"])}')
  return '\n'.join(tables.wrapped(line, hang=' ' * width) for line in lines)
