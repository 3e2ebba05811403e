"""Processes that train together: the same result as one, each on its share of the data; stopping,
dying and hanging. Each is a real process with two virtual devices; they talk over loopback.
"""

import json
import subprocess
import sys

import gang
import numpy as np
import pyarrow.parquet as pq
import pytest
import trainer

from disranker_jax.devices import processes
from disranker_jax.errors import UserError

STEPS, BLOCKS = 8, 4


def train(folder, count=2, devices=2, wait=(0, 0), **spec):
  """One run of the trainer to its end, in FOLDER/job; what was recorded is under FOLDER."""
  folder.mkdir(exist_ok=True)
  arguments = gang.trainer(folder / 'job', record=str(folder), **spec)
  assert gang.run(folder, arguments, count, devices) == list(wait)[:count]


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """Of an unbroken run in one process on four devices."""
  folder = tmp_path_factory.mktemp('one')
  train(folder, count=1, devices=4)
  return folder


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """Of an unbroken run in two processes of two devices each."""
  folder = tmp_path_factory.mktemp('two')
  train(folder)
  return folder


def assert_same(folder, reference, steps: int = STEPS) -> None:
  """The same batches, losses and state, up to the order in which processes add up."""
  assert trainer.taken(folder) == trainer.taken(reference)
  np.testing.assert_allclose(
    trainer.losses(folder / 'job'), trainer.losses(reference / 'job'), rtol=1e-4
  )
  there, wanted = (trainer.saved(f / 'job', steps) for f in (folder, reference))
  assert there.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_allclose(there[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def bomb(at, what, process, count=1) -> dict:
  return {'at': at, 'what': what, 'process': process, 'count': count}


class TestTogether:
  def test_they_train_as_one_does(self, one, two):
    assert len(trainer.losses(two / 'job')) == STEPS
    assert_same(two, one)

  def test_each_reads_the_blocks_that_its_devices_hold(self, two):
    """Beside the first batches of block 0, from which every process counts the steps."""
    lines = [list(map(json.loads, (two / f'{i}.jsonl').read_text().splitlines())) for i in range(2)]
    assert {line[0] for line in lines[0]} == {0, 1}
    assert {line[0] for line in lines[1]} == {2, 3}

  def test_the_first_alone_writes_what_is_written_once(self, two):
    steps = [json.loads(x)['step'] for x in (two / 'job/metrics.jsonl').read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    assert 'a device will hold' in (two / 'process.0.log').read_text()
    assert 'a device will hold' not in (two / 'process.1.log').read_text()
    # Of the files' checksums each has its share.
    sums = [
      json.loads((two / 'job/checkpoints' / str(STEPS) / f'checksums.{i}.json').read_text())
      for i in range(2)
    ]
    assert all(sums) and not sums[0].keys() & sums[1].keys()

  @pytest.mark.slow
  def test_any_number_of_processes_goes_on_from_any_other(self, one, tmp_path):
    """Two processes, asked to stop in a step; one on another mesh; again two, to the end."""
    train(tmp_path, bombs=[bomb('step', 'SIGTERM', process=1, count=3)])
    first = len(trainer.losses(tmp_path / 'job'))
    assert 3 <= first < 6
    fsdp = {'data': 1, 'fsdp': 2, 'model': 2}
    stop = [bomb('step', 'SIGTERM', process=0, count=2)]
    train(tmp_path, count=1, devices=4, mesh=fsdp, bombs=stop)
    assert first < len(trainer.losses(tmp_path / 'job')) < STEPS
    train(tmp_path, mesh={'data': 2, 'fsdp': 2, 'model': 1})
    assert_same(tmp_path, one)

  @pytest.mark.slow
  def test_a_feed_that_follows_the_parameters_gives_the_batches_of_one_process(self, one, tmp_path):
    """Also after a stop: the parameters of a checkpoint are those that the next batch follows."""
    train(tmp_path / 'one', count=1, devices=4, on_policy=True)
    train(tmp_path / 'two', on_policy=True, bombs=[bomb('step', 'SIGTERM', process=1, count=3)])
    assert len(trainer.losses(tmp_path / 'two/job')) < STEPS
    train(tmp_path / 'two', on_policy=True)
    assert_same(tmp_path / 'two', tmp_path / 'one')
    losses, offline = (trainer.losses(f / 'job') for f in (tmp_path / 'one', one))
    assert np.abs(np.subtract(losses, offline)).min() > 0.01


class TestValidation:
  def test_all_measure_the_same_and_take_the_decisions_of_one(self, tmp_path):
    """What is measured gets worse, so step 1 is the best and patience ends after step 3."""
    choice = {'every': 1, 'patience': 2, 'keep_best': True}
    train(tmp_path / 'one', count=1, devices=4, validation=choice)
    train(tmp_path / 'two', validation=choice)
    assert_same(tmp_path / 'two', tmp_path / 'one', steps=3)
    values = [held_out_values(tmp_path / name / 'job') for name in ('one', 'two')]
    assert len(values[0]) == 3 and values[0] == sorted(values[0], reverse=True)
    np.testing.assert_allclose(*values, rtol=1e-4)
    best = trainer.saved(tmp_path / 'two/job', 1)
    result = trainer.saved(tmp_path / 'two/job', 3)
    for name in (n for n in best if n.startswith('params')):
      np.testing.assert_array_equal(result[name], best[name])
    # Process 1 takes the values of process 0, which alone reads them: nothing is trained.
    taken = len(trainer.taken(tmp_path / 'two'))
    train(tmp_path / 'two', validation=choice)
    assert len(trainer.losses(tmp_path / 'two/job')) == 3
    assert len(trainer.taken(tmp_path / 'two')) == taken


def held_out_values(folder) -> list[float]:
  lines = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  return [line['validation/ndcg@5'] for line in lines]


class TestAskedToStop:
  """SIGTERM to one of two: both save the same step and end with 0; then they go on."""

  @pytest.mark.parametrize(
    ('at', 'process'),
    [
      ('compile', 1),
      *(
        pytest.param(at, i, marks=pytest.mark.slow)
        for at, i in (('step', 0), ('step', 1), ('compile', 0), ('save', 0), ('save', 1))
      ),
    ],
  )
  def test_all_save_the_same_step_and_the_rest_gives_the_same_result(
    self, two, tmp_path, at, process
  ):
    train(tmp_path, bombs=[bomb(at, 'SIGTERM', process=process)])
    said = [(tmp_path / f'process.{i}.log').read_text() for i in range(2)]
    stopped = [next(x for x in s.splitlines() if 'stopped at step' in x) for s in said]
    assert stopped[0] == stopped[1]
    step = len(trainer.losses(tmp_path / 'job'))
    assert stopped[0].endswith(f'stopped at step {step} of {STEPS}') and step < STEPS
    assert (tmp_path / 'job/checkpoints' / str(step)).is_dir()
    train(tmp_path)
    assert f'continues from step {step}' in (tmp_path / 'process.0.log').read_text()
    assert_same(tmp_path, two)


class TestBroken:
  """One of two fails: the other ends too, and says why; the same command then goes on."""

  def end(self, folder, **spec) -> tuple[list[int], list[str]]:
    arguments = gang.trainer(folder / 'job', record=str(folder), **spec)
    with gang.Gang(folder, arguments) as those:
      codes = those.wait(120)
    return codes, [those.said(i) for i in range(2)]

  @pytest.mark.slow
  def test_one_that_hangs_is_given_up(self, two, tmp_path):
    codes, said = self.end(
      tmp_path, watchdog_s=15, bombs=[bomb('step', 'stuck', process=1, count=4)]
    )
    assert codes == [75, 75]
    assert 'error: test: process 0 has made no step for' in said[0]
    assert 'in explode' in said[1], 'what each was doing is shown'
    train(tmp_path)
    assert_same(tmp_path, two)

  @pytest.mark.parametrize(
    ('what', 'process'), [('error', 1), pytest.param('error', 0, marks=pytest.mark.slow)]
  )
  def test_bad_input_of_one_ends_all_as_an_error_of_the_person(self, two, tmp_path, what, process):
    codes, said = self.end(tmp_path, bombs=[bomb('step', what, process=process, count=4)])
    assert codes == [2, 2]
    assert 'error: a bad record' in said[process]
    assert 'error: another process stopped with an error' in said[1 - process]
    train(tmp_path)
    assert_same(tmp_path, two)

  @pytest.mark.slow
  @pytest.mark.parametrize('process', [0, 1])
  def test_a_bug_in_one_ends_the_other_within_bounds(self, two, tmp_path, process):
    bombs = [bomb('step', 'crash', process=process, count=4)]
    codes, said = self.end(tmp_path, leave_s=5, bombs=bombs)
    assert 'RuntimeError: a bug' in said[process]
    assert not set(codes) & {0, 2}
    assert 'JAX distributed service detected fatal errors' in said[1 - process]
    train(tmp_path)
    assert_same(tmp_path, two)

  @pytest.mark.slow
  @pytest.mark.parametrize('process', [0, 1])
  def test_one_that_is_frozen_is_given_up(self, two, tmp_path, process):
    bombs = [bomb('step', 'SIGSTOP', process=process, count=4)]
    arguments = gang.trainer(tmp_path / 'job', record=str(tmp_path), watchdog_s=15, bombs=bombs)
    other = 1 - process
    with gang.Gang(tmp_path, arguments) as those:
      assert those.processes[other].wait(120) == 75
      assert those.processes[process].poll() is None
    assert f'process {other} has made no step for' in those.said(other)
    train(tmp_path)
    assert_same(tmp_path, two)

  @pytest.mark.slow
  @pytest.mark.parametrize('process', [0, 1])
  def test_one_that_is_killed_ends_the_other(self, two, tmp_path, process):
    bombs = [bomb('step', 'SIGKILL', process=process, count=4)]
    codes, said = self.end(tmp_path, heartbeat_s=10, bombs=bombs)
    assert codes[process] == -9
    assert codes[1 - process] not in (0, 2)
    assert 'another task died' in said[1 - process]
    train(tmp_path)
    assert_same(tmp_path, two)


FLAGS = {
  'data.limit.judgements': 16, 'data.limit.candidates': 24, 'data.limit.test': 12,
  **{f'{stage}.data_shards': BLOCKS for stage in ('cpt', 'sft', 'student_sft', 'distill')},
  **{f'{stage}.batch_rows': 16 for stage in ('cpt', 'sft', 'student_sft', 'distill')},
}  # fmt: skip


def flags(workdir, **changes) -> list[str]:
  """Of the whole pipeline on configs/tiny.py."""
  changed = [f'--config.{k}={v}' for k, v in (FLAGS | changes).items()]
  return [f'--config={gang.ROOT / "configs/tiny.py"}', f'--workdir={workdir}', *changed]


def pipeline(folder, *, bomb=(), count=2, devices=2) -> None:
  """Every stage in FOLDER/run, to the end or to where the bomb goes off, with status 0."""
  command = [gang.ROOT / 'tests/bombed.py', *bomb] if bomb else ['-m', 'disranker_jax.main']
  ended = gang.run(folder, [*command, *flags(folder / 'run')], count, devices)
  assert ended == [0] * count


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """All stages in one process on four devices."""
  folder = tmp_path_factory.mktemp('whole')
  pipeline(folder, count=1, devices=4)
  return folder


def assert_same_results(folder, reference) -> None:
  """Losses of every stage, every score of the teacher, every model's metrics, the report."""
  for stage in ('cpt', 'sft', 'student_sft', 'distill'):
    np.testing.assert_allclose(
      *(trainer.losses(f / 'run' / stage) for f in (folder, reference)), rtol=1e-4
    )
  for kind in ('candidates', 'judgements'):
    rows, wanted = (
      [tuple(row.values()) for row in pq.read_table(f / 'run/score/shards' / kind).to_pylist()]
      for f in (folder, reference)
    )
    assert [row[:2] for row in rows] == [row[:2] for row in wanted]
    np.testing.assert_allclose(
      [row[2] for row in rows], [row[2] for row in wanted], rtol=1e-4, atol=1e-4
    )
  results, wanted = (
    json.loads((f / 'run/evaluate/results.json').read_text()) for f in (folder, reference)
  )
  for row in (*results.values(), *wanted.values()):
    del row['title']  # a text
    row.pop('against', None)  # names
    if 'fusion' in row:
      row['fusion'] = row['fusion']['weight']
  assert results.keys() == wanted.keys()
  for name, row in wanted.items():
    for metric, value in row.items():
      if metric != 'ms_per_pair':
        assert results[name][metric] == pytest.approx(value, rel=1e-4), (name, metric)
  for f in (folder, reference):
    assert (f / 'run/report/report.md').is_file() and (f / 'run/export/student').is_dir()


@pytest.mark.slow
class TestWholePipeline:
  def test_two_processes_give_the_tables_of_one(self, whole, tmp_path):
    pipeline(tmp_path)
    assert_same_results(tmp_path, whole)
    # The pairs and queries are those of both.
    assert 'evaluate student 12/12 queries' in (tmp_path / 'process.0.log').read_text()

  @pytest.mark.parametrize(('stage', 'process'), [('score', 1), ('evaluate', 0), ('evaluate', 1)])
  def test_asked_to_stop_while_they_score_both_end_and_then_go_on(
    self, whole, tmp_path, stage, process
  ):
    pipeline(tmp_path, bomb=(stage, process, 2))
    said = (tmp_path / 'process.0.log').read_text()
    assert f'{stage}: stopped' in said and 'the same command ' in said
    assert json.loads((tmp_path / f'run/{stage}/manifest.json').read_text())['status'] == 'running'
    pipeline(tmp_path)
    assert_same_results(tmp_path, whole)


def test_checking_a_config_starts_no_backend_because_processes_join_before():
  code = (
    'from jax._src import xla_bridge; from disranker_jax.commands.common import load_config; '
    'from disranker_jax.pipeline import all_systems; '
    "load_config('configs/tiny.py', []); print(xla_bridge.backends_are_initialized())"
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=gang.ROOT, capture_output=True, text=True, check=False
  )
  assert done.stdout == 'False\n', done.stderr


def test_variables_of_a_cluster_alone_start_none(monkeypatch):
  for name in ('SLURM_JOB_ID', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'):
    monkeypatch.setenv(name, '4')
  processes.start()
  assert processes.is_first()


@pytest.mark.parametrize('given', [{}, {'DISRANKER_PROCESSES': '2'}, {'DISRANKER_PROCESSES': 'x'}])
def test_a_coordinator_without_numbers_is_an_error_that_names_them(monkeypatch, given):
  for name, value in ({'DISRANKER_COORDINATOR': '127.0.0.1:1'} | given).items():
    monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match='set DISRANKER_PROCESSES '):
    processes.start()
