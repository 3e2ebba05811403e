"""`disranker llm-rank`: runs and costs, stops and changes, and what is refused."""

import gzip
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import llm_models
import numpy as np
import pytest
from source_files import trec_folder

from disranker_jax import locks
from disranker_jax.commands import llm_rank, llm_rank_run
from disranker_jax.data import sources
from disranker_jax.devices import sharding
from disranker_jax.errors import Stopped, UserError
from disranker_jax.evaluation import runs
from disranker_jax.rankers.llm import methods, ranker

ROOT = Path(__file__).parents[1]
WORDS = llm_models.WORDS.split()


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return llm_models.write(tmp_path_factory.mktemp('llm') / 'model')


@pytest.fixture
def rows(tmp_path):
  """12 queries with 1 to 6 documents."""
  rng = np.random.default_rng(0)
  file = tmp_path / 'rows.jsonl'
  with file.open('w') as out:
    for q in range(12):
      query = ' '.join(rng.choice(WORDS, 3))
      for d in range(1 + q % 6):
        summary = ' '.join(rng.choice(WORDS, 6))
        row = {'query_id': f'q{q}', 'query': query, 'doc_id': f'd{d}', 'title': '', 'rank': d + 1}
        out.write(json.dumps(row | {'summary': summary}) + '\n')
  return f'jsonl:{file}'


def call(model, rows, out, method='prp_allpair', *more):
  llm_rank.main([
    '--model', str(model), '--method', method, '--source', rows, '--out', str(out),
    '--doc-tokens', '16', '--query-tokens', '8', '--batch-tokens', '512',
    '--precision', 'float32', *more,
  ])  # fmt: skip
  return runs.read_run(out)


def costs(out):
  return json.loads(out.with_name(f'{out.name.removesuffix(".gz")}.json').read_text())


@pytest.mark.parametrize('name', ['yes_no', 'prp_heapsort', 'listwise'])
def test_the_run_is_that_of_the_ranker(model, rows, tmp_path, name):
  found = call(model, rows, tmp_path / 'out.run', name)
  method = methods.find(name)
  options = methods.Options()
  plan = ranker.Plan(method, methods.contract_of(method), options, 8, 16).fitted(6)
  opened, prompt = ranker.open_for(plan, model, precision='float32')
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])
  variables = opened.pretrained(0, mesh)
  alone = ranker.LLMRanker(plan, opened.network, variables, prompt, mesh, rows=2)
  groups = list(sources.read(rows, 'test'))
  assert list(found) == [group.query_id for group in groups]
  for group, scores in alone(groups):
    ours = [found[group.query_id][doc.doc_id] for doc in group.docs]
    assert ours == pytest.approx(scores.tolist(), abs=2e-4)


def test_costs_are_beside_the_run(model, rows, tmp_path):
  out = tmp_path / 'out.run.gz'
  found = call(model, rows, out)
  assert gzip.decompress(out.read_bytes()).decode().split()[5] == 'prp_allpair'
  spent = costs(out)
  prompts = sum(len(docs) * (len(docs) - 1) for docs in found.values())
  assert spent['prompts'] == prompts == sum(c['prompts'] for c in spent['per_query'].values())
  assert spent['queries'] == 12 and spent['prompts_per_query'] == prompts / 12
  assert 0 <= spent['conflict_rate'] <= 1 and 0 <= spent['tie_rate'] <= 1
  assert spent['ms_per_query'] > 0 and spent['per_query']['q0']['prompts'] == 0
  assert sorted(p.name for p in tmp_path.iterdir()) == ['out.run.gz', 'out.run.json', 'rows.jsonl']


def test_a_second_call_is_refused_and_deletes_nothing_of_the_first(model, rows, tmp_path):
  begun = tmp_path / '.out.run.partial'
  begun.mkdir()
  with (
    locks.beside(tmp_path / 'out.run'),
    pytest.raises(UserError, match=r'out\.run: another process is writing it'),
  ):
    call(model, rows, tmp_path / 'out.run')
  assert begun.is_dir()


def test_a_link_stays_and_the_file_that_it_names_is_replaced(model, rows, tmp_path):
  (tmp_path / 'there').mkdir()
  (tmp_path / 'out.run').symlink_to(tmp_path / 'there' / 'kept')
  (tmp_path / 'out.run.json').symlink_to(tmp_path / 'there' / 'costs.json')
  found = call(model, rows, tmp_path / 'out.run')
  assert found == runs.read_run(tmp_path / 'there' / 'kept')
  assert (tmp_path / 'out.run').is_symlink() and (tmp_path / 'out.run.json').is_symlink()
  assert sorted(file.name for file in (tmp_path / 'there').iterdir()) == ['costs.json', 'kept']
  assert costs(tmp_path / 'out.run')['queries'] == 12


