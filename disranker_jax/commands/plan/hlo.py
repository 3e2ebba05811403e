"""What a compiled step moves, read from the text of its program: collectives and HBM traffic.

The compiler's own cost analysis counts the body of a loop once. Here it is multiplied by the trip
count, so a scan over layers counts every layer.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')

# Instructions that only name existing values.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call',
  'partition-id', 'replica-id', 'iota', 'after-all', 'optimization-barrier',
}  # fmt: skip
_ARRAY = re.compile(r'\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?')
_NAME = re.compile(r'%([\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of an instruction's result."""

  dims: tuple[int, ...]
  bytes: int
  in_hbm: bool  # rather than in a memory on the core


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  result: tuple[Array, ...]
  opcode: str
  inside: str  # text in the parentheses: operands, or a constant's value
  attributes: str
  root: bool

  @property
  def operands(self) -> list[str]:
    return _NAME.findall(self.inside)

  def attribute(self, name: str) -> str | None:
    """The computation in `name=%computation`."""
    match = re.search(rf'\b{name}=%([\w.\-]+)', self.attributes)
    return match[1] if match else None


@dataclasses.dataclass
class Moved:
  """What one execution of the program moves on one device."""

  counts: dict[str, int]
  bytes: dict[str, int]  # received from other devices, by ring algorithms
  hbm: int  # bytes read and written in HBM


class Program:
  """The computations of a program, from its text."""

  def __init__(self, text: str):
    self.computations: dict[str, list[Instruction]] = {}
    self.entry, here = None, None
    for line in text.splitlines():
      if here is None and (name := _header(line)):
        here = self.computations.setdefault(name, [])
        self.entry = name if line.startswith('ENTRY') else self.entry
      elif line.rstrip() == '}':  # a kernel's metadata may have lines that start with one
        here = None
      elif here is not None and (parsed := _instruction(line)):
        here.append(parsed)

  def moved(self, devices: int) -> Moved:
    """What an execution moves on each of `devices` devices."""
    total = Moved(collections.Counter(), collections.Counter(), 0)
    collectives = {}
    for name, times, trips in self.executed():
      body = {i.name: i for i in self.computations[name]}
      total.hbm += times * sum(traffic(i, body, trips) for i in body.values())
      for each, size in self._collectives(name):
        # A collective that is spread over fusions, also over those of inner loops, appears in each
        # of them with the same channel; its count is the smallest of theirs.
        key = _channel(each) or f'{name} {each.name}'
        if key not in collectives or times < collectives[key][0]:
          collectives[key] = times, each, size
    for times, each, size in collectives.values():
      kind = each.opcode.removesuffix('-start')
      total.counts[kind] += times
      total.bytes[kind] += times * payload(each, size, devices)
    return Moved(dict(total.counts), dict(total.bytes), total.hbm)

  def executed(self) -> Iterator[tuple[str, int, int]]:
    """(computation, how often it is executed, trips of the loop whose body it is, else 1)."""
    waiting = [(self.entry, 1, 1)]
    while waiting:
      name, times, trips = waiting.pop()
      yield name, times, trips
      for i in self.computations[name]:
        if i.opcode == 'while':
          again = self.trips(i, name)
          waiting.append((i.attribute('body'), times * again, again))
        elif i.opcode in ('call', 'conditional', 'async-start'):
          waiting += [(called, times, trips) for called in self._called(i)]

  def trips(self, loop: Instruction, name: str) -> int:
    """The trip count of a while: the compiler's own note, else from its counter; at least 1."""
    if known := re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.attributes):
      return int(known[1])
    condition = self.computations[loop.attribute('condition')]
    body = self.computations[loop.attribute('body')]
    limits = [int(i.inside) for i in condition if _is_integer(i)]
    counter = [re.search(r'index=(\d+)', i.attributes) for i in condition]
    counter = [int(match[1]) for match in counter if match]
    if len(limits) != 1 or len(counter) != 1:
      return max(limits, default=1)
    step = _step(body, counter[0])
    start = _start(self.computations[name], loop.operands[0], counter[0])
    return max(1, math.ceil((limits[0] - start) / step))

  def _called(self, i: Instruction) -> list[str]:
    if i.opcode == 'conditional':
      names = re.search(r'branch_computations=\{([^}]*)\}', i.attributes)
      if names:
        return _NAME.findall(names[1])
      return [i.attribute('true_computation'), i.attribute('false_computation')]
    return [i.attribute('to_apply') or i.attribute('calls')]

  def _collectives(self, name: str) -> Iterator[tuple[Instruction, int]]:
    """(collective, bytes of its operands) of a computation and of its fusions."""
    bodies = [name, *(i.attribute('calls') for i in self.computations[name] if _is_fusion(i))]
    for body in (self.computations[b] for b in bodies):
      known = {i.name: i for i in body}
      for i in body:
        if i.opcode.removesuffix('-start') in KINDS:
          yield i, sum(a.bytes for o in i.operands if o in known for a in known[o].result)


