"""Load on a server: closed loop (each client waits for its answer) or open loop (arrivals)."""

import concurrent.futures
import contextlib
import http.client
import json
import random
import threading
import time
from urllib.parse import urlsplit


class Client:
  """One keep-alive connection; `post` returns (status, body), status 0 without an answer."""

  def __init__(self, url: str, timeout_s: float = 60.0):
    parts = urlsplit(url)
    self._host, self._port, self._timeout = parts.hostname, parts.port, timeout_s
    self._connection = None

  def post(self, path: str, body: bytes) -> tuple[int, bytes]:
    for fresh in (False, True):
      if self._connection is None or fresh:
        self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
      try:
        self._connection.request('POST', path, body, {'content-type': 'application/json'})
        response = self._connection.getresponse()
        return response.status, response.read()
      except (OSError, http.client.HTTPException):
        self.close()  # a server may close an idle connection at any time: retry on a new one
    return 0, b''

  def close(self) -> None:
    if self._connection:
      self._connection.close()
    self._connection = None


def health(url: str, timeout_s: float) -> int:
  """The status of /health on a connection of its own, through no proxy; 0 without an answer."""
  parts = urlsplit(url)
  link = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
  with contextlib.closing(link), contextlib.suppress(OSError, http.client.HTTPException):
    link.request('GET', '/health')
    return link.getresponse().status
  return 0


def rerank_body(request) -> bytes:
  return json.dumps({'query': request.query, 'texts': request.texts, 'raw_scores': True}).encode()


def closed(url: str, bodies: list[bytes], clients: int, seconds: float) -> list[tuple[int, float]]:
  """(status, seconds) of every request of clients that send the next one after each answer."""
  end = time.monotonic() + seconds

  def one(seed: int):
    client, rng, out = Client(url), random.Random(seed), []
    while time.monotonic() < end:
      begin = time.perf_counter()
      status, _ = client.post('/rerank', rng.choice(bodies))
      out.append((status, time.perf_counter() - begin))
    client.close()
    return out

  with concurrent.futures.ThreadPoolExecutor(clients) as pool:
    return [row for rows in pool.map(one, range(clients)) for row in rows]


def opened(url: str, bodies: list[bytes], rate: float, seconds: float) -> list[tuple[int, float]]:
  """(status, seconds) of requests with random arrivals, `rate` per second on average.

  A request's time counts from its planned arrival, so a slow server cannot reduce its load.
  """
  rng, out, lock = random.Random(0), [], threading.Lock()
  local = threading.local()

  def one(due: float, body: bytes):
    if not hasattr(local, 'client'):
      local.client = Client(url)
    status, _ = local.client.post('/rerank', body)
    with lock:
      out.append((status, time.perf_counter() - due))

  begin = due = time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(256) as pool:
    while (due := due + rng.expovariate(rate)) < begin + seconds:
      time.sleep(max(0.0, due - time.perf_counter()))
      pool.submit(one, due, rng.choice(bodies))
  return out
