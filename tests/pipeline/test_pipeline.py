"""Whole runs of the pipeline: what they write, how they go on after a stop, what they refuse."""

import math
import re
import shutil

import helpers
import numpy as np
import pytest
from safetensors.numpy import load_file

from disranker_jax import locks
from disranker_jax.commands import rerank
from disranker_jax.config import defaults
from disranker_jax.data import store
from disranker_jax.models import weights
from disranker_jax.pipeline import runner

SCORING = ('zero_shot', 'student_sft', 'teacher', 'student')
MODELS = ('random', 'bm25', *SCORING, 'fused', 'fused_ranks')
METRICS = ('pnr', 'ndcg@5', 'ndcg@10', 'mrr@10', 'queries', 'pairs')
INTERRUPTED = helpers.ROOT / 'tests' / 'pipeline' / 'interrupted.py'


def assert_one_error_line(process) -> str:
  """Exit status 2 and nothing but one line on stderr that begins with error:."""
  assert process.returncode == 2, process.stderr
  lines = process.stderr.splitlines()
  assert len([line for line in lines if line.startswith('error:')]) == 1, process.stderr
  assert 'Traceback' not in process.stderr and not process.stdout
  assert lines[-1].startswith('error:')
  return lines[-1]


def manifests(workdir) -> dict[str, dict]:
  return {f: helpers.load(workdir / f / 'manifest.json') for f in helpers.STAGE_FOLDERS}


class TestWholeRun:
  def test_every_stage_is_done_and_says_what_it_was_made_from(self, done):
    found = manifests(done)
    assert {m['status'] for m in found.values()} == {'done'}
    config = helpers.load(done / 'config.json')
    assert found['sft']['config']['sft.learning_rate'] == config['sft']['learning_rate'] == 1e-3
    assert found['sft']['inputs'] == {
      'prepare judgements': found['data']['results']['judgements']['fingerprint'],
      'cpt': found['cpt']['fingerprint'],
    }
    assert all('jax' in m['versions'] and m['device'] and m['wall_s'] > 0 for m in found.values())

  @pytest.mark.parametrize(
    'file',
    [
      'config.json', 'score/stats.json', 'score/teacher.run.gz', 'score/shards/candidates',
      'evaluate/results.json', 'evaluate/per_query.csv', 'report/report.md',
      'export/student/model.safetensors', 'export/student/tokenizer.json',
      'export/teacher/model.safetensors', 'cpt/samples.md',
      *(f'evaluate/{m}.run' for m in MODELS),
      *(f'{stage}/metrics.jsonl' for stage in helpers.TRAINING),
      *(f'{stage}/checkpoints/{helpers.STEPS}' for stage in helpers.TRAINING),
    ],
  )  # fmt: skip
  def test_files_of_the_design_are_there(self, done, file):
    path = done / file
    assert path.is_dir() or path.stat().st_size > 0

  def test_nothing_half_written_is_left(self, done):
    assert not [p for p in done.rglob('*') if p.suffix in ('.partial', '.tmp')]
    assert not list(done.rglob('*orbax-checkpoint-tmp*'))

  def test_training_logs_every_step_once(self, done):
    for stage in helpers.TRAINING:
      rows = (done / stage / 'metrics.jsonl').read_text().splitlines()
      assert [helpers.json.loads(r)['step'] for r in rows] == list(range(1, helpers.STEPS + 1))

  def test_results_have_every_model_over_the_same_pairs(self, done):
    results = helpers.load(done / 'evaluate' / 'results.json')
    assert tuple(results) == MODELS
    assert {r['queries'] for r in results.values()} == {6}
    pairs = {
      sum(len(docs) for docs in helpers.run_scores(done / 'evaluate' / f'{m}.run').values())
      for m in MODELS
    }
    assert {r['pairs'] for r in results.values()} == pairs
    # A PNR is text where no pair is in the wrong order: JSON has no infinity.
    assert all(0 <= r[m] <= 1 for r in results.values() for m in METRICS[1:4])
    assert all(float(r['pnr']) >= 0 for r in results.values())

  def test_summary_has_models_stages_and_latency(self, done):
    summary = helpers.load(done / 'report' / 'summary.json')
    assert set(summary) == {
      'computed_on', 'models', 'intervals', 'differences', 'lead_kept', 'sentences', 'warnings',
      'stages', 'latency', 'overlap', 'seeds', 'served',
    }  # fmt: skip
    assert summary['computed_on']['test'] == 'python_docs:'
    assert summary['computed_on']['queries'] == 6
    tested = {(row['model'], row['against'], row['metric']) for row in summary['differences']}
    assert ('distilled student', 'BM25', 'ndcg@5') in tested and len(tested) == len(
      summary['differences']
    )
    assert [s.split(': ')[0] for s in summary['sentences']][:2] == [
      '"distilled student" against "BM25"',
      '"distilled student" against "student, labels only"',
    ]  # fmt: skip
    text = (done / 'report' / 'report.md').read_text()
    assert all(s in text for s in summary['sentences'])
    assert 'the test has only 6 queries, so the true intervals are wider' in text
    assert set(summary['models']) == set(MODELS)
    assert all(set(METRICS) <= set(m) for m in summary['models'].values())
    assert set(summary['stages']) == set(defaults().stages) - {'report'}
    assert all(summary['stages'][s]['steps'] == helpers.STEPS for s in helpers.TRAINING)
    times = {row['model']: row['ms_per_pair'] for row in summary['latency']}
    assert set(times) == {*SCORING, 'fused', 'fused_ranks'}
    row = summary['models']['fused']['fusion']['row']  # the student that is fused
    assert times['fused'] == times['fused_ranks'] == times[row]

  def test_the_exported_student_is_measured_in_requests_for_the_test_queries(self, done):
    summary = helpers.load(done / 'report' / 'summary.json')
    served = summary['served']['student']
    assert [row['backend'] for row in served] == ['onnx-int8', 'onnx']
    assert all(row['queries'] == 6 and 0 < row['p50_ms'] <= row['p95_ms'] for row in served)
    # ONNX Runtime in fp32 ranks as the trained student; ties at most are in another order.
    exact = summary['models']['student']['ndcg@5']
    assert served[1]['ndcg@5'] == pytest.approx(exact, abs=0.02)
    assert any('as exported, onnx: nDCG@5' in s for s in summary['sentences'])

  def test_training_moved_the_weights_that_are_exported(self, done):
    student = load_file(done / 'export' / 'student' / 'model.safetensors')
    before = load_file(weights.find('tiny-encoder') / 'model.safetensors')
    assert student.keys() == before.keys()
    assert any(not np.array_equal(student[name], before[name]) for name in student)

  def test_exported_student_scores_as_evaluate_did_here_and_in_transformers(self, done):
    expected = helpers.run_scores(done / 'evaluate' / 'student.run')
    spread = [max(scores.values()) - min(scores.values()) for scores in expected.values()]
    assert min(spread) > 0.01  # the comparison can tell documents apart
    tests = store.open('test', done / 'data' / 'test')
    folder = done / 'export' / 'student'
    group = tests[0]
    ours = {doc.doc_id: score for doc, score in rerank.rank(folder, group.query, group.docs)}
    assert ours == pytest.approx(expected[group.query_id], abs=1e-5)
    torch = pytest.importorskip('torch')
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for group in (tests[i] for i in range(len(tests))):
      for doc in group.docs:
        # What is cut to length follows our own rules; short ones are any client's.
        text = f'{doc.title} : {doc.summary}'
        batch = tokenizer(group.query, text, return_tensors='pt')
        if batch['input_ids'].shape[1] > 48 or len(tokenizer(group.query)['input_ids']) > 18:
          continue
        with torch.no_grad():
          [[score]] = model(**batch).logits.tolist()
        assert score == pytest.approx(expected[group.query_id][doc.doc_id], abs=1e-5)


