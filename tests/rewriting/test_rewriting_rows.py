"""Which rows a config has, what their notes count, which engine searches."""

import json
import re
import types
import weakref

import jax
import numpy as np
import pytest
import source_reads
from ml_collections import ConfigDict

from disranker_jax.config import check, defaults
from disranker_jax.data import once
from disranker_jax.data.records import Document, Group
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models.writing import Texts
from disranker_jax.pipeline import estimate, opening
from disranker_jax.pipeline.stage import Run
from disranker_jax.rewriting import engines, queries, rewards, rows
from disranker_jax.rewriting.queries import Query
from disranker_jax.rewriting.query_bm25 import QueryBM25
from disranker_jax.rewriting.stages import rewrite
from disranker_jax.stages import evaluate


def config(**changes) -> ConfigDict:
  c = defaults('query_rewriting')
  c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return c


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({}, {'pretrained', 'cpt', 'rewrite', 'best'}),
    ({'stages': ('prepare', 'rewrite', 'search')}, {'cpt', 'rewrite', 'best'}),
    ({'stages': ('prepare', 'cpt', 'search')}, {'pretrained', 'cpt'}),
    ({'stages': ('prepare', 'search')}, {'pretrained'}),
    # A rewriter of an earlier run alone, and one that learns more.
    ({'stages': ('prepare', 'search'), 'rewriter__init_from': 'x'}, {'pretrained', 'rewrite'}),
    (
      {'stages': ('prepare', 'rewrite', 'search'), 'rewriter__init_from': 'x'},
      {'pretrained', 'cpt', 'rewrite', 'best'},
    ),
  ],
)
def test_every_state_of_the_rewriter_is_one_row(changes, expected):
  """A row before GRPO with and without cpt, one of the model that the config names."""
  found = rows.TABLE.rows_of(config(**changes))
  assert {name for name, row in found.items() if row.role} == expected
  found = rows.TABLE.rows_of(config(search__reranker='y', **changes))
  others = {'original', 'rm3', 'nearest'}
  expected = {f'{name}_reranked' for name in (expected | others) - {'best'}}
  assert {name for name in found if name.endswith('_reranked')} == expected


@pytest.mark.parametrize(
  ('row', 'changes', 'message'),
  [
    ('rewrite', {}, 'needs the stage rewrite, .* lacks; add it or set config.rewriter.init_from'),
    ('best', {'rewriter__init_from': 'x'}, 'needs the stage rewrite, which .* lacks; add it'),
    ('cpt', {'rewriter__init_from': 'x'}, "is the same as the row 'rewrite' here; name that one"),
    ('cpt', {}, "is the same as the row 'pretrained' here; name that one"),
    (
      'cpt_reranked',
      {'search__reranker': 'x'},
      "is the same as the row 'pretrained_reranked' here; name that one",
    ),
    (
      'pretrained',
      {'stages': ('prepare', 'rewrite', 'search')},
      "is the same as the row 'cpt' here; name that one",
    ),
    ('original_reranked', {}, 'needs config.search.reranker; add --config.search.reranker=VALUE'),
    ('rewrite_reranked', {'search__reranker': 'x'}, 'needs .* set config.rewriter.init_from'),
  ],
)
def test_a_row_that_is_named_and_cannot_be_filled_is_refused(row, changes, message, monkeypatch):
  """With the reason and a remedy; a row that would repeat another one names that one."""
  monkeypatch.setattr(rows.collection_rows.loaded, 'check', lambda folder: None)
  monkeypatch.setattr(rows.collection_rows.loaded, 'locate', lambda folder: folder)
  changes = {'stages': ('prepare', 'search'), **changes}
  message = f"config.search.models: the row '{row}' {message}, or leave the row out"
  with pytest.raises(UserError, match=message):
    rows.TABLE.check(config(search__models=('original', row), **changes))
  rows.TABLE.check(config(**changes))  # the default names all rows
  if 'name that one' in message:
    other = re.search("row '([a-z_]+)' here", message)[1]
    rows.TABLE.check(config(search__models=('original', other), **changes))


