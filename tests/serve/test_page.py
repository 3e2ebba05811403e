"""The search page, in a real browser where one is installed."""

import dataclasses
import html
import json
import math
import re
import shlex
import shutil
import subprocess

import pytest

from disranker_jax.evaluation import fusion
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.serve import page

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
needs_browser = pytest.mark.skipif(not CHROMIUM, reason='chromium is not installed')


def browser(tmp_path, *options: str) -> str:
  command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=8000',
             f'--user-data-dir={tmp_path}/profile', *options]  # fmt: skip
  return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture(scope='module')
def dom(server, tmp_path_factory):
  """The browser's DOM after a search."""
  if not CHROMIUM:
    pytest.skip('chromium is not installed')
  return browser(tmp_path_factory.mktemp('chromium'), '--dump-dom', f'{server.url}/?q=a+list+names')


def column(dom: str, name: str) -> list[str]:
  [inside] = re.findall(f'<ol id="{name}">(.*?)</ol>', dom, re.S)
  return re.findall(r'data-id="(.*?)"', inside)


def body_of_curl(dom: str, server) -> dict:
  """What the command that the page shows sends to /rerank."""
  [command] = re.findall(r'<pre id="curl"[^>]*>(.*?)</pre>', dom, re.S)
  words = shlex.split(html.unescape(command).replace('\\\n', ' '))
  assert words[:2] == ['curl', f'{server.url}/rerank']
  return json.loads(words[-1])


@pytest.fixture(scope='module')
def answer(server):
  body = {'query': 'a list names', 'raw_scores': True}
  return server.client.post('/search', json=body).json()['results']


class TestBrowser:
  def test_shows_both_orders(self, dom, answer):
    unescaped = {c: [i.replace('&lt;', '<').replace('&gt;', '>') for i in column(dom, c)]
                 for c in ('first', 'second')}  # fmt: skip
    assert unescaped['first'] == [d['doc_id'] for d in answer]
    assert unescaped['second'] == [d['doc_id'] for d in sorted(answer, key=lambda d: d['rank'])]

  def test_shows_titles_and_the_models_own_scores(self, dom, answer):
    shown = re.findall('<span class="title"[^>]*>(.*?)</span><span class="score">(.*?)</span>', dom)
    ranked = sorted(answer, key=lambda d: d['rank'])
    expected = [(d['title'] or d['doc_id'], d['bm25']) for d in answer]
    expected += [(d['title'] or d['doc_id'], d['score']) for d in ranked]
    assert [(html.unescape(title), score) for title, score in shown] == [
      (title, f'{score:.2f}') for title, score in expected
    ]
    assert {d['title'] for d in answer} >= {'list dir', ''} and min(d['score'] for d in answer) < 0

  def test_shows_moves_and_latency(self, dom, answer):
    ups = [d['first'] - d['rank'] for d in answer]
    for sign, mark in ((1, '▲'), (-1, '▼')):
      assert dom.count(f'>{mark} ') == sum(u * sign > 0 for u in ups)
    said = r'\d of 5 documents of jsonl:pages.jsonl, re-ranked by student in \d+ ms'
    assert re.search(said, dom) and dom.count('<main>') == 1

  @needs_browser
  def test_a_search_that_fails_leaves_no_results_of_the_one_before(
    self, server, tmp_path, monkeypatch
  ):
    again = "setTimeout(() => search(' '), 3000);\n</script>"
    monkeypatch.setattr(page, 'TEMPLATE', page.TEMPLATE.replace('</script>', again))
    dom = browser(tmp_path, '--dump-dom', f'{server.url}/?q=a+list+names')
    assert column(dom, 'first')  # the first search had some
    assert re.search('<p id="status"[^>]*class="bad"', dom)
    assert '<div id="results" hidden' in dom and re.search('<p id="rewritten"[^>]*hidden', dom)

  def test_documents_are_escaped(self, dom):
    assert '<title>Search' in dom and '<b>evil' not in dom
    assert 'owned' not in re.findall('<title>(.*?)</title>', dom)[0]

  def test_the_curl_command_gives_the_same_scores(self, dom, server, answer):
    rows = server.client.post('/rerank', json=body_of_curl(dom, server)).json()
    assert {r['index']: r['score'] for r in rows} == pytest.approx(
      {i: d['score'] for i, d in enumerate(answer)}, abs=1e-5
    )

  @needs_browser
  @pytest.mark.parametrize('signal', ['scores', 'ranks'])
  def test_the_curl_command_gives_the_same_fused_scores(
    self, server, tmp_path, monkeypatch, signal
  ):
    monkeypatch.setattr(server.service.ranker, 'fusion', Fusion(0.3, signal, 24))
    ticked = page.TEMPLATE.replace('<input id="fuse"', '<input id="fuse" checked')
    monkeypatch.setattr(page, 'TEMPLATE', ticked)
    dom = browser(tmp_path, '--dump-dom', f'{server.url}/?q=a+list+names')
    found = server.client.post('/search', json={'query': 'a list names', 'fuse': True}).json()
    rows = server.client.post('/rerank', json=body_of_curl(dom, server)).json()
    assert {r['index']: r['score'] for r in rows} == pytest.approx(
      {i: d['score'] for i, d in enumerate(found['results'])}, abs=1e-5
    )

  @needs_browser
  def test_it_fits_a_phone(self, server, tmp_path):
    file = tmp_path / 'phone.png'
    browser(tmp_path, '--window-size=360,800', f'--screenshot={file}', f'{server.url}/?q=a+list')
    assert file.stat().st_size > 10_000


