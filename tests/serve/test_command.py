"""`disranker serve`: starts, serves, drains on SIGTERM; its backends agree."""

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys

import httpx
import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.serve import __main__ as command
from disranker_jax.serve import backends
from tests.serve.conftest import until


def refused(*arguments) -> str:
  with pytest.raises(UserError) as caught:
    command.service(command.parse_args([str(a) for a in arguments]))
  return str(caught.value)


class TestBackends:
  @pytest.fixture
  def pairs(self, prompt):
    rng = np.random.default_rng(0)
    words = ['list', 'name', 'file', 'path', 'number', 'string']
    texts = [' '.join(rng.choice(words, n)) for n in rng.integers(0, 60, 70)]
    return prompt.encode_texts('names of files', texts)

  def test_jax_and_onnx_give_the_same_scores(self, model, pairs):
    ours, theirs = (backends.open_backend(model, name) for name in ('jax', 'onnx'))
    scores, computed = ours.score(pairs)
    assert len(scores) == 70 and computed >= sum(map(len, pairs))
    # JAX multiplies in bf16 on a CPU.
    np.testing.assert_allclose(theirs.score(pairs)[0], scores, rtol=0, atol=0.2 * scores.std())

  def test_jax_compiles_before_the_first_request_only(self, model, pairs):
    backend = backends.Jax(model, part_tokens=512)
    backend.warm()
    before = backend._run._cache_size()
    for count in (1, 3, 9, 40, 70):
      backend.score(pairs[:count])
    assert backend._run._cache_size() == before

  def test_eight_bits_are_chosen_only_where_they_were_exported(self, model, tmp_path):
    assert backends.best(model) == 'onnx'
    file = tmp_path / 'onnx' / 'model_int8.onnx'
    file.parent.mkdir()
    file.touch()
    assert backends.best(tmp_path) == 'onnx-int8'


class TestMistakes:
  def test_a_folder_that_is_no_student_is_named(self, tmp_path, model):
    assert 'config.json' in refused('--model', tmp_path)
    from disranker_jax.models import tiny

    tiny.make('tiny-decoder', tmp_path / 'm')
    assert 'not a cross-encoder' in refused('--model', tmp_path / 'm')

  @pytest.mark.parametrize('flag', ['--max-texts', '--timeout', '--max-batch-tokens'])
  def test_limits_must_be_above_0(self, model, flag):
    assert flag in refused('--model', model, flag, '0')

  def test_weights_that_are_missing_end_the_server_with_the_reason(self, model, tmp_path):
    for name in ('config.json', 'tokenizer.json', 'tokenizer_config.json'):
      (tmp_path / name).write_bytes((model / name).read_bytes())
    done = subprocess.run(
      [sys.executable, '-m', 'disranker_jax.serve', '--model', tmp_path, '--port', '0',
       '--no-search'], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and 'model.safetensors is missing' in done.stderr


def test_sigterm_answers_what_was_asked_and_ends(model, tmp_path):
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
    asked = [pool.submit(httpx.post, url + '/rerank', json=body, timeout=60) for _ in range(4)]
    until(lambda: 'disranker_tokens_total 0.0' not in httpx.get(url + '/metrics').text)
    process.send_signal(signal.SIGTERM)
    assert [len(f.result().json()) for f in asked] == [900] * 4
  assert process.wait(60) == 0
  assert 'disranker_texts_total' not in (tmp_path / 'log').read_text()
