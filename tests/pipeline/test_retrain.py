"""Weekly retraining: a run starts from an earlier run's models and adds its scores to its own."""

import shutil

import helpers
import numpy as np
import pytest

from disranker_jax.data import store
from disranker_jax.devices import sharding
from disranker_jax.models import tree
from disranker_jax.pipeline import runner
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import distill, result_rows, roles, score

TRAINED = ('prepare', 'cpt', 'sft', 'score', 'student_sft', 'distill', 'evaluate')
# Small weights hardly learn in six steps: a test must see the difference.
FASTER = {f'{stage}__learning_rate': 1e-2 for stage in ('cpt', 'sft', 'student_sft', 'distill')}
# The teacher learns by adapters and its head, the student all parameters.
ADAPTERS = {
  'teacher__lora_rank': 4, 'cpt__trainable': 'lora/.*', 'sft__trainable': 'lora/.*|params/score.*',
}  # fmt: skip


def data(folder, week: int, shared) -> dict[str, str]:
  """A week's clicks and candidates; judgements and test are the same files every week."""
  folder.mkdir()
  changes = {f'data__{kind}': f'jsonl:{shared}/{kind}.jsonl' for kind in ('judgements', 'test')}
  for kind in ('clicks', 'candidates'):
    rows = helpers.own_rows(kind)
    for row in rows:
      row['query'] += f' in week {week}'
      if kind == 'candidates':
        row['query_id'] += f'-week{week}'
    file = helpers.write_jsonl(folder / f'{kind}.jsonl', rows)
    changes[f'data__{kind}'] = f'jsonl:{file}'
  return changes


def config(files, **changes):
  return helpers.config(
    **({'stages': TRAINED, 'cpt__samples': 0} | FASTER | ADAPTERS | files | changes)
  )


def from_run(workdir, **changes):
  return {'teacher__init_from': str(workdir), 'student__init_from': str(workdir)} | changes


def parameters(c, workdir, row: str, stages=None) -> dict[str, np.ndarray]:
  """The flat parameters of a row's model; of its start with `stages=()`."""
  run = Run(c, workdir, sharding.make_mesh(c.mesh))
  chosen = result_rows.ROWS[row]
  stages = chosen.stages(c) if stages is None else stages
  model = roles.open_role(c, chosen.role)
  flat = tree.flatten(roles.trained(run, chosen.role, model, stages, trains=''))
  return {name: np.asarray(value) for name, value in flat.items()}


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], name)


def scores(c, workdir, kind='candidates') -> dict:
  shards = score.open_shards(
    Run(c, workdir, None), kind, len(store.open(kind, workdir / 'data' / kind))
  )
  return {(query, doc): value for query, doc, value in shards.rows()}


def rows_of(workdir, kind) -> list:
  return list(store.open(kind, workdir / 'data' / kind))


@pytest.fixture(scope='module')
def weeks(tmp_path_factory, cache):
  """(the first week's config, its workdir, the folder of all data); tests must not write there."""
  folder = tmp_path_factory.mktemp('weeks')
  shared = folder / 'shared'
  shared.mkdir()
  for kind in ('judgements', 'test'):
    helpers.write_jsonl(shared / f'{kind}.jsonl', helpers.own_rows(kind))
  first = config(data(folder / 'data1', 1, shared))
  runner.run(first, folder / 'week1')
  return first, folder / 'week1', folder


@pytest.fixture(scope='module')
def second(weeks):
  """(the second week's config, its workdir, what it printed)."""
  _, before, folder = weeks
  files = data(folder / 'data2', 2, folder / 'shared')
  again = config(files, **from_run(before), distill__earlier_runs=(str(before),))
  runner.run(again, folder / 'week2', reuse=[before])
  return again, folder / 'week2'


class TestWithoutTraining:
  """Without a training stage a run has the earlier run's models."""

  def test_the_same_pairs_get_the_same_scores(self, weeks, tmp_path):
    first, before, _ = weeks
    c = first.copy_and_resolve_references()
    c.stages = ('prepare', 'score', 'evaluate')
    c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in from_run(before).items()})
    runner.run(c, tmp_path / 'run')
    assert scores(c, tmp_path / 'run') == scores(first, before)
    # Nor does the table change; its row of the earlier student is that run's own.
    results, was = (helpers.metrics(workdir) for workdir in (tmp_path / 'run', before))
    assert results['teacher'] == was['teacher'] and results['previous'] == was['student']
    assert results['zero_shot'] == was['zero_shot']
    assert 'previous' not in was and 'student' not in results
    # The scores are not those of the pretrained model.
    c.teacher.init_from = ''
    runner.run(c, tmp_path / 'untrained', stages=['prepare', 'score'])
    assert scores(c, tmp_path / 'untrained') != scores(first, before)


