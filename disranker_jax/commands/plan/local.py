"""Whether the stages fit this machine, or GPUs of a given memory, and how long they take here.

Memory is computed from the traced step, so that GPUs can be planned without one. Time needs a
measurement, so it is known for this machine only.
"""

import resource

import jax
from ml_collections import ConfigDict

from disranker_jax.commands.plan import prompts, report, rollouts, stages
from disranker_jax.commands.plan.machine import Machine
from disranker_jax.devices import memory, sharding, speed
from disranker_jax.devices.memory import size
from disranker_jax.pipeline import estimate, manifest, systems
from disranker_jax.progress import clock
from disranker_jax.report import tables
from disranker_jax.rewriting.stages import rewrite


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
  listed = [s.name for s in systems.listed(config) if s.task or s.scores_records or s.texts]
  return listed + (prompts.names(config) if 'evaluate' in config.stages else [])


def _stage(config, name: str, machine: Machine, mesh, rows: int, tokens: int) -> dict:
  step = stages.trace(config, name, mesh, machine.platform)
  held = {k: n for k, n in step.held.items() if k != 'batch'}
  parts = held | {'activations': estimate.live(step) // sharding.parts(mesh)}
  # A CPU's devices share its memory.
  shared = mesh.size if machine.platform == 'cpu' else 1
  fits = lambda n: machine.limit is None or machine.before + shared * n <= machine.limit  # noqa: E731
  needed, phases, options = sum(parts.values()) + step.held['batch'], {}, []
  if not fits(needed):
    options = report.remedies(config, name, step, machine, mesh)[:-1]
  if step.texts:
    step = report.prompts_of(step, tokens)
  if sampled := rollouts.find(config, name, step, mesh):
    phases = {'phases': {'update': needed, 'sampling': sampled.bytes}}
    parts = sampled.held if sampled.bytes > needed else parts
    needed = max(needed, sampled.bytes)
    if not fits(sampled.bytes):
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
    step_s = seconds(step)
    if sampled:
      step_s *= 1 + rewrite.reference(config.rewrite)
      step_s += seconds(rollouts.samples(config, step, mesh)) / config.rewrite.iterations
    answer |= report.work(config, name, machine, step, step_s, rows, tokens)
    reached = estimate.EFFICIENCY[estimate.kind_of(step)]
    answer |= report.saving(step, *(peak * reached for peak in peaks))
  elif machine.slice:
    answer |= report.writing(config, name, machine.slice, mesh, step, rows)
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
    if 'hours' in a:
      hours = clock(max(1, 3600 * a['hours']))
      lines.append(f'{"":{width}}about {report.speed(a)}; {hours}: {report.in_steps(a)}')
    if 'in_8_bits' in a:
      lines.append(f'{"":{width}}{report.saved(a["in_8_bits"])}')
    if not a['fits']:
      lines.append(f'{"":{width}}try {"; or ".join(a["try"])}')
  return '\n'.join(tables.wrapped(line, hang=' ' * width) for line in lines)
