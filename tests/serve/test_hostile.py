"""Clients that mean harm: each is ended or refused, and the others are answered beside them."""

import concurrent.futures
import contextlib
import dataclasses
import json
import socket
import threading
import time
import tracemalloc

import httpx
import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers

from disranker_jax.data.records import Document
from disranker_jax.models.load import open_tokenizer
from disranker_jax.rankers import loaded
from disranker_jax.serve import admission, app, connection, page
from tests.serve.conftest import Stub, metric, until

BODY = {'query': 'q', 'texts': ['a', 'b']}
CHUNKED = b'POST /rerank HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n'


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


def received(link) -> bytes:
  """All that the server sends until it closes the connection."""
  data = b''
  with contextlib.suppress(ConnectionError):
    while piece := link.recv(1 << 16):
      data += piece
  return data


def is_cut_off(link, piece: bytes, most: int) -> bool:
  """Whether the server ends the connection before it has taken `most` bytes of this."""
  sent = 0
  try:
    while sent < most:
      link.sendall(piece)
      sent += len(piece)
  except ConnectionError:
    return True
  return False


def serves(running) -> bool:
  """Whether others are answered."""
  answers = (running.client.get('/health'), running.client.post('/rerank', json=BODY))
  return [answer.status_code for answer in answers] == [200, 200]


class TestMessages:
  """A message has a limit of bytes and of time, in each of its phases."""

  @pytest.mark.parametrize('token', ['', 's3cret'])  # with a token the answer comes first
  @pytest.mark.parametrize('trailer', [b'a: b\r\n' * 3000, b'a' * 18_000], ids=['many', 'long'])
  def test_trailers_end_the_connection(self, stub, token, trailer):
    running = stub[1](token=token)
    with connected(running) as link:
      link.sendall(CHUNKED + b'0\r\n')
      assert is_cut_off(link, trailer, 30_000_000)
    assert running.client.get('/health').status_code == 200

  def test_a_few_trailers_are_ignored(self, stub):
    running, body = stub[1](), json.dumps(BODY).encode()
    with connected(running) as link:
      link.sendall(CHUNKED + b'%x\r\n%s\r\n0\r\nhost: evil\r\na: b\r\n\r\n' % (len(body), body))
      assert link.recv(1000).startswith(b'HTTP/1.1 200')

  def test_a_head_of_many_headers_ends_the_connection(self, stub):
    running = stub[1]()
    with connected(running) as link:
      link.sendall(b'GET / HTTP/1.1\r\nhost: localhost\r\n' + b'a:b\r\n' * 500 + b'\r\n')
      assert received(link) == b''
    assert serves(running)

  @pytest.mark.parametrize('path, status', [('/', 405), ('/no', 404), ('/rerank', 413)])
  def test_what_is_answered_before_its_end_must_end_soon(self, stub, monkeypatch, path, status):
    monkeypatch.setattr(connection, 'LINGER_S', 0.3)
    running = stub[1]()
    with connected(running) as link:
      link.sendall(post(path, 99_999_999))
      stop = threading.Event()

      def drip():
        with contextlib.suppress(OSError):
          while not stop.wait(0.05):
            link.sendall(b'x')

      thread = threading.Thread(target=drip)
      thread.start()
      try:
        assert received(link).startswith(b'HTTP/1.1 %d' % status)  # and then it is closed
      finally:
        stop.set()
        thread.join()

  def test_the_rest_of_a_refused_request_is_taken_so_that_the_answer_arrives(self, stub):
    running = stub[1](token='s3cret')
    with connected(running) as link:
      for _ in range(2):  # on one connection, because each message ends
        link.sendall(post(length=1_500_000))
        link.sendall(b'x' * 1_500_000)
        assert link.recv(10_000).startswith(b'HTTP/1.1 401')

  def test_a_slow_body_is_closed_after_its_408(self, stub, monkeypatch):
    monkeypatch.setattr(connection, 'LINGER_S', 0.2)
    with connected(stub[1](limits={'body_timeout_s': 0.2})) as link:
      link.sendall(post() + b'{')
      assert received(link).startswith(b'HTTP/1.1 408')

  def test_line_ends_do_not_keep_an_idle_connection(self, stub, monkeypatch):
    monkeypatch.setattr(connection, 'IDLE_S', 0.5)
    with connected(stub[1]()) as link:
      link.sendall(b'GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n')
      assert link.recv(1000).startswith(b'HTTP/1.1 200')
      end = time.monotonic() + 20
      with pytest.raises(ConnectionError):
        while time.monotonic() < end:
          link.sendall(b'\r\n')
          time.sleep(0.05)

  def test_requests_before_the_answer_are_dropped_and_the_answer_closes(self, stub):
    backend, start = stub
    running, body = start(), json.dumps(BODY).encode()
    backend.free.clear()
    with connected(running) as link:
      link.sendall((post(length=len(body)) + body) * 1000)
      until(lambda: metric(running, 'disranker_queue') == 1)
      backend.free.set()
      answer = received(link)
    assert answer.count(b'HTTP/1.1 ') == 1 and b'connection: close' in answer
    assert serves(running)

  def test_an_upgrade_is_ignored_and_the_request_answered(self, stub):
    with connected(stub[1]()) as link:
      head = b'GET /health HTTP/1.1\r\nhost: localhost\r\n'
      link.sendall(head + b'connection: upgrade\r\nupgrade: h2c\r\n\r\n' + b'PRI * HTTP/2.0' * 9)
      assert received(link).startswith(b'HTTP/1.1 200')

  def test_a_client_that_does_not_read_is_given_up(self, stub, monkeypatch):
    monkeypatch.setattr(connection, 'ANSWER_S', 0.5)
    monkeypatch.setattr(connection, 'WATCH_S', 0.1)
    running = stub[1]()
    body = json.dumps({**BODY, 'texts': ['x' * 1_900_000], 'return_text': True}).encode()
    request = post(length=len(body)) + body

    def is_given_up() -> bool:
      with connected(running) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return is_cut_off(link, request, 40 * len(request))

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      assert all(pool.map(lambda _: is_given_up(), range(3)))
    until(lambda: running.service.admission.bytes == 0)
    assert running.service.admission.requests == 0 and serves(running)

  def test_an_answer_that_is_taken_slowly_arrives(self, stub, monkeypatch):
    monkeypatch.setattr(connection, 'WATCH_S', 0.01)
    running = stub[1](limits={'body_bytes': 9_000_000, 'held_bytes': 20_000_000})
    text = 'x ' * 4_000_000
    with connected(running) as link:
      link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256_000)
      body = json.dumps({**BODY, 'texts': [text], 'return_text': True}).encode()
      link.sendall(post(length=len(body), more=b'connection: close\r\n') + body)
      until(lambda: running.service.admission.bytes > 0 and not running.service.admission.requests)
      assert text.encode() in received(link)
    until(lambda: running.service.admission.bytes == 0)