class TestSecondWeek:
  def test_starts_from_the_parameters_of_the_first(self, weeks, second):
    first, before, _ = weeks
    for role in ('teacher', 'student'):
      learned = parameters(first, before, role)
      assert_equal(parameters(*second, role, stages=()), learned)
      now = parameters(*second, role)
      assert any(not np.array_equal(now[name], learned[name]) for name in now)

  def test_labels_alone_teach_the_baseline_in_every_week(self, weeks, second):
    results, was = helpers.metrics(second[1]), helpers.metrics(weeks[1])
    assert results['student_sft'] == was['student_sft'] and results['zero_shot'] == was['zero_shot']
    assert results['previous'] == was['student'] != results['student']

  def test_prepares_and_scores_new_queries_only(self, second):
    c, workdir = second
    assert {g.query_id.partition('-')[2] for g in rows_of(workdir, 'candidates')} == {'week2'}
    assert {query.partition('-')[2] for query, _ in scores(c, workdir)} == {'week2'}
    assert all('week 2' in click.query for click in rows_of(workdir, 'clicks'))

  def test_takes_what_did_not_change_from_the_first(self, weeks, second):
    before, workdir = weeks[1], second[1]
    for kind in ('judgements', 'test'):
      [file] = (before / 'data' / kind).glob('*array_record*')
      assert file.samefile(workdir / 'data' / kind / file.name)
    sums = [(w / 'student_sft' / 'metrics.jsonl').stat().st_ino for w in (before, workdir)]
    assert sums[0] == sums[1]

  def test_learns_the_scores_of_both_weeks(self, weeks, second):
    found = helpers.load(second[1] / 'distill' / 'manifest.json')['results']
    # 6 candidates and 6 judged queries, and the first week's 6 candidates.
    assert found['rows'] == 18
    [(folder, earlier)] = found['earlier_runs'].items()
    assert folder == str(weeks[1]) and earlier['rows'] == 6
    # The scores of each run are standardised by themselves (normalize_scores='all').
    targets, _ = distill.open_targets(Run(*second, None))
    own = [targets[i] for i in range(12)]
    before = [targets[i] for i in range(12, 18)]
    assert {group.query_id.partition('-')[2] for group, _ in before} == {'week1'}
    learned = scores(weeks[0], weeks[1])
    every = np.array([*learned.values(), *scores(weeks[0], weeks[1], 'judgements').values()])
    for group, targets_N in before:
      raw_N = np.array([learned[group.query_id, doc.doc_id] for doc in group.docs])
      np.testing.assert_allclose(targets_N, (raw_N - every.mean()) / every.std(), atol=1e-4)
    values = np.concatenate([targets_N for _, targets_N in own])
    assert values.mean() == pytest.approx(0, abs=1e-4) and values.std() == pytest.approx(
      1, abs=1e-4
    )

  def test_the_tests_queries_are_looked_for_in_the_first_weeks_data_too(self, weeks, second):
    found = helpers.load(second[1] / 'data' / 'manifest.json')['results']['overlap']
    kinds = {'clicks', 'candidates', 'judgements'}
    # The judgements of both weeks are the same, and count once.
    assert found.keys() == kinds | {f'{kind} of {weeks[1]}' for kind in ('candidates', 'clicks')}
    c = weeks[0].copy_and_resolve_references()
    # The first week learned these labels, even if the run itself reads none.
    c.data.test, c.stages = c.data.judgements, ('prepare', 'score', 'evaluate')
    c.teacher.init_from, c.score.judgements = str(weeks[1]), False
    message = helpers.refused(c, weeks[2] / 'learned')
    assert f'6 of its 6 queries (100%) are in the judgements of {weeks[1]} too' in message

  def test_goes_on_without_the_first(self, weeks, second, tmp_path):
    """The first week is deleted: the second is evaluated again, and the third starts from it."""
    before = weeks[1]
    kept = helpers.metrics(second[1])
    copies = {name: shutil.copytree(w, tmp_path / name) for name, w in
              (('one', before), ('two', second[1]))}  # fmt: skip
    c = second[0].copy_and_resolve_references()
    for section in (c.teacher, c.student):
      section.init_from = str(copies['one'])
    c.distill.earlier_runs = (str(copies['one']),)
    for role in ('teacher', 'student'):
      note = copies['two'] / 'start' / role / 'start.json'
      note.write_text(note.read_text().replace(str(before), str(copies['one'])))
    shutil.rmtree(copies['one'])
    runner.run(c, copies['two'], rerun=['evaluate'])
    assert helpers.metrics(copies['two']) == kept
    third = c.copy_and_resolve_references()
    third.update_from_flattened_dict(
      {k.replace('__', '.'): v for k, v in from_run(copies['two']).items()}
    )
    third.distill.earlier_runs, third.stages = (), ('prepare', 'score', 'evaluate')
    runner.run(third, tmp_path / 'three')
    assert helpers.metrics(tmp_path / 'three')['previous'] == kept['student']
    # The second week trained every parameter, so the third has nothing of the first.
    assert_equal(parameters(third, tmp_path / 'three', 'student'), parameters(*second, 'student'))
    for role in ('student', 'teacher'):  # the last stage trained what the stage before it did
      links = [p for p in (tmp_path / 'three' / 'start' / role).glob('*') if p.is_dir()]
      assert len(links) == 1
      assert {p.name for p in links[0].glob('*/*') if p.is_dir()} == {'params'}  # no moments

  def test_a_start_that_is_gone_before_its_use_is_an_error(self, weeks, tmp_path):
    c = config({}, **from_run(tmp_path / 'none'))
    message = helpers.refused(c, tmp_path / 'run')
    assert 'config.teacher.init_from' in message and 'does not exist' in message
    assert not (tmp_path / 'run').exists()


