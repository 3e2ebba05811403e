"""The whole system with tiny models on a small collection of its own."""

import importlib.util
import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import pytest
import tiny_dgr
from small_collection import collection

from disranker_jax.commands import search
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics, runs
from disranker_jax.generative.pages import Pages
from disranker_jax.generative.retrieved import FORMAT, read
from disranker_jax.pipeline import runner
from disranker_jax.rankers import loaded
from disranker_jax.rankers.shards import Shards
from disranker_jax.stages import documents

ROOT = tiny_dgr.ROOT


def config(folder: pathlib.Path, **changes):
  return tiny_dgr.config(collection(folder), **changes)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """(folder of the data, workdir of a finished run)."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('DISRANKER_CACHE', str(tmp_path_factory.mktemp('cache')))
    data, workdir = tmp_path_factory.mktemp('data'), tmp_path_factory.mktemp('runs') / 'dgr'
    runner.run(config(data), workdir)
    yield data, workdir


def load(file: pathlib.Path):
  return json.loads(file.read_text())


def test_every_row_searches_the_whole_collection(done):
  _, workdir = done
  results = load(workdir / 'search' / 'results.json')
  assert list(results) == [
    'bm25', 'memorised', 'ltrgr', 'aligned',
    'memorised_fused', 'ltrgr_fused', 'aligned_fused',
  ]  # fmt: skip
  for row in results.values():
    assert 0 <= row['hits@1'] <= row['hits@5'] <= row['hits@20'] <= 1
  found = {line.split()[2] for line in (workdir / 'search' / 'bm25.run').read_text().splitlines()}
  assert len(found) > 30
  assert 'clicked queries' in results['memorised']['note']


def test_every_n_gram_that_was_written_is_in_the_collection(done):
  _, workdir = done
  pages = Pages.load(workdir / 'index')
  text = ' '.join(map(str, pages.text_N.tolist()))
  queries = len(queries_of(done[0] / 'judgements.jsonl'))
  found = list(read(Shards(workdir / 'retrieve' / 'shards', queries, None, FORMAT)))
  matches = [m for one in found for _, page in one.pages for m in page.matches]
  assert len(found) == queries and len(matches) > 50
  for match in matches:
    anchor = pages.anchor(match.ngram.view)
    tokens = [*([] if anchor is None else [anchor]), *match.ngram.tokens]
    assert f' {" ".join(map(str, tokens))} ' in f' {text} '
    assert f' {text} '.count(f' {" ".join(map(str, tokens))} ') <= match.ngram.count
  assert len({match.ngram.view for match in matches}) > 1


def test_the_pages_of_align_are_found_again_by_the_retriever_of_that_step(done):
  _, workdir = done
  learned = load(workdir / 'align' / 'manifest.json')['results']['rows']
  [folder] = (workdir / 'align' / 'found').iterdir()
  assert folder.name == '000000002'
  again = {one.query_id: one.pages for one in read(Shards(folder, learned, None, FORMAT))}
  assert len(again) == learned
  queries = len(queries_of(done[0] / 'judgements.jsonl'))
  first = read(Shards(workdir / 'retrieve' / 'shards', queries, None, FORMAT))
  before = {one.query_id: one.pages for one in first}
  scores = [
    (page.score, then.score)
    for query_id, pages in again.items()
    for (_, page), (_, then) in zip(pages, before[query_id], strict=False)
  ]
  assert any(now != then for now, then in scores)


def test_a_second_call_changes_nothing_and_a_new_row_costs_only_itself(done):
  data, workdir = done
  before = {f: f.stat().st_mtime_ns for f in workdir.rglob('*.run')}
  runner.run(config(data), workdir)
  assert before == {f: f.stat().st_mtime_ns for f in workdir.rglob('*.run')}


def test_retrieval_continues_after_a_lost_shard_to_the_same_pages(done):
  data, workdir = done
  folder = workdir / 'retrieve' / 'shards'
  files = {f.name: f.read_bytes() for f in folder.glob('*.parquet')}
  manifest = workdir / 'retrieve' / 'manifest.json'
  finished = manifest.read_text()
  notes = sorted(folder.glob('_*.json'))
  assert len(notes) == len(files) >= 3
  lost = notes[1]
  kept = [f for f in folder.iterdir() if f.stem.lstrip('_') != lost.stem.lstrip('_')]
  written = {f.name: f.stat().st_mtime_ns for f in kept}
  lost.unlink()
  manifest.write_text(finished.replace('"done"', '"running"'))
  runner.run(config(data), workdir, stages=('retrieve',))
  assert {f.name: f.read_bytes() for f in folder.glob('*.parquet')} == files
  assert {f.name: f.stat().st_mtime_ns for f in kept} == written and lost.exists()
  assert load(manifest)['fingerprint'] == json.loads(finished)['fingerprint']


def queries_of(file: pathlib.Path) -> dict[str, str]:
  return {row['query_id']: row['query'] for row in map(json.loads, file.open())}


def test_the_best_pages_of_a_row_and_of_the_command_are_reranked(done, tmp_path, capsys):
  pytest.importorskip('torch')
  import ready_rerankers

  data, workdir = done
  folder = shutil.copytree(workdir, tmp_path / 'run')
  student = str(ready_rerankers.transformers_folder(tmp_path / 'student', 'bert'))
  names = 'bm25', 'aligned', 'bm25_reranked', 'aligned_reranked'
  c = config(data, search__reranker=student, search__rerank=5, search__models=names)
  runner.run(c, folder, stages=('search',))
  ranker, queries = loaded.load(student), queries_of(data / 'test.jsonl')
  docs, moved = {doc.doc_id: doc for doc in documents.read(c)}, 0

  def expected(query: str, ids: list[str]) -> list[str]:
    """The best five in the order of the student, the others behind them as they were."""
    order = ranker.rank(query, [docs[doc_id] for doc_id in ids[:5]])
    return [ids[i] for i, _ in order] + ids[5:]

  for base in names[:2]:
    before, after = (
      runs.read_run(folder / 'search' / f'{name}.run') for name in (base, f'{base}_reranked')
    )
    assert len(before) == len(after) == len(queries)
    for query_id, scores in before.items():
      ids, new = metrics.ranked(scores), metrics.ranked(after[query_id])
      assert len(ids) > 5 and new == expected(queries[query_id], ids)
      moved += new != ids
  assert moved > len(queries)
  query = 'how to sort a list'
  arguments = ['--run', str(folder), '--query', query, '--json']
  capsys.readouterr()  # the table of the run
  search.main(arguments)
  plain = [row['doc_id'] for row in json.loads(capsys.readouterr().out)]
  search.main([*arguments, '--rerank', student])
  rows = json.loads(capsys.readouterr().out)
  assert [row['doc_id'] for row in rows] == expected(query, plain) != plain
  assert [row['score'] is None for row in rows] == [i >= 5 for i in range(len(rows))]


def test_training_queries_keep_as_many_pages_as_depth_whatever_hits_is(done, tmp_path, capsys):
  data, workdir = done
  stages = 'prepare', 'cpt', 'generate', 'index', 'memorise', 'retrieve'
  c = config(data, stages=stages, retrieve__hits=2, retrieve__depth=7)
  runner.run(c, tmp_path / 'run', reuse=[workdir])
  queries = len(queries_of(data / 'judgements.jsonl'))
  found = list(read(Shards(tmp_path / 'run' / 'retrieve' / 'shards', queries, None, FORMAT)))
  assert max(len(one.pages) for one in found) == 7
  before = read(Shards(workdir / 'retrieve' / 'shards', queries, None, FORMAT))
  for one, other in zip(found, before, strict=True):
    assert [doc_id for doc_id, _ in other.pages] == [doc_id for doc_id, _ in one.pages[:4]]
  capsys.readouterr()
  c.retrieve.hits = 50
  runner.run(c, tmp_path / 'run')
  assert 'all is done' in capsys.readouterr().err


def test_without_the_body_no_page_is_found_by_it(done, tmp_path):
  """The views of configs/dgr_quick.py."""
  data, workdir = done
  quick = runpy.run_path(str(ROOT / 'configs' / 'dgr_quick.py'))['get_config']()
  stages = 'prepare', 'cpt', 'generate', 'index', 'memorise', 'retrieve'
  c = config(data, stages=stages, retriever__views=quick.retriever.views)
  runner.run(c, tmp_path / 'run', reuse=[workdir])
  queries = len(queries_of(data / 'judgements.jsonl'))
  found = list(read(Shards(tmp_path / 'run' / 'retrieve' / 'shards', queries, None, FORMAT)))
  views = {m.ngram.view for one in found for _, page in one.pages for m in page.matches}
  assert views and views <= {'title', 'query'} == set(quick.retriever.views)


@pytest.fixture
def one_page(tmp_path) -> dict[str, str]:
  """Addresses of a collection of one document, with queries about it."""
  found = collection(tmp_path)
  for kind in found:
    file = tmp_path / f'{kind}.jsonl'
    file.write_text(file.read_text().splitlines()[0] + '\n')
  return found


def test_a_collection_of_one_document_is_searched(one_page, done, tmp_path):  # `done`: the cache
  c = tiny_dgr.config(
    one_page, stages=('prepare', 'index', 'memorise', 'search'), memorise__max_steps=2,
    retriever__views=('title', 'body'), search__models=('bm25', 'memorised', 'memorised_fused'),
  )  # fmt: skip
  runner.run(c, tmp_path / 'run')
  results = load(tmp_path / 'run' / 'search' / 'results.json')
  assert [row['hits@1'] for row in results.values()] == [1.0, 1.0, 1.0]


def test_queries_are_not_written_from_one_document(one_page, done, tmp_path):
  stages = 'prepare', 'cpt', 'generate', 'index', 'memorise', 'search'
  with pytest.raises(UserError, match=r'has 1 document with a text .* it takes 2 or more'):
    runner.run(tiny_dgr.config(one_page, stages=stages), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'cpt').exists()


def test_the_command_shows_pages_and_what_found_them(done, capsys):
  _, workdir = done
  arguments = ['--run', str(workdir), '--query', 'how to sort a list', '--top', '3']
  search.main([*arguments, '--json'])
  rows = json.loads(capsys.readouterr().out)
  assert [row['rank'] for row in rows] == [1, 2, 3]
  assert rows[0]['score'] >= rows[1]['score'] and rows[0]['ngrams']
  search.main([*arguments, '--ngrams', '--stage', 'memorise'])
  assert 'log p' in capsys.readouterr().out


def test_the_command_says_what_is_wrong_with_a_run(done, tmp_path):
  with pytest.raises(UserError, match='is not the workdir of a run'):
    search.main(['--run', str(tmp_path), '--query', 'a'])
  with pytest.raises(UserError, match='--query: is empty'):
    search.main(['--run', str(tmp_path), '--query', ' '])
  (tmp_path / 'config.json').write_text((done[1] / 'config.json').read_text())
  with pytest.raises(UserError, match='index is not done; continue the run first'):
    search.main(['--run', str(tmp_path), '--query', 'a'])


def test_the_retriever_is_exported_as_it_was_trained(done):
  folder = done[1] / 'export' / 'retriever'
  record = load(folder / 'config.json')['disranker_jax']
  assert record['task'] == 'retrieval' and record['retrieves']['views'] == [
    'title', 'body', 'query'
  ]  # fmt: skip
  card = (folder / 'README.md').read_text()
  assert 'It is the retriever, teacher' in card and 'pipeline_tag: text-generation' in card
  # transformers gives our log-probabilities of pages.
  assert importlib.util.find_spec('torch') is None or '| transformers | float32 |' in card


def test_the_report_has_the_table_and_no_student(done):
  _, workdir = done
  report = (workdir / 'report' / 'report.md').read_text()
  assert 'retriever, teacher' in report and 'hits@5' in report.lower()
  page = (workdir / 'report' / 'index.html').read_text()
  assert 'retriever, teacher, with BM25' in page and 'distilled student' not in page


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'retriever__views': ()}, r'config\.retriever\.views: is empty'),
    ({'stages': ('prepare', 'index', 'memorise')}, "has 'query', but no stage writes queries"),
    ({'retriever__max_len': 20}, 'a prompt with what follows has up to'),
    ({'retriever__title_template': 'no query'}, 'a text with {query} once'),
    ({'search__reranker': '/nowhere'}, '/nowhere'),
  ],
)
def test_bad_settings_are_refused_before_anything_runs(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    runner.run(config(tmp_path, **changes), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'index').exists()


def test_queries_that_the_devices_cannot_share_are_refused_before_anything_trains(
  tmp_path, monkeypatch
):
  """Also where no stage but the table searches. Two devices can share the beams of 3 queries."""
  monkeypatch.setattr(sharding, 'parts', lambda mesh: 2)
  changes = {'retriever__views': ('title', 'body'), 'search__models': ('memorised',)}
  stages = 'prepare', 'index', 'memorise', 'search'
  with pytest.raises(
    UserError, match=r'config\.retrieve\.batch_rows=3: must be a multiple of mesh'
  ):
    runner.run(
      config(tmp_path, stages=stages, retrieve__batch_rows=3, retrieve__beams=2, **changes),
      tmp_path / 'run',
    )
  assert not (tmp_path / 'run' / 'index').exists()


@pytest.mark.parametrize(
  'mesh',
  [
    {},  # queries over data
    {'data': 1, 'fsdp': 1, 'model': 2},  # the index and the model's parameters over model
  ],
  ids=['data', 'model'],
)
def test_two_devices_find_the_same_pages(done, tmp_path, capsys, mesh):
  _, workdir = done
  arguments = ['--query', 'how to sort a list', '--json']
  search.main(['--run', str(workdir), *arguments])
  one = json.loads(capsys.readouterr().out)
  if mesh:
    workdir = shutil.copytree(workdir, tmp_path / 'run')
    settings = load(workdir / 'config.json')
    (workdir / 'config.json').write_text(json.dumps(settings | {'mesh': settings['mesh'] | mesh}))
    search.main(['--run', str(workdir), *arguments])  # on one device
    assert json.loads(capsys.readouterr().out) == one
  flags = {'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'PYTHONPATH': str(ROOT)}
  ran = subprocess.run(
    [sys.executable, '-m', 'disranker_jax.search', '--run', str(workdir), *arguments],
    env=os.environ | flags, capture_output=True, text=True, timeout=300, check=True,
  )  # fmt: skip
  two = json.loads(ran.stdout)
  assert [row['doc_id'] for row in one] == [row['doc_id'] for row in two]
  assert [row['score'] for row in one] == pytest.approx([row['score'] for row in two], rel=1e-3)
