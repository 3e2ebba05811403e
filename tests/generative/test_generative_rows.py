"""Rows of DGR's result table, without a model."""

import dataclasses
import json
import types

import pytest
import source_reads
import tiny_dgr
from small_collection import collection

from disranker_jax import config as configs
from disranker_jax.data.records import Document, Group
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.generative import rows
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.records import Found
from disranker_jax.generative.stages import index, memorise, retrieve
from disranker_jax.models.writing import Beams
from disranker_jax.pipeline import inputs, manifest, runner, seeds
from disranker_jax.pipeline.all_systems import SEARCH
from disranker_jax.pipeline.runner import Pipeline
from disranker_jax.pipeline.stage import Run
from disranker_jax.report import intervals
from disranker_jax.stages import collection_rows, documents, earlier, evaluate, prepare, roles

MESH = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1})


@pytest.mark.parametrize(
  ('changes', 'again'),
  [
    ({'queries': 7, 'shown': 3, 'shard_seconds': 1.0, 'matches': 5, 'depth': 3}, False),
    ({'beams': 3}, True),
    ({'query_form': 'capped'}, True),
    ({'hits': 30}, True),
  ],
)
def test_a_row_is_searched_again_only_after_changes_of_what_decides_a_search(changes, again):
  before, after = configs.defaults('dgr'), configs.defaults('dgr')
  after.retrieve.update(changes)
  for row in rows.RETRIEVERS:
    assert (row.reads(before) != row.reads(after)) == again


def test_the_estimate_counts_every_view_of_the_queries_that_are_to_be_searched(
  monkeypatch, tmp_path
):
  """Without those whose pages are on disk; a row of the table searches training queries too."""
  c = configs.defaults('dgr')
  c.retriever.update(model='tiny-decoder', max_len=64, max_query_len=16, row_len=64)
  c.retriever.views = ('title', 'body')
  c.retrieve.update(batch_rows=16, beams=3, queries=50)
  c.search.training_queries = 5
  monkeypatch.setattr(prepare, 'kinds', lambda config: ('clicks', 'judgements', 'test'))
  monkeypatch.setattr(prepare, 'records', lambda run, kind: [None] * 60)
  run, use = Run(c, tmp_path, None), retrieve.STAGE.uses(c)[0]
  model = use.open()
  longest = Prompts(model).longest
  title = Beams(16, 3, longest, c.retriever.title_length)
  body = Beams(16, 3, longest, c.retriever.length)
  assert use.writes(run, model) == ([(title, 4), (body, 4)], '50 queries')
  assert use.texts(model) == title and title.slots > body.slots
  monkeypatch.setattr(retrieve.Shards, 'kept', lambda self: 32)
  assert use.writes(run, model) == ([(title, 2), (body, 2)], '18 queries')
  row = rows.ROWS['aligned'].use(c)
  assert row.writes(run, model) == ([(title, 5), (body, 5)], '65 queries')


def test_pages_of_another_precision_tokenizer_or_start_are_searched_again(tmp_path, monkeypatch):
  c = configs.defaults('dgr')
  c.stages = ('prepare', 'index', 'retrieve')
  c.retriever.update(model='tiny-decoder', max_len=64, max_query_len=16, row_len=64)
  monkeypatch.setattr(manifest, 'read', lambda folder: {'fingerprint': folder.name})
  monkeypatch.setattr(earlier, 'fingerprint', lambda config, workdir, role: config[role].init_from)
  run = Run(c, tmp_path, None)

  def made(**changes) -> dict:
    c.retriever.update({'precision': 'float32', 'init_from': ''} | changes)
    return retrieve.maker(run, index.open_retriever(c))

  def missing(before: dict, now: dict) -> list[range]:
    write = retrieve.Shards(tmp_path, 1, before, retrieve.FORMAT).write
    write(range(1), [('q', [])])
    return retrieve.Shards(tmp_path, 1, now, retrieve.FORMAT).missing()

  plain = made()
  for key, other in (
    ('precision', made(precision='bfloat16')),
    ('parameters', made(init_from='runs/old')),
    ('tokenizer', plain | {'tokenizer': 'other'}),
  ):
    with pytest.raises(UserError, match=f'was made with another {key}; do the pages again'):
      missing(plain, other)
  c.retrieve.batch_rows = 64  # as another mesh may need
  assert missing(plain, made()) == []


