"""Clients that mean harm, for `bench soak`: each function attacks a server once.

It returns how often each outcome was seen: the status of an answer, or what became of a connection.
"""

import collections
import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

HOLD_S = 36.0  # A server must have ended a hostile connection by then.
ASK_S = 60.0  # for an answer, or for the next bytes to be taken
CUT, HELD = 'cut off', 'still open'
LINKS = 40  # connections of one attack
TAKEN = {'200', '429', '503', '408'}  # scored, or refused because of the others


class Target:
  """A server to attack."""

  def __init__(self, url: str):
    parts = urlsplit(url)
    self.address = parts.hostname, parts.port
    self.host = f'{parts.hostname}:{parts.port}'.encode()

  def connect(self) -> socket.socket:
    return socket.create_connection(self.address, timeout=ASK_S)

  def head(self, path: str = '/rerank', length: int = 0, more: bytes = b'') -> bytes:
    how = b'content-length: %d' % length if length else b'transfer-encoding: chunked'
    return b'POST %s HTTP/1.1\r\nhost: %s\r\n%s\r\n%s\r\n' % (path.encode(), self.host, how, more)

  def ask(self, path: str, body: bytes, more: bytes = b'') -> str:
    """The status of a whole request."""
    with self.connect() as link, contextlib.suppress(ConnectionError):
      link.sendall(self.head(path, len(body), more) + body)
      return answer(link)
    return CUT


def answer(link: socket.socket) -> str:
  """The status that a server sends, or what became of the connection."""
  try:
    return link.recv(65536)[9:12].decode() or CUT
  except TimeoutError:
    return HELD
  except ConnectionError:
    return CUT