def payload(each: Instruction, size: int, devices: int) -> int:
  """Bytes that a device receives, from the bytes of a collective's operands on it."""
  kind, n = each.opcode.removesuffix('-start'), group_size(each.attributes, devices)
  return {
    'all-gather': size * (n - 1),
    'all-reduce': 2 * size * (n - 1) // n,
    'reduce-scatter': size * (n - 1) // n,
    'all-to-all': size * (n - 1) // n,
    'collective-permute': size,
  }[kind]


def group_size(attributes: str, devices: int) -> int:
  """The number of devices in a group of a collective, in any notation of groups.

  Lists {{0,1},{2,3}}; [groups,size]<=[...]; axes of a mesh['a'=4,'b'=2] {'a'}, where 'a':(1)2 is
  a part of an axis.
  """
  if match := re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', attributes):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  if match := re.search(r'replica_groups=\[(\d+),(\d+)\]', attributes):
    return int(match[2])
  if match := re.search(r'replica_groups=\{\{([\d,]+)\}', attributes):
    return len(match[1].split(','))
  return devices


def traffic(i: Instruction, body: dict[str, Instruction], trips: int) -> int:
  """Bytes that an instruction reads and writes in HBM.

  An array that a loop carries, and whose first axis has the length of the loop, counts as the slice
  of one trip: a scan reads its layers and writes its results that way.
  """
  if i.opcode in _FREE or 'AllocateBuffer' in i.attributes:
    return 0
  carried = {body[o].result[0].dims for o in i.operands if _is_carried(body.get(o), trips)}

  def size(array: Array) -> int:
    if not array.in_hbm:
      return 0
    return array.bytes // trips if array.dims in carried else array.bytes

  # A -start's results count at its -done, and a -done's operands counted at its -start.
  reads = () if i.opcode.endswith('-done') else i.operands
  writes = () if i.opcode.endswith('-start') else i.result
  read = sum(size(a) for o in reads if o in body for a in body[o].result)
  return read + sum(size(a) for a in writes)


def _is_carried(i: Instruction | None, trips: int) -> bool:
  if i is None or trips < 2 or i.opcode != 'get-tuple-element':
    return False
  return i.result[0].dims[:1] == (trips,)


def _header(line: str) -> str | None:
  match = re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line)
  return match[1] if match else None


def _instruction(line: str) -> Instruction | None:
  match = re.match(r'\s+(ROOT )?%?([\w.\-]+) = ', line)
  if not match:
    return None
  rest = line[match.end() :]
  end = _closing(rest) if rest.startswith('(') else rest.find(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  stop = len(opcode) + _closing(rest[len(opcode) :])
  inside, attributes = rest[len(opcode) + 1 : stop - 1], rest[stop:]
  return Instruction(match[2], _arrays(shape), opcode, inside, attributes, bool(match[1]))


def _closing(text: str) -> int:
  """Index after the parenthesis that closes the first character of `text`."""
  depth = 0
  for at, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return at + 1
  return len(text)


def _arrays(shape: str) -> tuple[Array, ...]:
  arrays = []
  for kind, dims, layout in _ARRAY.findall(shape):
    dims = tuple(int(d) for d in dims.split(',') if d)
    bits = re.search(r'\d+', kind)
    size = math.ceil(math.prod(dims) * (int(bits[0]) if bits else 8) / 8)
    # Memory space 0 is HBM.
    arrays.append(Array(dims, size, not re.search(r'S\([1-9]', layout)))
  return tuple(arrays)


def _is_fusion(i: Instruction) -> bool:
  return i.opcode == 'fusion' and i.attribute('calls') is not None


def _channel(i: Instruction) -> str | None:
  match = re.search(r'channel_id=(\d+)', i.attributes)
  return match[1] if match else None


def _is_integer(i: Instruction) -> bool:
  return i.opcode == 'constant' and re.fullmatch(r'-?\d+', i.inside) is not None


def _step(body: list[Instruction], index: int) -> int:
  """What a trip adds to the loop's counter, element `index` of the carried tuple."""
  known = {i.name: i for i in body}
  root = next(i for i in body if i.root)
  added = _source(known, root.operands[index]) if root.opcode == 'tuple' else None
  if added is None or added.opcode != 'add':
    return 1
  steps = [known[o] for o in added.operands if o in known]
  return next((int(i.inside) for i in steps if _is_integer(i) and int(i.inside) > 0), 1)


def _start(computation: list[Instruction], carried: str, index: int) -> int:
  """The loop's counter before the first trip: 0 unless the carried tuple holds another value."""
  known = {i.name: i for i in computation}
  initial = known.get(carried)
  if initial is None or initial.opcode != 'tuple':
    return 0
  first = _source(known, initial.operands[index])
  return int(first.inside) if first is not None and _is_integer(first) else 0


def _source(known: dict[str, Instruction], name: str) -> Instruction | None:
  """The instruction that computes a value, behind any copies."""
  source = known.get(name)
  while source is not None and source.opcode in ('copy', 'bitcast', 'copy-start', 'copy-done'):
    source = known.get(source.operands[0])
  return source
