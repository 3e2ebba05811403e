"""The server under limits, load and failure: every client gets the right status or scores."""

import concurrent.futures
import contextlib
import gzip
import itertools
import json
import socket
import threading
import tracemalloc
import zlib

import httpx
import numpy as np
import pytest

from disranker_jax.rankers.loaded import LoadedRanker
from disranker_jax.serve import connection
from disranker_jax.serve.encoding import Inflater
from tests.serve.conftest import Stub, metric, until

BODY = {'query': 'q', 'texts': ['a', 'b']}


def scores(response):
  assert response.status_code == 200, response.text
  return {row['index']: row['score'] for row in response.json()}


class TestLimits:
  def test_too_many_texts_are_413(self, stub):
    client = stub[1](limits={'texts': 2}).client
    assert client.post('/rerank', json=BODY).status_code == 200
    response = client.post('/rerank', json={**BODY, 'texts': ['a'] * 3})
    assert response.status_code == 413 and 'the limit is 2' in response.json()['error']

  @pytest.mark.parametrize('chunked', [False, True])
  def test_too_large_bodies_are_413(self, stub, chunked):
    client = stub[1](limits={'body_bytes': 1000}).client
    content = json.dumps({**BODY, 'texts': ['x' * 2000]}).encode()
    pieces = (content[i : i + 100] for i in range(0, len(content), 100))
    response = client.post('/rerank', content=pieces if chunked else content)
    assert response.status_code == 413

  def test_long_texts_are_truncated_and_counted_in_a_header(self, stub, prompt):
    client = stub[1]().client
    body = {**BODY, 'texts': ['word ' * 500, 'short']}
    response = client.post('/rerank', json={**body, 'raw_scores': True})
    assert scores(response)[0] == prompt.max_len
    assert response.headers['x-truncated'] == '1'
    refused = client.post('/rerank', json={**body, 'truncate': False})
    assert refused.status_code == 413 and refused.json()['error_type'] == 'Validation'
    assert '1 text loses its end' in refused.text and 'query loses' not in refused.text
    assert client.post('/rerank', json={**BODY, 'truncate': False}).status_code == 200

  def test_a_long_query_is_told_apart_from_long_texts(self, stub, prompt):
    client = stub[1]().client
    body = {'query': 'word ' * 500, 'texts': ['short', 'brief']}
    response = client.post('/rerank', json=body)
    assert response.headers['x-truncated'] == '0'
    assert response.headers['x-truncated-queries'] == '1'
    for most, limits in ((prompt.max_query_len, {}), (3, {'max_tokens_per_query': 3})):
      refused = client.post('/rerank', json={**body, **limits, 'truncate': False})
      assert refused.status_code == 413 and refused.json()['error'] == (
        f'the query loses its end (most tokens of a query: {most}); shorten them, or let them be '
        'truncated'
      )
    both = client.post('/rerank', json={**body, 'texts': ['word ' * 500] * 2, 'truncate': False})
    assert 'the query loses its end' in both.text and '2 texts lose their end' in both.text

  def test_a_full_queue_is_429_until_there_is_room(self, stub):
    backend, start = stub
    running = start(limits={'requests': 2})
    backend.free.clear()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:

      def post():
        return httpx.post(running.url + '/rerank', json=BODY, timeout=30)

      held = [pool.submit(post) for _ in range(2)]
      until(lambda: metric(running, 'disranker_queue') == 2)
      assert post().status_code == 429
      backend.free.set()
      assert [f.result().status_code for f in held] == [200] * 2
    assert running.client.post('/rerank', json=BODY).status_code == 200

  def test_a_slow_body_is_408_and_a_slow_model_503(self, stub):
    backend, start = stub
    running = start(limits={'body_timeout_s': 0.2, 'timeout_s': 0.2})
    host = running.url.removeprefix('http://').split(':')
    with socket.create_connection((host[0], int(host[1]))) as slow:
      slow.sendall(b'POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"query"')
      assert b' 408 ' in slow.recv(1000)
    backend.free.clear()
    response = running.client.post('/rerank', json=BODY)
    assert response.status_code == 503 and response.json()['error_type'] == 'Overloaded'

  def test_a_token_is_required_where_it_is_set(self, stub):
    client = stub[1](token='s3cret').client
    wrong = ('Bearer wrong', 's3cret', 'bearer S3cret', 'Basic s3cret', 'Bearer s3cret x', 'bearer')
    for headers in ({}, *({'authorization': value} for value in wrong)):
      assert client.post('/rerank', json=BODY, headers=headers).status_code == 401
      assert client.get('/info', headers=headers).status_code == 401
    right = {'authorization': 'Bearer s3cret'}
    assert client.post('/v2/rerank', json={'query': 'q', 'documents': ['a']}, headers=right).json()
    assert client.get('/health').status_code == 200

  @pytest.mark.parametrize('scheme', ['Bearer ', 'bearer ', 'BEARER ', 'bearer  '])
  def test_the_authorization_scheme_may_have_any_case(self, stub, scheme):
    headers = {'authorization': f'{scheme}s3cret'}
    client = stub[1](token='s3cret').client
    assert client.post('/rerank', json=BODY, headers=headers).status_code == 200
    assert client.get('/info', headers=headers).status_code == 200

  def test_a_client_cannot_name_a_file(self, stub, model):
    client = stub[1]().client
    body = {'query': 'q', 'documents': ['a'], 'model': str(model), 'revision': '../..'}
    assert client.post('/v2/rerank', json=body).json()['model'] == 'student'
    for path in ('/../pyproject.toml', '/%2e%2e/etc/passwd', '/page.html', '/docs'):
      assert client.get(path).status_code == 404