@pytest.mark.parametrize(
  ('address', 'name'),
  [
    ('python_docs:', 'python_docs'),
    ('jsonl:/home/me/secret/part-?.jsonl', 'jsonl:part-?.jsonl'),
    ('trec:/home/me/nfcorpus?qrels=/home/me/q.txt', 'trec:nfcorpus'),
    ('ir_datasets:beir/nfcorpus/test', 'ir_datasets:beir/nfcorpus/test'),
    ('ir_datasets:cranfield?run=/home/me/bm25.run', 'ir_datasets:cranfield'),
    ('/home/me/pages.jsonl', 'pages.jsonl'),
  ],
)
def test_callers_learn_a_collections_name_and_not_its_folder(address, name):
  assert page.named(address) == name


def test_it_loads_nothing_from_other_hosts(server):
  response = server.client.get('/')
  assert "default-src 'none'" in response.headers['content-security-policy']
  assert not re.search(r'(src|href)="(?!data:)', response.text)


def test_search_gives_a_sigmoid_or_raw_scores_as_every_route_does(server, answer):
  plain = server.client.post('/search', json={'query': 'a list names'}).json()['results']
  sigmoid = [1 / (1 + math.exp(-d['score'])) for d in answer]
  assert [d['score'] for d in plain] == pytest.approx(sigmoid, abs=1e-6)
  assert [d['rank'] for d in plain] == [d['rank'] for d in answer]


def test_search_without_words_or_results(server):
  assert server.client.post('/search', json={'query': ' '}).status_code == 400
  assert server.client.post('/search', json={'query': 'zzzz'}).json()['results'] == []


def test_search_is_fused_with_bm25_on_request(server, answer, monkeypatch):
  body = {'query': 'a list names', 'fuse': 0.3}
  found = server.client.post('/search', json=body).json()['results']
  wanted = fusion.convex(
    {d['doc_id']: d['score'] for d in answer}, {d['doc_id']: d['bm25'] for d in answer}, 0.3
  )
  assert {d['doc_id']: d['score'] for d in found} == pytest.approx(wanted, abs=1e-5)
  assert [d['doc_id'] for d in found] == [d['doc_id'] for d in answer]  # BM25's order
  best = sorted(found, key=lambda d: -d['score'])
  assert [d['rank'] for d in best] == list(range(1, 1 + len(best)))

  refused = server.client.post('/search', json=body | {'fuse': True})
  assert refused.status_code == 422 and 'records no weight' in refused.text
  assert server.client.post('/search', json=body | {'fuse': 'x'}).status_code == 422
  assert 'data-fuse="false"' in server.client.get('/').text
  monkeypatch.setattr(server.service.ranker, 'fusion', Fusion(0.3, 'scores', 24))
  assert server.client.post('/search', json=body | {'fuse': True}).json()['results'] == found
  assert 'data-fuse="scores"' in server.client.get('/').text


def test_search_is_fused_by_ranks_where_the_weight_is_for_them(server, answer, monkeypatch):
  monkeypatch.setattr(server.service.ranker, 'fusion', Fusion(0.3, 'ranks', 24))
  found = server.client.post('/search', json={'query': 'a list names', 'fuse': True}).json()
  ranks = {d['doc_id']: 1 / (60 + d['first']) for d in answer}
  wanted = fusion.convex({d['doc_id']: d['score'] for d in answer}, ranks, 0.3)
  assert {d['doc_id']: d['score'] for d in found['results']} == pytest.approx(wanted, abs=1e-5)
  assert [d['bm25'] for d in found['results']] == [d['bm25'] for d in answer]


def test_search_finds_no_more_than_a_request_may_have(server, answer, monkeypatch):
  limits = dataclasses.replace(server.service.limits, texts=2)
  monkeypatch.setattr(server.service, 'limits', limits)
  found = server.client.post('/search', json={'query': 'a list names'})
  assert found.status_code == 200
  assert [d['doc_id'] for d in found.json()['results']] == [d['doc_id'] for d in answer[:2]]
