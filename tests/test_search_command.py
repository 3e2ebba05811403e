"""The command search: which training answers, and what is re-ranked; without a model."""

import json
import types

import jax
import pytest

from disranker_jax import config as configs
from disranker_jax.commands import opened_run, search
from disranker_jax.data.records import Document
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.generative.records import Found
from disranker_jax.generative.stages import retrieve
from disranker_jax.rankers import loaded
from disranker_jax.stages import documents

DOCS = [Document(f'd{i}', f'title {i}', 'text') for i in range(5)]


def workdir(folder, listed: tuple, done: tuple, system='dgr'):
  c = configs.defaults(system)
  c.stages = listed
  (folder / 'config.json').write_text(c.to_json())
  for stage in done:
    (folder / stage).mkdir()
    (folder / stage / 'manifest.json').write_text('{"status": "done"}')
  return folder


ALL = ('index', 'memorise', 'ltrgr', 'align')


@pytest.mark.parametrize(
  ('listed', 'done', 'stage', 'used'),
  [
    (ALL, ALL, None, ('memorise', 'align')),
    (ALL, ALL[:3], None, ('memorise',)),  # the labels' baseline never answers without being asked
    (ALL[:3], ALL, None, ('memorise',)),  # align's parameters would not be used
    (ALL, ALL[:3], 'ltrgr', ('memorise', 'ltrgr')),
    (ALL, ALL, 'memorise', ('memorise',)),
  ],
)
def test_a_stage_that_the_run_lists_answers_and_is_named(
  tmp_path, capsys, listed, done, stage, used
):
  _, stages = search.open_trained(workdir(tmp_path, listed, done), stage)
  assert stages == used
  said = capsys.readouterr()
  assert f'search: with the retriever after the stage {used[-1]}' in said.err and not said.out


@pytest.mark.parametrize(
  ('listed', 'done', 'stage', 'message'),
  [
    (ALL[:2], ALL, 'align', r'align is done, but the last call .* config\.stages without it'),
    (ALL, ALL[:2], 'align', 'align is not done; continue the run first'),
    (ALL, ALL[1:], None, 'index is not done'),
    (('index', 'ltrgr'), ('index', 'ltrgr'), None, 'memorise is not done'),
    (ALL, ALL[:1], None, 'memorise is not done'),
  ],
)
def test_a_stage_that_would_not_be_used_is_refused(tmp_path, listed, done, stage, message):
  with pytest.raises(UserError, match=message):
    search.open_trained(workdir(tmp_path, listed, done), stage)


def test_the_stage_of_another_system_is_refused_in_the_same_way(tmp_path):
  folder = workdir(tmp_path, ('prepare',), ('rewrite',), 'query_rewriting')
  run = opened_run.open_run(folder, 'rewriter')
  assert 'config.stages without it' in opened_run.lacking(run, 'rewrite')


@pytest.mark.parametrize(
  ('mesh', 'devices', 'used', 'said'),
  [
    ((4, 2, 2), 1, (1, 1, 1), 'is for 16 devices, and here is 1: takes data=1, fsdp=1, model=1'),
    ((1, 4, 2), 2, (1, 1, 2), 'is for 8 devices, and here are 2: takes data=1, fsdp=1, model=2'),
    ((4, 1, 1), 2, (1, 2, 1), 'is for 4 devices, and here are 2: takes data=1, fsdp=2, model=1'),
    ((1, 1, 1), 2, (1, 2, 1), 'is for 1 device, and here are 2: takes data=1, fsdp=2, model=1'),
    ((-1, 1, 4), 2, (1, 2, 1), 'is for a multiple of 4 devices, and here are 2: takes data=1, '),
    ((3, 1, -1), 2, (1, 2, 1), 'is for a multiple of 3 devices, and here are 2: takes data=1, '),
    ((2, 1, 1), 2, (2, 1, 1), ''),
    ((-1, 1, 1), 2, (2, 1, 1), ''),
  ],
)
def test_a_run_of_other_devices_is_opened_on_those_that_are_here(
  monkeypatch, capsys, mesh, devices, used, said
):
  monkeypatch.setattr(jax, 'device_count', lambda: devices)
  made = types.SimpleNamespace
  monkeypatch.setattr(sharding.jax, 'make_mesh', lambda shape, axes, **options: made(
    shape=dict(zip(axes, shape, strict=True))
  ))  # fmt: skip
  c = configs.defaults('dgr')
  c.mesh.update(dict(zip(sharding.AXES, mesh, strict=True)))
  assert tuple(opened_run.mesh_of(c).shape.values()) == used
  shown = capsys.readouterr().err
  assert f'config.mesh {said}' in shown if said else not shown
  assert tuple(sharding.make_mesh(c.mesh).shape.values()) == used


