"""Whole runs of the pipeline: what they write, how they go on after a stop, what they refuse."""

import math
import re
import shutil

import helpers
import numpy as np
import pytest
from safetensors.numpy import load_file

from disranker_jax.commands import rerank
from disranker_jax.config import defaults
from disranker_jax.data import store
from disranker_jax.errors import UserError
from disranker_jax.models import weights
from disranker_jax.pipeline import runner, seeds

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


def run_scores(file) -> dict[str, dict[str, float]]:
  """{query: {document: score}} of a TREC run."""
  scores = {}
  for line in file.read_text().splitlines():
    query, _, doc, _, score, _ = line.split(' ')
    scores.setdefault(query, {})[doc] = float(score)
  return scores


def manifests_of(workdir, stage) -> dict:
  return helpers.load(workdir / stage / 'manifest.json')


def is_new(before, workdir, file) -> bool:
  """Whether a file is not as in the snapshot `before`."""
  at, content = before.get(str(file.relative_to(workdir)), (0, b''))
  return not file.exists() or (file.stat().st_mtime_ns, file.read_bytes()) != (at, content)


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
      sum(len(docs) for docs in run_scores(done / 'evaluate' / f'{m}.run').values()) for m in MODELS
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
      'distilled student against BM25', 'distilled student against student, labels only',
    ]  # fmt: skip
    text = (done / 'report' / 'report.md').read_text()
    assert all(s in text for s in summary['sentences'])
    assert 'the test has only 6 queries, so intervals are too narrow' in text
    assert set(summary['models']) == set(MODELS)
    assert all(set(METRICS) <= set(m) for m in summary['models'].values())
    assert set(summary['stages']) == set(defaults().stages) - {'report'}
    assert all(summary['stages'][s]['steps'] == helpers.STEPS for s in helpers.TRAINING)
    assert {row['model'] for row in summary['latency']} == set(SCORING)

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
    expected = run_scores(done / 'evaluate' / 'student.run')
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


