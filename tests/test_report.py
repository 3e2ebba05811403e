"""The result table as text and Markdown, and summary.json with infinities."""

import dataclasses
import json
import math
import shlex
import types
from pathlib import Path

import pytest

from disranker_jax import config as configs
from disranker_jax.commands import rerank, rewrite, search
from disranker_jax.pipeline import manifest
from disranker_jax.report import results, tables
from disranker_jax.stages import report, result_rows
from disranker_jax.stages.result_rows import TABLE

BM25 = {
  'pnr': 3.8299,
  'ndcg@5': 0.54657,
  'ndcg@10': 0.6145,
  'mrr@10': 0.45,
  'queries': 3,
  'pairs': 6,
}
STUDENT = {
  'pnr': 'inf', 'ndcg@5': 1.0, 'ndcg@10': 1.0, 'mrr@10': 1.0, 'queries': 3, 'pairs': 6,
  'parameters': 22_713_601, 'ms_per_pair': 0.1649,
}  # fmt: skip
RESULTS = {'bm25': BM25, 'student': STUDENT}


class TestTables:
  def test_rows_are_rounded_and_empty_where_a_model_has_no_such_value(self):
    means = {'bm25': {'ndcg@5': {'value': 0.54657, 'low': 0.41234, 'high': 0.68751}}}
    assert results.heads(TABLE, means)[2:4] == ['nDCG@5', '95 % interval']
    assert results.rows(TABLE, RESULTS, means) == [
      ['BM25', '3.83', '0.547', '0.412 to 0.688', '0.615', '0.450', '', ''],
      ['distilled student', 'inf', '1.000', '', '1.000', '1.000', '22.7M', '0.165'],
    ]

  def test_no_two_rows_have_one_title(self):
    titles = [row.title for row in result_rows.ROWS.values()]
    assert len(set(titles)) == len(titles) and all(titles)

  def test_columns_line_up_numbers_to_the_right(self):
    head, rule, *lines = results.text(TABLE, RESULTS, {}).splitlines()
    assert len(lines) == 2 and set(rule) == {'-'}
    assert len(rule) == max(map(len, [head, *lines]))
    ends = [head.index(name) + len(name) for name in results.heads(TABLE, {})[1:5]]
    for line, pnr in zip(lines, ('3.83', 'inf'), strict=True):
      assert line.index(pnr) + len(pnr) == ends[0]
      assert all(line[end - 1] != ' ' and line[end : end + 1] in ' ' for end in ends)

  def test_text_without_results_is_the_heads_alone(self):
    assert len(results.text(TABLE, {}, {}).splitlines()) == 2

  def test_markdown_rows_have_as_many_cells_as_heads(self):
    lines = results.markdown(TABLE, RESULTS, {}).splitlines()
    assert len(lines) == 4
    assert {line.count('|') for line in lines} == {len(results.heads(TABLE, {})) + 1}
    assert lines[1] == '|---|' + '---:|' * 6
    assert lines[3].startswith('| distilled student | inf | 1.000 | 1.000 |')

  @pytest.mark.parametrize(
    'count, text',
    [(999, '999'), (1000, '1.0K'), (134_515_008, '134.5M'), (7_241_732_096, '7.2B')],
  )
  def test_counts_are_short(self, count, text):
    assert tables.short(count) == text

  @pytest.mark.parametrize(
    'value, text',
    [(0.16487, '0.165'), (11.594, '11.6'), (99.96, '100'), (619.75, '620'), (12_395.2, '12,395')],
  )
  def test_times_have_three_digits(self, value, text):
    assert tables.significant(value) == text

  def test_a_narrow_terminal_loses_columns_of_costs_and_says_which(self):
    models = RESULTS | {'together': BM25 | {'title': 'distilled student + BM25, by ranks'}}
    whole = results.text(TABLE, models, {}, 100).splitlines()
    assert whole == results.text(TABLE, models, {}).splitlines()
    *lines, note = results.text(TABLE, models, {}, 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert 'MRR@10' in lines[0] and 'ms per pair' not in lines[0]
    assert note == 'not shown in 60 columns: parameters and ms per pair'
    # Where all columns are needed, long names take two lines.
    assert lines[-2].startswith('distilled student + BM25, by  3.83') and lines[-1] == '  ranks'

  def test_notes_are_of_the_columns_that_the_table_has(self):
    assert results.notes(TABLE, 2, 'a TPU') == [
      'nDCG has exponential gain.',
      'PNR: concordant / discordant pairs, pooled over queries.',
      'For MRR, grade 2 or higher is relevant.',
      'ms per pair is model time with full batches on a TPU.',
    ]
    few = dataclasses.replace(TABLE, columns=('hits@1', 'judged@5', 'mrr@5', 'map@5'), costs=())
    assert results.notes(few, 1) == ['For MRR, MAP and Hits, grade 1 or higher is relevant.']

  def test_lines_are_broken_between_words_on_a_terminal_alone(self, monkeypatch):
    said = 'a sentence that is longer than forty characters, about --config.sft.epochs=2'
    assert tables.wrapped(said) == said  # the output of a test is no terminal
    monkeypatch.setattr(tables.sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('COLUMNS', '40')
    assert tables.wrapped(said).split('\n') == [
      'a sentence that is longer than forty', '  characters, about',
      '  --config.sft.epochs=2',
    ]  # fmt: skip

  def test_numbers_of_a_sentence_have_a_minus_and_names_keep_their_hyphens(self):
    said = 'onnx-int8: -0.082 (-0.271 to +.1), x of 2026-11-21; use --seeds=-1 and q-1'
    wanted = said.replace('-0.', '\N{MINUS SIGN}0.')
    assert tables.with_minus(said) == wanted

  @pytest.mark.parametrize('value, text', [(math.inf, 'inf'), ('nan', '-'), (2.005, '2.00')])
  def test_numbers_may_be_infinite(self, value, text):
    assert tables.number(value, 2) == text


@pytest.fixture
def run(tmp_path):
  """A run in which evaluate and sft are done, without test pairs."""
  config = configs.defaults()
  stages = {'sft': {'steps': 4, 'rows': 2}, 'evaluate': {'bm25': BM25}}
  for stage, found in stages.items():
    record = manifest.Manifest(tmp_path / stage, stage, {}, {})
    record.finished(found)
  manifest.Manifest(tmp_path / 'distill', 'distill', {}, {})  # begun, not done
  without_scores = {k: v for k, v in STUDENT.items() if k != 'parameters'}
  models = {'bm25': BM25, 'student': without_scores}
  (tmp_path / 'evaluate' / 'results.json').write_text(json.dumps(models))
  (tmp_path / 'report').mkdir()
  return types.SimpleNamespace(
    config=config, workdir=tmp_path, folder=lambda stage: tmp_path / stage
  )


class TestReport:
  def test_summary_is_strict_json_with_an_infinite_pnr(self, run):
    report.execute(run)

    def no_constants(name):
      raise AssertionError(f'{name} is not JSON')

    text = (run.workdir / 'report' / 'summary.json').read_text()
    summary = json.loads(text, parse_constant=no_constants)
    assert summary['models']['student']['pnr'] == 'inf'
    assert float(summary['models']['student']['pnr']) == math.inf
    assert summary['latency'] == [
      {'model': 'student', 'ms_per_pair': 0.1649, 'device': summary['stages']['sft']['device']}
    ]

  def test_only_stages_that_are_done_are_told(self, run):
    report.execute(run)
    summary = json.loads((run.workdir / 'report' / 'summary.json').read_text())
    assert set(summary['stages']) == {'sft', 'evaluate'}
    assert summary['stages']['sft']['steps'] == 4

  def test_the_markdown_has_the_table_and_the_stages(self, run):
    assert report.execute(run)['files'] == ['index.html', 'report.md', 'summary.json']
    page = (run.workdir / 'report' / 'report.md').read_text()
    assert results.markdown(TABLE, {'bm25': BM25}, {}) in page
    assert '| sft |' in page and '| distill |' not in page

  def test_infinite_and_undefined_metrics_are_written_as_text(self):
    written = tables.plain({'a': math.inf, 'b': math.nan, 'c': 0.5})
    assert json.dumps(written, allow_nan=False) == '{"a": "inf", "b": "nan", "c": 0.5}'

  def test_the_end_says_where_things_are_and_what_to_type(self, run, capsys, monkeypatch):
    monkeypatch.chdir(run.workdir)
    report.execute(run)
    (run.workdir / 'export' / 'student').mkdir(parents=True)
    report.show(run)
    out = capsys.readouterr().out
    assert 'distilled student' in out
    assert 'report/report.md' in out and 'report/index.html' in out
    assert 'disranker rerank --model export/student --query' in out

  def test_results_of_stages_that_are_gone_are_not_shown(self, run, capsys):
    report.show(run)
    assert '3.83' in capsys.readouterr().out
    (run.folder('evaluate') / manifest.FILE).unlink()  # what --rerun=score leaves of the stage
    report.show(run)
    out = capsys.readouterr().out
    assert 'evaluate has to run again' in out and '3.83' not in out

  @pytest.mark.parametrize(
    ('system', 'stage', 'command'),
    [
      ('dgr', 'memorise', search), ('dgr', 'align', search),
      ('query_rewriting', 'rewrite', rewrite),
    ],
  )  # fmt: skip
  def test_the_end_of_another_system_says_how_to_try_what_was_trained(
    self, run, system, stage, command, capsys, monkeypatch
  ):
    monkeypatch.chdir(run.workdir)
    run.config = configs.defaults(system)
    report.show(run)
    assert 'next:' not in capsys.readouterr().out
    manifest.Manifest(run.folder(stage), stage, {}, {}).finished({})
    report.show(run)
    [typed] = [line for line in capsys.readouterr().out.splitlines() if line.startswith('next:')]
    name, *words = shlex.split(typed.partition('disranker ')[2])
    assert name == command.__name__.rpartition('.')[2]
    assert command.parse_args(words).run == Path('.')

  @pytest.mark.parametrize('address', ["jsonl:my data/test's.jsonl", 'trec:mine?run=bm25&pool=run'])
  @pytest.mark.parametrize('has_run', [True, False])
  def test_the_next_command_ranks_the_users_own_data(self, run, address, has_run, monkeypatch):
    monkeypatch.chdir(run.workdir)
    run.config.data.test = address
    first = run.folder('evaluate') / 'bm25.run'
    if has_run:
      first.write_text('q Q0 d 1 1 bm25\n')
    else:
      first.unlink(missing_ok=True)
    words = shlex.split(report.on_own_data(run))
    args = rerank.parse_args(['--model', 'export/student', *words])
    if has_run:
      assert (str(args.run), args.source) == ('evaluate/bm25.run', address)
    else:
      assert args.query and args.docs == address
