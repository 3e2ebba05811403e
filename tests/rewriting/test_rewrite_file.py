"""`disranker rewrite --queries` without a model: it continues where it was stopped."""

import json
import os
import signal

import pytest

from disranker_jax.commands import rewrite, rewrite_file
from disranker_jax.rewriting.rewriter import Rewritten

COUNT, ROWS = 10, 4


class Stub:
  """Rewrites all queries but one, and acts before a part of them."""

  def __init__(self):
    self.asked, self.before = [], {}

  def many(self, queries):
    self.before.pop(len(self.asked), lambda: None)()
    self.asked.append(list(queries))
    return [Rewritten('' if q == 'query 3' else f'new {q}', f'{q} new {q}') for q in queries]


@pytest.fixture
def stub(tmp_path, monkeypatch):
  (tmp_path / 'model').mkdir()
  (tmp_path / 'model' / 'config.json').write_text('{}')
  (tmp_path / 'q.tsv').write_text(''.join(f'{i}\tquery {i}\n' for i in range(COUNT)))
  found = Stub()
  monkeypatch.setattr(rewrite, 'opened', lambda args, rows: (found, ''))
  monkeypatch.setattr(rewrite, 'say_cut', lambda *arguments: None)
  monkeypatch.setattr(rewrite_file, 'ROWS', ROWS)
  return found


def call(folder, out: str) -> bytes:
  where = ['--model', str(folder / 'model'), '--queries', str(folder / 'q.tsv')]
  rewrite.main([*where, '--out', str(folder / out)])
  return (folder / out).read_bytes()


def interrupted():
  raise KeyboardInterrupt


def asked_to_end():
  os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize('out', ['out.jsonl', 'out.jsonl.gz'])
@pytest.mark.parametrize(('stop', 'status', 'kept'), [(interrupted, 130, 4), (asked_to_end, 0, 8)])
def test_the_same_command_continues_to_the_same_bytes(
  stub, tmp_path, capsys, out, stop, status, kept
):
  whole = call(tmp_path, f'whole.{out}')
  stub.before, before = {len(stub.asked) + 1: stop}, len(stub.asked)
  with pytest.raises(SystemExit) as ended:
    call(tmp_path, out)
  said = capsys.readouterr().err
  assert ended.value.code == status and f'{kept} queries are kept in' in said
  assert 'the same command continues' in said and not (tmp_path / out).exists()
  assert call(tmp_path, out) == whole
  said = capsys.readouterr().err
  assert f'continues after {kept} queries' in said and '9 of 10 queries are rewritten' in said
  assert [q for part in stub.asked[before:] for q in part] == [f'query {i}' for i in range(COUNT)]
  assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize('change', ['queries', 'model', 'run'])
def test_other_inputs_start_again(stub, tmp_path, capsys, change):
  if change == 'run':  # parameters of a run are in folders that its manifests know
    (tmp_path / 'model' / 'rewrite').mkdir()
    (tmp_path / 'model' / 'rewrite' / 'manifest.json').write_text('{"fingerprint": "a"}')
  stub.before = {1: interrupted}
  with pytest.raises(SystemExit):
    call(tmp_path, 'out.jsonl')
  if change == 'queries':
    (tmp_path / 'q.tsv').write_text('7\tanother query\n')
  if change == 'model':
    (tmp_path / 'model' / 'model.safetensors').write_text('other')
  if change == 'run':
    (tmp_path / 'model' / 'rewrite' / 'manifest.json').write_text('{"fingerprint": "b"}')
  found = call(tmp_path, 'out.jsonl').splitlines()
  assert 'starts again' in capsys.readouterr().err
  assert len(found) == (1 if change == 'queries' else COUNT)
  assert json.loads(found[0])['rewrite'].startswith('new ')