class TestAgain:
  def test_a_finished_run_is_left_as_it_is(self, done, capsys):
    before = helpers.snapshot(done)
    runner.run(helpers.config(), done)
    assert helpers.snapshot(done) == before
    printed = capsys.readouterr()
    assert 'all is done' in printed.err and 'begins' not in printed.err
    assert 'distilled student' in printed.out

  @pytest.mark.parametrize(
    'change, folder',
    [({'sft__margin': 0.2}, 'sft'), ({'data__depth': 3}, 'data'), ({'seed': 1}, 'cpt')],
  )
  def test_a_changed_setting_is_an_error_that_names_it_and_changes_nothing(
    self, done, change, folder
  ):
    before, asked = helpers.snapshot(done), (done / 'config.json').read_bytes()
    message = helpers.refused(helpers.config(**change), done)
    [(key, value)] = change.items()
    assert f'config.{key.replace("__", ".")}: was ' in message and f'is now {value}' in message
    assert f'--rerun={"prepare" if folder == "data" else folder}' in message
    assert str(done / folder) in message
    assert helpers.snapshot(done) == before
    assert (done / 'config.json').read_bytes() == asked

  def test_an_earlier_stages_changed_setting_is_seen_by_one_stage_alone(self, done):
    before, asked = helpers.snapshot(done), (done / 'config.json').read_bytes()
    message = helpers.refused(helpers.config(sft__margin=0.2), done, stages=['evaluate'])
    assert 'config.sft.margin: was 0.1, is now 0.2' in message
    assert helpers.snapshot(done) == before
    assert (done / 'config.json').read_bytes() == asked

  def test_a_stage_that_is_no_longer_listed_makes_what_was_built_on_it_stale(self, done):
    listed = tuple(s for s in defaults().stages if s != 'student_sft')
    before = helpers.snapshot(done)
    message = helpers.refused(helpers.config(stages=listed), done)
    assert 'student_sft is no longer in the config' in message
    assert helpers.snapshot(done) == before

  def test_a_rerun_that_is_refused_deletes_nothing(self, done, tmp_path):
    copy = shutil.copytree(done, tmp_path / 'copy')
    before = helpers.snapshot(copy)
    message = helpers.refused(helpers.config(sft__margin=0.2), copy, rerun=['distill'])
    assert 'config.sft.margin' in message
    assert helpers.snapshot(copy) == before
    # evaluate needs sft, which would be deleted and is not among the stages to do.
    message = helpers.refused(helpers.config(), copy, rerun=['sft'], stages=['evaluate'])
    assert 'stage evaluate needs sft' in message
    assert helpers.snapshot(copy) == before

  def test_settings_without_effect_on_results_may_change(self, done, capsys):
    before = helpers.snapshot(done)
    runner.run(helpers.config(sft__save_every=4, teacher__remat='full'), done)
    assert 'all is done' in capsys.readouterr().err
    assert helpers.snapshot(done) == before
    runner.run(helpers.config(), done)  # leave config.json as it was

  def test_rerun_redoes_a_stage_and_what_follows_from_it_only(self, done, tmp_path):
    copy = shutil.copytree(done, tmp_path / 'copy')
    before, result = helpers.snapshot(copy), helpers.metrics(copy)
    runner.run(helpers.config(), copy, rerun=['distill'])
    after = helpers.snapshot(copy)
    redone = {f.split('/')[0] for f in before.keys() | after if before.get(f) != after.get(f)}
    assert redone == {'distill', 'evaluate', 'export', 'report'}
    assert helpers.metrics(copy) == result  # the same seed, the same student
    # What distill does not change is not scored again.
    scored = {f.name for f in (copy / 'evaluate').glob('*.run') if is_new(before, copy, f)}
    assert scored == {'student.run', 'fused.run', 'fused_ranks.run'}

  def test_other_rows_cost_only_themselves_and_make_nothing_stale(self, done, tmp_path, capsys):
    copy = shutil.copytree(done, tmp_path / 'copy')
    before = helpers.snapshot(copy)
    query, docs = next(iter(run_scores(copy / 'evaluate' / 'student.run').items()))
    lines = [f'{query} Q0 {doc} 1 {score} x\n' for doc, score in docs.items()]
    (tmp_path / 'production.run').write_text(''.join(lines))
    models, runs = ('bm25', 'student'), {'production': f'trec:{tmp_path}/production.run'}
    changed = helpers.config(evaluate__models=models)
    changed.evaluate.runs = runs
    runner.run(changed, copy)
    assert list(helpers.metrics(copy)) == ['bm25', 'student', 'production']
    redone = {f.split('/')[0] for f in before if is_new(before, copy, copy / f)}
    assert redone == {'evaluate', 'report'}
    scored = {f.name for f in (copy / 'evaluate').glob('*.run') if is_new(before, copy, f)}
    assert scored == {'production.run'}
    said = capsys.readouterr()
    assert '5 of 6 queries are not in it and count as 0' in said.err + said.out
    assert 'M parameters' not in said.err  # no model is opened for rows that are kept
    results = helpers.metrics(copy)
    assert 0 < results['production']['ndcg@5'] < results['student']['ndcg@5']
    # The same address with other contents is another row.
    (tmp_path / 'production.run').write_text(''.join(lines).replace(f'{query} ', 'nobody '))
    with pytest.raises(UserError, match='none of the test queries'):
      runner.run(changed, copy)

  def test_to_draw_queries_together_asks_for_another_report_and_nothing_else(self, done, tmp_path):
    copy, other = shutil.copytree(done, tmp_path / 'copy'), helpers.config(report__cluster='.$')
    message = helpers.refused(other, copy)
    assert 'config.report.cluster' in message and '--rerun=report' in message
    before = helpers.snapshot(copy)
    runner.run(other, copy, rerun=['report'])
    after = helpers.snapshot(copy)
    changed = {f.split('/')[0] for f in before.keys() | after if before.get(f) != after.get(f)}
    assert changed == {'report'}

  def test_one_stage_alone_works_from_what_is_there(self, done, tmp_path):
    copy = shutil.copytree(done, tmp_path / 'copy')
    shutil.rmtree(copy / 'export')
    before = helpers.snapshot(copy)
    runner.run(helpers.config(), copy, stages=['export'])
    after = helpers.snapshot(copy)
    assert {f.split('/')[0] for f in before.keys() ^ after} == {'export'}
    for name in ('student', 'teacher'):
      file = f'{name}/model.safetensors'
      assert (copy / 'export' / file).read_bytes() == (done / 'export' / file).read_bytes()

  def test_one_stage_without_what_it_needs_says_what_is_missing(self, tmp_path):
    message = helpers.refused(helpers.config(), tmp_path / 'run', stages=['evaluate'])
    for need in ('prepare', 'cpt', 'sft', 'student_sft', 'distill'):
      assert need in message
    assert '--stages=prepare,cpt,sft,student_sft,distill,evaluate' in message
    assert not (tmp_path / 'run').exists()

  @pytest.mark.parametrize('option', ['stages', 'rerun'])
  def test_stages_that_the_config_does_not_list_are_refused(self, tmp_path, option):
    message = helpers.refused(helpers.config(), tmp_path / 'run', **{option: ['evalute']})
    assert "'evalute'" in message and 'evaluate' in message
    assert not (tmp_path / 'run').exists()


class TestSeeds:
  def test_other_seeds_train_the_students_alone_and_are_in_the_report(self, done, tmp_path):
    copy = shutil.copytree(done, tmp_path / 'copy')
    before = helpers.snapshot(copy)
    seeds.run(helpers.config(), copy, [0, 3])
    changed = {f.split('/')[0] for f in before if is_new(before, copy, copy / f)}
    assert changed == {'report'}
    other = seeds.folder(copy, 3)
    for stage in ('score', 'sft'):
      assert manifests_of(other, stage) == manifests_of(copy, stage)
    found = helpers.metrics(other)
    assert list(found) == ['student_sft', 'student'] and not seeds.folder(copy, 0).exists()
    summary = helpers.load(copy / 'report' / 'summary.json')
    own = helpers.metrics(copy)['student']['ndcg@5']
    assert summary['seeds']['student'] == {'0': own, '3': found['student']['ndcg@5']}
    assert any(s.startswith('distilled student with seeds 0, 3: ') for s in summary['sentences'])

  def test_a_config_without_a_student_row_is_refused(self, tmp_path):
    with pytest.raises(UserError, match='--seeds: the config evaluates no trained student'):
      seeds.with_seed(helpers.config(evaluate__models=('teacher',)), 1)


