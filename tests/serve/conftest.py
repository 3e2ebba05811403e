"""A server of a small random student, in a thread, and one as its own process."""

import contextlib
import dataclasses
import re
import socket
import threading
import time

import httpx
import numpy as np
import pytest

from disranker_jax.models.load import open_exported
from disranker_jax.rankers import loaded


@pytest.fixture(scope='session')
def prompt(model):
  return open_exported(model).prompt()


@dataclasses.dataclass
class Running:
  """A server in a thread: its address, its service, a client."""

  url: str
  service: object
  client: httpx.Client


class Serving:
  """Starts servers; as a context manager it stops them all."""

  def __init__(self):
    self._stops = []

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for stop in self._stops:
      stop()

  def start(self, load, wait=True, **options) -> Running:
    from disranker_jax.serve.access import Access
    from disranker_jax.serve.app import Limits, Service, build
    from disranker_jax.serve.connection import open_server

    limits, search = Limits(**options.pop('limits', {})), options.pop('search', None)
    service = Service(load, 'student', limits, Access(**options), search)
    server = open_server(build(service), '127.0.0.1', 0, service, log_level='error')
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f'http://127.0.0.1:{port}'
    client = httpx.Client(base_url=url, timeout=30)

    def stop():
      client.close()
      server.should_exit = True
      thread.join(30)
      assert not thread.is_alive()

    self._stops.append(stop)
    if wait:
      until(lambda: client.get('/health').status_code == 200)
    return Running(url, service, client)


class Stub:
  """A backend whose score is the number of tokens; it can block, and can fail."""

  part_tokens, workers, name = 64, 2, 'stub'

  def __init__(self):
    self.free = threading.Event()
    self.free.set()
    self.calls, self.value = [], None

  def score(self, encoded):
    self.calls.append([len(e) for e in encoded])
    assert self.free.wait(30)
    if isinstance(self.value, Exception):
      raise self.value
    scores = np.array([float(len(e)) for e in encoded])
    return (scores if self.value is None else scores * self.value), len(encoded) * 64


def metric(running: Running, name: str) -> float:
  """The value of a metric without labels."""
  [value] = re.findall(rf'^{name} (\S+)$', running.client.get('/metrics').text, re.M)
  return float(value)


BODY = {'query': 'q', 'texts': ['a', 'b']}


def post(path: str = '/rerank', length: int = 100, more: bytes = b'') -> bytes:
  """The head of a request with a body."""
  return b'POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n%s\r\n' % (
    path.encode(), length, more,
  )  # fmt: skip


@contextlib.contextmanager
def connected(running, seconds: float = 20):
  url = httpx.URL(running.url)
  with socket.create_connection((url.host, url.port), timeout=seconds) as link:
    yield link


def serves(running) -> bool:
  """Whether others are answered."""
  answers = (running.client.get('/health'), running.client.post('/rerank', json=BODY))
  return [answer.status_code for answer in answers] == [200, 200]


def until(condition, seconds: float = 60) -> None:
  """Waits for a condition; fails after `seconds`."""
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'the condition did not become true'
    time.sleep(0.01)


@pytest.fixture
def serving():
  with Serving() as them:
    yield them


@pytest.fixture
def stub(serving, prompt):
  """(backend, start): start(...) returns a server whose model is the stub."""
  backend = Stub()
  yield (
    backend,
    lambda **options: serving.start(lambda: loaded.LoadedRanker(prompt, backend), **options),
  )
  backend.free.set()


@pytest.fixture(scope='module')
def server(model):
  """The tiny student by ONNX Runtime, with a small collection to search."""
  from disranker_jax.data.records import Document
  from disranker_jax.serve.page import Search

  docs = (
    Document('os.listdir', 'list dir', 'Return a list of names in a folder.'),
    Document('len', 'len', 'Return the number of items in a list.'),
    Document('<b>evil</b>', '<script>document.title="owned"</script>', 'a list & more'),
    Document('names.md', '', 'A list of names without a title.'),
    Document('zip', 'zip', 'Iterates over several at a time.'),
  )
  with Serving() as them:
    search = Search(lambda: docs, name='jsonl:pages.jsonl')
    yield them.start(lambda: loaded.load(model, 'onnx'), search=search)
