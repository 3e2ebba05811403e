"""`--seeds` after a change: which runs of other seeds count, are repeated, or are refused."""

import functools
import json

import pytest
import test_systems

from disranker_jax import config as configs
from disranker_jax import main
from disranker_jax.errors import UserError
from disranker_jax.pipeline import manifest, runner, seeds, systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.report import seeds as other_seeds

toy, config, workdir = test_systems.toy, test_systems.config, test_systems.workdir
PACE = 'learn: config.learn.pace: was 1.0, is now 2.0'


def summary_of(folder) -> dict:
  return json.loads((folder / 'report' / 'summary.json').read_text())


def about_seeds(folder) -> list[str]:
  """What the report says of the seeds that it leaves out."""
  return [w for w in summary_of(folder)['warnings'] if w.startswith('seed')]


def trained(folder, seed) -> dict:
  """The manifest of the training of a seed."""
  return manifest.read(seeds.folder(folder, seed) / 'learn')


@pytest.fixture
def repeated(config, workdir):
  """A run with the seeds 0, 5 and 6."""
  seeds.run(config, workdir, [5, 6])
  assert summary_of(workdir)['seeds'] == {'after': {'0': 0.75, '5': 0.75, '6': 0.75}}
  assert not about_seeds(workdir)
  return workdir


class TestReport:
  def test_seeds_of_other_settings_are_left_out_with_a_warning(self, config, repeated):
    config.learn.pace = 2.0
    runner.run(config, repeated, rerun=['learn'])
    assert summary_of(repeated)['seeds'] == {}
    assert about_seeds(repeated) == [
      f'seeds 5, 6 are left out, because other settings or inputs were used ({PACE}); to train '
      'again, delete seeds/5, seeds/6 and add --seeds=5,6'
    ]
    seeds.run(config, repeated, [6], ['learn'])
    assert summary_of(repeated)['seeds'] == {'after': {'0': 0.75, '6': 0.75}}
    [warning] = about_seeds(repeated)
    assert warning.startswith('seed 5 is left out')

  def test_seeds_of_other_data_are_left_out(self, config, repeated, tmp_path):
    file = tmp_path / 'judgements.jsonl'
    file.write_text(''.join(file.read_text().splitlines(keepends=True)[:-2]))
    runner.run(config, repeated, rerun=['prepare'])
    assert summary_of(repeated)['seeds'] == {}
    assert '(learn: its input prepare judgements has changed)' in about_seeds(repeated)[0]

  def test_a_seed_that_the_run_itself_has_now_counts_once(self, config, repeated):
    config.finder.seed = 5
    runner.run(config, repeated, rerun=['learn'])
    assert summary_of(repeated)['seeds'] == {'after': {'5': 0.75, '6': 0.75}}

  def test_a_seeds_run_has_fewer_rows_and_inputs_but_no_others(self, config, tmp_path):
    """Rows that the seed does not decide read records of their own."""
    run, other = (Run(config, tmp_path / name, None) for name in ('run', 'run/seeds/5'))

    def write(of: Run, stage: str, seed: int, **inputs):
      done = manifest.Manifest(of.folder(stage), stage, {'finder.seed': seed}, inputs)
      done.finished({})

    for each, seed in ((run, 0), (other, 5)):
      write(each, 'learn', seed, **{'prepare judgements': 'a'})
      learned = manifest.read(each.folder('learn'))['fingerprint']
      more = {'prepare clicks': 'b'} if each is run else {}
      write(each, 'search', seed, learn=learned, **{'prepare test': 'c'}, **more)
    assert other_seeds.differing(run, other) == ''
    write(other, 'search', 5, learn='of an earlier training', **{'prepare test': 'c'})
    assert other_seeds.differing(run, other) == 'search: its input learn has changed'
    write(run, 'learn', 0, **{'prepare judgements': 'a', 'finder.model': 'd'})
    assert other_seeds.differing(run, other) == (
      'learn: its input finder.model is new in the config'
    )


class TestRerun:
  def test_a_repeated_stage_is_repeated_where_it_is_stale(self, config, repeated):
    config.learn.pace = 2.0
    runner.run(config, repeated, rerun=['learn'])
    seeds.run(config, repeated, [5], ['learn'])
    before = trained(repeated, 5)
    assert before['config']['learn.pace'] == 2
    # After a stop, the same command repeats no seed that it has done.
    seeds.run(config, repeated, [5, 6], ['learn'])
    assert trained(repeated, 5) == before and trained(repeated, 6)['config']['learn.pace'] == 2
    assert summary_of(repeated)['seeds'] == {'after': {'0': 0.75, '5': 0.75, '6': 0.75}}

  def test_what_follows_from_a_repeated_stage_may_be_stale_too(self, config, repeated):
    config.learn.pace = 2.0
    runner.run(config, repeated, rerun=['prepare'])
    seeds.run(config, repeated, [5], ['prepare'])
    assert trained(repeated, 5)['config']['learn.pace'] == 2

  def test_what_reads_a_stage_that_will_work_again_is_repeated(self, config, repeated, monkeypatch):
    """Such as the training on generated queries that are filtered again."""
    stage = systems.find(config, 'learn')
    monkeypatch.setitem(vars(stage), 'is_complete', lambda run: False)
    changed, place = seeds.with_seed(config, 5), seeds.folder(repeated, 5)
    assert seeds.again(changed, place, ['search']) == ['search']
    assert seeds.again(changed, place, []) == []

  def test_a_stale_seed_is_refused_before_the_first_one_trains(
    self, config, repeated, tmp_path, monkeypatch
  ):
    (tmp_path / 'c.py').write_text(
      'import functools\nfrom disranker_jax.config import defaults\n'
      "get_config = functools.partial(defaults, 'toy')\n"
    )
    flat, default = configs.flatten(config), configs.flatten(configs.defaults('toy'))
    changed = {k: v for k, v in flat.items() if v != default[k]} | {'learn.pace': 2.0}
    flags = [f'--config.{key}={value}' for key, value in changed.items()]
    monkeypatch.setattr(main.runtime, 'prepare', lambda: None)
    command = functools.partial(
      main.main,
      [f'--config={tmp_path / "c.py"}', f'--workdir={repeated}', '--seeds=0,5,7', *flags],
    )
    before = manifest.read(repeated / 'learn')
    with pytest.raises(UserError) as caught:
      command()
    place = seeds.folder(repeated, 5)
    assert str(caught.value).startswith(
      f'{place / "learn"} is stale: config.learn.pace: was 1.0, is now 2.0. Repeat the stage'
    )
    assert '--rerun=learn' in str(caught.value) and f'or delete {place}' in str(caught.value)
    assert manifest.read(repeated / 'learn') == before
    command.args[0].append('--rerun=learn')
    command()
    assert trained(repeated, 5)['config']['learn.pace'] == 2
    assert summary_of(repeated)['seeds'] == {'after': {'0': 0.75, '5': 0.75, '7': 0.75}}
    assert len(about_seeds(repeated)) == 1  # of seed 6, which the command does not name