def test_sizes_of_a_run_that_are_no_mesh_are_refused(capsys):
  c = configs.defaults('dgr')
  c.mesh.update(data=0, fsdp=1, model=1)
  with pytest.raises(UserError, match='must be positive sizes'):
    opened_run.mesh_of(c)
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  ('top', 'expected'), [(10, 'd2 d1 d0 d3 d4'), (1, 'd2'), (4, 'd2 d1 d0 d3')]
)
def test_the_best_pages_are_reranked_and_the_others_stay_behind(
  tmp_path, monkeypatch, capsys, top, expected
):
  """As in the rows of the table: a re-ranker reads config.search.rerank pages of a query."""
  run, _ = search.open_trained(workdir(tmp_path, ALL, ALL), None)
  run.config.search.rerank = run.config.retrieve.hits = 3
  run.config.data.documents = 'jsonl:documents.jsonl'
  backend = types.SimpleNamespace(decode=str)
  found = [Found(i, 10.0 - i, ()) for i in range(5)]

  class Searching:
    pages = types.SimpleNamespace(doc_ids=[doc.doc_id for doc in DOCS])
    model = types.SimpleNamespace(tokenizer=types.SimpleNamespace(backend_tokenizer=backend))
    prompts = types.SimpleNamespace(lost=lambda query: 4 * (len(query) > 5))

    def __call__(self, queries):
      yield range(1), 0, found

  class Reversed:
    def rank(self, query, texts):
      return [(i, float(i)) for i in reversed(range(len(texts)))]

  monkeypatch.setattr(documents, 'read', lambda config, least: DOCS)

  def opened(run, hits, stages):
    assert hits == max(3, top)  # pages: those of the table, or as many as are shown
    return Searching()

  monkeypatch.setattr(retrieve, 'open_it', opened)
  monkeypatch.setattr(loaded, 'load', lambda folder: Reversed())
  arguments = ['--run', str(tmp_path), '--query', 'q', '--top', str(top)]
  rows = search.rows_of(run, (), search.parse_args([*arguments, '--rerank', 'student']))
  assert ' '.join(row['doc_id'] for row in rows) == expected
  assert [row['score'] for row in rows] == [2.0, 1.0, 0.0, None, None][:top]
  assert json.loads(json.dumps(rows)) == rows
  assert search.shown(rows, False).splitlines()[-1].split()[1] == ('2.00' if top == 1 else '-')
  assert 'not read' not in capsys.readouterr().err
  search.rows_of(run, (), search.parse_args([*arguments, '--query', 'a long query']))
  said = capsys.readouterr()
  assert 'the last 4 tokens of the query are not read: config.retriever.max_query_len=' in said.err
  assert said.err.endswith(' of the run; shorten the query\n')
  assert not said.out
  plain = search.rows_of(run, (), search.parse_args(arguments))
  assert [row['score'] for row in plain] == [10.0, 9.0, 8.0, 7.0, 6.0][:top]


def test_more_pages_than_a_search_scores_are_refused():
  with pytest.raises(UserError, match=r'--top=1501: a search scores 1,500 pages at most; lower it'):
    search.parse_args(['--run', 'r', '--query', 'q', '--top', '1501'])