class TestAdmission:
  """Whoever comes too many is refused before any work."""

  def test_unfinished_bodies_are_counted(self, stub, monkeypatch):
    monkeypatch.setattr(admission, 'GRACE_S', 60)
    running = stub[1](limits={'requests': 3})
    with contextlib.ExitStack() as stack:
      links = [stack.enter_context(connected(running)) for _ in range(5)]
      for link in links[:3]:
        link.sendall(post() + b'{')
      until(lambda: metric(running, 'disranker_queue') == 3)
      for link in links[3:]:
        link.sendall(post() + b'{')
        assert link.recv(1000).startswith(b'HTTP/1.1 429')
    until(lambda: metric(running, 'disranker_queue') == 0)
    assert serves(running)

  def test_all_bodies_together_have_a_limit_of_bytes(self, stub, monkeypatch):
    monkeypatch.setattr(admission, 'GRACE_S', 60)
    running = stub[1](limits={'held_bytes': 50_000})
    with contextlib.ExitStack() as stack:
      links = [stack.enter_context(connected(running)) for _ in range(3)]
      for link in links[:2]:
        link.sendall(post(length=90_000) + b'x' * 20_000)
      until(lambda: running.service.admission.bytes == 40_000)
      links[2].sendall(post(length=90_000) + b'x' * 20_000)
      assert links[2].recv(1000).startswith(b'HTTP/1.1 429')
    until(lambda: running.service.admission.bytes == 0)
    assert serves(running)

  @pytest.mark.parametrize('full', [{'requests': 3}, {'held_bytes': 60_100}])
  def test_slow_bodies_make_room_for_others(self, stub, monkeypatch, full):
    monkeypatch.setattr(admission, 'GRACE_S', 0.1)
    running = stub[1](limits={'body_timeout_s': 60, **full})
    with contextlib.ExitStack() as stack:
      links = [stack.enter_context(connected(running)) for _ in range(3)]
      for n, link in enumerate(links, 1):
        link.sendall(post(length=90_000) + b'x' * 20_000)
        until(lambda n=n: running.service.admission.bytes == 20_000 * n)
      time.sleep(0.2)
      assert running.client.post('/rerank', json=BODY).status_code == 200
      assert links[0].recv(1000).startswith(b'HTTP/1.1 408')
      assert running.service.admission.requests == 2

  def test_large_requests_leave_room_for_small_ones(self, stub, monkeypatch):
    monkeypatch.setattr(admission, 'GRACE_S', 60)
    running = stub[1](limits={'held_bytes': 400_000})
    with contextlib.ExitStack() as stack:
      links = [stack.enter_context(connected(running)) for _ in range(2)]
      links[0].sendall(post(length=900_000) + b'x' * 150_000)
      until(lambda: running.service.admission.bytes == 150_000)
      links[1].sendall(post(length=900_000) + b'x' * 90_000)
      assert links[1].recv(1000).startswith(b'HTTP/1.1 429')
      assert running.client.post('/rerank', json=BODY).status_code == 200

  def test_texts_count_besides_their_bytes(self, stub):
    client = stub[1](limits={'held_bytes': 50_000}).client
    assert client.post('/rerank', json={'query': 'q', 'texts': ['a'] * 40}).status_code == 200
    assert client.post('/rerank', json={'query': 'q', 'texts': ['a'] * 60}).status_code == 429

  def test_a_waiting_request_does_not_hold_its_body(self, stub):
    backend, start = stub
    running = start()
    assert serves(running)
    backend.free.clear()
    body = json.dumps(BODY).encode()[:-1] + b',"x":[' + b'{"":0},' * 250_000 + b'0]}'
    # A list of this length is refused; inside another one it is an unknown field.
    body = body.replace(b'"x":[', b'"x":[[', 1).replace(b'0]}', b'0]]}', 1)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      tracemalloc.start()
      try:
        held = [pool.submit(httpx.post, running.url + '/rerank', content=body, timeout=60)
                for _ in range(3)]  # fmt: skip
        until(lambda: sum(map(len, backend.calls)) >= 4)  # two compute, one waits
        until(lambda: metric(running, 'disranker_queue') == 3)
        until(lambda: tracemalloc.get_traced_memory()[0] < 8 * len(body) * 3, 20)
      finally:
        tracemalloc.stop()
        backend.free.set()
      assert [f.result().status_code for f in held] == [200] * 3

  def test_a_full_server_refuses_before_it_tokenises(self, serving, prompt):
    encoding, free = threading.Semaphore(0), threading.Event()

    class Ranker(loaded.LoadedRanker):
      def encode(self, pairs, **limits):
        encoding.release()
        assert free.wait(30)
        return super().encode(pairs, **limits)

    running = serving.start(lambda: Ranker(prompt, Stub()), limits={'requests': 2})
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      held = [pool.submit(httpx.post, running.url + '/rerank', json=BODY, timeout=60)
              for _ in range(2)]  # fmt: skip
      assert encoding.acquire(timeout=20) and encoding.acquire(timeout=20)
      assert metric(running, 'disranker_queue') == 2
      assert httpx.post(running.url + '/rerank', json=BODY, timeout=20).status_code == 429
      free.set()
      assert [f.result().status_code for f in held] == [200] * 2