class TestReuse:
  def test_stages_done_alike_elsewhere_are_taken_and_the_others_done(self, done, tmp_path, capsys):
    before = helpers.snapshot(done)
    unexported = tuple(s for s in defaults().stages if s not in ('export', 'report'))
    other = helpers.config(distill__beta=0.7, stages=unexported)
    runner.run(other, tmp_path / 'other', reuse=[done])
    assert helpers.snapshot(done) == before
    copy = shutil.copytree(done, tmp_path / 'copy')
    capsys.readouterr()
    runner.run(other, copy, rerun=['distill'])  # what --reuse must come to
    assert helpers.metrics(tmp_path / 'other') == helpers.metrics(copy)
    assert helpers.metrics(copy)['student'] != helpers.metrics(done)['student']

  def test_a_row_that_is_added_to_a_table_from_elsewhere_stays_out_of_it(self, done, tmp_path):
    """Both runs have the same files until one adds to them."""
    stages = ('prepare', 'evaluate')
    first, second = (
      helpers.config(stages=stages, evaluate__models=models)
      for models in (('bm25',), ('bm25', 'random'))
    )
    runner.run(first, tmp_path / 'first', reuse=[done])
    before = helpers.snapshot(tmp_path / 'first')
    runner.run(second, tmp_path / 'second', reuse=[tmp_path / 'first'])
    assert helpers.snapshot(tmp_path / 'first') == before
    assert list(helpers.metrics(tmp_path / 'second')) == ['bm25', 'random']

  def test_other_test_queries_change_nothing_that_was_trained(self, done, tmp_path, capsys):
    runner.run(helpers.config(data__limit__test=4), tmp_path / 'other', reuse=[done])
    said = capsys.readouterr().err
    for stage in (*helpers.TRAINING, 'score'):
      assert f'{stage}: the same as in {done}' in said
    for stage in ('prepare', 'evaluate', 'export'):
      assert f'{stage}: the same as in' not in said
    assert helpers.metrics(tmp_path / 'other')['student']['queries'] == 4

  def test_another_students_seed_leaves_the_teacher(self, done, tmp_path, capsys):
    changed = helpers.config(student__seed=1)
    runner.run(changed, tmp_path / 'other', stages=['prepare', 'student_sft'], reuse=[done])
    runner.run(changed, tmp_path / 'other', stages=['cpt', 'sft', 'score'], reuse=[done])
    said = capsys.readouterr().err
    taken = {s for s in helpers.STAGE_FOLDERS if f'{s}: the same as in {done}' in said}
    assert taken == {'cpt', 'sft', 'score'}
    losses = [_losses(run / 'student_sft' / 'metrics.jsonl') for run in (done, tmp_path / 'other')]
    assert losses[0] != losses[1]

  @pytest.mark.parametrize('where', ['cpt/private', 'cpt', 'cpt/checkpoints/file'])
  def test_a_link_of_a_strangers_run_is_not_followed(self, done, tmp_path, where):
    private = tmp_path / 'private'
    private.mkdir()
    secret = private / 'secret'
    secret.write_text('mine')
    donor = shutil.copytree(done, tmp_path / 'donor')
    if where == 'cpt':
      shutil.copytree(donor / 'cpt', private, dirs_exist_ok=True)
      shutil.rmtree(donor / 'cpt')
    (donor / where).symlink_to(secret if where.endswith('file') else private)
    run = tmp_path / 'run'
    message = helpers.refused(helpers.config(), run, stages=['prepare', 'cpt'], reuse=[donor])
    assert f'{donor / where} is a link' in message
    assert secret.stat().st_nlink == 1 and not list(run.rglob('secret'))

  def test_what_is_no_run_is_refused(self, tmp_path):
    message = helpers.refused(helpers.config(), tmp_path / 'run', reuse=[tmp_path])
    assert str(tmp_path) in message and 'not the workdir of a run' in message
    assert not (tmp_path / 'run').exists()


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
      logs = [_losses(w / stage / 'metrics.jsonl') for w in (workdir, done)]
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
      r'score: stopped; (\d+) of 32 queries are scored; the same command continues from there', last
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


def _losses(file) -> list[tuple[int, float]]:
  rows = [helpers.json.loads(line) for line in file.read_text().splitlines()]
  return [(row['step'], row['loss']) for row in rows]


class TestLock:
  def test_a_second_process_in_one_workdir_is_refused_and_changes_nothing(self, done):
    before = helpers.snapshot(done)
    with runner.locked(done):
      line = assert_one_error_line(helpers.main(*helpers.flags(done), '--rerun=report'))
    assert str(done) in line and 'another process is running in it' in line
    assert helpers.snapshot(done) == before
    with runner.locked(done):  # the lock goes with its holder
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
