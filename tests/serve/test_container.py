"""The server's container file: its rules, and, where an image can be built, the served model."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from disranker_jax.serve.__main__ import parse_args

REPO = Path(__file__).parents[2]
FILE = REPO / 'launch/serve.Dockerfile'
IMAGE = 'disranker-serve-test'


def instructions() -> list[tuple[str, str]]:
  """(instruction, arguments) of each line, with continued lines joined."""
  text = re.sub(r'^#.*\n', '', FILE.read_text(), flags=re.M).replace('\\\n', ' ')
  return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def last_stage() -> dict[str, str]:
  lines = instructions()
  start = max(i for i, (name, _) in enumerate(lines) if name == 'FROM')
  return dict(lines[start:])


def test_the_server_does_not_run_as_root():
  assert int(last_stage()['USER'].split(':')[0]) > 0


def test_the_entry_point_is_a_command_line_of_the_server():
  stage = last_stage()
  command = json.loads(stage['ENTRYPOINT'])
  assert command[:2] == ['disranker', 'serve']
  args = parse_args(command[2:])
  assert (args.host, str(args.model)) == ('0.0.0.0', stage['VOLUME'])
  assert stage['EXPOSE'] == str(args.port)


@pytest.mark.parametrize('status', [200, 503])
def test_the_health_check_asks_the_port_that_is_served_and_no_proxy(status):
  asked = []

  class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)
      self.send_response(status)
      self.end_headers()

    def log_message(self, *_):
      pass

  stage = last_stage()
  program, flag, code = json.loads(stage['HEALTHCHECK'].split('CMD', 1)[1])
  assert (program, flag) == ('python', '-c') and code.count(stage['EXPOSE']) == 1
  with http.server.HTTPServer(('127.0.0.1', 0), Health) as server:
    threading.Thread(target=server.handle_request, daemon=True).start()
    code = code.replace(stage['EXPOSE'], str(server.server_port))
    env = os.environ | {'http_proxy': 'http://127.0.0.1:9', 'no_proxy': ''}
    done = subprocess.run([sys.executable, '-c', code], env=env, timeout=60)
  assert (asked, done.returncode) == (['/health'], int(status != 200))


def test_the_image_has_no_secrets_and_is_built_from_pinned_packages():
  lines = instructions()
  named = ' '.join(arguments for name, arguments in lines if name in ('ARG', 'ENV'))
  assert not re.search(r'token|secret|password|key', named, re.I)
  sources = [a.split() for name, a in lines if name == 'COPY' and not a.startswith('--from')]
  assert all((REPO / path).exists() for *paths, _ in sources for path in paths)
  assert 'disranker_jax' in [path for *paths, _ in sources for path in paths]
  installs = [a for name, a in lines if name == 'RUN' and 'pip install' in a]
  assert installs and all('-c constraints.txt' in a for a in installs)


@pytest.fixture
def docker():
  """A function that runs a command of docker or podman and returns its output."""
  # A client alone is not enough: its daemon has to answer.
  tools = [t for t in ('docker', 'podman') if shutil.which(t) and not tried(t, 'info').returncode]
  if not tools:
    pytest.skip('needs a running docker or podman, and a registry with the base image')

  def run(*words) -> str:
    done = tried(tools[0], *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

  return run


def tried(*words) -> subprocess.CompletedProcess:
  return subprocess.run(words, capture_output=True, text=True, timeout=1800)


@pytest.mark.slow  # Builds an image and downloads its packages.
def test_the_container_serves_a_model_from_a_read_only_folder(docker, model, tmp_path):
  folder = shutil.copytree(model, tmp_path / 'model')
  for path in (folder, *folder.rglob('*')):
    path.chmod(0o755 if path.is_dir() else 0o644)  # The server's user is not ours.
  docker('build', '-f', str(FILE), '-t', IMAGE, str(REPO))
  container = docker(
    'run', '--detach', '--read-only', '--tmpfs', '/tmp', '--publish', '127.0.0.1::8080',
    '--volume', f'{folder}:/model:ro', IMAGE, '--no-search', '--open',
  )  # fmt: skip
  try:
    url = 'http://' + docker('port', container, '8080/tcp').splitlines()[0]

    def ready() -> bool:
      try:
        return httpx.get(f'{url}/health').status_code == 200
      except httpx.TransportError:
        return False

    end = time.monotonic() + 120
    while not ready():
      assert time.monotonic() < end, docker('logs', container)
      time.sleep(1)
    body = {'query': 'open a file', 'texts': ['open : Open a file.', 'len : A number.']}
    answer = httpx.post(f'{url}/rerank', json=body, timeout=30).json()
    assert sorted(item['index'] for item in answer) == [0, 1]
  finally:
    docker('rm', '--force', container)