@pytest.mark.parametrize(
  ('key', 'value', 'again'),
  [
    ('retriever.seed', 7, False),
    ('seed', 7, False),
    ('retriever.lora_rank', 8, False),
    ('retriever.length', 9, False),
    ('retriever.title_template', '{query}\n\nA title:', False),
    ('retriever.views', ('title', 'body'), True),
    ('retriever.title_length', 9, True),
    ('retriever.query_length', 9, True),
    ('retriever.model', 'tiny-decoder', True),
    ('index.queries', 1, True),
  ],
)
def test_the_index_is_stale_after_changes_of_the_settings_it_reads_alone(key, value, again):
  c = configs.defaults('dgr')
  before = {'config': manifest.settings_of(c, index.STAGE.sections(c)), 'inputs': {}}
  c.update_from_flattened_dict({key: value})
  assert (
    bool(manifest.changes(before, manifest.settings_of(c, index.STAGE.sections(c)), {})) == again
  )


def test_what_the_retriever_starts_from_is_no_input_of_the_index(tmp_path):
  """Pseudo-queries and documents are."""
  c = configs.defaults('dgr')
  (tmp_path / 'documents.jsonl').write_text('{"doc_id": "a", "title": "t", "summary": "s"}\n')
  c.data.documents = f'jsonl:{tmp_path}/documents.jsonl'
  before = inputs.outside(c, index.STAGE, tmp_path)
  c.retriever.init_from = str(tmp_path / 'earlier')
  assert inputs.outside(c, index.STAGE, tmp_path) == before
  assert before.keys() == {'data.documents'}
  assert 'retriever.init_from' in inputs.outside(c, memorise.STAGE, tmp_path)
  pipeline = Pipeline(Run(c, tmp_path, None))
  now = pipeline.inputs(index.STAGE)
  assert now == before | {'generate': None}  # which is not done


def test_rows_do_not_depend_on_batches(tmp_path):
  c = configs.defaults('dgr')
  run = Run(c, tmp_path, None)
  row = rows.ROWS['aligned']
  (tmp_path / 'search').mkdir()

  def made() -> str:
    wanted = manifest.settings_of(c, SEARCH.sections(c))
    manifest.write_json(tmp_path / 'search' / 'manifest.json', {'config': wanted, 'inputs': {}})
    return evaluate.made_from(run, row)

  before = made()
  c.search.batch_rows = c.retrieve.batch_rows = 32
  assert before == made()
  c.search.min_relevance = 2
  assert before != made()


def test_queries_that_nothing_reads_are_told_before_they_are_written(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(documents, 'read', lambda config, least: [Document('a', 'title', 'text')])
  c = configs.defaults('dgr')
  index.STAGE.check_records(Run(c, tmp_path, None))
  assert not capsys.readouterr().err
  c.retriever.views = ('title', 'body')
  index.STAGE.check_records(Run(c, tmp_path, None))
  assert "has 'generate', but nothing reads the queries" in capsys.readouterr().err
  c.stages = ('prepare', 'cpt', 'generate', 'index', 'memorise', 'search')  # without score too
  index.STAGE.check_records(Run(c, tmp_path, None))
  assert "has 'generate', but nothing reads the queries" in capsys.readouterr().err
  c.stages = ('prepare', 'generate', 'index', 'score')  # which reads them without retrieve
  index.STAGE.check_records(Run(c, tmp_path, None))
  assert not capsys.readouterr().err
  c.stages = ('prepare', 'index', 'memorise', 'search')
  index.STAGE.check_records(Run(c, tmp_path, None))
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  ('doc', 'view', 'lacks'),
  [
    (Document('a', ' ', 'text'), 'title', 'without a title'),
    (Document('a', 'title', ''), 'body', 'without a text'),
  ],
)
def test_a_view_that_no_document_has_is_refused_before_queries_are_written(
  tmp_path, monkeypatch, doc, view, lacks
):
  docs, c = [doc], configs.defaults('dgr')
  monkeypatch.setattr(documents, 'read', lambda config, least: docs)
  message = f"config.retriever.views: has '{view}', but every page is {lacks}; take '{view}' out"
  with pytest.raises(UserError, match=message):
    index.STAGE.check_records(Run(c, tmp_path, None))
  docs.append(Document('b', 'title', 'text'))
  index.STAGE.check_records(Run(c, tmp_path, None))


def begun(folder, **changes) -> Pipeline:
  """A run of tiny models whose records are prepared; nothing else is done."""
  run = Run(tiny_dgr.config(collection(folder), **changes), folder / 'run', MESH)
  runner.run(run.config, run.workdir, stages=('prepare',))
  return Pipeline(run)


