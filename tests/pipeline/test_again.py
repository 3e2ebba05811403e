"""A second run in a workdir, or beside it: what is done again, and what is taken as it is."""

import shutil

import helpers
import pytest

from disranker_jax.config import defaults
from disranker_jax.errors import UserError
from disranker_jax.pipeline import runner, seeds


def manifests_of(workdir, stage) -> dict:
  return helpers.load(workdir / stage / 'manifest.json')


def is_new(before, workdir, file) -> bool:
  """Whether a file is not as in the snapshot `before`."""
  at, content = before.get(str(file.relative_to(workdir)), (0, b''))
  return not file.exists() or (file.stat().st_mtime_ns, file.read_bytes()) != (at, content)


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

  def test_records_of_another_kind_are_prepared_where_the_message_says(self, tmp_path):
    workdir, data = tmp_path / 'run', helpers.own_data(tmp_path)
    labels = helpers.config(stages=('prepare', 'student_sft'), **data)
    runner.run(labels, workdir, stages=['prepare'])
    other = helpers.config(stages=('prepare', 'evaluate'), evaluate__models=('bm25',), **data)
    message = helpers.refused(other, workdir)
    assert 'its input data.test is new in the config' in message and '--rerun=prepare' in message
    runner.run(other, workdir, rerun=['prepare'])
    assert list(helpers.metrics(workdir)) == ['bm25']

  def test_other_rows_cost_only_themselves_and_make_nothing_stale(self, done, tmp_path, capsys):
    copy = shutil.copytree(done, tmp_path / 'copy')
    before = helpers.snapshot(copy)
    query, docs = next(iter(helpers.run_scores(copy / 'evaluate' / 'student.run').items()))
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
    losses = [
      helpers.losses(run / 'student_sft' / 'metrics.jsonl') for run in (done, tmp_path / 'other')
    ]
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
