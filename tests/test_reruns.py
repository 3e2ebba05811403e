"""--rerun in a command that is repeated: what it began again continues, and nothing is lost."""

import json

import pytest

from disranker_jax import config as configs
from disranker_jax.config.settings import Key, at_least
from disranker_jax.errors import Stopped, UserError
from disranker_jax.pipeline import reruns, runner, systems
from disranker_jax.pipeline.stage import Run, Stage
from disranker_jax.pipeline.systems import System
from disranker_jax.stages.result_table import Table

NAMES = ('first', 'second', 'third')
RAN = []  # stages, in the order in which they ran
FAILS = {}  # stage -> what it raises


def execute(name: str):
  def work(run) -> dict:
    RAN.append(name)
    if error := FAILS.pop(name, None):
      raise error
    (run.folder(name) / 'work').touch()
    return {}

  return work


def work_of(name: str):
  return lambda run: 'work is saved' if (run.folder(name) / 'work').exists() else ''


@pytest.fixture
def config(monkeypatch):
  """A system of three stages, each of which reads the one before."""
  RAN.clear()
  FAILS.clear()
  pace = {'pace': Key(1.0, at_least(0), 'How fast it works.')}
  stages = tuple(
    Stage(
      name, name, execute(name), pace, reads_stages=NAMES[max(i - 1, 0) : i], kept=work_of(name)
    )
    for i, name in enumerate(NAMES)
  )
  table = Table('third', 'no row', {}, first_stage='', subject='')
  monkeypatch.setitem(systems.every(), 'three', System(stages, {}, table))
  configs.mappings.cache_clear()
  yield configs.defaults(system='three')
  configs.mappings.cache_clear()


@pytest.fixture
def workdir(config, tmp_path):
  runner.run(config, tmp_path / 'run')
  return tmp_path / 'run'


def ran(config, workdir, *rerun: str, **options) -> list[str]:
  """The stages that a command does."""
  RAN.clear()
  runner.run(config, workdir, rerun=rerun, **options)
  return RAN.copy()


def broken_off(config, workdir, *rerun: str, error=None, **options) -> None:
  """A command that ends in the last stage."""
  error = error or Stopped('')
  FAILS['third'] = error
  with pytest.raises(type(error)):
    runner.run(config, workdir, rerun=rerun, **options)


@pytest.mark.parametrize(
  'error', [Stopped(''), UserError('bad row'), RuntimeError('as a kill, which says nothing')]
)
def test_the_same_command_continues_until_it_has_finished(config, workdir, capsys, error):
  for _ in range(2):
    broken_off(config, workdir, 'first', error=error)
  (workdir / 'third').mkdir(exist_ok=True)  # an error of a stage that wrote nothing removes it
  (workdir / 'third' / 'half').touch()
  assert ran(config, workdir, 'first') == ['third'] and (workdir / 'third' / 'half').exists()
  assert '--rerun: continues what it began in' in capsys.readouterr().err
  assert ran(config, workdir, 'first') == [*NAMES] and not (workdir / 'third' / 'half').exists()
  assert 'continues' not in capsys.readouterr().err


def test_a_stop_before_the_first_stage_begins_loses_nothing(config, workdir):
  FAILS['first'] = Stopped('')
  with pytest.raises(Stopped):
    runner.run(config, workdir, rerun=['first'])
  assert not (workdir / 'second').exists()
  assert ran(config, workdir, 'first') == [*NAMES]


def test_what_is_stale_since_is_deleted_with_what_follows(config, workdir):
  broken_off(config, workdir, 'first')
  config.second.pace = 2.0
  assert ran(config, workdir, 'first') == ['second', 'third']
  config.second.pace = 3.0
  assert ran(config, workdir, 'first') == [*NAMES]


def test_a_command_without_it_that_finishes_ends_it_too(config, workdir):
  broken_off(config, workdir, 'first')
  broken_off(config, workdir)
  assert ran(config, workdir) == ['third']
  assert ran(config, workdir, 'first') == [*NAMES]


@pytest.mark.parametrize('name', NAMES[:2])
def test_an_error_that_asks_for_the_same_words_starts_them_over(config, workdir, name):
  """As of a checkpoint that cannot be read: to continue would end in the same error."""
  error = UserError(f'no checkpoint can be read; do its stage again with --rerun={name}')
  broken_off(config, workdir, 'first', error=error)
  assert ran(config, workdir, 'first') == ([*NAMES] if name == 'first' else ['third'])


def test_a_stage_that_the_config_has_no_more_does_not_keep_it_open(config, workdir):
  broken_off(config, workdir, 'first')
  config.stages = NAMES[:2]
  assert ran(config, workdir) == []
  assert ran(config, workdir, 'first') == [*NAMES[:2]]


def test_names_in_a_note_are_those_of_stages(config, workdir):
  """The workdir may be somebody else's."""
  outside = workdir.parent / 'outside'
  outside.mkdir()
  (outside / 'manifest.json').write_text('not JSON')
  note = {'rerun': ['first'], 'stages': ['../outside', ['first'], 3], 'finished': False}
  (workdir / reruns.FILE).write_text(json.dumps(note))
  assert ran(config, workdir) == []


def test_part_of_the_stages_may_be_chosen(config, workdir):
  broken_off(config, workdir, 'second', stages=['second', 'third'])
  assert ran(config, workdir, 'second', stages=['second', 'third']) == ['third']
  assert ran(config, workdir, 'second', stages=['second']) == ['second']
  assert ran(config, workdir, 'second') == ['second', 'third']


def test_other_words_start_over(config, workdir):
  broken_off(config, workdir, 'first')
  broken_off(config, workdir, 'second', 'first')
  assert ran(config, workdir, 'first', 'second') == ['third']
  broken_off(config, workdir, 'first')
  assert ran(config, workdir, 'second') == ['second', 'third']


@pytest.mark.parametrize(
  'note', ['', '[]', '{"rerun": ["first"], "stages": 3}', '{"stages": []}', None]
)
def test_without_a_note_that_can_be_read_it_starts_over(config, workdir, note):
  broken_off(config, workdir, 'first')
  (workdir / reruns.FILE).unlink()
  if note is not None:
    (workdir / reruns.FILE).write_text(note)
  assert ran(config, workdir, 'first') == [*NAMES]


def test_a_call_of_a_launcher_never_deletes_twice(config, workdir, monkeypatch):
  """A host that fails after the last stage makes the launcher repeat a finished command."""
  monkeypatch.setenv(reruns.CALL, 'one')
  broken_off(config, workdir, 'first')
  assert ran(config, workdir, 'first') == ['third']
  assert ran(config, workdir, 'first') == ran(config, workdir, 'first') == []
  monkeypatch.setenv(reruns.CALL, 'two')
  broken_off(config, workdir, 'first')
  monkeypatch.setenv(reruns.CALL, 'three')  # after its retries are used up
  assert ran(config, workdir, 'first') == ['third']


def test_more_work_of_the_command_belongs_to_it(config, workdir):
  """As the trainings of --seeds."""
  assert ran(config, workdir, 'first', ends=False) == [*NAMES]
  assert ran(config, workdir, 'first', ends=False) == []
  reruns.finish(Run(config, workdir, None))
  assert ran(config, workdir, 'first', ends=False) == [*NAMES]


def test_a_run_that_wrote_nothing_is_removed(config, tmp_path):
  config.stages = ('first',)
  FAILS['first'] = UserError('bad row')
  with pytest.raises(UserError):
    runner.run(config, tmp_path / 'run', rerun=['first'])
  assert not (tmp_path / 'run').exists()