class TestTurns:
  """Large requests do not keep small ones from the threads and the model."""

  LARGE = {'query': 'q', 'texts': ['slow ' * 200] * 100}  # noqa: RUF012

  @pytest.fixture
  def slow(self, serving, prompt):
    """(server, numbers of texts of the calls of `encode`, event that lets large ones go on)."""
    calls, free = [], threading.Event()

    class Ranker(loaded.LoadedRanker):
      def encode(self, pairs, **limits):
        calls.append(len(pairs))
        if pairs[0][1].startswith('slow'):
          assert free.wait(30)
        return super().encode(pairs, **limits)

    yield serving.start(lambda: Ranker(prompt, Stub())), calls, free
    free.set()

  def test_small_requests_pass_large_ones_in_the_tokenizer(self, slow):
    running, calls, free = slow
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      large = [pool.submit(httpx.post, running.url + '/rerank', json=self.LARGE, timeout=60)
               for _ in range(3)]  # fmt: skip
      until(lambda: metric(running, 'disranker_queue') == 3 and calls)
      assert running.client.post('/rerank', json=BODY).status_code == 200
      free.set()
      assert [f.result().status_code for f in large] == [200] * 3
    assert max(calls) < 50

  def test_who_has_left_takes_no_further_turn(self, slow):
    running, calls, free = slow
    with pytest.raises(httpx.ReadTimeout):
      httpx.post(running.url + '/rerank', json=self.LARGE, timeout=0.5)
    time.sleep(0.5)  # The server has to see that the client is gone.
    assert metric(running, 'disranker_queue') == 1 and len(calls) == 1  # its thread still works
    free.set()
    until(lambda: metric(running, 'disranker_queue') == 0)
    assert running.client.post('/rerank', json=BODY).status_code == 200
    assert len(calls) == 2

  def test_small_requests_pass_large_ones_in_the_model(self, stub):
    backend, start = stub
    running = start(limits={'batch_tokens': 256})
    backend.free.clear()
    large = {'query': 'q', 'texts': ['word ' * 30] * 200}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      first = [pool.submit(httpx.post, running.url + '/rerank', json=large, timeout=60)
               for _ in range(2)]  # fmt: skip
      until(lambda: metric(running, 'disranker_queue') == 2 and len(backend.calls) == 2)
      small = pool.submit(httpx.post, running.url + '/rerank', json=BODY, timeout=60)
      until(lambda: metric(running, 'disranker_queue') == 3)
      backend.free.set()
      assert small.result().status_code == 200
      assert [f.result().status_code for f in first] == [200] * 2
    lengths = np.array([max(call) for call in backend.calls])
    assert np.flatnonzero(lengths < 30)[-1] < len(lengths) // 2

  def test_search_reads_the_beginning_of_a_query_aside(self, serving, prompt, monkeypatch):
    queries, free = [], threading.Event()

    class BM25(page.BM25):
      def top(self, given, k):
        queries.extend(given)
        assert free.wait(30)
        return super().top(given, k)

    monkeypatch.setattr(page, 'BM25', BM25)
    search = page.Search(lambda: [Document('product', 'product', 'a product')])
    running = serving.start(lambda: loaded.LoadedRanker(prompt, Stub()), search=search)
    body = {'query': 'product ' * 50_000}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      held = pool.submit(httpx.post, running.url + '/search', json=body, timeout=60)
      until(lambda: queries)
      assert httpx.get(running.url + '/health', timeout=10).status_code == 200
      free.set()
      assert held.result().json()['results'][0]['doc_id'] == 'product'
    assert len(queries[0]) <= 8 * prompt.max_query_len


