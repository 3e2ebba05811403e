"""The stage generate: what it writes, filters and hands on, and that a restart changes nothing."""

import gzip
import random
import re

import gang
import helpers
import jax
import pyarrow.parquet as pq
import pytest

from disranker_jax import config as configs
from disranker_jax.data import holdout, query_filters, store
from disranker_jax.data.records import Document, Group
from disranker_jax.devices import sharding
from disranker_jax.pipeline import estimate, opening, reading, runner, systems
from disranker_jax.stages import generated_groups, prepare, writer

STAGES = ('prepare', 'generate', 'score', 'distill', 'evaluate')
DOCUMENTS = 24


def rows(count: int = DOCUMENTS) -> list[dict]:
  words = helpers.WORDS
  return [
    {
      'doc_id': f'p{i}', 'title': f'{words[i % 10]} {words[i // 10]}',
      'summary': f'Page {i} closes a {words[i % 10]} in a {words[(i * 3 + 1) % 10]} of a list.',
    }
    for i in range(count)
  ]  # fmt: skip


def config(folder, documents=None, **changes):
  pages = helpers.write_jsonl(folder / 'pages.jsonl', rows() if documents is None else documents)
  test = helpers.write_jsonl(folder / 'test.jsonl', helpers.own_rows('test'))
  own = {
    'stages': STAGES, 'data__candidates': 'generated:', 'data__documents': f'jsonl:{pages}',
    'data__test': f'jsonl:{test}', 'teacher__scorer': 'query_likelihood',
    'teacher__template': '{title}: {summary} {query}', 'score__judgements': False,
    'distill__hard_label_weight': 0.0, 'evaluate__models': ('bm25', 'student'),
    'generate__samples': 3, 'generate__batch_rows': 4, 'generate__shots': 0,
    'generate__max_len': 96, 'generate__max_new': 6, 'generate__shard_seconds': 0.0,
    'generate__depth': 6,
  }  # fmt: skip
  return helpers.config(**own | changes)


def copying(network, variables, prompts, *, samples, numbers, seed, eos_id, **_):
  """Stands for a model that has learned to write: some of the prompt's tokens in a row."""
  rows = []
  for ids, number in zip(prompts, numbers, strict=True):
    for sample in range(samples):
      rng = random.Random(f'{seed} {number} {sample}')
      start = rng.randrange(max(len(ids) - 12, 1))
      rows.append([*ids[start : start + 12], min(eos_id)])
  return rows


@pytest.fixture
def copies(monkeypatch):
  monkeypatch.setattr(writer, 'generate', copying)


def records(workdir) -> list[Group]:
  return list(store.open('candidates', workdir / 'generate' / 'candidates'))


def test_documents_alone_give_a_student(tmp_path, copies, capsys):
  workdir = tmp_path / 'run'
  c = config(tmp_path, distill__generated_within=4, validation__share=0.4)
  c.distill.validation.update(keep_best=True, metric='tau', every=1)
  c.evaluate.models = ('bm25', 'student', 'fused')
  runner.run(c, workdir)
  groups = records(workdir)
  err = capsys.readouterr().err
  said = re.search(r'queries are kept.*\n((?:  .*\n)+)', err)[1].splitlines()
  assert len({*said}) == 5 and {line.strip() for line in said} <= {g.query for g in groups}
  assert 'few queries are kept' not in err
  results = helpers.load(workdir / 'generate' / 'manifest.json')['results']
  assert results['texts'] == 3 * DOCUMENTS == len(groups) + sum(results['left_out'].values())
  assert results['generated']['rows'] == len(groups) > 10
  assert query_filters.DUPLICATE in results['left_out']
  titles = {row['doc_id']: row['title'] for row in rows()}
  keys = [query_filters.key(group.query) for group in groups]
  assert len(set(keys)) == len(keys)
  for group in groups:
    own = group.query_id.partition('#')[0]
    assert own in [d.doc_id for d in group.docs if d.label == 1]
    assert {d.label for d in group.docs} == {0, 1}
    assert len({d.doc_id for d in group.docs}) == len(group.docs) == 6
    assert query_filters.key(group.query) != query_filters.key(titles[own])
  lines = (workdir / 'generate' / 'queries.tsv').read_text().splitlines()
  assert lines == [f'{group.query_id}\t{group.query}' for group in groups]
  # All of them are scored, and the teacher's ranking is a run of them.
  with gzip.open(workdir / 'score' / 'teacher.run.gz', 'rt') as run:
    assert {line.split()[0] for line in run} == {group.query_id for group in groups}
  learned = helpers.load(workdir / 'distill' / 'manifest.json')['results']['generated']
  assert learned['queries'] == len(groups) >= learned['learned'] > 0
  # The best checkpoint is chosen by the order of held-out queries, without any label.
  validated = helpers.load(workdir / 'distill' / 'manifest.json')['results']['validation']
  assert validated['metric'] == 'tau' and validated['step'] == validated['best_step']
  assert validated['queries'] >= 10 and validated['labelled'] == 0
  assert {'student', 'fused'} <= set(helpers.metrics(workdir))


