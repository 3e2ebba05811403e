"""Where a stage's step spends its time: parts of the network, forward and backward, the update.

Runs steps as `bench train` or `bench score` does, under JAX's profiler, and sums the operations by
the scope in which each was traced. Operations that run at the same time share that time.
"""

import argparse
import collections
import dataclasses
import json
import re
import tempfile
from pathlib import Path

import jax

from benchmarks import _compare, _figures, _ours, _work
from disranker_jax.commands.common import positive
from disranker_jax.report import tables

# The first match wins; scopes are named by Flax's modules and by jax.named_scope.
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
# Instructions that contain others: their time is the time of their content.
CONTAINERS = {'while', 'conditional'}
INSTRUCTION = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = .*?([a-z][\w\-]*)\(')
COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) .*\{$')


@dataclasses.dataclass(frozen=True)
class Operation:
  """One execution of an instruction of the compiled program."""

  name: str
  begin_ns: float
  end_ns: float


def parse_args(argv) -> argparse.Namespace:
  parser = _work.parser('profile', __doc__, (*_work.TRAINING, *_work.SCORING))
  add = parser.add_argument_group('profile').add_argument
  parser.set_defaults(rounds=1)
  add('--steps', type=positive, default=4, help='full batches per turn')
  add('--top', type=positive, default=10, help='number of single operations to list')
  add('--trace', type=Path, metavar='DIR', help='keep the trace, for XProf or Perfetto')
  return _work.parse(parser, argv)


def scopes(text: str) -> dict[str, tuple[str, str]]:
  """{instruction: (opcode, the scope in which it was traced)} of a compiled program's text.

  A fusion without a scope gets the scope of its computation's last instruction.
  """
  instructions, roots, computation = {}, {}, ''
  for line in text.splitlines():
    if header := COMPUTATION.match(line):
      computation = header[1]
    elif instruction := INSTRUCTION.match(line):
      scope = re.search(r'metadata=\{[^}]*op_name="([^"]*)"', line)
      called = re.search(r'(?:calls|to_apply)=%?([\w.\-]+)', line)
      known = scope[1] if scope else ''
      instructions[instruction[2]] = instruction[3], known, called[1] if called else ''
      if instruction[1]:
        roots[computation] = instruction[2]

  def of(name: str, depth: int = 8) -> str:
    _, scope, called = instructions[name]
    if scope or not depth or called not in roots:
      return scope
    return of(roots[called], depth - 1)

  return {name: (row[0], of(name)) for name, row in instructions.items()}


def part(scope: str) -> tuple[str, str]:
  """(part of the network, way) of a scope; ways are those of WAYS."""
  path = re.sub(r'[()]', '/', f'/{scope}/')  # 'jvp(up)' is 'up' just as 'jvp(Encoder)/up' is
  name = next(name for name, pattern in PARTS if re.search(pattern, path))
  if name == 'update':
    return name, name
  if 'rematted_computation' in scope:
    return name, 'again'
  return name, 'backward' if 'transpose(' in scope else 'forward'


def events(folder: Path, module: str) -> list[Operation]:
  """The operations of one program; names of operations repeat between programs."""
  out = []
  for file in sorted(folder.rglob('*.xplane.pb')):
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
      for event in (e for line in plane.lines for e in line.events):
        facts, begin = dict(event.stats), event.start_ns
        if 'hlo_op' in facts and facts.get('hlo_module') == module:
          out.append(Operation(facts['hlo_op'], begin, begin + event.duration_ns))
  return out


def add_up(ran: list[Operation], known: dict[str, tuple[str, str]]) -> dict[str, float]:
  """{instruction: nanoseconds}; instructions that run at the same time share that time.

  The sum is the time in which anything ran. Containers and other programs' operations are left out.
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
  parts: dict[str, dict] = collections.defaultdict(lambda: dict.fromkeys(WAYS, 0.0))
  for name, took in total.items():
    where, way = part(known[name][1])
    parts[where][way] += took
  return dict(sorted(parts.items(), key=lambda row: -sum(row[1].values())))


def measure(args: argparse.Namespace) -> dict:
  """The time of the stage's steps, by part and by operation."""
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
  """A scope without the prefixes that all scopes share."""
  words = [
    w for w in scope.split('/') if not w.startswith(('jit(', 'while', 'body', 'closed_call'))
  ]
  return '/'.join(words)


def text(answer: dict) -> str:
  total = sum(sum(ways.values()) for ways in answer['parts'].values())
  used = [w for w in WAYS if any(ways[w] for ways in answer['parts'].values())]
  rows = [
    [
      name,
      *(f'{ways[w]:,.1f}' if ways[w] else '' for w in used),
      f'{sum(ways.values()) / total:.1%}',
    ]
    for name, ways in answer['parts'].items()
  ]
  sums = [sum(ways[w] for ways in answer['parts'].values()) for w in used]
  rows.append(['all', *(f'{s:,.1f}' for s in sums), '100.0%'])
  head = (
    f'{answer["stage"]} of {answer["config"]}, texts {answer["texts"]}; {answer["device"]}, '
    f'{answer["precision"]}; {answer["step_ms"]:,.1f} ms per step under the profiler, '
    f'{total:,.1f} of them in operations; ms per step'
  )
  top = [
    [o['operation'], o['opcode'], short_scope(o['scope']), f'{o["ms"]:,.1f}'] for o in answer['top']
  ]
  return '\n\n'.join(
    [
      head,
      tables.markdown(['part', *used, 'share'], rows),
      tables.markdown(['operation', 'kind', 'scope', 'ms per step'], top),
    ]
  )


def main(argv) -> None:
  args = parse_args(argv)
  answer = measure(args)
  print(text(answer))
  if args.json:
    print(json.dumps(_figures.short(answer)))
