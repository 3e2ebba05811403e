"""Who may call: names of the server, pages of other sites, content types, routes with a token."""

import json
import socket

import httpx
import pytest

from disranker_jax.data.records import Document
from disranker_jax.rankers import loaded
from disranker_jax.serve import access
from disranker_jax.serve.page import Search
from tests.serve.conftest import Serving

BODY = {'query': 'q', 'texts': ['a', 'b']}
HEAD = b'GET /info HTTP/1.%d\r\n%s\r\n'


def raw(running, data: bytes) -> bytes:
  url = httpx.URL(running.url)
  with socket.create_connection((url.host, url.port), timeout=20) as link:
    link.sendall(data)
    return link.recv(10_000)


class TestHosts:
  @pytest.fixture
  def local(self, stub):
    return lambda *named: stub[1](hosts=access.allowed_hosts('127.0.0.1', named))

  @pytest.mark.parametrize('host', [
    'localhost', 'localhost:8080', '127.0.0.1', '127.0.0.1:80', '[::1]', '[::1]:8080', 'LocalHost',
    'localhost.',
  ])  # fmt: skip
  def test_a_local_server_has_local_names(self, local, host):
    headers = {'host': host}
    assert local().client.post('/rerank', json=BODY, headers=headers).status_code == 200

  @pytest.mark.parametrize('host', [
    'evil.example', 'evil.example:8080', 'localhost.evil.example', 'localhost@evil.example',
    'evil@localhost', 'evil.example#localhost', '127.0.0.1.evil.example', '[::1', '192.168.1.1',
    'localhost evil', '::1',
  ])  # fmt: skip
  def test_other_names_are_no_names_of_this_machine(self, host):
    assert access.host_name(host) not in access.allowed_hosts('127.0.0.1', ())

  def test_a_rebound_name_reads_nothing(self, local):
    for method, path in (('GET', '/'), ('POST', '/rerank'), ('OPTIONS', '/rerank')):
      answer = local().client.request(method, path, json=BODY, headers={'host': 'evil.example'})
      assert answer.status_code == 421 and '--allow-host' in answer.json()['error']

  def test_names_can_be_added(self, local):
    client = local('search.example.org').client
    for host in ('search.example.org', 'Search.Example.org:443', 'localhost'):
      assert client.get('/info', headers={'host': host}).status_code == 200
    assert client.get('/info', headers={'host': 'example.org'}).status_code == 421

  def test_probes_may_use_any_name(self, local):
    assert local().client.get('/health', headers={'host': '10.1.2.3:8080'}).status_code == 200

  def test_a_server_for_other_machines_has_any_name_until_some_are_given(self):
    assert access.allowed_hosts('0.0.0.0', ()) == frozenset()
    assert access.allowed_hosts('0.0.0.0', ['a.org']) >= {'a.org', 'localhost', '127.0.0.1'}
    assert '127.5.0.1' in access.allowed_hosts('127.5.0.1', ())

  def test_there_is_exactly_one_host(self, local):
    running = local()
    two, none = b'host: localhost\r\nhost: evil.example\r\n', b''
    assert raw(running, HEAD % (1, two)).startswith(b'HTTP/1.1 400')
    assert raw(running, HEAD % (1, none)).startswith(b'HTTP/1.1 400')
    assert raw(running, HEAD % (1, b'host: localhost\r\n')).startswith(b'HTTP/1.1 200')

  @pytest.mark.parametrize('path', ['/rerank/', '/info/', '/search/', '//evil.example/'])
  def test_there_are_no_redirects(self, server, path):
    for method in ('GET', 'POST'):
      answer = server.client.request(
        method, server.url + path, json=BODY, headers={'host': 'evil.example'}
      )
      assert answer.status_code in (404, 405) and 'location' not in answer.headers


@pytest.fixture(scope='module')
def page_server(model):
  """A server that pages of one other site may call."""
  search = Search(lambda: [Document('q', 'q', 'q')])
  with Serving() as them:
    yield them.start(
      lambda: loaded.load(model, 'onnx'), search=search, origins=['https://friend.example']
    )


class TestPages:
  """What a web page can make a browser send."""

  SAME = 'http://127.0.0.1:8080'

  @pytest.mark.parametrize('headers, status', [
    ({}, 200),
    ({'sec-fetch-site': 'same-origin'}, 200),
    ({'sec-fetch-site': 'same-origin', 'origin': 'https://proxy.example'}, 200),
    ({'sec-fetch-site': 'none'}, 200),
    ({'origin': SAME}, 200),
    ({'sec-fetch-site': 'cross-site'}, 403),
    ({'sec-fetch-site': 'same-site', 'origin': 'http://127.0.0.1:9999'}, 403),
    ({'origin': 'http://127.0.0.1:9999'}, 403),
    ({'origin': 'https://evil.example'}, 403),
    ({'origin': 'null'}, 403),
    ({'origin': 'https://friend.example', 'sec-fetch-site': 'cross-site'}, 200),
  ])  # fmt: skip
  @pytest.mark.parametrize('path', ['/rerank', '/search'])
  def test_pages_of_other_sites_are_403(self, page_server, path, headers, status):
    headers = {'host': '127.0.0.1:8080', **headers}
    assert page_server.client.post(path, json=BODY, headers=headers).status_code == status

  @pytest.mark.parametrize('kind', [
    'text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x',
    'text/plain;application/json', 'application/jsonp',
  ])  # fmt: skip
  @pytest.mark.parametrize('path', ['/rerank', '/v2/rerank', '/search'])
  def test_other_content_types_are_415(self, server, kind, path):
    response = server.client.post(path, content=json.dumps(BODY), headers={'content-type': kind})
    assert response.status_code == 415 and 'application/json' in response.text

  @pytest.mark.parametrize('kind', [
    'application/json', 'Application/JSON; charset=utf-8', 'application/vnd.api+json', '',
  ])  # fmt: skip
  def test_json_is_taken(self, server, kind):
    headers = {'content-type': kind} if kind else {}
    response = server.client.post('/rerank', content=json.dumps(BODY), headers=headers)
    assert response.status_code == 200


def test_routes_without_a_token_are_the_documented_ones(stub):
  client = stub[1](token='s3cret', search=None).client
  free = {path for path in ('/', '/health', '/metrics', '/info') if client.get(path).is_success}
  assert free == {'/', '/health', '/metrics'}
  for path in ('/rerank', '/predict', '/v1/rerank', '/v2/rerank', '/score', '/v1/score'):
    assert client.post(path, json=BODY).status_code == 401