def test_all_checks_and_estimates_read_the_collection_once_and_no_stage_finds_it_in_memory(
  tmp_path, monkeypatch
):
  pipeline, read = begun(tmp_path), source_reads.counted(monkeypatch)
  checks = ('generate', 'index', 'memorise', 'retrieve', 'search')
  looked = []
  for stage in pipeline.chosen:
    if stage.name in checks:

      def check(run, stage=stage, check=stage.check_records):
        check(run)
        looked.append((stage.name, len(read)))

      monkeypatch.setitem(vars(stage), 'check_records', check)
  monkeypatch.setattr(runner.reading, 'say_losses', lambda run, opened, records: [
    looked.append((kind, len(read))) for kind in (prepare.GENERATED, prepare.RETRIEVED)
    if records(kind)[0].docs
  ])  # fmt: skip
  pipeline.look_at_records([object()], None)
  names = [*checks, prepare.GENERATED, prepare.RETRIEVED]
  assert looked == [(name, 1) for name in names]
  assert [one() for one in read] == [None]


def test_a_document_without_a_text_is_said_once_for_all_checks(tmp_path, capsys):
  addresses = collection(tmp_path)
  with (tmp_path / 'documents.jsonl').open('a') as file:
    file.write(json.dumps({'doc_id': 'blank', 'title': ' ', 'summary': ''}) + '\n')
  run = Run(tiny_dgr.config(addresses), tmp_path / 'run', MESH)
  runner.run(run.config, run.workdir, stages=('prepare',))
  capsys.readouterr()
  Pipeline(run).look_at_records([], None)
  said = 'documents: 1 of 41 documents has no text and is left out\n'
  assert capsys.readouterr().err.count(said) == 1


def test_checks_read_a_collection_again_that_has_changed_between_two_of_them(tmp_path, monkeypatch):
  """The message is the one that the later check gives by itself."""
  pipeline, read = begun(tmp_path), source_reads.counted(monkeypatch)
  file = tmp_path / 'documents.jsonl'
  later = next(stage for stage in pipeline.chosen if stage.name == 'memorise')
  check = later.check_records

  def changed(run):
    file.write_text(json.dumps({'doc_id': 'x', 'title': 'other', 'summary': 'page'}) + '\n')
    check(run)

  monkeypatch.setitem(vars(later), 'check_records', changed)
  with pytest.raises(UserError, match='none of the clicked pages is in'):
    pipeline.look_at_records([], None)
  assert len(read) == 2


def test_a_teacher_without_a_head_gets_advice_that_its_system_can_follow(monkeypatch):
  monkeypatch.setattr(roles.hf, 'lacking', lambda folder, network: ['score.weight'])
  model = types.SimpleNamespace(network=types.SimpleNamespace(head='rank'), folder='/models/llm')
  with pytest.raises(UserError) as error:
    roles.check_scored_head(configs.defaults('dgr'), 'teacher', model)
  assert "set config.teacher.scorer='query_likelihood'" in str(error.value)
  assert 'sft' not in str(error.value)
  c = configs.defaults()
  c.stages = ('prepare', 'score')
  with pytest.raises(
    UserError, match=r'lists score without sft.*; list sft, name a reranker, or set'
  ):
    roles.check_scored_head(c, 'teacher', model)


def test_hits_20_is_tested_as_the_rows_are_compared_by_it():
  names = list(rows.ROWS)
  values = {name: {f'q{i}': dict.fromkeys(rows.TABLE.kept, float(i % 3 == 0)) for i in range(9)}
            for name in names}  # fmt: skip
  found = intervals.analyse(rows.TABLE, values, samples=20)
  assert {metric for *_, metric in found.differences} == {'mrr@10', 'hits@5', 'hits@20'}


def test_another_seed_repeats_every_row_that_a_trained_retriever_is_in(monkeypatch):
  monkeypatch.setattr(collection_rows.loaded, 'check', lambda folder: {})
  c = configs.defaults('dgr')
  c.data.update({kind: f'jsonl:{kind}.jsonl' for kind in ('judgements', 'test', 'documents')})
  c.search.reranker = '/a/student'
  changed = seeds.with_seed(c, 7)
  assert set(changed.search.models) == set(rows.ROWS) - {'bm25', 'bm25_reranked'}
  assert changed.retriever.seed == 7


def test_rows_of_a_reranker_depend_on_what_is_read_of_its_folder(tmp_path):
  """On a CPU that is the ONNX file."""
  (tmp_path / 'onnx').mkdir()
  for name in ('config.json', 'model.safetensors', 'onnx/model.onnx'):
    (tmp_path / name).write_text('{}')
  c = configs.defaults('dgr')
  c.search.reranker = str(tmp_path)
  before = collection_rows.fingerprint(c)
  (tmp_path / 'README.md').write_text('A note.')
  assert collection_rows.fingerprint(c) == before
  (tmp_path / 'onnx' / 'model.onnx').write_text('others')
  assert collection_rows.fingerprint(c) != before


