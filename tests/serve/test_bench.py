"""The load generators, the soak test and the latency benchmark measure and check a server."""

import collections
import random
import time

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import _baselines, _hostile, _load, _texts, latency, serve, soak
from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.models.load import open_exported
from disranker_jax.rankers import loaded
from disranker_jax.serve import connection
from disranker_jax.serve.access import allowed_hosts
from disranker_jax.serve.page import Search
from tests.serve.conftest import Serving

REQUESTS = [
  _texts.Request('list of names', ('len : Return items', 'dir : list of names', 'zip'), (0, 4, 1)),
  _texts.Request('number of items', ('len : number', 'os : a', 'dir : names'), (4, 0, 0)),
]


@pytest.fixture(scope='module')
def expected(model):
  score = _baselines.open_system('ours onnx', model)
  return [score(r.query, r.texts) for r in REQUESTS]


def test_every_system_gives_the_same_scores(model, expected):
  for name in _baselines.installed():
    score = _baselines.open_system(name, model)
    for request, scores in zip(REQUESTS, expected, strict=True):
      given = np.asarray(score(request.query, request.texts))
      # 8 bits and bf16 are approximate.
      np.testing.assert_allclose(given, scores, rtol=0, atol=0.05)
      if name.endswith('fp32'):
        np.testing.assert_allclose(given, scores, rtol=0, atol=1e-4)


def test_texts_may_be_longer_than_the_models_own_length(model):
  texts = ('zip ' * 40 + 'number of items ' * 40, 'zip')
  # The JAX backend's rows have 128 places for a model of 64.
  assert len(open_exported(model, 160).prompt().encode_texts('names', texts)[0]) == 160
  exact, jax, plain = (
    _baselines.open_system(name, model, 160)('names', texts)
    for name in ('ours onnx', 'ours jax', 'onnxruntime fp32')
  )
  np.testing.assert_allclose(plain, exact, rtol=0, atol=1e-4)
  np.testing.assert_allclose(jax, exact, rtol=0, atol=0.05)  # bf16


class TestLoad:
  bodies = tuple(_load.rerank_body(r) for r in REQUESTS)

  def test_a_closed_loop_is_answered(self, server):
    rows = _load.closed(server.url, list(self.bodies), 3, 0.5)
    assert len(rows) >= 3 and {status for status, _ in rows} == {200}

  def test_an_open_loop_counts_from_the_scheduled_time(self, server):
    rows = _load.opened(server.url, list(self.bodies), 40.0, 0.5)
    assert 5 < len(rows) < 60 and {status for status, _ in rows} == {200}

  def test_a_missing_server_is_status_0(self):
    assert _load.Client('http://127.0.0.1:9').post('/rerank', b'')[0] == 0


class TestServer:
  def test_a_token_and_a_proxy_of_the_shell_do_not_count(self, model, monkeypatch):
    monkeypatch.setenv('DISRANKER_TOKEN', 's3cret')
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    monkeypatch.setenv('no_proxy', '')
    with serve.server('ours onnx', model) as (url, _):
      assert _load.Client(url).post('/rerank', _load.rerank_body(REQUESTS[0]))[0] == 200

  @pytest.mark.parametrize('rows, message', [
    ([(401, 0.1)] * 3 + [(0, 0.2)], '3 x status 401, 1 x no answer'),
    ([], '--seconds'),
  ])  # fmt: skip
  def test_without_an_answer_the_error_says_what_came_instead(self, rows, message):
    with pytest.raises(UserError, match=message):
      serve.figures(rows, 1.0, 20, 50.0)


class TestSoak:
  def soaked(self, server, expected, monkeypatch, seconds=1.5):
    monkeypatch.setattr(soak, 'CHECK_EVERY', 2)
    it = soak.Soak(server.url, REQUESTS, expected, 1e-3)
    it.client(0, time.monotonic() + seconds)
    return it

  def test_a_good_server_has_no_errors(self, server, expected, monkeypatch):
    it = self.soaked(server, expected, monkeypatch)
    assert it.wrong == [] and it.counts['good', '200'] > 10

  def test_every_kind_of_request_gets_the_expected_status(self, server, expected):
    it = soak.Soak(server.url, REQUESTS, expected, 1e-3)
    client, rng = _load.Client(server.url), random.Random(0)
    for kind in (it.good, it.bad, it.oversized, it.slow, it.leaves) * 4:
      kind(rng, client)
    seen = collections.Counter(kind for kind, _ in it.counts.elements())
    assert it.wrong == [] and set(seen.values()) == {4} and len(seen) == 5

  def test_a_wrong_score_is_found(self, server, expected, monkeypatch):
    it = self.soaked(server, [e + 0.1 for e in expected], monkeypatch)
    assert it.wrong and 'off' in it.wrong[0]


