"""The whole system with a tiny model on a small collection of its own."""

import json
import pathlib
import runpy

import pytest
from small_collection import collection

from disranker_jax.commands import rewrite
from disranker_jax.errors import UserError
from disranker_jax.pipeline import runner

ROOT = pathlib.Path(__file__).parents[2]


def config(folder: pathlib.Path, **changes):
  """configs/query_rewriting.py with a tiny model; changes by dotted key, with two underscores."""
  c = runpy.run_path(str(ROOT / 'configs' / 'query_rewriting.py'))['get_config']()
  c.data.update(collection(folder))
  c.rewriter.update(model='tiny-decoder', precision='float32', lora_rank=4, max_len=96, row_len=96)
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
  assert list(results) == ['original', 'rm3', 'nearest', 'cpt', 'rewrite', 'best']
  # Every query names verb and noun of its page, so the words of the query find it.
  assert results['original']['hits@1'] == 1
  assert 'queries are rewritten; nDCG@10 is better for' in results['rewrite']['note']


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


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--query', ' ', '--run', '.'], '--query: is empty'),
    (['--query', 'a', '--run', '/nowhere'], 'is not the workdir of a run'),
    (['--query', 'a', '--run', '.', '--docs', 'x'], '--docs: is for --search'),
  ],
)
def test_wrong_arguments(arguments, message):
  with pytest.raises(UserError, match=message):
    rewrite.main(arguments)


def test_the_report_shows_the_table(done):
  report = (done[1] / 'report' / 'report.md').read_text()
  assert 'best of the samples (oracle)' in report and 'nearest training query' in report
