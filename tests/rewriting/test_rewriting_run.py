"""The whole system with a tiny model on a small collection of its own."""

import html
import importlib.util
import json
import pathlib
import runpy
import shutil

import bright_copy
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_collection import collection

from disranker_jax import outputs
from disranker_jax.commands import average, rewrite
from disranker_jax.data import sources
from disranker_jax.data.first_stage import BM25
from disranker_jax.errors import UserError
from disranker_jax.evaluation import rewrites, runs
from disranker_jax.models import weights
from disranker_jax.pipeline import runner
from disranker_jax.rankers import loaded as rankers
from disranker_jax.rewriting import loaded
from disranker_jax.rewriting.queries import searched

ROOT = pathlib.Path(__file__).parents[2]
TINY = 'tiny-decoder'


def config(folder: pathlib.Path, **changes):
  """configs/query_rewriting.py with a tiny model; changes by dotted key, with two underscores."""
  c = runpy.run_path(str(ROOT / 'configs' / 'query_rewriting.py'))['get_config']()
  c.data.update(collection(folder))
  c.rewriter.update(model=TINY, precision='float32', lora_rank=4, max_len=96, row_len=96)
  c.cpt.update(batch_rows=8, max_steps=3)
  c.rewrite.update(prompts=4, samples=3, max_new=4, max_steps=2, failure=0.0)
  c.search.batch_rows = 8
  c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return c


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """(folder of the data, workdir of a finished run)."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('DISRANKER_CACHE', str(tmp_path_factory.mktemp('cache')))
    data, workdir = tmp_path_factory.mktemp('data'), tmp_path_factory.mktemp('runs') / 'rewriting'
    runner.run(config(data), workdir, estimate=True)
    yield data, workdir


def test_every_row_searches(done):
  results = json.loads((done[1] / 'search' / 'results.json').read_text())
  assert list(results) == ['original', 'rm3', 'nearest', 'pretrained', 'cpt', 'rewrite', 'best']
  # Every query names verb and noun of its page, so the words of the query find it.
  assert results['original']['hits@1'] == 1
  assert 'queries are rewritten; nDCG@10 rises for' in results['rewrite']['remark']
  assert results['original']['ndcg@1000'] == 1
  assert 'rises for 0 of the 8 queries and falls for' in results['best']['remark']


def test_rows_save_what_they_search(done, capsys):
  """The same texts as the command gives, in the order of the queries."""
  tests = [json.loads(line) for line in (done[0] / 'test.jsonl').open()]
  asked = [(row['query_id'], row['query']) for row in tests]
  for name in ('nearest', 'pretrained', 'cpt', 'rewrite', 'best'):
    found = rewrites.read(done[1] / 'search' / f'{name}.rewrites.jsonl')
    assert [(each.query_id, each.query) for each in found.values()] == asked
    for each in found.values():
      assert each.searched == searched(each.query, each.rewrite, 'append', 2)
  assert not (done[1] / 'search' / 'original.rewrites.jsonl').exists()
  # What the file says was searched gives the ranking of the row.
  documents = sources.documents(f'jsonl:{done[0] / "documents.jsonl"}')
  ids, index = [doc.doc_id for doc in documents], BM25(documents)
  ranking = runs.read_run(done[1] / 'search' / 'best.run')
  for each in found.values():
    [hits] = index.top([each.searched], 1000)
    assert {ids[i] for i, _ in hits} == ranking[each.query_id].keys()


@pytest.mark.parametrize('source', ['--run', '--model'])
def test_a_file_of_queries_is_rewritten(done, tmp_path, capsys, source):
  data, workdir = done
  folder = workdir if source == '--run' else workdir / 'export' / 'rewriter'
  out = tmp_path / 'out.jsonl'
  rewrite.main([source, str(folder), '--queries', str(data / 'test.jsonl'), '--out', str(out)])
  said = capsys.readouterr()
  assert 'queries are rewritten' in said.err and not said.out
  assert rewrites.read(out) == rewrites.read(workdir / 'search' / 'rewrite.rewrites.jsonl')
  assert [f.name for f in tmp_path.iterdir()] == ['out.jsonl']


def test_a_second_call_does_nothing_and_a_row_costs_only_itself(done):
  data, workdir = done
  files = {f: f.stat().st_mtime_ns for f in workdir.rglob('*.run')}
  runner.run(config(data), workdir)
  assert {f: f.stat().st_mtime_ns for f in workdir.rglob('*.run')} == files


def test_the_other_engine_fills_the_rows_again(done, tmp_path):
  data, workdir = done
  changed = config(data, search__engine='query_bm25', search__models=('original', 'nearest'))
  stages = ('prepare', 'cpt', 'rewrite', 'search')
  runner.run(changed, tmp_path / 'other', stages=stages, reuse=[workdir])
  found = json.loads((tmp_path / 'other' / 'search' / 'results.json').read_text())
  assert list(found) == ['original', 'nearest'] and found['original']['hits@1'] == 1


def test_a_trained_rewriter_is_tested_on_bright(done, tmp_path, capsys):
  """configs/bright.py on a made-up copy: no training, its own engine, excluded documents."""
  c = runpy.run_path(str(ROOT / 'configs' / 'bright.py'))['get_config']()
  c.data.test = f'bright:{bright_copy.make(tmp_path)}?task=biology'
  c.rewriter, c.rewrite = config(done[0]).rewriter, config(done[0]).rewrite
  c.rewriter.init_from, c.search.batch_rows = str(done[1]), 8
  workdir = tmp_path / 'run'
  runner.run(c, workdir)
  found = json.loads((workdir / 'search' / 'results.json').read_text())
  assert list(found) == ['original', 'rm3', 'pretrained', 'rewrite']
  assert found['pretrained']['title'] == 'model as given (tiny-decoder)'
  before, after = (rewrites.read(workdir / 'search' / f'{name}.rewrites.jsonl')
                   for name in ('pretrained', 'rewrite'))  # fmt: skip
  assert before.keys() == after.keys() and before != after
  assert {'ndcg@10', 'recall@1', 'ndcg@1000'} <= found['original'].keys()
  rankings = runs.read_run(workdir / 'search' / 'original.run')
  # Query 1 excludes bulb/1 and bulb/2; three other documents have its words.
  assert set(rankings['1']) == {'bulb/3.txt', 'bulb/4.txt', 'bulb/5.txt', 'moths/b_c.txt'}
  assert 'built-in BM25' in found['rm3']['note']
  capsys.readouterr()
  rewrite.main(['--run', str(workdir), '--query', 'light bulb', '--search', '--json'])
  assert json.loads(capsys.readouterr().out)['found']
  # The mean over tasks; of a task and its copy it is that of the task.
  shutil.copytree(workdir, tmp_path / 'copy')
  average.main([str(workdir), str(tmp_path / 'copy'), '--json'])
  mean = json.loads(capsys.readouterr().out)
  of_rows = {row['name']: row['value'] for row in mean['rows']}
  assert of_rows == pytest.approx({name: values['ndcg@10'] for name, values in found.items()})
  (said,) = mean['warnings']
  assert said.startswith('2 queries are in more than one run (run, copy)')


def test_the_command_shows_the_rewrite_and_what_is_found(done, capsys):
  _, workdir = done
  arguments = ['--run', str(workdir), '--query', 'how to sort a list', '--search']
  rewrite.main([*arguments, '--json', '--top', '3'])
  result = json.loads(capsys.readouterr().out)
  assert result['searched'].startswith('how to sort a list')
  assert result['found_without'][0]['doc_id'] == 'list.sort' and len(result['found']) == 3
  rewrite.main(arguments)
  out = capsys.readouterr().out
  assert 'rewrite:' in out and '(was 1)' in out


def test_the_exported_folder_rewrites_as_the_run(done, capsys):
  data, workdir = done
  folder = workdir / 'export' / 'rewriter'
  documents = ['--search', f'jsonl:{data}/documents.jsonl']
  for query in ('how to sort a list', 'close', 'find the thread 日本 and join it ' * 9):
    results = []
    for source in (['--run', str(workdir)], ['--model', str(folder)]):
      rewrite.main([*source, '--query', query, *documents, '--json'])
      out, said = capsys.readouterr()
      results.append(json.loads(out))
      # What the run can change, and what the folder has.
      limits = f'{folder} has max_query_len=' if '--model' in source else 'raise config.rewriter.'
      assert (f'the end of 1 of 1 query is not read; {limits}' in said) == ('thread' in query)
    assert results[0] == results[1] and results[0]['rewrite']
  # Training has moved what is written; else the pretrained folder would do.
  trained, before = (load_file(f / 'model.safetensors') for f in (folder, weights.find(TINY)))
  assert any(np.abs(trained[k] - before[k]).max() > 1e-4 for k in trained)


def test_transformers_writes_the_same_and_ends_where_we_do(done):
  torch = pytest.importorskip('torch')
  from transformers import AutoModelForCausalLM

  folder = done[1] / 'export' / 'rewriter'
  rewriter = loaded.load(folder)
  model = AutoModelForCausalLM.from_pretrained(folder)
  prompt = rewriter.writer.prompt
  for query in ('how to sort a list', 'close a socket'):
    ids = prompt(query)
    with torch.inference_mode():
      out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=int))
    ours = rewriter.writer(rewriter.variables, [query])
    assert prompt.texts([out[0, len(ids) :].tolist()]) == ours


def test_the_card_says_what_the_folder_is_for(done):
  folder = done[1] / 'export' / 'rewriter'
  card = (folder / 'README.md').read_text()
  assert 'A decoder that rewrites queries for a search engine' in card
  assert 'pipeline_tag: text-generation' in card and 'cross-encoder' not in card
  assert 'held-out queries, searched in all documents' in card and 'original query' in card
  # transformers gives our log-probabilities of titles.
  assert importlib.util.find_spec('torch') is None or '| transformers | float32 |' in card
  with pytest.raises(UserError, match="was exported for 'rewriting' and does not rank"):
    rankers.check(folder)


def edited(folder: pathlib.Path, tmp_path: pathlib.Path, change) -> pathlib.Path:
  """A copy of an exported folder whose record is changed."""
  copy = shutil.copytree(folder, tmp_path / 'copy')
  config = json.loads((copy / 'config.json').read_text())
  change(config['disranker_jax'])
  (copy / 'config.json').write_text(json.dumps(config))
  return copy


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda r: r.pop('rewrites'), 'is no exported rewriter'),
    (lambda r: r['rewrites'].update(mode='both'), r"rewrites\.mode='both': must be 'append', 'rep"),
    (lambda r: r['rewrites'].update(max_new=1 << 30), 'max_new=1073741824: must be below max_len'),
    (lambda r: r['rewrites'].update(repeat='2'), r"rewrites\.repeat='2': must be from 1 to 100"),
    (lambda r: r['rewrites'].pop('engine'), r'rewrites\.engine=None'),
    (lambda r: r.update(template='{title}'), r'disranker_jax\.template='),
    (lambda r: r.update(max_len=True), r'disranker_jax\.max_len=True'),
  ],
)
def test_a_folder_with_a_wrong_record_is_refused(done, tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    loaded.load(edited(done[1] / 'export' / 'rewriter', tmp_path, change))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--query', ' ', '--run', '.'], '--query: is empty'),
    (['--query', 'a', '--run', '/nowhere'], 'is not the workdir of a run'),
    (['--query', 'a', '--model', '.', '--search'], '--search: an exported rewriter knows no doc'),
    (['--query', 'a', '--model', '/nowhere'], '/nowhere/config.json is missing'),
    (['--query', 'a', '--model', '.', '--run', '.'], 'not allowed with'),
    (['--query', 'a'], 'one of the arguments --model --run is required'),
    (['--model', '.'], 'one of the arguments --query --queries is required'),
    (['--model', '.', '--queries', 'a.tsv'], '--queries: add --out FILE'),
    (['--model', '.', '--query', 'a', '--out', 'b'], '--out: is for the rewrites of --queries'),
    (['--model', '.', '--queries', 'a.tsv', '--out', '.'], r'--out \.: is a folder'),
    (['--model', '.', '--queries', 'a.tsv', '--out', '/nowhere/b'], 'its folder does not exist'),
    (['--model', '.', '--queries', 'a', '--out', 'b', '--json'], '--json: is for a single'),
    (['--model', '.', '--queries', 'a', '--out', 'b', '--top', '10'], '--top: is for a single'),
    (['--model', '.', '--query', 'a', '--top', '10'], '--top: is for what --search finds'),
    (['--model', '.', '--queries', 'a', '--out', '/dev/null'], 'is a pipe or a device'),
    (
      ['--model', '.', '--queries', '/nowhere', '--out', 'b'],
      '--queries: /nowhere: does not exist',
    ),
    (['--model', '.', '--queries', __file__, '--out', __file__], 'is the file of the queries'),
  ],
)
def test_wrong_arguments(arguments, message):
  with pytest.raises(UserError, match=message):
    rewrite.main(arguments)


def test_a_folder_that_cannot_be_written_is_told_before_a_model_is_opened(tmp_path, monkeypatch):
  """That of the file which is replaced, where the name is a link."""
  (tmp_path / 'locked').mkdir()
  (tmp_path / 'x.jsonl').symlink_to(tmp_path / 'locked' / 'x.jsonl')
  monkeypatch.setattr(outputs.os, 'access', lambda path, mode: 'locked' not in str(path))
  arguments = ['--model', '/nowhere', '--queries', 'a', '--out', str(tmp_path / 'x.jsonl')]
  with pytest.raises(
    UserError, match=r'x\.jsonl: .*locked cannot be written; name a file elsewher'
  ):
    rewrite.main(arguments)


def test_the_report_shows_the_table(done):
  report = (done[1] / 'report' / 'report.md').read_text()
  assert 'best of the samples (oracle)' in report and 'nearest training query' in report
  page = (done[1] / 'report' / 'index.html').read_text()
  for text in (report, html.unescape(page)):
    for stage in ('cpt', 'rewrite'):
      *_, last = (done[1] / stage / 'samples.md').read_text().splitlines()
      assert last in text