def test_the_model_as_given_has_nothing_of_an_earlier_run(tmp_path):
  """It opens although the earlier run does not exist, and has the pretrained parameters."""
  c = config(rewriter__model='tiny-decoder', rewriter__init_from=str(tmp_path / 'gone'))
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1})
  run = types.SimpleNamespace(config=c, mesh=mesh, workdir=tmp_path, folder=lambda s: tmp_path / s)
  model, variables, _ = rows.ROWS['pretrained'].load(run)
  assert model.network.head == 'lm'
  jax.tree.map(np.testing.assert_array_equal, variables, model.pretrained(c.seed, mesh))
  with pytest.raises(UserError, match='gone'):
    rows.ROWS['rewrite'].load(run)


def test_what_decides_nothing_for_the_model_as_given_leaves_its_rows_valid(tmp_path, monkeypatch):
  """Where another run starts and the seed of its training."""
  monkeypatch.setattr(rows.collection_rows, 'fingerprint', lambda config: ['x'])
  (tmp_path / 'documents.jsonl').touch()
  c = config(data__documents=f'jsonl:{tmp_path}/documents.jsonl')
  run = Run(c, tmp_path, None)
  (tmp_path / 'search').mkdir()

  def made(name: str, config: dict, inputs: dict) -> str:
    found = {'config': config, 'inputs': inputs}
    (tmp_path / 'search' / 'manifest.json').write_text(json.dumps(found))
    return evaluate.made_from(run, rows.ROWS[name])

  keys = ('rewriter.init_from', 'rewriter.seed', 'rewriter.max_len')
  for name in ('pretrained', 'pretrained_reranked', 'cpt', 'cpt_reranked'):
    before = made(name, {}, {})
    changed = [key for key in keys if made(name, {key: 1}, {}) != before]
    changed += [key for key in keys[:1] if made(name, {}, {key: 'x'}) != before]
    is_given = name.startswith('pretrained')
    assert changed == (['rewriter.max_len'] if is_given else [*keys, 'rewriter.init_from'])


def test_the_estimate_of_a_row_counts_all_that_it_writes(monkeypatch):
  """One rewrite of a query, or its samples, in batches of `search.batch_rows` queries."""
  c = config(rewriter__max_len=40, rewrite__max_new=8, rewrite__samples=3, search__batch_rows=4)
  monkeypatch.setattr(rows.prepare, 'records', lambda run, kind: [None] * 9)
  run = types.SimpleNamespace(config=c)
  for name, samples in {'cpt': 1, 'rewrite': 1, 'best': 3}.items():
    use = rows.ROWS[name].use(c)
    assert use.writes(run, None) == ([(Texts(4, samples, 32, 8), 3)], '9 queries')
    assert use.texts(None) == Texts(4, samples, 32, 8) and use.rows == 4 * samples


def test_the_note_counts_by_the_measure_of_the_table(monkeypatch):
  """By graded labels, not by whether a document is relevant."""
  docs = [Document(name, name, '', label) for name, label in (('a', 2), ('b', 1))]
  groups = [Group(q, q, tuple(docs)) for q in ('1', '2', '3')]
  before = {q: {'a': 1.0, 'b': 2.0} for q in '123'}
  ranking = {'1': {'a': 2.0, 'b': 1.0}, '2': {'a': 1.0, 'b': 2.0}, '3': {'b': 1.0}}
  monkeypatch.setattr(rows.evaluate, 'ranking_of', lambda *_: before)
  run = types.SimpleNamespace(config=config())
  said = 'nDCG@10 rises for 1 of the 3 queries and falls for 1'
  assert rows.compared(run, groups, ranking) == said
  run.config.search.models = ('rewrite',)  # without the queries as they were
  assert rows.compared(run, groups, ranking) == ''