EARLY, LATE = [('sft', 3), ('score', 1)], [('distill', 5)]


class TestStopped:
  @pytest.mark.parametrize('kills', [LATE, pytest.param(EARLY + LATE, marks=pytest.mark.slow)])
  def test_a_run_stopped_often_ends_with_the_same_result(self, done, tmp_path, capsys, kills):
    workdir = tmp_path / 'run'

    def stop(signal, stage, count):
      command = INTERRUPTED, signal, stage, count, *helpers.flags(workdir)
      process = helpers.command(*command)
      assert helpers.load(workdir / stage / 'manifest.json')['status'] == 'running', process.stderr
      return process

    asked = stop('SIGTERM', 'cpt', 3)
    assert asked.returncode == 0 and 'Traceback' not in asked.stderr
    last = asked.stderr.splitlines()[-1]
    saved = max(int(p.name) for p in (workdir / 'cpt' / 'checkpoints').glob('[0-9]'))
    assert last == f'cpt: stopped; step {saved} is saved; the same command continues from there'
    for stage, count in kills:
      assert stop('SIGKILL', stage, count).returncode == -9
    capsys.readouterr()
    runner.run(helpers.config(), workdir)
    printed = capsys.readouterr().err
    # At step 5 the checkpoint of step 2 is whole, since that of step 4 waited for it.
    assert 'score: done before' in printed and re.search(
      'distill continues from step [24]', printed
    )
    assert helpers.metrics(workdir) == helpers.metrics(done)
    for stage in helpers.TRAINING:
      logs = [helpers.losses(w / stage / 'metrics.jsonl') for w in (workdir, done)]
      assert logs[0] == logs[1], stage
    for name in ('student', 'teacher'):
      file = f'export/{name}/model.safetensors'
      assert (workdir / file).read_bytes() == (done / file).read_bytes()

  def test_ctrl_c_keeps_the_scores_of_few_queries_and_says_how_many(self, done, tmp_path):
    workdir, changes = tmp_path / 'run', {'score__unit_queries': 2}
    runner.run(helpers.config(**changes), workdir, stages=['prepare', 'cpt', 'sft'])
    arguments = INTERRUPTED, 'SIGINT', 'score', 2, *helpers.flags(workdir, **changes)
    process = helpers.command(*arguments, '--stages=score')
    assert process.returncode == 130 and 'Traceback' not in process.stderr
    last = process.stderr.splitlines()[-1]
    said = re.fullmatch(
      r'score: stopped; (\d+) of 32 queries (?:is|are) scored; the same command continues from '
      'there',
      last,
    )
    shards = workdir / 'score' / 'shards'
    kept = {f: f.stat().st_mtime_ns for f in shards.rglob('*.parquet')}
    queries = sum(helpers.load(f)['queries'] for f in shards.rglob('_*.json'))
    assert 4 <= int(said[1]) == queries < 32
    runner.run(helpers.config(**changes), workdir, stages=['score'])
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    whole = tmp_path / 'whole'
    shutil.copytree(workdir, whole)
    shutil.rmtree(whole / 'score')
    runner.run(helpers.config(**changes), whole, stages=['score'])
    for name in ('stats.json', 'teacher.run.gz'):
      assert (whole / 'score' / name).read_bytes() == (workdir / 'score' / name).read_bytes()
    # In other units a score may differ in its last bits, and in no more.
    ours, theirs = (helpers.load(w / 'score' / 'stats.json') for w in (workdir, done))
    for kind, stats in ours.items():
      assert stats['pairs'] == theirs[kind]['pairs']
      assert stats['mean'] == pytest.approx(theirs[kind]['mean'], rel=1e-5)


