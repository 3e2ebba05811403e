"""Clients that mean harm: each is ended or refused, and the others are answered beside them."""

import concurrent.futures
import contextlib
import dataclasses
import json
import shutil
import socket
import threading
import time

import pytest
from tokenizers import Regex, pre_tokenizers

from disranker_jax.models.load import open_tokenizer
from disranker_jax.rankers import loaded
from disranker_jax.serve import connection
from tests.serve.conftest import BODY, Stub, connected, metric, post, serves, until

CHUNKED = b'POST /rerank HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n'


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

  @pytest.mark.parametrize('token, size, status', [
    ('s3cret', 1_500_000, 401), ('', 3_000_000, 413), ('', 15_000_000, 413),
  ])  # fmt: skip
  @pytest.mark.parametrize('more', [b'', b'connection: close\r\n'])
  def test_the_rest_of_a_refused_request_is_taken_and_its_answer_closes(
    self, stub, token, size, status, more
  ):
    running = stub[1](token=token)
    with connected(running) as link:
      link.sendall(post(length=size, more=more))
      link.sendall(b'x' * size)
      answer = b''
      while piece := link.recv(1 << 16):  # to the end, without a reset
        answer += piece
    assert answer.startswith(b'HTTP/1.1 %d' % status)
    assert answer.count(b'connection: close') == 1 and answer.endswith(b'}')

  def test_a_client_goes_on_after_a_413(self, stub):
    running = stub[1]()
    large = {**BODY, 'texts': ['x' * 3_000_000]}
    for _ in range(3):
      assert running.client.post('/rerank', json=large).status_code == 413
      assert running.client.post('/rerank', json=BODY).status_code == 200

  def test_a_request_that_has_ended_keeps_its_connection_whatever_the_answer(self, stub):
    running = stub[1](token='s3cret')
    with connected(running) as link:
      for _ in range(2):
        link.sendall(post(length=2) + b'{}')
        answer = link.recv(10_000)
        assert answer.startswith(b'HTTP/1.1 401') and b'connection:' not in answer

  def test_a_slow_body_is_closed_after_its_408(self, stub, monkeypatch):
    monkeypatch.setattr(connection, 'LINGER_S', 0.2)
    with connected(stub[1](limits={'body_timeout_s': 0.2})) as link:
      link.sendall(post() + b'{')
      assert received(link).startswith(b'HTTP/1.1 408')

  def test_line_ends_do_not_keep_an_idle_connection(self, stub):
    with connected(stub[1](limits={'idle_s': 0.5})) as link:
      link.sendall(b'GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n')
      assert link.recv(1000).startswith(b'HTTP/1.1 200')
      end = time.monotonic() + 20
      with pytest.raises(ConnectionError):
        while time.monotonic() < end:
          link.sendall(b'\r\n')
          time.sleep(0.05)

  def test_idle_connections_make_room_for_new_ones_and_are_kept_without_need(
    self, stub, monkeypatch
  ):
    running = stub[1]()
    running.client.close()  # its connection would be one of the three
    monkeypatch.setattr(connection, 'CONNECTIONS', 3)
    monkeypatch.setattr(connection, 'IDLE_S', 0.5)
    backend = stub[0]

    def health(link) -> bytes:
      link.sendall(b'GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n')
      with contextlib.suppress(ConnectionError):
        return link.recv(1000)[:12]
      return b''

    with contextlib.ExitStack() as stack:
      first, second, busy = (stack.enter_context(connected(running)) for _ in range(3))
      body = json.dumps(BODY).encode()
      backend.free.clear()
      busy.sendall(post(length=len(body)) + body)
      assert health(first) == health(second) == health(first) == b'HTTP/1.1 200'
      with connected(running) as early:
        assert health(early) == b''  # no connection has been idle for IDLE_S
      time.sleep(1)
      with connected(running) as late:
        assert health(late) == b'HTTP/1.1 200'
        assert received(second) == b''  # idle since before the second request of the first
        assert health(first) == b'HTTP/1.1 200'
      backend.free.set()
      assert busy.recv(1000).startswith(b'HTTP/1.1 200')

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
    self, serving, prompt, model, tmp_path
  ):
    # Of a folder of its own: tokenizers are kept and shared.
    tokenizer = open_tokenizer(shutil.copytree(model, tmp_path / 'model'))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex('(x+x+)+y'), 'isolated')
    bad = dataclasses.replace(prompt, tokenizer=tokenizer)
    client = serving.start(lambda: loaded.LoadedRanker(bad, Stub())).client
    for _ in range(2):
      response = client.post('/rerank', json={'query': 'q', 'texts': ['x' * 1000]})
      assert response.status_code == 500 and response.json()['error_type'] == 'Tokenizer'
    assert client.post('/rerank', json=BODY).status_code == 200