def flood(link: socket.socket, piece: bytes, most: int) -> str:
  """Sends a piece again and again until the server ends the connection."""
  try:
    for _ in range(most // len(piece) + 1):
      link.sendall(piece)
  except ConnectionError:
    return CUT
  except TimeoutError:
    pass
  return HELD


def wait(links: list[socket.socket], drip: bytes = b'') -> collections.Counter:
  """Sends `drip` every second and reads nothing for HOLD_S, then looks which have been ended."""
  end, ended, links = time.monotonic() + HOLD_S, 0, list(links)
  while links and time.monotonic() < end:
    time.sleep(1)
    for link in list(links) if drip else ():
      try:
        link.send(drip)
      except OSError:
        links.remove(link)
        link.close()
        ended += 1
  # Until what was sent is read, a client does not see the end of its connection.
  open_ones = sum(not is_ended(link) for link in links)
  return +collections.Counter({CUT: ended + len(links) - open_ones, HELD: open_ones})


def is_ended(link: socket.socket) -> bool:
  """Whether the server has ended a connection."""
  with link:
    link.settimeout(3)
    try:
      while link.recv(1 << 20):
        pass
    except ConnectionError:
      return True
    except TimeoutError:
      return False
    return True


def trailers(target: Target, rng) -> collections.Counter:
  with target.connect() as link:
    link.sendall(target.head() + b'0\r\n')
    piece = rng.choice((b'a: b\r\n' * 5000, b'a' * 30_000))
    return collections.Counter([flood(link, piece, 40_000_000)])


def pipelines(target: Target, rng) -> collections.Counter:
  """A thousand small requests at once, whose answers nobody reads."""
  links = [target.connect() for _ in range(LINKS)]
  for link in links:
    with contextlib.suppress(ConnectionError):
      link.sendall(b'GET / HTTP/1.1\r\nhost: %s\r\n\r\n' % target.host * 1000)
  return wait(links)


def unread(target: Target, rng) -> collections.Counter:
  """Large answers that nobody reads: on each connection more than the kernel's buffers hold."""
  body = json.dumps({'query': 'q', 'texts': ['x ' * 900_000], 'return_text': True}).encode()
  links = [target.connect() for _ in range(4)]
  for _ in range(3):
    for link in links:
      link.settimeout(1)
      with contextlib.suppress(OSError):
        link.sendall(target.head(length=len(body)) + body)
    time.sleep(2)
  return wait(links)


def slow_bodies(target: Target, rng) -> collections.Counter:
  links = [target.connect() for _ in range(LINKS)]
  for link in links:
    path = rng.choice(('/rerank', '/', '/nothing'))
    link.sendall(target.head(path, rng.choice((1_999_999, 99_999_999))))
  return wait(links, b'x')


def unfinished_bodies(target: Target, rng) -> collections.Counter:
  """Bodies of which only the last byte is missing."""
  links = [target.connect() for _ in range(LINKS)]
  for link in links:
    with contextlib.suppress(ConnectionError):
      link.sendall(target.head(length=1_900_001) + b'x' * 1_900_000)
  return wait(links)


def long_queries(target: Target, rng) -> collections.Counter:
  body = json.dumps({'query': 'list names ' * 170_000}).encode()
  return collections.Counter([target.ask('/search', body)])


def worst_texts(target: Target, rng) -> collections.Counter:
  """Words without pieces, which cost WordPiece the most; before them what it reads for nothing."""
  word = ''.join(rng.choices('qzxjvk', k=99))
  end = rng.choice(('', '\u2603'))  # with an unknown character, a word is one token
  text = rng.choice(('', '\u200b' * 2000)) + f'{word}{end} ' * 19
  return asked_at_once(target, '/rerank', {'query': 'q', 'texts': [text] * rng.choice((40, 150))})


def many_short_texts(target: Target, rng) -> collections.Counter:
  return asked_at_once(target, '/rerank', {'query': 'q', 'texts': ['a number'] * 1000})


def asked_at_once(target: Target, path: str, body: dict, times: int = 4) -> collections.Counter:
  seen, content = collections.Counter(), json.dumps(body, ensure_ascii=False).encode()
  threads = [
    threading.Thread(target=lambda: seen.update([target.ask(path, content)])) for _ in range(times)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return seen


def large_json(target: Target, rng) -> collections.Counter:
  """Values that take 30 times their bytes when they are parsed."""
  many = rng.choice((b'{"":0},', b'[[]],', b'[],')) * 250_000
  body = b'{"query":"q","texts":["a"],"x":[[%s0]]}' % many
  return collections.Counter([target.ask('/rerank', body)])


def many_pairs(target: Target, rng) -> collections.Counter:
  body = b'{"inputs":[%s["",""]]}' % (b'["",""],' * 240_000)
  return collections.Counter([target.ask('/predict', body)])


def pages(target: Target, rng) -> collections.Counter:
  """What a web page makes a browser send."""
  body, more = b'{"query":"list","texts":["a"]}', b'origin: https://evil.example\r\n'
  if rng.random() < 0.5:
    return collections.Counter([target.ask(rng.choice(('/search', '/rerank')), body, more)])
  target = Target('http://' + target.host.decode())
  target.host = b'evil.example'
  return collections.Counter([target.ask('/search', body)])


# What a server may do; anything else is an error.
KINDS: dict[Callable, set[str]] = {
  trailers: {CUT},
  pipelines: {CUT},
  unread: {CUT},
  slow_bodies: {CUT},
  unfinished_bodies: {CUT},
  long_queries: TAKEN,
  worst_texts: TAKEN,
  many_short_texts: TAKEN,
  large_json: TAKEN,
  many_pairs: {'413', '429', CUT},
  pages: {'403', '421'},
}


def attack(url: str, kind: Callable, end: float, saw: Callable, pause_s: float = 0.5) -> None:
  """Attacks until `end`, and reports each outcome: `saw(kind, outcome, allowed, times)`."""
  rng = random.Random(kind.__name__)
  while time.monotonic() < end:
    try:
      outcomes = kind(Target(url), rng)
    except OSError as e:
      outcomes = {type(e).__name__: 1}
    for outcome, times in outcomes.items():
      if times:
        saw(kind.__name__, outcome, outcome in KINDS[kind], times)
    time.sleep(pause_s)