class TestLock:
  def test_a_second_process_in_one_workdir_is_refused_and_changes_nothing(self, done):
    before = helpers.snapshot(done)
    with locks.locked(done):
      line = assert_one_error_line(helpers.main(*helpers.flags(done), '--rerun=report'))
    assert str(done) in line and 'another process is running in it' in line
    assert helpers.snapshot(done) == before
    with locks.locked(done):  # the lock goes with its holder
      pass


class TestOwnData:
  def test_jsonl_files_go_through_every_stage(self, tmp_path):
    changes = helpers.own_data(tmp_path)
    config = helpers.config(
      **changes, export__models=('student',), evaluate__models=('bm25', 'student'), cpt__samples=0
    )
    runner.run(config, tmp_path / 'run')
    found = manifests(tmp_path / 'run')
    assert {m['status'] for m in found.values()} == {'done'}
    rows = {kind: found['data']['results'][kind]['rows'] for kind in ('clicks', 'test')}
    assert rows == {'clicks': 6, 'test': 6}
    results = helpers.load(tmp_path / 'run' / 'evaluate' / 'results.json')
    assert results['student']['pairs'] == results['bm25']['pairs'] == 24
    # The rows' own ranks are BM25's row of the table; they put the best page, d0, last of 4.
    assert results['bm25']['mrr@10'] == pytest.approx(1 / 4)
    gain = 2**4 - 1
    ideal = gain / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    found = 1 / math.log2(2) + 1 / math.log2(4) + gain / math.log2(5)
    assert results['bm25']['ndcg@5'] == pytest.approx(found / ideal)


class TestCommandLine:
  """Exit status and stderr; mistakes are reported before jax is imported, where possible."""

  def test_an_unknown_key_suggests_the_known_one(self, tmp_path):
    process = helpers.main(*helpers.flags(tmp_path / 'run', sft__epoch=2))
    assert 'sft.epochs' in assert_one_error_line(process)
    assert not (tmp_path / 'run').exists()

  def test_an_unknown_key_in_a_config_file_is_named(self, tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(
      'from disranker_jax.config import defaults\n'
      'def get_config():\n  c = defaults()\n  c.sft.epoch = 2\n  return c\n'
    )
    process = helpers.main(f'--config={file}', f'--workdir={tmp_path / "run"}')
    assert 'epochs' in assert_one_error_line(process)
    assert not (tmp_path / 'run').exists()

  def test_a_missing_config_file_is_named(self, tmp_path):
    process = helpers.main(f'--config={tmp_path}/none.py', f'--workdir={tmp_path / "run"}')
    assert f'{tmp_path}/none.py' in assert_one_error_line(process)

  def test_a_value_of_another_type_is_an_error(self, tmp_path):
    process = helpers.main(*helpers.flags(tmp_path / 'run', sft__epochs='many'))
    assert 'many' in assert_one_error_line(process)

  def test_a_workdir_of_another_config_is_refused(self, done):
    before = helpers.snapshot(done)
    line = assert_one_error_line(helpers.main(*helpers.flags(done, distill__beta=0.5)))
    assert 'config.distill.beta: was 0.4, is now 0.5' in line and '--rerun=distill' in line
    assert helpers.snapshot(done) == before

  def test_a_bad_row_is_an_error_after_its_stage_began(self, tmp_path):
    file = helpers.write_jsonl(tmp_path / 'clicks.jsonl', ['{'])
    process = helpers.main(*helpers.flags(tmp_path / 'run', data__clicks=f'jsonl:{file}'))
    assert f'{file}:1:row: ' in assert_one_error_line(process)
    assert not (tmp_path / 'run').exists()