class TestBodies:
  @pytest.mark.parametrize('path, field', [
    ('/predict', 'inputs'), ('/rerank', 'texts'), ('/v2/rerank', 'documents'),
    ('/score', 'queries'), ('/score', 'documents'),
  ])  # fmt: skip
  def test_lists_are_counted_before_their_items_are_read(self, stub, path, field):
    client = stub[1](limits={'texts': 10}).client
    other = {'query': 'q', 'queries': 'q', 'documents': 'd'}
    for items in ([['', '']] * 11, [7] * 11):  # the second would be 422
      response = client.post(path, json=other | {field: items})
      assert response.status_code == 413 and 'the limit is 10' in response.text

  def test_one_pair_is_not_two_texts(self, stub):
    client = stub[1](limits={'texts': 1}).client
    assert client.post('/predict', json={'inputs': ['q', 'a']}).status_code == 200

  def test_a_tokenizer_that_panics_is_500_and_the_next_request_is_served(
    self, serving, prompt, model
  ):
    tokenizer = open_tokenizer(model)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex('(x+x+)+y'), 'isolated')
    bad = dataclasses.replace(prompt, tokenizer=tokenizer)
    client = serving.start(lambda: loaded.LoadedRanker(bad, Stub())).client
    for _ in range(2):
      response = client.post('/rerank', json={'query': 'q', 'texts': ['x' * 1000]})
      assert response.status_code == 500 and response.json()['error_type'] == 'Tokenizer'
    assert client.post('/rerank', json=BODY).status_code == 200


def test_parts_keep_all_pairs_in_order_and_have_a_limit():
  pairs = [(query, text) for query in ('a', 'b' * 9000) for text in ('', 'x' * 9, 'y' * 5000) * 9]
  parts = list(app.parts(pairs, 3000))
  assert [pair for part in parts for pair in part] == pairs
  for part in parts:
    texts = sum(min(len(text), 3000) for _, text in part)
    assert texts <= app.PART_CHARS
