"""Time and memory of a step against rows, row length, group size and devices, and start-up time.

Each point is a process of its own that runs the stage's real step. Slopes are those of a line on
logarithmic axes: 1 is linear. Devices are virtual devices of this machine's CPU, which share its
cores: with more of them the time should stay and the memory of each should fall.
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
from disranker_jax.commands.common import positive, words
from disranker_jax.pipeline import systems
from disranker_jax.report import plots, tables

AXES = ('rows', 'row_len', 'group_size', 'devices')
NAMES = {'row_len': 'row length (tokens)', 'group_size': 'group size (documents)'}
LABELS = {'step_s': 'seconds per step', 'compiled_bytes': 'MB per device'}
UNITS = {'step_s': 1.0, 'compiled_bytes': 1e-6}  # of the plot
LINEAR = ('rows', 'row_len')  # the axes along which the work grows


def parse_args(argv) -> argparse.Namespace:
  parser = _work.parser('growth', __doc__, _work.TRAINING)
  add = parser.add_argument_group('growth').add_argument
  add('--steps', type=positive, default=2, help='full batches per turn')
  add('--axes', type=words, default=[*AXES, 'start'], metavar='A,B', help='what grows')
  add('--times', default='0.5,1,2,4', metavar='X,X', help=(
    "multiples of the config's value; for devices, their number"))  # fmt: skip
  add('--plot', type=Path, metavar='FILE.svg', help='write a plot')
  parser.set_defaults(rounds=3)
  args = _work.parse(parser, argv)
  if wrong := [a for a in args.axes if a not in (*AXES, 'start')]:
    parser.error(f'--axes: {wrong[0]!r} is unknown; there are {", ".join((*AXES, "start"))}')
  args.times = [float(t) for t in args.times.split(',')]
  return args


def open_side(name: str, argv: list[str], folder: Path):
  from benchmarks import _ours

  args = parse_args(argv)
  return _ours.Train(_work.open_work(args, folder), args.steps)


def points(args: argparse.Namespace, axis: str) -> list[tuple[int, list[str], dict]]:
  """(value, words to add to the command line, environment to add) of each point on an axis."""
  c, side = args.config[args.stage], _work.Work(args.config, args.stage, Path()).settings
  name = systems.find(args.config, args.stage).role
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
  out = []
  for n in sorted({max(2, round(value * t)) for t in args.times}):
    changes = {
      'rows': [f'--config.{args.stage}.batch_rows={n}'],
      # Texts are truncated to the row's length, so that longer rows hold longer texts.
      'row_len': [
        f'--config.{name}.{key}={max(8, round(side[key] * n / value))}'
        for key in ('row_len', 'max_len')
      ],
      'group_size': [f'--config.{args.stage}.group_size={n}'],
    }
    out.append((n, changes[axis], {}))
  return out


def measure(argv, folder: Path, rounds: int, env: dict) -> dict:
  """One point: the median time of a step, the compiler's count of bytes, the start-up time."""
  with _worker.Worker('growth', 'ours', argv, folder, env) as worker:
    facts = _worker.checked(worker, 'start')
    start_s = worker.age
    rows = [_worker.checked(worker, 'turn') for _ in range(rounds)]
  return {
    'step_s': statistics.median(r['seconds'] / r['steps'] for r in rows),
    'tokens': rows[0]['tokens'] / rows[0]['steps'],
    'compiled_bytes': facts['compiled_bytes'],
    'compile_s': facts['compile_s'],
    'start_s': start_s,
    'device': facts['device'],
  }


def along(args, argv, folder: Path, axis: str) -> dict | None:
  """The points of an axis and their slopes; None if the stage has no such axis."""
  measured = [
    {'value': value} | measure([*argv, *changes], folder, args.rounds, env)
    for value, changes, env in points(args, axis)
  ]
  if not measured:
    return None
  values = [p['value'] for p in measured]
  slopes = {k: _figures.slope(values, [p[k] for p in measured]) for k in LABELS}
  return {'points': measured, 'slopes': slopes}


def start_up(argv, folder: Path) -> dict[str, dict]:
  """Seconds from a process's start to the end of its first step, with a cold and a warm cache."""
  with tempfile.TemporaryDirectory() as cache:
    env = {
      'JAX_COMPILATION_CACHE_DIR': cache,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    points = {name: measure(argv, folder, 1, env) for name in ('cold', 'warm')}
  return {name: {k: p[k] for k in ('start_s', 'compile_s')} for name, p in points.items()}


def main(argv) -> None:
  args = parse_args(argv)
  answer = {'bench': 'growth'} | _compare.described(args) | {'axes': {}}
  with _work.prepared(args) as work:
    for axis in args.axes:
      if axis == 'start':
        answer['start'] = start_up(argv, work.folder)
      elif (curve := along(args, argv, work.folder, axis)) is not None:
        answer['axes'][axis] = curve
        answer['device'] = curve['points'][0]['device']
  print(text(answer))
  if args.plot and answer['axes']:
    draw(answer['axes'], args.plot)
  if args.json:
    print(json.dumps(_figures.short(answer)))


def text(answer: dict) -> str:
  """A table of all points, and one of start-up."""
  rows = []
  for axis, curve in answer['axes'].items():
    for p in curve['points']:
      rows.append([f'{axis} {p["value"]}', f'{p["step_s"]:.3f}', f'{p["tokens"]:,.0f}',
                   f'{p["compiled_bytes"] / 1e6:,.0f}', f'{p["compile_s"]:.1f}'])  # fmt: skip
    s = curve['slopes']
    rows.append([f'{axis}: slope', f'{s["step_s"]:.2f}', '', f'{s["compiled_bytes"]:.2f}', ''])
  heads = ['point', 's per step', 'tokens per step', 'MB per device', 'compile s']
  out = [tables.markdown(heads, rows)] if rows else []
  if 'start' in answer:
    rows = [[n, f'{p["start_s"]:.1f}', f'{p["compile_s"]:.1f}'] for n, p in answer['start'].items()]
    out.append(tables.markdown(['compile cache', 's to the first step', 'compile s'], rows))
  return '\n\n'.join(out)


def draw(axes: dict, file: Path) -> None:
  """Plots time above memory, one column per axis, all scales logarithmic: a slope is a power.

  Plots of a row share their scale, or a flat line would look steep. The dotted line is linear and
  goes through the first point.
  """
  figure, grid = plt.subplots(
    2, len(axes), figsize=(2.4 * len(axes) + 0.6, 5), squeeze=False, sharey='row'
  )
  for column, (name, curve) in zip(grid.T, axes.items(), strict=True):
    values = [p['value'] for p in curve['points']]
    for axis, (what, label) in zip(column, LABELS.items(), strict=True):
      ys = [p[what] * UNITS[what] for p in curve['points']]
      if name in LINEAR:
        linear = [ys[0] * v / values[0] for v in values]
        axis.plot(values, linear, ':', color='grey', linewidth=1)
      axis.plot(values, ys, 'o-', color=plots.COLOURS[1])
      axis.set(xscale='log', yscale='log', xlabel=NAMES.get(name, name))
      axis.set_title(f'slope {curve["slopes"][what]:.2f}', fontsize=9)
      axis.set_xticks(values, [str(v) for v in values])
      axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      axis.yaxis.set_major_formatter('{x:,.6g}')
      axis.minorticks_off()
      if axis in grid[:, 0]:
        axis.set_ylabel(label)
  plots.finish(figure, file)