def raw_deflate(content: bytes) -> bytes:
  stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
  return stream.compress(content) + stream.flush()


class TestEncodings:
  CONTENT = json.dumps(BODY).encode()
  CODERS = (
    ('gzip', gzip.compress), ('GZIP', gzip.compress), ('x-gzip', gzip.compress),
    ('deflate', zlib.compress), ('deflate', raw_deflate), ('identity', bytes), ('', bytes),
    ('gzip', lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:])),
  )  # fmt: skip

  @staticmethod
  def post(client, kind, content, size=0, path='/rerank'):
    pieces = (content[i : i + size] for i in range(0, len(content), size)) if size else content
    return client.post(path, content=pieces, headers={'content-encoding': kind})

  @pytest.mark.parametrize('kind, encode', CODERS)
  def test_gzip_and_deflate_are_decoded(self, stub, kind, encode):
    client = stub[1]().client
    plain = scores(client.post('/rerank', json=BODY))
    for size in (0, 1, 7):
      assert scores(self.post(client, kind, encode(self.CONTENT), size)) == plain

  @pytest.mark.parametrize('kind', ['br', 'zstd', 'gzip, gzip', 'compress', 'none'])
  @pytest.mark.parametrize('path', ['/rerank', '/v2/rerank', '/score'])
  def test_other_encodings_are_415(self, stub, kind, path):
    response = self.post(stub[1]().client, kind, self.CONTENT, path=path)
    assert response.status_code == 415 and kind in response.text

  @pytest.mark.parametrize('kind, encode', CODERS[:5])
  def test_a_broken_body_is_422(self, stub, kind, encode):
    client = stub[1]().client
    encoded = encode(self.CONTENT)
    for content in (encoded[:-1], encoded[:5], b'', b'{"query":"q"}', encoded + b'more'):
      response = self.post(client, kind, content)
      assert response.status_code == 422 and kind.lower() in response.json()['error']
    assert self.post(client, kind, encode(b'no json')).json()['error'] == 'the body is not JSON'

  @pytest.mark.parametrize('kind, encode', CODERS[:5])
  def test_a_body_that_grows_beyond_the_limit_is_413(self, stub, kind, encode):
    client = stub[1](limits={'body_bytes': 30_000}).client
    fits = json.dumps({**BODY, 'texts': ['x' * 29_000]}).encode()
    assert self.post(client, kind, encode(fits)).status_code == 200
    bomb = encode(b' ' * 20_000_000)
    assert len(bomb) < 30_000
    assert self.post(client, kind, bomb).status_code == 413

  def test_a_bomb_is_not_unpacked_into_memory(self):
    inflater, bomb = Inflater('gzip'), gzip.compress(bytes(100_000_000))
    tracemalloc.start()
    try:
      assert len(inflater.decode(bomb, 1000)) == 1000
      assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
      tracemalloc.stop()

  def test_members_without_content_count_as_sent_bytes(self, stub):
    client = stub[1](limits={'body_bytes': 1000}).client
    assert self.post(client, 'gzip', gzip.compress(b'') * 100, size=100).status_code == 413