def test_rows_that_search_by_another_engine_than_the_table_say_so(monkeypatch):
  docs = [Document('a', 'red fox', '', 1), Document('b', 'blue', '', 0)]
  groups = [Group('q', 'red', tuple(docs))]
  monkeypatch.setattr(rows.queries, 'test', lambda run: [Query('q', 'red', (docs[0],))])
  monkeypatch.setattr(rows.queries, 'collection', lambda config: docs)
  monkeypatch.setattr(rows.evaluate, 'ranking_of', lambda *_: {'q': {'b': 1.0}})
  for engine in ('bm25', 'query_bm25'):
    run = types.SimpleNamespace(config=config(search__engine=engine))
    ranking, facts = rows.rm3(run, rows.ROWS['rm3'], groups)
    assert list(ranking['q']) == ['a']
    assert facts['remark'] == 'nDCG@10 rises for 1 of the 1 query and falls for 0'
    if engine == 'bm25':
      assert 'note' not in facts
    else:
      assert facts['note'] == "the built-in BM25, not config.search.engine='query_bm25'"


def test_rows_share_one_collection_and_one_index(monkeypatch, tmp_path):
  """Both are made again where contents or engine change, and the old ones are gone by then."""
  file, read, made = tmp_path / 'd.jsonl', source_reads.counted(monkeypatch), []
  lines = [
    json.dumps({'doc_id': name, 'title': f'red {name}', 'summary': ''}) for name in ('ant', 'bee')
  ]
  file.write_text('\n'.join(lines))
  for name, build in engines.ENGINES.items():

    def counted(docs, name=name, build=build):
      assert not made or made[-1][1]() is None
      index = build(docs)
      made.append((name, weakref.ref(index)))
      return index

    monkeypatch.setitem(engines.ENGINES, name, counted)
  groups = [Group('q', 'red bee', (Document('bee', 'red bee', '', 1),))]
  monkeypatch.setattr(queries, 'test', lambda run: [Query('q', 'red bee', groups[0].docs)])
  c = config(data__documents=f'jsonl:{file}', search__models=('original', 'rm3'))
  run = types.SimpleNamespace(config=c)
  assert rows.TABLE.shares(c)
  with once.shared():  # as the stage does
    for _ in range(3):
      assert list(rows.original(run, rows.FIRST, groups)[0]['q']) == ['bee', 'ant']
      assert list(rows.documents_of(run)) == ['ant', 'bee']
    assert len(read) == 1 and [name for name, _ in made] == ['bm25']
    run.config.search.engine = 'query_bm25'
    rows.original(run, rows.FIRST, groups)
    assert len(read) == 1 and [name for name, _ in made] == ['bm25', 'query_bm25']
    file.write_text(lines[1])
    assert list(rows.original(run, rows.FIRST, groups)[0]['q']) == ['bee']
    assert len(read) == 2 and len(made) == 3
    assert read[0]() is None and read[1]() is not None
  assert read[1]() is None and made[-1][1]() is None


def test_a_table_that_is_less_deep_than_its_columns_says_so(capsys):
  rows.TABLE.check(config())
  assert not capsys.readouterr().err
  rows.TABLE.check(config(search__depth=100))
  assert 'search.depth=100: nDCG@1000 is that of so many documents' in capsys.readouterr().err


def test_re_ranked_rows_are_tested_against_themselves_and_the_first_stage_re_ranked(monkeypatch):
  """And their notes count the queries that are better and worse than there."""
  group = Group('q', 'red', (Document('a', 'red', '', 1),))
  docs = [Document('b', 'red', ''), Document('a', 'red', '')]
  ranker = types.SimpleNamespace(  # which turns the ranking round
    rank=lambda query, docs: [(i, 0.0) for i in reversed(range(len(docs)))]
  )
  disk = {'original_reranked': ({'q': {'a': 1.0}}, {})}
  monkeypatch.setattr(rows.evaluate, 'ranking_of', lambda *_: {'q': {'b': 2.0, 'a': 1.0}})
  monkeypatch.setattr(rows.evaluate, 'on_disk', lambda run, name: disk.get(name))
  monkeypatch.setattr(rows.collection_rows.loaded, 'load', lambda folder: ranker)
  monkeypatch.setattr(queries, 'collection', lambda config: docs)
  run = types.SimpleNamespace(config=config(search__reranker='x'))

  def facts(name: str) -> dict:
    return rows.ROWS[name].rank(run, rows.ROWS[name], [group])[1]

  better = 'nDCG@10 rises for 1 of the 1 query and falls for 0, against '
  same = better.replace('rises for 1', 'rises for 0')
  found = facts('original_reranked')
  assert found['against'] == ['original'] and found['remark'] == f'{better}"original query"'
  found = facts('rewrite_reranked')
  assert found['against'] == ['rewrite', 'original_reranked']
  other = f'{same}"original query, re-ranked"'
  assert found['remark'] == f'{better}"rewriter"; {other}'
  disk.clear()  # a row that is not filled yet is not ranked for the note
  assert facts('rewrite_reranked')['remark'] == f'{better}"rewriter"'