def test_queries_of_the_test_are_left_out_and_counted(tmp_path, copies):
  workdir, again = tmp_path / 'first', tmp_path / 'second'
  stages = ['prepare', 'generate']
  runner.run(config(tmp_path), workdir, stages=stages)
  [stolen, *_] = records(workdir)
  tests = [row | {'query': f' {stolen.query.upper()}'} for row in helpers.own_rows('test', 1)]
  (tmp_path / 'other').mkdir()
  c = config(tmp_path / 'other')
  helpers.write_jsonl(tmp_path / 'other' / 'test.jsonl', tests)
  runner.run(c, again, stages=stages)
  counts = helpers.load(again / 'generate' / 'manifest.json')['results']['left_out']
  assert counts[query_filters.TEST] >= 1
  texts = {holdout.normalized(group.query) for group in records(again)}
  assert holdout.normalized(stolen.query) not in texts


def test_a_real_log_and_generated_queries_are_learned_together(tmp_path, copies):
  log = helpers.write_jsonl(tmp_path / 'log.jsonl', helpers.own_rows('candidates'))
  c = config(tmp_path, data__candidates=f'jsonl:{log}', distill__generated_weight=2.0)
  workdir = tmp_path / 'run'
  runner.run(c, workdir, stages=['prepare', 'generate', 'score', 'distill'])
  generated = len(records(workdir))
  results = helpers.load(workdir / 'distill' / 'manifest.json')['results']
  assert results['generated']['learned'] == 2 * generated
  stats = helpers.load(workdir / 'score' / 'stats.json')
  assert list(stats) == ['candidates', 'generated'] and stats['candidates']['queries'] == 6


def test_killed_while_it_writes_it_goes_on_and_the_texts_are_the_same(tmp_path):
  c, undisturbed = config(tmp_path), tmp_path / 'undisturbed'
  # Random weights write no query, and the message says why none is left.
  message = helpers.refused(c, undisturbed, stages=['prepare', 'generate'])
  assert 'none of the 72 queries that were written is left' in message and 'too long' in message
  wanted = shards(undisturbed)
  assert len(wanted) == 2 * DOCUMENTS / 4
  workdir = tmp_path / 'killed'
  flags = command_line(c, workdir)
  bomb = helpers.ROOT / 'tests' / 'pipeline' / 'interrupted.py'
  killed = helpers.command(bomb, 'SIGKILL', 'generate', 2, *flags)
  assert killed.returncode == -9, killed.stderr
  kept = shards(workdir)
  assert 4 <= len(kept) < len(wanted) and kept.items() <= wanted.items()
  assert helpers.refused(c, workdir, stages=['prepare', 'generate']) == message.replace(
    str(undisturbed), str(workdir)
  )
  assert shards(workdir) == wanted


def command_line(c, workdir) -> list[str]:
  """The flags that mean a config, for the stages up to generate."""
  usual = configs.flatten(helpers.config())
  changed = {path: value for path, value in configs.flatten(c).items() if value != usual[path]}
  joined = {k: ','.join(v) if isinstance(v, list) else v for k, v in changed.items()}
  changes = {path.replace('.', '__'): value for path, value in joined.items()}
  return [*helpers.flags(workdir, **changes), '--stages=prepare,generate']


