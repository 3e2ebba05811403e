"""Mixed load for hours: good, malformed, oversized and slow requests, clients that disconnect.

Beside them hostile clients attack all the time: trailers, readers that stop, pipelines, slow and
unfinished bodies, long queries, worst cases of the tokenizer and of JSON, pages of other sites.
A minute is enough to see each of them (--seconds 60).

Ends with an error if a request got no answer or the wrong status, if a score was wrong (every 10th
good request is compared with the model's own scores), if too few good requests were answered, if a
hostile connection was not ended, if /health was late, or if the server took too much memory.
"""

import argparse
import collections
import contextlib
import json
import random
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from benchmarks import _baselines, _hostile, _load, _texts
from benchmarks.serve import server
from disranker_jax.commands.common import Parser
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError
from disranker_jax.progress import clock, say

CHECK_EVERY = 10
SETTLE = 0.2  # share of the duration after which the server's memory should be stable
GROWTH_BYTES = 200 << 20  # caches and fragmentation; a leak exceeds it within an hour
# Above an idle server: 8 times what its requests may hold, and one parsed body.
PEAK_BYTES = 1 << 30
HEALTH_S = 5.0  # for an answer of /health
ANSWERED = 0.5  # share of good requests that must be answered beside hostile ones, the rest is 429


def parse_args(argv) -> argparse.Namespace:
  parser = Parser('bench soak', __doc__, '--model runs/quickstart/export/student --seconds 3600')
  add = parser.add_argument_group('load').add_argument
  add('--model', required=True, type=Path, metavar='DIR', help='an exported student')
  add('--seconds', type=float, default=3600.0, help='duration; the last attacks end a minute later')
  add('--clients', type=int, default=8, help='concurrent clients')
  add('--no-hostile', action='store_true', help='no clients that mean harm')
  add('--backend', default='onnx-int8', help="the server's backend")
  return parser.parse_args(argv)