def test_parameters_that_a_week_left_frozen_come_from_the_week_before(weeks, tmp_path):
  """The second week trains the head alone; the third has that head with the first's adapters."""
  first, before, _ = weeks
  c = first.copy_and_resolve_references()
  c.stages = ('prepare', 'sft')
  c.sft.trainable = 'params/score.*'
  c.teacher.init_from = str(before)
  runner.run(c, tmp_path / 'two')
  learned, start = parameters(c, tmp_path / 'two', 'teacher'), parameters(first, before, 'teacher')
  changed = {name for name in start if not np.array_equal(start[name], learned[name])}
  assert changed and all(name.startswith('params/score') for name in changed)
  third = c.copy_and_resolve_references()
  third.teacher.init_from = str(tmp_path / 'two')
  assert_equal(parameters(third, tmp_path / 'three', 'teacher', stages=()), learned)
  # A run whose stages were all taken from another has no links of its own.
  runner.run(c, tmp_path / 'taken', reuse=[tmp_path / 'two'])
  assert not (tmp_path / 'taken' / 'start').exists()
  third.teacher.init_from = str(tmp_path / 'taken')
  assert_equal(parameters(third, tmp_path / 'four', 'teacher', stages=()), learned)


class TestRefused:
  """Before the first step, in one line, and nothing is written."""

  def refused(self, tmp_path, weeks, **changes):
    c = weeks[0].copy_and_resolve_references()
    c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    message = helpers.refused(c, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
    return message

  def test_a_folder_that_is_no_run(self, weeks, tmp_path):
    (tmp_path / 'other').mkdir()
    for key in ('teacher__init_from', 'student__init_from'):
      message = self.refused(tmp_path, weeks, **{key: str(tmp_path / 'other')})
      assert f'config.{key.replace("__", ".")}' in message and 'not the workdir of a run' in message
    message = self.refused(tmp_path, weeks, distill__earlier_runs=(str(tmp_path / 'other'),))
    assert 'config.distill.earlier_runs' in message

  def test_another_model(self, weeks, tmp_path):
    message = self.refused(tmp_path, weeks, teacher__init_from=str(weeks[1]), teacher__lora_rank=2)
    assert 'config.teacher.lora_rank is 4, here it is 2' in message

  def test_a_run_that_is_not_finished(self, weeks, tmp_path):
    copy = shutil.copytree(weeks[1], tmp_path / 'copy')
    for stage, key in (('distill', 'student__init_from'), ('score', 'distill__earlier_runs')):
      shutil.rmtree(copy / stage)
      value = (str(copy),) if key.endswith('runs') else str(copy)
      assert f'stage {stage} is not done' in self.refused(tmp_path, weeks, **{key: value})

  def test_a_run_that_trained_no_such_model(self, weeks, tmp_path):
    c = weeks[0].copy_and_resolve_references()
    c.stages = ('prepare', 'sft')
    runner.run(c, tmp_path / 'teacher', stages=['prepare'])
    message = self.refused(tmp_path, weeks, student__init_from=str(tmp_path / 'teacher'))
    assert 'trained no student; its stages are prepare, sft' in message

  def test_two_starts_of_one_student(self, weeks, tmp_path):
    changes = {'student__init_from': str(weeks[1]), 'distill__init_from': 'student_sft'}
    message = self.refused(tmp_path, weeks, **changes)
    assert 'config.distill.init_from' in message and 'config.student.init_from' in message


def test_an_earlier_run_that_has_changed_makes_the_run_stale(weeks, second, tmp_path):
  copy = shutil.copytree(second[1], tmp_path / 'copy')
  c = second[0].copy_and_resolve_references()
  c.student.init_from = ''
  assert 'student.init_from is no longer in the config' in helpers.refused(c, copy)
  c = second[0].copy_and_resolve_references()
  c.distill.earlier_runs = ()
  assert 'distill.earlier_runs is no longer in the config' in helpers.refused(c, copy)
