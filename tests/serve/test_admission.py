"""Admission and turns: a full server refuses first, and small requests pass large ones."""

import concurrent.futures
import contextlib
import json
import threading
import time
import tracemalloc

import httpx
import numpy as np
import pytest

from disranker_jax.data.records import Document
from disranker_jax.rankers import loaded
from disranker_jax.serve import admission, app, page
from tests.serve.conftest import BODY, Stub, connected, metric, post, serves, until


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

    class BM25(page.ENGINES['bm25']):
      def top(self, given, k):
        queries.extend(given)
        assert free.wait(30)
        return super().top(given, k)

    monkeypatch.setitem(page.ENGINES, 'bm25', BM25)
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


def test_parts_keep_all_pairs_in_order_and_have_a_limit():
  pairs = [(query, text) for query in ('a', 'b' * 9000) for text in ('', 'x' * 9, 'y' * 5000) * 9]
  parts = list(app.parts(pairs, 3000))
  assert [pair for part in parts for pair in part] == pairs
  for part in parts:
    texts = sum(min(len(text), 3000) for _, text in part)
    assert texts <= app.PART_CHARS