@pytest.mark.parametrize('engine', ['bm25', 'query_bm25'])
def test_the_reward_searches_with_the_engine_of_the_settings(engine):
  documents = [Document('a', 'sorted rows', ''), Document('b', 'rows rows the of', '')]
  c = rewrite_section(engine=engine)
  [(_, term)] = rewards.make(c, documents).terms.values()
  assert isinstance(term._index, QueryBM25) == (engine == 'query_bm25')
  # Only the words of Lucene's analyzer are stems.
  found = term([Query('q', 'x', (documents[0],))], [['sorting']])
  assert np.all((found > 0) == (engine == 'query_bm25'))


def rewrite_section(**changes):
  c = config().rewrite
  c.update({'reward': 'bm25', **changes})
  return c


def test_two_engines_are_named_in_a_line(capsys):
  rewrite.check(config(search__engine='query_bm25'))
  said = capsys.readouterr().err
  assert "config.rewrite.engine='bm25'" in said and "config.search.engine='query_bm25'" in said
  rewrite.check(config())
  assert not capsys.readouterr().err
  with pytest.raises(UserError, match=r"config\.rewrite\.engine='lucene': must be 'bm25', 'query_"):
    check(config(rewrite__engine='lucene'))


@pytest.mark.parametrize(('cap', 'is_allowed'), [(0.0, True), (1.0, True), (0.5, False)])
def test_a_correction_of_the_sampler_is_off_or_lets_equal_weights_be(cap, is_allowed):
  """Below 1 it would lower the weights of all tokens, also of those that do not differ."""
  c = config(rewrite__sampler_correction=cap)
  c.data.update({kind: f'jsonl:{kind}.jsonl' for kind in ('clicks', 'judgements', 'test')})
  if is_allowed:
    check(c)
    return
  with pytest.raises(
    UserError, match=r'sampler_correction=0\.5: must be 0 \(off\) or at least 1; 2'
  ):
    check(c)


def test_memory_remedies_name_keys_that_exist(capsys, monkeypatch):
  c = config()
  stages = {stage.name: stage for stage in opening.systems.listed(c)}
  for name, (section, keys) in {
    'rewrite': ('rewrite', 'prompts or samples'), 'cpt': ('cpt', 'batch_rows'),
    'search': ('search', 'batch_rows'),
  }.items():  # fmt: skip
    assert opening.rows_of(c, stages[name]) == f'config.{section}.{keys}'
    assert all(key in c[section] for key in keys.split(' or '))
  reckoned = estimate.Estimate.__new__(estimate.Estimate)
  reckoned._run = types.SimpleNamespace(config=c, mesh=sharding.make_mesh(c.mesh))
  use, step = stages['rewrite'].uses(c)[0], types.SimpleNamespace(trained=None)
  model = types.SimpleNamespace(settings=c.rewriter)
  reckoned.opened = [
    types.SimpleNamespace(stage=stages['rewrite'], use=use, step=step, model=model)
  ]
  reckoned.bytes_of = [2 << 30]
  monkeypatch.setattr(estimate.memory, 'limit', lambda: 1 << 30)
  reckoned.say_memory()
  assert 'lower config.rewrite.prompts or samples or the model' in capsys.readouterr().err
