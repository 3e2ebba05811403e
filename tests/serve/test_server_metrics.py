"""What the server counts and measures for Prometheus."""

import threading

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from disranker_jax.data.records import Document
from disranker_jax.rewriting.loaded import Rewritten
from disranker_jax.serve import bodies
from disranker_jax.serve.metrics import STEPS
from disranker_jax.serve.page import Search
from tests.serve.conftest import BODY, until


class Rewriter:
  """Stands for an exported rewriter, which adds a word; it can block."""

  reads, engine = 100, 'bm25'

  def __init__(self):
    self.free = threading.Event()
    self.free.set()

  def __call__(self, query: str) -> Rewritten:
    assert self.free.wait(30)
    return Rewritten('page', self.searched(query, 'page'))

  def searched(self, query: str, rewrite: str) -> str:
    return f'{query} {rewrite}'


def samples(running) -> dict[tuple, float]:
  """{(name, path, status): value}; None for a label that a metric lacks."""
  return {
    (s.name, s.labels.get('path'), s.labels.get('status')): s.value
    for family in text_string_to_metric_families(running.client.get('/metrics').text)
    for s in family.samples
    if 'le' not in s.labels
  }


def steps(running, path: str) -> set[str]:
  """The steps of which there are times of requests to a path."""
  found = samples(running)
  return {step for step in STEPS if found.get((f'disranker_{step}_seconds_count', path, None))}


def total(running, path: str, status: str, what: str = 'count') -> float:
  return samples(running).get((f'disranker_total_seconds_{what}', path, status), 0)


def test_requests_texts_tokens_and_padding_are_counted(stub):
  running = stub[1]()
  running.client.post('/rerank', json=BODY)
  running.client.post('/rerank', json={'query': 'q'})
  values = samples(running)
  for status in ('200', '422'):
    assert values['disranker_requests_total', '/rerank', status] == 1
  assert values['disranker_texts_total', None, None] == 2
  tokens = values['disranker_tokens_total', None, None]
  assert values['disranker_padding_tokens_total', None, None] == 128 - tokens
  for step in ('tokenise', 'queue', 'infer'):
    assert values[f'disranker_{step}_seconds_count', '/rerank', None] == 1


def test_times_of_searches_and_of_reranking_are_kept_apart(stub):
  docs = (Document('a', 'list', 'a page'), Document('b', 'file', 'another'))
  running = stub[1](search=Search(lambda: docs, rewriter=Rewriter))
  assert running.client.post('/rerank', json=BODY).status_code == 200
  assert steps(running, '/rerank') == {'tokenise', 'queue', 'infer'}
  assert total(running, '/search', '200') == 0
  assert running.client.post('/search', json={'query': 'list'}).json()['results']
  assert steps(running, '/search') == {*STEPS}
  assert running.client.post('/search', json={'query': 'x', 'rewrite': False}).status_code == 200
  for path, count in (('/rerank', 1), ('/search', 2)):
    assert total(running, path, '200') == count
  # Whoever sends other paths adds no series.
  before = samples(running).keys()
  assert running.client.post('/search/other', json=BODY).status_code == 404
  assert samples(running).keys() == before


def test_the_total_has_the_parsing_of_the_body_and_the_wait_for_the_rewriter(stub, monkeypatch):
  rewriter, parse = Rewriter(), bodies.parse
  running = stub[1](search=Search(lambda: [Document('a', 'list', '')], rewriter=lambda: rewriter))
  parsing = threading.Event()

  def slow(body):
    parsing.wait(0.2)
    return parse(body)

  monkeypatch.setattr(bodies, 'parse', slow)
  assert running.client.post('/search', json={'query': 'list'}).status_code == 200
  found = samples(running)
  within = sum(found.get((f'disranker_{s}_seconds_sum', '/search', None), 0) for s in STEPS)
  assert total(running, '/search', '200', 'sum') >= within + 0.2


def test_requests_that_fail_after_their_body_are_in_the_total(stub):
  backend, start = stub
  running = start(limits={'timeout_s': 0.3, 'texts': 3})
  client = running.client
  assert client.post('/rerank', json={'query': 'q'}).status_code == 422
  assert client.post('/rerank', json={'query': 'q', 'texts': ['a'] * 4}).status_code == 413
  backend.free.clear()
  assert client.post('/rerank', json=BODY).status_code == 503
  backend.free.set()
  for status in ('422', '413', '503'):
    assert total(running, '/rerank', status) == 1
  assert total(running, '/rerank', '503', 'sum') >= 0.3
  # It was tokenised before the time was up, and the model had not answered.
  assert steps(running, '/rerank') == {'tokenise'}


def test_a_client_that_leaves_is_in_the_total(stub):
  backend, start = stub
  running = start()
  backend.free.clear()
  with pytest.raises(httpx.ReadTimeout):
    httpx.post(running.url + '/rerank', json=BODY, timeout=0.3)
  until(lambda: total(running, '/rerank', '499') == 1)
  backend.free.set()


def test_requests_that_are_refused_before_their_body_are_counted_without_a_time(stub):
  running = stub[1](token='secret')
  assert running.client.post('/rerank', json=BODY).status_code == 401
  assert samples(running)['disranker_requests_total', '/rerank', '401'] == 1
  assert total(running, '/rerank', '401') == 0