class Soak:
  """Clients of every kind, and the answers that they got."""

  def __init__(self, url: str, requests: list, expected: list[np.ndarray], tolerance: float):
    self.url, self.requests, self.expected = url, requests, expected
    self.tolerance = tolerance
    self.counts, self.wrong = collections.Counter(), []
    self.health: list[float] = []  # seconds of each answer of /health
    self._lock = threading.Lock()

  def client(self, seed: int, end: float) -> None:
    rng, mine = random.Random(seed), _load.Client(self.url)
    kinds = (self.good, self.bad, self.oversized, self.slow, self.leaves)
    while time.monotonic() < end:
      rng.choices(kinds, (90, 4, 2, 1, 3))[0](rng, mine)
    mine.close()

  def saw(self, kind: str, status: int, allowed: tuple[int, ...], detail: str = '') -> None:
    with self._lock:
      self.counts[kind, str(status) if status > 0 else ''] += 1
      if status not in allowed or detail:
        self.wrong.append(f'{kind}: status {status} {detail}'.strip())

  def attacked(self, kind: str, outcome: str, allowed: bool, times: int) -> None:
    """Counts the outcomes of a hostile client."""
    with self._lock:
      self.counts[kind, outcome] += times
      if not allowed:
        self.wrong.append(f'{kind}: {outcome} ({times} times)')

  def watch_health(self, end: float) -> None:
    """Asks for /health on new connections, as an orchestrator does."""
    while time.monotonic() < end:
      begin = time.monotonic()
      if (status := _load.health(self.url, HEALTH_S)) == 200:
        self.health.append(time.monotonic() - begin)
      else:
        self.attacked('health', str(status or 'no answer'), False, 1)
      time.sleep(0.2)

  def good(self, rng, mine) -> None:
    i = rng.randrange(len(self.requests))
    status, body = mine.post('/rerank', _load.rerank_body(self.requests[i]))
    detail = ''
    with self._lock:
      check = (self.counts['good', '200'] + 1) % CHECK_EVERY == 0
    if status == 200 and check:
      rows = json.loads(body)
      given = np.array([r['score'] for r in sorted(rows, key=lambda r: r['index'])])
      gap = np.abs(given - self.expected[i]).max()
      detail = '' if gap <= self.tolerance else f'a score is {gap:.3g} off'
    self.saw('good', status, (200, 429), detail)

  def bad(self, rng, mine) -> None:
    bodies = (b'{', b'[]', b'{"query": "q"}', b'{"query": 1, "texts": ["a"]}', b'\xff\xfe')
    self.saw('bad', mine.post('/rerank', rng.choice(bodies))[0], (422,))

  def oversized(self, rng, mine) -> None:
    many = json.dumps({'query': 'q', 'texts': ['a'] * 1500}).encode()
    large = json.dumps({'query': 'q', 'texts': ['a' * 3_000_000]}).encode()
    mine.close()  # the server may close the connection before it has read everything
    status = mine.post('/rerank', rng.choice((many, large)))[0]
    self.saw('oversized', status, (413, 0))

  def connect(self) -> socket.socket:
    parts = urlsplit(self.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)

  def raw(self, rng) -> bytes:
    body = _load.rerank_body(rng.choice(self.requests))
    head = f'POST /rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n'
    return head.encode() + body

  def slow(self, rng, mine) -> None:
    """Sends a body in small pieces over a second, which must be answered like any other."""
    data = self.raw(rng)
    with self.connect() as link:
      for at in range(0, len(data), len(data) // 10 + 1):
        link.sendall(data[at : at + len(data) // 10 + 1])
        time.sleep(0.1)
      first = link.recv(65536)
    self.saw('slow', int(first[9:12] or 0), (200, 429))

  def leaves(self, rng, mine) -> None:
    data = self.raw(rng)
    with self.connect() as link:
      link.sendall(data[: rng.choice((20, len(data) // 2, len(data)))])
    self.saw('leaves', -1, (-1,))


def run(args, url: str, process, requests, expected, tolerance) -> Soak:
  """Runs all clients until the time is up, and watches the server's memory."""
  soak, begin = Soak(url, requests, expected, tolerance), time.monotonic()
  end = begin + args.seconds
  threads = [
    threading.Thread(target=soak.client, args=(seed, end), daemon=True)
    for seed in range(args.clients)
  ]
  threads.append(threading.Thread(target=soak.watch_health, args=(end,), daemon=True))
  threads += [
    threading.Thread(target=_hostile.attack, args=(url, kind, end, soak.attacked), daemon=True)
    for kind in (() if args.no_hostile else _hostile.KINDS)
  ]
  for thread in threads:
    thread.start()
  watched = psutil.Process(process.pid)
  memory, shown = [watched.memory_info().rss], begin
  while any(t.is_alive() for t in threads):
    time.sleep(min(1.0, args.seconds / 20))
    if process.poll() is not None:
      raise UserError(f'the server ended with status {process.returncode}')
    memory.append(watched.memory_info().rss)
    if time.monotonic() - shown > 60:
      shown = time.monotonic()
      say(f'soak: {clock(shown - begin)} {memory[-1] >> 20} MiB, {sum(soak.counts.values())} done')
  settled = memory[int(len(memory) * SETTLE)]
  soak.growth, soak.peak, soak.memory = memory[-1] - settled, max(memory) - memory[0], memory[-1]
  status, _ = _load.Client(url).post('/rerank', _load.rerank_body(requests[0]))
  soak.saw('last', status, (200,))
  return soak


def main(argv) -> None:
  args = parse_args(argv)
  runtime.prepare()
  requests = _texts.natural(100)
  # In a process of its own, because the server's must get the device.
  with contextlib.closing(_baselines.Apart(f'ours {args.backend}', args.model)) as score:
    expected = [score(r.query, r.texts)[1] for r in requests]
  # JAX multiplies in bf16 on a CPU, and the order of its sums depends on the shape.
  tolerance = (0.02 if args.backend == 'jax' else 1e-3) * max(1.0, float(np.std(expected[0])))
  with server(f'ours {args.backend}', args.model, search=True) as (url, process):
    soak = run(args, url, process, requests, expected, tolerance)
  for (kind, outcome), count in sorted(soak.counts.items()):
    print(f'{kind:<18} {outcome:<10} {count}')
  checked = soak.counts['good', '200'] // CHECK_EVERY
  good = sum(count for (kind, _), count in soak.counts.items() if kind == 'good')
  print(f'{checked} answers compared; {soak.memory >> 20} MiB, growth {soak.growth >> 20} MiB, '
        f'peak {soak.peak >> 20} MiB above the start; /health {len(soak.health)} times, at most '
        f'{max(soak.health, default=0):.2f} s')  # fmt: skip
  if soak.wrong:
    raise UserError(f'{len(soak.wrong)} requests went wrong: {"; ".join(soak.wrong[:5])}')
  if soak.counts['good', '200'] < ANSWERED * good:
    raise UserError(f'only {soak.counts["good", "200"]} of {good} good requests were answered')
  if soak.growth > GROWTH_BYTES:
    raise UserError(f"the server's memory grew by {soak.growth >> 20} MiB after the warm-up")
  if soak.peak > PEAK_BYTES:
    raise UserError(f"the server's memory rose by {soak.peak >> 20} MiB")
