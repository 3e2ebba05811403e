"""Where a stage's step spends its time: parts of the network, there and back, and the update.

Runs some steps as `train` or `score` does under JAX's profiler, and adds up the operations by the
scope that each was traced in. Of operations that run at the same time each gets its share.
"""

import argparse
import collections
import dataclasses
import json
import re
import tempfile
from pathlib import Path

import jax
from absl import flags

from benchmarks import _compare, _figures, _ours, _work
from disranker_jax.devices import runtime
from disranker_jax.report import tables

# First match wins; scopes are named by Flax's modules, the rest by jax.named_scope.
PARTS = (
  ('update', r'/update/'),
  ('attention', r'/attend/'),
  ('q, k, v, o', r'/(q|k|v|o)/'),
  ('feed-forward', r'/(up|gate|down)/'),
  ('norms', r'norm'),
  ('embeddings', r'/(embed|words|places|types)\b'),
  ('head', r'[/.](pooler|classifier|score|logits|lm_head|logprobs)\b'),
  ('rest of the layers', r'/blocks/'),
  ('copies without a scope', r'^//$'),
  ('loss and the rest', r''),
)
WAYS = ('forward', 'again', 'backward', 'update')
# Instructions that contain others: their time is that of what is in them.
CONTAINERS = {'while', 'conditional'}
INSTRUCTION = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = .*?([a-z][\w\-]*)\(')
COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) .*\{$')


@dataclasses.dataclass(frozen=True)
class Operation:
  """An instruction of the compiled program that ran."""

  name: str
  begin_ns: float
  end_ns: float


def parse_args(argv) -> argparse.Namespace:
  parser = _work.parser('profile', __doc__, (*_work.TRAINING, *_work.SCORING))
  add = parser.add_argument
  parser.set_defaults(rounds=1)
  add('--steps', type=_work.positive, default=4, help='full batches of a turn (%(default)s)')
  add('--top', type=_work.positive, default=10, help='single operations that are listed (10)')
  add('--trace', type=Path, metavar='DIR', help='keeps the trace there, for XProf or Perfetto')
  return _work.parse(parser, argv)


def scopes(text: str) -> dict[str, tuple[str, str]]:
  """{instruction: (opcode, the scope that it was traced in)} of a compiled program's text.

  A fusion without a scope has that of its computation's last instruction.
  """
  found, roots, computation = {}, {}, ''
  for line in text.splitlines():
    if begun := COMPUTATION.match(line):
      computation = begun[1]
    elif instruction := INSTRUCTION.match(line):
      scope = re.search(r'metadata=\{[^}]*op_name="([^"]*)"', line)
      called = re.search(r'(?:calls|to_apply)=%?([\w.\-]+)', line)
      known = scope[1] if scope else ''
      found[instruction[2]] = instruction[3], known, called[1] if called else ''
      if instruction[1]:
        roots[computation] = instruction[2]

  def of(name: str, depth: int = 8) -> str:
    _, scope, called = found[name]
    if scope or not depth or called not in roots:
      return scope
    return of(roots[called], depth - 1)

  return {name: (row[0], of(name)) for name, row in found.items()}


def part(scope: str) -> tuple[str, str]:
  """(part of the network, which way) of a scope."""
  path = re.sub(r'[()]', '/', f'/{scope}/')  # 'jvp(up)' is as much in 'up' as 'jvp(Encoder)/up'
  name = next(name for name, pattern in PARTS if re.search(pattern, path))
  if name == 'update':
    return name, name
  if 'rematted_computation' in scope:
    return name, 'again'
  return name, 'backward' if 'transpose(' in scope else 'forward'


def events(folder: Path, module: str) -> list[Operation]:
  """The operations of a program that ran; names of operations are its own, other programs' too."""
  found = []
  for file in sorted(folder.rglob('*.xplane.pb')):
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
      for event in (e for line in plane.lines for e in line.events):
        facts, begin = dict(event.stats), event.start_ns
        if 'hlo_op' in facts and facts.get('hlo_module') == module:
          found.append(Operation(facts['hlo_op'], begin, begin + event.duration_ns))
  return found


def add_up(ran: list[Operation], known: dict[str, tuple[str, str]]) -> dict[str, float]:
  """{instruction: nanoseconds} of the program's own; what ran at the same time shares the time.

  So they add up to the time in which anything ran. Containers and strangers are left out.
  """
  ran = [o for o in ran if o.name in known and known[o.name][0] not in CONTAINERS]
  edges = [(o.begin_ns, 1, o.name) for o in ran] + [(o.end_ns, -1, o.name) for o in ran]
  total: dict[str, float] = collections.Counter()
  running: dict[str, int] = collections.Counter()
  before = 0.0
  for at, change, name in sorted(edges):
    if count := running.total():
      for other, times in running.items():
        total[other] += (at - before) * times / count
    running[name] += change
    if not running[name]:
      del running[name]
    before = at
  return dict(total)


def by_part(total: dict[str, float], known: dict[str, tuple[str, str]]) -> dict[str, dict]:
  """{part: {way: nanoseconds}}, the most expensive part first."""
  found: dict[str, dict] = collections.defaultdict(lambda: dict.fromkeys(WAYS, 0.0))
  for name, took in total.items():
    where, way = part(known[name][1])
    found[where][way] += took
  return dict(sorted(found.items(), key=lambda row: -sum(row[1].values())))


def measure(args: argparse.Namespace) -> dict:
  """The stage's steps, what they took, and of what."""
  with _work.prepared(args) as work, tempfile.TemporaryDirectory() as scratch:
    side = (_ours.Train if args.stage in _work.TRAINING else _ours.Score)(work, args.steps)
    facts = side.start()
    side.warm()
    folder = args.trace or Path(scratch)
    with jax.profiler.trace(str(folder)):
      turns = [side.turn() for _ in range(args.rounds)]
    program = side.compiled.as_text()
    known = scopes(program)
    module = re.match(r'HloModule ([^\s,]+)', program)[1]
    total = add_up(events(folder, module), known)
  steps, seconds = (sum(turn[k] for turn in turns) for k in ('steps', 'seconds'))
  ms = 1e-6 / steps
  parts = {
    name: {way: took * ms for way, took in ways.items()}
    for name, ways in by_part(total, known).items()
  }
  top = [
    {'operation': name, 'opcode': known[name][0], 'scope': known[name][1], 'ms': total[name] * ms}
    for name in sorted(total, key=total.get, reverse=True)[: args.top]
  ]
  return {
    'bench': 'profile', **_compare.described(args), 'device': facts['device'],
    'precision': facts['precision'], 'steps': steps, 'step_ms': 1000 * seconds / steps,
    'parts': parts, 'top': top,
  }  # fmt: skip


def short_scope(scope: str) -> str:
  """A scope without what every one begins with."""
  words = [
    w for w in scope.split('/') if not w.startswith(('jit(', 'while', 'body', 'closed_call'))
  ]
  return '/'.join(words)


def text(found: dict) -> str:
  total = sum(sum(ways.values()) for ways in found['parts'].values())
  used = [w for w in WAYS if any(ways[w] for ways in found['parts'].values())]
  rows = [
    [
      name,
      *(f'{ways[w]:,.1f}' if ways[w] else '' for w in used),
      f'{sum(ways.values()) / total:.1%}',
    ]
    for name, ways in found['parts'].items()
  ]
  sums = [sum(ways[w] for ways in found['parts'].values()) for w in used]
  rows.append(['all', *(f'{s:,.1f}' for s in sums), '100.0%'])
  said = (
    f'{found["stage"]} of {found["config"]}, texts {found["texts"]}; {found["device"]}, '
    f'{found["precision"]}; {found["step_ms"]:,.1f} ms a step under the profiler, in operations '
    f'{total:,.1f}; ms a step'
  )
  top = [
    [o['operation'], o['opcode'], short_scope(o['scope']), f'{o["ms"]:,.1f}'] for o in found['top']
  ]
  return '\n\n'.join(
    [
      said,
      tables.markdown(['part', *used, 'share'], rows),
      tables.markdown(['operation', 'kind', 'scope', 'ms a step'], top),
    ]
  )


def main(argv) -> None:
  args = parse_args(argv)
  runtime.prepare()
  flags.FLAGS.mark_as_parsed()  # Grain reads them
  found = measure(args)
  print(text(found))
  if args.json:
    print(json.dumps(_figures.short(found)))