@pytest.mark.parametrize(
  ('name', 'what'), [('out.run', ''), ('out.run.json', '/out.run: the file of its costs,')]
)
def test_an_output_that_is_no_file_is_refused(model, tmp_path, name, what):
  os.mkfifo(tmp_path / name)
  with pytest.raises(UserError, match=rf'^--out .*{what}.*{name}: is a pipe or a device; name'):
    call(model, 'jsonl:not-read', tmp_path / 'out.run')


def test_a_kill_while_finished_work_is_removed_does_no_harm(model, rows, tmp_path, monkeypatch):
  def killed(folder, **_):
    next((folder / 'data').iterdir()).unlink()  # a part of the prepared queries
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(llm_rank_run.unfinished, 'shutil', types.SimpleNamespace(rmtree=killed))
    with pytest.raises(SystemExit):
      call(model, rows, tmp_path / 'out.run')
  whole = (tmp_path / 'out.run').read_bytes()
  call(model, rows, tmp_path / 'out.run')
  assert (tmp_path / 'out.run').read_bytes() == whole and not list(tmp_path.glob('.*'))


def test_a_stopped_call_continues_and_gives_the_same_to_the_bit(
  model, rows, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(ranker, 'SEQUENTIAL_UNIT', 2)
  monkeypatch.setattr(llm_rank_run, 'SHARD_SECONDS', 0.0)
  call(model, rows, tmp_path / 'whole.run', 'prp_heapsort')
  ranked = ranker.LLMRanker.ranked
  left = iter(range(5))

  def stopping(self, parts):
    for result in ranked(self, parts):
      if next(left, None) is None:
        raise Stopped('asked to', interrupted=True)
      yield result

  monkeypatch.setattr(ranker.LLMRanker, 'ranked', stopping)
  with pytest.raises(SystemExit) as end:
    call(model, rows, tmp_path / 'out.run', 'prp_heapsort')
  assert end.value.code == 130 and 'the same command continues' in capsys.readouterr().err
  assert not (tmp_path / 'out.run').exists()
  seen = []

  def watching(self, parts):
    for result in ranked(self, parts):
      seen.append(result[1].query_id)
      yield result

  monkeypatch.setattr(ranker.LLMRanker, 'ranked', watching)
  call(model, rows, tmp_path / 'out.run', 'prp_heapsort')
  assert seen == [f'q{i}' for i in range(4, 12)]  # units of two queries
  assert (tmp_path / 'out.run').read_bytes() == (tmp_path / 'whole.run').read_bytes()
  whole, continued = costs(tmp_path / 'whole.run'), costs(tmp_path / 'out.run')
  assert continued == {k: v for k, v in whole.items() if k != 'ms_per_query'}
  # With another flag it starts again.
  monkeypatch.setattr(ranker.LLMRanker, 'ranked', stopping)
  with pytest.raises(SystemExit):
    call(model, rows, tmp_path / 'out.run', 'prp_heapsort')
  monkeypatch.setattr(ranker.LLMRanker, 'ranked', ranked)
  call(model, rows, tmp_path / 'out.run', 'prp_heapsort', '--top', '1')
  assert 'an input or a flag has changed' in capsys.readouterr().err


def test_a_collection_without_qrels_is_ranked_whole(model, tmp_path, capsys):
  folder = trec_folder(tmp_path)
  source, out = f'trec:{folder}', tmp_path / 'out.run'
  assert list(call(model, source, out, 'yes_no')) == ['q1', 'q2']
  said = capsys.readouterr().err
  assert f'judged queries of {source}; --kind candidates ranks all' in said
  assert 'left out 1 query without judgements' in said
  assert list(call(model, source, out, 'yes_no', '--kind', 'candidates')) == ['q1', 'q2', 'q3']
  assert '--kind' not in capsys.readouterr().err
  (folder / 'qrels.txt').unlink()
  assert list(call(model, source, out, 'yes_no')) == ['q1', 'q2', 'q3']
  assert 'qrels.txt: does not exist' in refusal(model, source, out, '--kind', 'test')
  assert 'no.txt: does not exist' in refusal(model, f'{source}?qrels=no.txt', out)


def refusal(model, source, out, *more):
  with pytest.raises(UserError) as caught:
    call(model, source, out, 'yes_no', *more)
  return str(caught.value)


def test_a_contract_of_a_file(model, rows, tmp_path):
  contract = {'pieces': ['{query} ? {document}\nGood:'], 'labels': [' Yes'], 'formula': 'raw'}
  (tmp_path / 'mine.json').write_text(json.dumps(contract))
  mine = call(model, rows, tmp_path / 'a.run', 'yes_no', '--contract', str(tmp_path / 'mine.json'))
  own = call(model, rows, tmp_path / 'b.run', 'yes_no')
  assert mine.keys() == own.keys() and mine != own
  assert costs(tmp_path / 'a.run')['contract'] == 'mine'


def test_depth_keeps_the_first_documents(model, rows, tmp_path):
  found = call(model, rows, tmp_path / 'a.run', 'yes_no', '--depth', '2')
  assert max(map(len, found.values())) == 2 and set(found['q5']) == {'d0', 'd1'}


def test_the_list_names_every_method_and_contract(capsys):
  llm_rank.main(['--method', 'list'])
  out = capsys.readouterr().out
  assert all(f'  {name} ' in out for name in methods.METHODS)
  assert 'qwen3_reranker' in out and 'yes no' in out
  read = {line.split()[0]: line for line in out.splitlines() if line.startswith('  ')}
  assert 'a linear head' in read['rankllama_v1']
  assert 'the query itself' in read['query_likelihood']


def test_the_module_is_the_same_command():
  command = [sys.executable, '-m', 'disranker_jax.llm_rank', '--method', 'none', '--model', 'x']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.startswith('error: --source: is missing')


@pytest.mark.slow  # a process for each number of devices
@pytest.mark.parametrize(
  'name, more', [('prp_allpair_soft', []), ('listwise_permutation', ['--shard', '2'])]
)
def test_several_devices_give_the_same(model, rows, tmp_path, name, more):
  one = call(model, rows, tmp_path / 'one.run', name)
  flags = {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
  command = [
    sys.executable, '-m', 'disranker_jax.llm_rank', '--model', model, '--method', name,
    '--source', rows, '--out', tmp_path / 'two.run', '--doc-tokens', '16', '--query-tokens', '8',
    '--batch-tokens', '512', '--precision', 'float32', *more,
  ]  # fmt: skip
  subprocess.run(list(map(str, command)), env=os.environ | flags, check=True, cwd=ROOT)
  two = runs.read_run(tmp_path / 'two.run')
  assert one.keys() == two.keys()
  for query, scores in one.items():
    assert two[query] == pytest.approx(scores, abs=2e-4)


class TestRefused:
  def error(self, model, rows, out, *more):
    with pytest.raises(UserError) as caught:
      call(model, rows, out, *more)
    assert not list(out.parent.glob('.*')) and not out.exists()
    return str(caught.value)

  @pytest.mark.parametrize(
    'more, message',
    [
      (['yesno'], "method 'yesno': there is none of this name; choose of yes_no"),
      (['yes_no', '--depth', '-1'], '--depth: must be 0'),
      (['yes_no', '--instruction', 'x'], "--instruction: contract 'yes_no' has no {instruction}"),
      (['listwise', '--stride', '30'], 'stride: is 30; must be at most the window, 20'),
      (['listwise', '--contract', 'prp', '--window', '3', '--stride', '1'], 'at most 2 documents'),
      (['listwise', '--doc-tokens', '3000'], 'lower window or doc_tokens'),
      (['yes_no', '--model', 'tiny-encoder'], 'is a bert model, which answers no prompts'),
    ],
  )
  def test_flags(self, model, rows, tmp_path, more, message):
    (tmp_path / 'out').mkdir()
    assert message in self.error(model, rows, tmp_path / 'out' / 'x.run', *more)

  def test_bad_rows_leave_nothing(self, model, tmp_path):
    (tmp_path / 'bad.jsonl').write_text('{"query_id": "q"}\n')
    (tmp_path / 'out').mkdir()
    out = tmp_path / 'out' / 'x.run'
    assert 'bad.jsonl:1' in self.error(model, f'jsonl:{tmp_path}/bad.jsonl', out, 'yes_no')

  @pytest.mark.parametrize(
    'row, message',
    [
      ({'query': ' ', 'title': 'list'}, 'bad.jsonl:1:query: is blank'),
      ({'query': 'open', 'title': ''}, 'bad.jsonl:1:title: and summary are both empty'),
    ],
  )
  def test_empty_texts(self, model, tmp_path, row, message):
    row = {'query_id': 'q', 'doc_id': 'd', 'summary': '', **row}
    (tmp_path / 'bad.jsonl').write_text(json.dumps(row) + '\n')
    (tmp_path / 'out').mkdir()
    out = tmp_path / 'out' / 'x.run'
    assert message in self.error(model, f'jsonl:{tmp_path}/bad.jsonl', out, 'yes_no')

  @pytest.mark.parametrize('name, message', [('', 'is a folder'), ('no/x.run', 'does not exist')])
  def test_outputs(self, model, rows, tmp_path, name, message):
    with pytest.raises(UserError, match=message):
      call(model, rows, tmp_path / name)
