"""Time and memory of a step against rows, row length, group size and devices, and start-up.

Each point is a process of its own that runs the stage's real step; lines are drawn on logarithmic
axes, with their slopes: 1 is linear. Devices are virtual ones of this machine's CPU, so that more
of them do the same work on the same cores: time should stay, memory of each should fall.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib import ticker

from benchmarks import _compare, _figures, _work, _worker
from disranker_jax.report import plots, tables

AXES = ('rows', 'row_len', 'group_size', 'devices')
LABELS = {'step_s': 'seconds a step', 'compiled_bytes': 'MB on a device'}
UNITS = {'step_s': 1.0, 'compiled_bytes': 1e-6}  # of the plot
LINEAR = ('rows', 'row_len')  # along these more is to be done


def parse_args(argv) -> argparse.Namespace:
  parser = _work.parser('growth', __doc__, _work.TRAINING)
  add = parser.add_argument
  add('--steps', type=_work.positive, default=2, help='of a turn (2)')
  add('--axes', default=','.join((*AXES, 'start')), help='which of them (%(default)s)')
  add('--times', default='0.5,1,2,4', help="of the config's value; of devices, their number")
  add('--plot', type=Path, metavar='FILE.svg', help='where the plot goes; nowhere by default')
  parser.set_defaults(rounds=3)
  args = _work.parse(parser, argv)
  args.axes = [a for a in args.axes.split(',') if a]
  if wrong := [a for a in args.axes if a not in (*AXES, 'start')]:
    parser.error(f'--axes: {wrong[0]!r} is none of {", ".join((*AXES, "start"))}')
  args.times = [float(t) for t in args.times.split(',')]
  return args


def open_side(name: str, argv: list[str], folder: Path):
  from benchmarks import _ours

  args = parse_args(argv)
  return _ours.Train(_work.open_work(args, folder), args.steps)


def points(args: argparse.Namespace, axis: str) -> list[tuple[int, list[str], dict]]:
  """(value, what to add to the command line, to the environment) along an axis."""
  c, side = args.config[args.stage], _work.Work(args.config, args.stage, Path()).settings
  name = 'student' if args.stage in ('student_sft', 'distill') else 'teacher'
  if axis == 'devices':
    flags = os.environ.get('XLA_FLAGS', '')
    return [
      (n, ['--config.mesh.data=1', '--config.mesh.fsdp=-1'],
       {'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={n}'.strip()})
      for n in map(int, args.times) if n
    ]  # fmt: skip
  if axis == 'group_size' and 'group_size' not in c:
    return []
  value = {'rows': c.batch_rows, 'row_len': side.row_len, 'group_size': c.get('group_size')}[axis]
  found = []
  for n in sorted({max(2, round(value * t)) for t in args.times}):
    changes = {
      'rows': [f'--config.{args.stage}.batch_rows={n}'],
      # Texts are cut to the rows' length, so that longer rows hold longer texts.
      'row_len': [
        f'--config.{name}.{key}={max(8, round(side[key] * n / value))}'
        for key in ('row_len', 'max_len')
      ],
      'group_size': [f'--config.{args.stage}.group_size={n}'],
    }
    found.append((n, changes[axis], {}))
  return found


def measure(argv, folder: Path, rounds: int, env: dict) -> dict:
  """One point: the step's median time, the compiler's count of bytes, what start-up took."""
  with _worker.Worker('growth', 'ours', argv, folder, env) as worker:
    facts = _worker.checked(worker, 'start')
    began = worker.age
    rows = [_worker.checked(worker, 'turn') for _ in range(rounds)]
  return {
    'step_s': statistics.median(r['seconds'] / r['steps'] for r in rows),
    'tokens': rows[0]['tokens'] / rows[0]['steps'],
    'compiled_bytes': facts['compiled_bytes'],
    'compile_s': facts['compile_s'],
    'start_s': began,
    'device': facts['device'],
  }


def along(args, argv, folder: Path, axis: str) -> dict | None:
  """The points of an axis and their slopes; None where the stage has none."""
  found = [
    {'value': value} | measure([*argv, *changes], folder, args.rounds, env)
    for value, changes, env in points(args, axis)
  ]
  if not found:
    return None
  values = [p['value'] for p in found]
  slopes = {k: _figures.slope(values, [p[k] for p in found]) for k in LABELS}
  return {'points': found, 'slopes': slopes}


def start_up(argv, folder: Path) -> dict[str, dict]:
  """Seconds from the start of a process to the end of its first step, cold and from the cache."""
  with tempfile.TemporaryDirectory() as cache:
    env = {
      'JAX_COMPILATION_CACHE_DIR': cache,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    found = {name: measure(argv, folder, 1, env) for name in ('cold', 'warm')}
  return {name: {k: p[k] for k in ('start_s', 'compile_s')} for name, p in found.items()}


def main(argv) -> None:
  args = parse_args(argv)
  found = {'bench': 'growth'} | _compare.described(args) | {'axes': {}}
  with _work.prepared(args) as work:
    for axis in args.axes:
      if axis == 'start':
        found['start'] = start_up(argv, work.folder)
      elif (curve := along(args, argv, work.folder, axis)) is not None:
        found['axes'][axis] = curve
        found['device'] = curve['points'][0]['device']
  print(text(found))
  if args.plot and found['axes']:
    draw(found['axes'], args.plot)
  if args.json:
    print(json.dumps(_figures.short(found)))


def text(found: dict) -> str:
  """A table of all points, and one of start-up."""
  rows = []
  for axis, curve in found['axes'].items():
    for p in curve['points']:
      rows.append([f'{axis} {p["value"]}', f'{p["step_s"]:.3f}', f'{p["tokens"]:,.0f}',
                   f'{p["compiled_bytes"] / 1e6:,.0f}', f'{p["compile_s"]:.1f}'])  # fmt: skip
    s = curve['slopes']
    rows.append([f'{axis}: slope', f'{s["step_s"]:.2f}', '', f'{s["compiled_bytes"]:.2f}', ''])
  heads = ['point', 's a step', 'tokens a step', 'MB on a device', 'compile s']
  out = [tables.markdown(heads, rows)] if rows else []
  if 'start' in found:
    rows = [[n, f'{p["start_s"]:.1f}', f'{p["compile_s"]:.1f}'] for n, p in found['start'].items()]
    out.append(tables.markdown(['compile cache', 's to the first step', 'compile s'], rows))
  return '\n\n'.join(out)


def draw(axes: dict, file: Path) -> None:
  """Time above, memory below, a column an axis; both logarithmic, so that a slope is a power.

  Plots of a row share their scale: on one of its own even a flat line looks steep. A dotted line
  goes through the first point and is linear.
  """
  figure, grid = plt.subplots(
    2, len(axes), figsize=(2.4 * len(axes) + 0.6, 5), squeeze=False, sharey='row'
  )
  for column, (name, curve) in zip(grid.T, axes.items(), strict=True):
    values = [p['value'] for p in curve['points']]
    for axis, (what, label) in zip(column, LABELS.items(), strict=True):
      found = [p[what] * UNITS[what] for p in curve['points']]
      if name in LINEAR:
        linear = [found[0] * v / values[0] for v in values]
        axis.plot(values, linear, ':', color='grey', linewidth=1)
      axis.plot(values, found, 'o-', color=plots.COLOURS[1])
      axis.set(xscale='log', yscale='log', xlabel=name.replace('_', ' '))
      axis.set_title(f'slope {curve["slopes"][what]:.2f}', fontsize=9)
      axis.set_xticks(values, [str(v) for v in values])
      axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      axis.yaxis.set_major_formatter('{x:,.6g}')
      axis.minorticks_off()
      if axis in grid[:, 0]:
        axis.set_ylabel(label)
  plots.finish(figure, file)
