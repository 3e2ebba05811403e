"""`disranker serve`: its arguments, failing to load, and draining on SIGTERM."""

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from safetensors.numpy import load_file, save_file

from disranker_jax.errors import UserError
from disranker_jax.serve import __main__ as command
from tests.serve.conftest import until


def service(*arguments):
  return command.service(command.parse_args([str(a) for a in arguments]))


def refused(*arguments) -> str:
  with pytest.raises(UserError) as caught:
    service(*arguments)
  return str(caught.value)


class TestMistakes:
  def test_a_folder_without_a_student_is_named(self, tmp_path, model):
    assert 'config.json' in refused('--model', tmp_path)
    from disranker_jax.models import tiny

    tiny.make('tiny-decoder', tmp_path / 'm')
    assert 'not a sequence classifier' in refused('--model', tmp_path / 'm')

  @pytest.mark.parametrize(
    'flag',
    ['--max-texts', '--max-held-bytes', '--timeout', '--max-batch-tokens', '--keep-alive'],
  )
  def test_limits_must_be_above_0(self, model, flag):
    assert flag in refused('--model', model, flag, '0')

  def test_idle_connections_live_longer_than_those_of_usual_proxies(self, model):
    assert service('--model', model, '--no-search').limits.idle_s > 60
    given = service('--model', model, '--no-search', '--keep-alive', '620')
    assert given.limits.idle_s == 620

  @pytest.mark.parametrize('origin', ['example.org', 'https://example.org/', 'https://*.org', ''])
  def test_an_origin_must_be_scheme_and_host(self, model, origin):
    assert '--cors-allow-origin' in refused('--model', model, f'--cors-allow-origin={origin}')

  @pytest.mark.parametrize('name', ['', 'https://a.org', 'a.org:80', 'a.org/x', '*', 'a b'])
  def test_a_host_must_be_a_name(self, model, name):
    assert '--allow-host' in refused('--model', model, f'--allow-host={name}')

  def test_a_token_that_is_asked_for_must_be_there(self, model, monkeypatch):
    monkeypatch.delenv('DISRANKER_TOKN', raising=False)
    error = refused('--model', model, '--token-env', 'DISRANKER_TOKN')
    assert '--token-env DISRANKER_TOKN' in error and 'not set' in error

  @pytest.mark.parametrize('token', ['', ' \n', 'schlüssel', 'two words', 'tab\there'])
  @pytest.mark.parametrize('flag', [(), ('--token-env', 'MINE')])
  def test_a_token_must_be_one_that_can_be_sent(self, model, monkeypatch, token, flag):
    name = flag[1] if flag else 'DISRANKER_TOKEN'
    monkeypatch.setenv(name, token)
    assert name in refused('--model', model, *flag)

  @pytest.mark.parametrize('host', ['0.0.0.0', '::', '10.1.2.3', 'search.example.org'])
  def test_an_open_server_must_be_asked_for(self, model, monkeypatch, host):
    monkeypatch.delenv('DISRANKER_TOKEN', raising=False)
    assert '--open' in refused('--model', model, '--host', host)
    assert service('--model', model, '--host', host, '--open').access.token == ''
    monkeypatch.setenv('DISRANKER_TOKEN', ' s3cret\n')
    assert service('--model', model, '--host', host).access.token == 's3cret'

  @pytest.mark.parametrize('host', ['127.0.0.1', '127.1.2.3', '::1', 'localhost'])
  def test_this_machine_needs_no_token(self, model, monkeypatch, host):
    monkeypatch.delenv('DISRANKER_TOKEN', raising=False)
    assert service('--model', model, '--host', host).access.token == ''

  def test_the_largest_request_must_fit_into_all_bytes(self, model):
    error = refused('--model', model, '--max-held-bytes', 2_000_000)
    assert '--max-held-bytes' in error and '6048000' in error

  @pytest.mark.parametrize('broken, reason', [
    ('weights', 'bert.pooler.dense.bias'), ('tokenizer', 'the tokenizer has'),
  ])  # fmt: skip
  def test_a_broken_model_ends_the_server_with_the_reason(self, model, tmp_path, broken, reason):
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    if broken == 'weights':
      tensors = load_file(model / 'model.safetensors')
      del tensors['bert.pooler.dense.bias']
      save_file(tensors, tmp_path / 'model.safetensors')
    else:
      config = json.loads((model / 'config.json').read_text())
      config['vocab_size'] -= 1
      (tmp_path / 'config.json').write_text(json.dumps(config))
    done = subprocess.run(
      [sys.executable, '-m', 'disranker_jax.serve', '--model', tmp_path, '--port', '0',
       '--no-search'], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and reason in done.stderr


def test_sigterm_answers_open_requests_and_exits_with_0(model, tmp_path):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  url = f'http://127.0.0.1:{port}'
  with (tmp_path / 'log').open('w') as log:
    process = subprocess.Popen(
      [sys.executable, '-m', 'disranker_jax.serve', '--model', model, '--port', str(port),
       '--backend', 'onnx', '--no-search'], stderr=log, stdout=log, env=os.environ,
    )  # fmt: skip

  def ready():
    assert process.poll() is None, (tmp_path / 'log').read_text()
    try:
      return httpx.get(url + '/health').status_code == 200
    except httpx.ConnectError:
      return False

  until(ready)
  body = {'query': 'q', 'texts': ['some words to score ' * 20] * 900}
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    open_requests = [
      pool.submit(httpx.post, url + '/rerank', json=body, timeout=60) for _ in range(4)
    ]
    until(lambda: 'disranker_tokens_total 0.0' not in httpx.get(url + '/metrics').text)
    process.send_signal(signal.SIGTERM)
    assert [len(f.result().json()) for f in open_requests] == [900] * 4
  assert process.wait(60) == 0
  assert 'disranker_texts_total' not in (tmp_path / 'log').read_text()