@pytest.mark.slow  # three processes that compile
def test_two_processes_write_the_texts_that_one_writes(tmp_path):
  found = []
  for count in (1, 2):
    folder = tmp_path / str(count)
    folder.mkdir()
    arguments = command_line(config(folder), folder / 'run')
    ended = gang.run(folder, ['-m', 'disranker_jax.main', *arguments], count, 4 // count)
    assert (
      set(ended) == {2}
      and 'queries that were written is left' in (folder / 'process.0.log').read_text()
    )
    files = sorted((folder / 'run' / 'generate' / 'shards').glob('*.parquet'))
    found.append([row for file in files for row in pq.read_table(file).to_pylist()])
  assert found[0] == found[1] and len(found[0]) == 3 * DOCUMENTS


def shards(workdir) -> dict[str, bytes]:
  folder = workdir / 'generate' / 'shards'
  return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_finished_shard_is_not_written_again_and_a_broken_one_is(tmp_path, copies, monkeypatch):
  c, workdir, stages = config(tmp_path), tmp_path / 'run', ['prepare', 'generate']
  runner.run(c, workdir, stages=stages)
  wanted, groups = shards(workdir), records(workdir)
  (workdir / 'generate' / 'manifest.json').unlink()
  broken = workdir / 'generate' / 'shards' / '000000004-000000008.parquet'
  broken.write_bytes(broken.read_bytes()[:-1])
  asked = []

  def counted(network, variables, prompts, **options):
    asked.append(len(prompts))
    return copying(network, variables, prompts, **options)

  monkeypatch.setattr(writer, 'generate', counted)
  runner.run(c, workdir, stages=stages)
  assert asked == [4] and shards(workdir) == wanted
  assert repr(records(workdir)) == repr(groups)  # unknown scores are NaN


def test_other_filters_take_the_texts_that_are_there(tmp_path, copies, monkeypatch):
  c, workdir, stages = config(tmp_path), tmp_path / 'run', ['prepare', 'generate', 'score']
  runner.run(c, workdir, stages=stages)
  wanted, before = shards(workdir), len(records(workdir))
  monkeypatch.setattr(writer, 'generate', None)
  c.generate.update(max_words=5, found_within=3, depth=4)
  message = helpers.refused(c, workdir, stages=stages)
  assert 'its input generate has changed' in message and '--rerun=score' in message
  assert shards(workdir) == wanted
  groups = records(workdir)
  assert 0 < len(groups) < before
  assert all(len(group.query.split()) <= 5 and len(group.docs) == 4 for group in groups)
  for group in groups:
    own = generated_groups.own_documents(group)[0]
    assert [0 < doc.rank <= 3 for doc in group.docs if doc.doc_id == own] == [True]
  runner.run(c, workdir, stages=stages, rerun=['score'])


def test_few_kept_queries_are_a_line_that_says_what_to_read_and_change(tmp_path, copies, capsys):
  workdir = tmp_path / 'run'
  runner.run(config(tmp_path, generate__max_words=2), workdir, stages=['prepare', 'generate'])
  assert 0 < len(records(workdir)) < 0.25 * 3 * DOCUMENTS
  hint = f'read {workdir}/generate/samples.md, then change config.generate.template'
  assert capsys.readouterr().err.count(hint) == 1


def test_other_documents_are_another_input(tmp_path, copies):
  c, workdir = config(tmp_path), tmp_path / 'run'
  runner.run(c, workdir, stages=['prepare', 'generate'])
  helpers.write_jsonl(tmp_path / 'pages.jsonl', rows(20))
  message = helpers.refused(c, workdir)
  assert 'data.documents has changed' in message and '--rerun=generate' in message


@pytest.mark.parametrize(
  'documents, said',
  [
    ([], 'no rows|is empty|has 0 documents'),
    (rows(1), 'has 1 document with a text .of 1.; it takes 2 or more'),
    ([{'doc_id': f'd{i}', 'title': ' ', 'summary': ''} for i in range(3)], 'has 0 documents'),
  ],
)
def test_documents_that_teach_nothing_are_refused_before_a_model_runs(
  documents, said, tmp_path, monkeypatch
):
  monkeypatch.setattr(writer, 'generate', None)
  message = helpers.refused(config(tmp_path, documents), tmp_path / 'run')
  assert re.search(said, message) and 'pages.jsonl' in message


def test_fewer_documents_than_candidates_and_empty_ones(tmp_path, copies, capsys):
  pages = [*rows(3), {'doc_id': 'empty', 'title': '', 'summary': ''}]
  workdir = tmp_path / 'run'
  runner.run(config(tmp_path, pages), workdir, stages=['prepare', 'generate'])
  assert {len(group.docs) for group in records(workdir)} == {3}
  assert '1 of 4 documents has no text' in capsys.readouterr().err


def test_documents_of_digits_or_of_another_script_give_queries_of_their_own(tmp_path, copies):
  letters = 'абвгдежзиклм'
  pages = [('n', f'{i * 37}', f'{i} {i * i} 12 {i + 5}') for i in range(12)]
  pages += [('c', f'{letters[i : i + 3]} {i}', f'слово {letters[: i + 2]} и ещё') for i in range(9)]
  fields = 'doc_id', 'title', 'summary'
  documents = [
    dict(zip(fields, (f'{kind}{i}', *texts), strict=True)) for i, (kind, *texts) in enumerate(pages)
  ]
  c, workdir = config(tmp_path, documents, validation__share=0.05), tmp_path / 'run'
  c.distill.validation.keep_best = True  # by too few queries
  runner.run(c, workdir, stages=['prepare', 'generate', 'score', 'distill'])
  groups = records(workdir)
  counts = helpers.load(workdir / 'generate' / 'manifest.json')['results']['left_out']
  assert 3 * len(pages) == len(groups) + sum(counts.values()) and len(groups) > 3
  for group in groups:
    own = query_filters.scripts(group.query)
    assert set(own) <= ({'CYRILLIC'} if group.query_id.startswith('c') else set())


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'stages': ('prepare', 'score', 'distill')}, "data.candidates='generated:': needs the stage"),
    ({'data__documents': ''}, 'config.data.documents: is empty'),
    ({'data__test': 'generated:'}, 'only candidates can be generated'),
    ({'generate__temperature': 0.0}, 'generate.samples=3: are equal'),
    ({'generate__template': '{query} {title} {summary}'}, 'generate.template'),
    ({'generate__max_len': 8, 'generate__shots': 3}, 'config.generate.max_len=8'),
    ({'generate__max_len': 510}, 'generate.max_len=510: with max_new=6'),
    ({'generate__model': 'tiny-encoder'}, "config.generate.model='tiny-encoder': writes no text"),
    ({'generate__examples': 'jsonl:nowhere.jsonl', 'generate__shots': 1}, 'nowhere.jsonl'),
    ({'generate__examples': 'judgements:', 'generate__shots': 1}, 'is not an address of examples'),
    ({'data__teachers': ('jsonl:scores.jsonl',)}, 'data.teachers'),
  ],
)
def test_settings_that_cannot_work_are_refused_first(changes, said, tmp_path):
  workdir = tmp_path / 'run'
  message = helpers.refused(config(tmp_path, **changes), workdir)
  assert said in message and not (workdir / 'generate').exists()


