"""The search page of a server with a rewriter."""

import concurrent.futures
import html
import re
import threading
import time

import pytest

from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.rankers import loaded
from disranker_jax.rewriting.loaded import Rewritten
from disranker_jax.serve import __main__ as command
from disranker_jax.serve.page import Search
from tests.serve.conftest import Serving
from tests.serve.test_page import browser, column, needs_browser

DOCS = (
  Document('os.listdir', 'list dir', 'Return a list of names in a folder.'),
  Document('zip', 'zip', 'Iterates over <several> at a time.'),
)


class Writer:
  """A rewriter by hand: it adds a word to a query, none to one of them, and fails for another."""

  engine, reads = 'query_bm25', 4000

  def __init__(self):
    self.asked: list[str] = []
    self.inside, self.most = 0, 0
    self._lock = threading.Lock()

  def __call__(self, query: str) -> Rewritten:
    with self._lock:
      self.asked.append(query)
      self.inside += 1
      self.most = max(self.most, self.inside)
    time.sleep(0.01)
    with self._lock:
      self.inside -= 1
    if query == 'fail':
      raise RuntimeError('broken')
    rewrite = '' if query == 'folder' else '<i>zip'
    if query.endswith('tail'):
      rewrite = 'names'
    return Rewritten(rewrite, self.searched(query, rewrite))

  def searched(self, query: str, rewrite: str) -> str:
    return f'{query} {rewrite}'.strip()


@pytest.fixture(scope='module')
def writer():
  return Writer()


@pytest.fixture(scope='module')
def rewriting(model, writer):
  """A server whose page has the rewriter."""
  search = Search(lambda: DOCS, rewriter=lambda: writer)
  with Serving() as them:
    yield them.start(lambda: loaded.load(model, 'onnx'), search=search)


def ask(running, query: str, **more) -> dict:
  return running.client.post('/search', json={'query': query, **more}).json()


def test_the_rewritten_query_is_searched_and_the_answer_has_it(rewriting, writer):
  found = ask(rewriting, 'names')
  assert (found['rewrite'], found['searched']) == ('<i>zip', 'names <i>zip')
  assert {row['doc_id'] for row in found['results']} == {'os.listdir', 'zip'}
  plain = ask(rewriting, 'names', rewrite=False)
  assert [row['doc_id'] for row in plain['results']] == ['os.listdir'] and 'rewrite' not in plain
  # The re-ranker reads the query as it was asked.
  score = {row['doc_id']: row['score'] for row in found['results']}
  assert plain['results'][0]['score'] == pytest.approx(score['os.listdir'], abs=1e-6)
  asked = len(writer.asked)
  ask(rewriting, 'names')
  assert len(writer.asked) == asked, 'an equal query is rewritten again'


def test_a_query_without_a_rewrite_is_searched_as_it_is(rewriting):
  found = ask(rewriting, 'folder')
  assert (found['rewrite'], found['searched']) == ('', 'folder') and len(found['results']) == 1


def test_the_rewriter_reads_a_query_to_its_own_limit(rewriting, writer):
  """The re-ranker reads less, and BM25 searches no more than this of the query itself."""
  long = 'word ' * 300 + 'tail'
  found = ask(rewriting, long)
  assert writer.asked[-1] == long and found['rewrite'] == 'names'
  words = found['searched'].removesuffix(' names')
  assert long.startswith(words) and len(words) < 800
  assert [row['doc_id'] for row in found['results']] == ['os.listdir']
  ask(rewriting, 'word ' * 1000 + 'end')
  assert len(writer.asked[-1]) == 4000


def test_without_results_the_answer_has_the_rewrite_too(rewriting):
  assert ask(rewriting, 'folder', rewrite=True)['rewrite'] == ''
  of = {'documents': 2, 'collection': 'the collection', 'model': 'student'}
  assert ask(rewriting, 'zzzz', rewrite=False) == {'results': [], 'texts': [], **of}


def test_a_failure_is_an_answer_and_the_next_query_is_rewritten(rewriting):
  refused = rewriting.client.post('/search', json={'query': 'fail'})
  assert refused.status_code == 500 and 'the rewriter failed: RuntimeError' in refused.text
  assert ask(rewriting, 'list')['rewrite'] == '<i>zip'
  wrong = rewriting.client.post('/search', json={'query': 'a', 'rewrite': 'yes'})
  assert wrong.status_code == 422 and '`rewrite` must be true or false' in wrong.text


def test_one_query_is_rewritten_at_a_time(rewriting, writer):
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda i: ask(rewriting, f'list {i}'), range(8)))
  assert all(each['rewrite'] for each in found) and writer.most == 1


@needs_browser
def test_the_page_shows_the_rewrite_as_text(rewriting, tmp_path):
  dom = browser(tmp_path, '--dump-dom', f'{rewriting.url}/?q=names')
  [shown] = re.findall(r'<p id="rewritten"[^>]*>(.*?)</p>', dom, re.S)
  assert '<i>' not in shown
  assert (
    html.unescape(re.sub('<.*?>', '|', shown)) == '|Rewrite: <i>zip||BM25 searches: names <i>zip|'
  )
  assert column(dom, 'first') == [row['doc_id'] for row in ask(rewriting, 'names')['results']]
  assert 'First stage: BM25 with the rewrite' in dom
  assert not re.search(r'<p id="rewritten"[^>]*hidden', dom)


def test_a_server_without_a_rewriter_says_nothing_of_one(server):
  assert 'data-rewrite="false"' in server.client.get('/').text
  fields = {'results', 'texts', 'documents', 'collection', 'model'}
  assert ask(server, 'names', rewrite=True).keys() == fields


def test_the_flag_needs_an_exported_rewriter_and_a_search(model, tmp_path):
  def service(*words):
    return command.service(command.parse_args(['--model', str(model), *map(str, words)]))

  with pytest.raises(UserError, match=r'--rewriter .*: is no exported rewriter'):
    service('--rewriter', model)
  with pytest.raises(UserError, match=r'--rewriter .*/config\.json is missing'):
    service('--rewriter', tmp_path / 'nowhere')
  with pytest.raises(UserError, match=r'--rewriter: .* leave out --no-search'):
    service('--rewriter', model, '--no-search')