class TestCrossOrigin:
  PAGE, OTHER = 'https://page.example', 'https://other.example'

  @staticmethod
  def allowed(client, origin, path='/rerank') -> list[str | None]:
    """access-control-allow-origin of the preflight, of the answer and of an error."""
    preflight = {'origin': origin, 'access-control-request-method': 'POST',
                 'access-control-request-headers': 'authorization,content-type'}  # fmt: skip
    answers = [
      client.options(path, headers=preflight),
      client.post(path, json=BODY, headers={'origin': origin}),
      client.post(path, json={}, headers={'origin': origin}),
    ]
    return [answer.headers.get('access-control-allow-origin') for answer in answers]

  def test_is_off_by_default(self, stub):
    assert self.allowed(stub[1]().client, self.PAGE) == [None] * 3

  def test_only_named_origins_are_allowed(self, stub):
    client = stub[1](origins=[self.PAGE, 'http://localhost:3000']).client
    assert self.allowed(client, self.PAGE) == [self.PAGE] * 3
    assert self.allowed(client, self.OTHER) == [None] * 3

  def test_a_star_allows_every_origin(self, stub):
    assert self.allowed(stub[1](origins=['*']).client, self.OTHER) == ['*'] * 3

  def test_a_preflight_needs_no_token_and_allows_to_send_one(self, stub):
    client = stub[1](origins=[self.PAGE], token='s3cret').client
    headers = {'origin': self.PAGE, 'access-control-request-method': 'POST',
               'access-control-request-headers': 'authorization'}  # fmt: skip
    answer = client.options('/rerank', headers=headers)
    assert answer.status_code == 200
    assert 'authorization' in answer.headers['access-control-allow-headers'].lower()
    # The page can read why it is refused.
    refused = client.post('/rerank', json=BODY, headers={'origin': self.PAGE})
    assert refused.status_code == 401
    assert refused.headers['access-control-allow-origin'] == self.PAGE


class TestHeads:
  """A request's line and headers must be neither too long nor too slow."""

  HEAD = b'GET /health HTTP/1.1\r\nhost: x\r\nx-long: '

  def connect(self, stub):
    url = httpx.URL(stub[1]().url)
    return socket.create_connection((url.host, url.port), timeout=8)

  @staticmethod
  def hung_up(one) -> bool:
    """Whether the server closed without an answer."""
    try:
      return one.recv(100) == b''
    except ConnectionError:
      return True

  def test_an_endless_head_closes_the_connection(self, stub):
    with self.connect(stub) as one:
      one.sendall(self.HEAD)
      with contextlib.suppress(ConnectionError):
        for _ in range(64):
          one.sendall(b'a' * 16_384)
      assert self.hung_up(one)

  def test_a_large_head_that_ends_is_answered(self, stub):
    with self.connect(stub) as one:
      one.sendall(self.HEAD + b'a' * 20_000)
      one.sendall(b'\r\n\r\n')
      assert one.recv(100).startswith(b'HTTP/1.1 200')

  @pytest.mark.parametrize('begun', [b'', HEAD])
  def test_a_slow_head_closes_the_connection(self, stub, monkeypatch, begun):
    monkeypatch.setattr(connection, 'HEAD_S', 0.2)
    with self.connect(stub) as one:
      one.sendall(begun)
      assert self.hung_up(one)

  def test_scoring_may_take_longer_than_a_head(self, stub, monkeypatch):
    monkeypatch.setattr(connection, 'HEAD_S', 0.2)
    backend, start = stub
    client = start().client
    backend.free.clear()
    threading.Timer(0.6, backend.free.set).start()
    assert client.post('/rerank', json=BODY).status_code == 200