def test_a_run_without_the_stage_has_no_generated_queries():
  c = helpers.config()
  assert 'generate' not in c.stages and 'candidates' in prepare.kinds(c)


def test_the_collection_is_read_once_for_all_that_is_said_before(tmp_path, capsys):
  c = config(tmp_path, [*rows(), {'doc_id': 'empty', 'title': '', 'summary': ''}])
  records = estimate.expected(runner.Run(c, tmp_path / 'run', None))
  assert len(records('generated')) == 3 * DOCUMENTS
  assert records('generated') is records('generated')
  assert capsys.readouterr().err.count('1 of 25 documents has no text') == 1


def test_the_share_of_documents_that_the_writer_does_not_read_whole_is_said(tmp_path, capsys):
  pages = rows()
  for page in pages[::4]:
    page['summary'] *= 9
  c = config(tmp_path, pages, generate__shots=0, teacher__max_len=300)
  run = runner.Run(c, tmp_path / 'run', sharding.make_mesh(c.mesh))

  def said() -> list[str]:
    opened = opening.models_of(run, systems.find(c, 'generate'))
    capsys.readouterr()
    reading.say_losses(run, opened, estimate.expected(run))
    return capsys.readouterr().err.splitlines()

  assert said() == [
    'generate: 25% of the texts are cut; if that matters, raise config.generate.max_len=96'
  ]
  c.generate.max_len = 400
  assert not said()


def test_without_any_judged_query_there_is_a_student_and_a_report(tmp_path, copies):
  stages = ('prepare', 'generate', 'score', 'distill', 'export', 'report')
  c = config(tmp_path, stages=stages, data__test='', export__models=('best',), export__formats=())
  c.data.judgements = c.data.clicks = ''
  examples = helpers.write_jsonl(tmp_path / 'examples.jsonl', helpers.own_rows('clicks'))
  c.generate.update(examples=f'jsonl:{examples}', shots=2, max_len=200)
  workdir = tmp_path / 'run'
  runner.run(c, workdir, estimate=True)
  prompt = writer.open_writer(c).settings.template
  assert prompt.startswith('list: Returns a list to the caller.\nSearch query: how to open a list')
  assert (workdir / 'export' / 'student' / 'model.safetensors').is_file()
  assert (workdir / 'report' / 'index.html').is_file()


def test_examples_are_read_once_and_change_no_text(tmp_path, monkeypatch, capsys):
  c = config(tmp_path, generate__shots=2, generate__max_len=320)
  c.teacher.precision = 'float32'
  model = writer.open_writer(c)
  variables = model.network.init(jax.random.key(0))
  docs = [Document(**row) for row in rows(6)]

  def texts(units):
    mesh = sharding.make_mesh(c.mesh)
    return [*writer.QueryWriter(model, variables, mesh, c.generate, seed=3)(docs, units)]

  units = [range(0, 4), range(4, 6)]
  once = texts(units)
  shared = int(re.search(r'share the first (\d+)', capsys.readouterr().err)[1])
  example = model.tokenizer(model.settings.template.partition('{title}')[0])['input_ids']
  assert shared >= len(example) - 2 > writer.MIN_SHARED
  assert texts(units[1:]) == once[4:]  # as after a restart
  capsys.readouterr()
  monkeypatch.setattr(writer, 'MIN_SHARED', 10**6)
  assert texts(units) == once
  assert 'share the first' not in capsys.readouterr().err