class TestFinishedRows:
  """A stage before the table is done again, which removes the manifest and keeps the rows."""

  ROW = dataclasses.replace(rows.ROWS['aligned'], reads=lambda config: None)

  def run(self, tmp_path, inputs: dict, **changes) -> Run:
    c = configs.defaults('dgr')
    c.update_from_flattened_dict(changes)
    (tmp_path / 'search').mkdir(exist_ok=True)
    wanted = manifest.settings_of(c, SEARCH.sections(c))
    manifest.write_json(tmp_path / 'search' / 'manifest.json', {'config': wanted, 'inputs': inputs})
    return Run(c, tmp_path, None)

  def test_a_version_counts_where_both_sides_know_it(self, tmp_path):
    [key] = [f'{role}.model version' for role in rows.TABLE.roles_of(self.ROW)]
    known, other = {key: 'a@1'}, {key: 'a@2'}
    for then, now, kept in (
      ({}, known, True), (known, {}, True), (known, known, True), (known, other, False),
    ):  # fmt: skip
      evaluate.write_row(self.run(tmp_path, then), self.ROW, {'mrr': 0.5})
      found = evaluate.filled(self.run(tmp_path, now), self.ROW)
      assert found == ({'mrr': 0.5} if kept else None), (then, now)


def test_a_row_of_a_row_is_filled_again_after_changes_of_the_model_of_both(tmp_path):
  run = Run(configs.defaults('dgr'), tmp_path, None)
  (tmp_path / 'search').mkdir()

  def made(key: str) -> str:
    found = {'config': {key: 1}, 'inputs': {}}
    (tmp_path / 'search' / 'manifest.json').write_text(json.dumps(found))
    row = dataclasses.replace(rows.ROWS['aligned_fused_reranked'], reads=lambda config: None)
    return evaluate.made_from(run, row)

  assert made('retriever.max_query_len') != made('teacher.max_query_len') == made('teacher.seed')


@pytest.mark.parametrize('known', [[], [('learned', 0), ('by heart', 1)]])
def test_the_time_of_a_query_leaves_out_what_the_first_search_compiles(
  monkeypatch, tmp_path, known
):
  """Also where no training query is searched before."""
  clock = [0.0]
  asked = []

  class Searching:
    pages = types.SimpleNamespace(doc_ids=['a', 'b'])
    prompts = types.SimpleNamespace(cut=lambda queries: '')

    def __call__(self, queries):
      clock[0] += 0 if asked else 100  # it compiles
      for i, query in enumerate(queries):
        asked.append(query)
        clock[0] += 0.25
        yield range(i, i + 1), i, [Found(0, 1.0, ())]

  fake = types.SimpleNamespace(monotonic=lambda: clock[0])
  for module in (rows, collection_rows):
    monkeypatch.setattr(module, 'time', fake)
  monkeypatch.setattr(retrieve, 'open_it', lambda run, hits, stages: Searching())
  monkeypatch.setattr(rows, 'training_queries', lambda run, pages: known)
  groups = [Group(f'q{i}', f'query {i}', ()) for i in range(4)]
  run = Run(configs.defaults('dgr'), tmp_path, None)
  ranking, facts = rows.generated(run, rows.ROWS['memorised'], groups)
  assert facts['ms_per_query'] == 250
  assert ('note' in facts) == bool(known)
  assert ranking == {group.query_id: {'a': 1.0} for group in groups}
  before = [query for query, _ in known] or ['query 0']
  assert asked == [*before, *(group.query for group in groups)]


def test_rows_and_the_stage_say_which_queries_are_cut(monkeypatch, tmp_path, capsys):
  c = configs.defaults('dgr')
  c.retriever.update(model='tiny-decoder', max_len=64, max_query_len=3, row_len=64)
  prompts = Prompts(index.open_retriever(c))
  groups = [Group('a', 'one two three four five', ()), Group('b', 'one', ())]
  said = 'the end of 1 of 2 queries is not read; raise config.retriever.max_query_len=3'

  class Searching:
    pages = types.SimpleNamespace(doc_ids=('d',))

    def __call__(self, queries):
      for i, _ in enumerate(queries):
        yield range(1), i, [Found(0, 1.0, ())]

  Searching.prompts = prompts
  monkeypatch.setattr(retrieve, 'open_it', lambda *arguments: Searching())
  monkeypatch.setattr(prepare, 'kinds', lambda config: ())
  _, facts = rows.generated(Run(c, tmp_path, None), rows.ROWS['memorised'], groups)
  assert facts['remark'] == said
  _, facts = rows.generated(Run(c, tmp_path, None), rows.ROWS['memorised'], groups[1:])
  assert 'remark' not in facts
  monkeypatch.setattr(prepare, 'records', lambda run, kind: groups)
  for name in ('maker', 'fill', 'finish'):
    monkeypatch.setattr(retrieve, name, lambda *arguments: {})
  retrieve.execute(Run(c, tmp_path, None))
  assert f'retrieve: {said}' in capsys.readouterr().err