class TestFailure:
  def test_scores_that_are_not_finite_are_500(self, stub):
    backend, start = stub
    client = start().client
    backend.value = np.nan
    response = client.post('/rerank', json={**BODY, 'texts': ['a', 'b']})
    assert response.status_code == 500 and 'not finite' in response.json()['error']
    backend.value = np.ones(7)  # more scores than pairs
    assert client.post('/rerank', json=BODY).status_code == 500
    backend.value = None
    assert client.post('/rerank', json=BODY).status_code == 200

  def test_a_model_that_raises_is_500_and_the_next_request_is_served(self, stub):
    backend, start = stub
    client = start().client
    backend.value = RuntimeError('out of memory at 0x7f')
    response = client.post('/v1/score', json={'queries': 'q', 'documents': 'd'})
    assert response.status_code == 500 and '0x7f' not in response.text
    backend.value = None
    assert client.post('/rerank', json=BODY).status_code == 200

  def test_before_the_model_is_ready_the_status_is_503(self, serving, prompt):
    ready = threading.Event()

    def load():
      assert ready.wait(30)
      return LoadedRanker(prompt, Stub())

    running = serving.start(load, wait=False)
    try:
      assert running.client.get('/health').status_code == 503
      response = running.client.post('/rerank', json=BODY)
      assert response.status_code == 503 and response.json()['error_type'] == 'Unhealthy'
    finally:
      ready.set()
    until(lambda: running.client.get('/health').status_code == 200)

  def test_pairs_of_a_disconnected_client_are_dropped(self, stub):
    backend, start = stub
    running = start()
    backend.free.clear()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      held = pool.submit(httpx.post, running.url + '/rerank', json=BODY, timeout=30)
      until(lambda: len(backend.calls) == 2)
      with pytest.raises(httpx.ReadTimeout):
        httpx.post(running.url + '/rerank', json={**BODY, 'texts': ['gone'] * 9}, timeout=0.3)
      until(lambda: '499' in running.client.get('/metrics').text)
      backend.free.set()
      assert held.result().status_code == 200
    assert running.client.post('/rerank', json=BODY).status_code == 200
    assert sum(map(len, backend.calls)) == 4  # two of the first, two of the last


class TestBatching:
  def test_every_request_gets_its_own_scores_under_load(self, stub, prompt):
    running = stub[1]()
    rng = np.random.default_rng(0)
    bodies = [
      {'query': 'q', 'texts': ['w ' * int(n) for n in rng.integers(0, 70, rng.integers(1, 30))]}
      for _ in range(60)
    ]

    def post(body):
      with httpx.Client(timeout=30) as client:
        return client.post(running.url + '/rerank', json={**body, 'raw_scores': True})

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
      for body, response in zip(bodies, pool.map(post, bodies), strict=True):
        expected = [len(e) for e in prompt.encode_texts('q', body['texts'])]
        assert scores(response) == dict(enumerate(expected))

  def test_a_call_has_similar_lengths_and_its_share_of_tokens(self, stub):
    backend, start = stub
    texts = ['w ' * n for n in range(50)]
    start().client.post('/rerank', json={'query': 'q', 'texts': texts})
    assert sum(map(len, backend.calls)) == 50
    flat = sorted((c for c in backend.calls), key=lambda c: -c[0])
    assert all(a[-1] >= b[0] for a, b in itertools.pairwise(flat))
    assert max(map(sum, backend.calls)) <= 2 * backend.part_tokens
    assert len(backend.calls) % backend.workers == 0