class TestHostile:
  """The soak test's hostile clients see what a server does to them."""

  @pytest.fixture(scope='module')
  @staticmethod
  def hasty(model):
    """A server with short limits."""
    search = Search(lambda: [Document('list', 'list', 'names in a list')])
    with pytest.MonkeyPatch.context() as patch, Serving() as them:
      for name in ('LINGER_S', 'ANSWER_S'):
        patch.setattr(connection, name, 0.5)
      limits = {'body_timeout_s': 1.0, 'idle_s': 0.5}
      hosts = allowed_hosts('127.0.0.1', ())
      load = lambda: loaded.load(model, 'onnx')  # noqa: E731
      yield them.start(load, limits=limits, search=search, hosts=hosts)

  @staticmethod
  def attacked(running, kind, monkeypatch):
    monkeypatch.setattr(_hostile, 'HOLD_S', 4)
    monkeypatch.setattr(_hostile, 'LINKS', 3)
    it = soak.Soak(running.url, REQUESTS, [], 1e-3)
    for outcome, times in kind(_hostile.Target(running.url), random.Random(0)).items():
      it.attacked(kind.__name__, outcome, outcome in _hostile.KINDS[kind], times)
    return it

  @pytest.mark.parametrize('kind', _hostile.KINDS, ids=lambda kind: kind.__name__)
  def test_a_server_with_limits_passes(self, hasty, kind, monkeypatch):
    it = self.attacked(hasty, kind, monkeypatch)
    assert it.wrong == [] and sum(it.counts.values()) > 0

  def test_a_server_that_keeps_slow_bodies_is_found(self, hasty, monkeypatch):
    monkeypatch.setattr(_hostile, 'is_ended', lambda link: False)
    it = self.attacked(hasty, _hostile.pipelines, monkeypatch)
    assert it.counts['pipelines', _hostile.HELD] == 3 and len(it.wrong) == 1


def test_latency_counts_the_best_round_and_measures_quality(monkeypatch):
  monkeypatch.setattr(latency, 'PAUSE_S', 0.0)

  def system(seconds, right):
    def score(query, _):
      best = (query == REQUESTS[0].query) == right
      return seconds.pop(0), np.array([0.0, 4, 1] if best else [4.0, 0, 0])

    return score

  warm = 9.0
  systems = {
    'right': system([warm, 0.2, 0.2, 0.1, 0.3], True),
    'wrong': system([warm, 0.6, 0.6, 0.9, 0.9], False),
  }
  rows = latency.measure(systems, REQUESTS, 2)
  assert rows['right']['ndcg@5'] == 1.0 > rows['wrong']['ndcg@5']
  assert rows['right']['pairs_per_s'] == 20.0 and rows['wrong']['pairs_per_s'] == 5.0
  assert rows['wrong']['first_is_faster'] == 4.0


def test_every_timed_call_waits_for_the_threads_of_the_one_before(monkeypatch):
  happened = []
  monkeypatch.setattr(latency.time, 'sleep', lambda seconds: happened.append('pause'))

  def system(name):
    def score(query, texts):
      happened.append(name)
      return 1.0, np.zeros(len(texts))

    return score

  latency.measure({name: system(name) for name in 'ab'}, REQUESTS, 2)
  assert happened == ['a', 'b', *['pause', 'a', 'pause', 'b'] * 4]  # the first two warm up


def test_a_system_in_another_process_gives_the_same_scores(model, expected):
  apart = _baselines.Apart('ours onnx', model)
  try:
    seconds, scores = apart(REQUESTS[0].query, REQUESTS[0].texts)
  finally:
    apart.close()
  np.testing.assert_array_equal(scores, expected[0])
  assert seconds > 0


def test_an_unknown_benchmark_lists_the_known_ones():
  with pytest.raises(UserError, match=r'latency.*serve.*soak'):
    command.main(['speed'])
