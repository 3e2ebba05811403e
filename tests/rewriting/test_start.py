"""A rewriter that starts from another run: what must be the same there, and what is only named."""

import pytest

from disranker_jax.config import defaults, save
from disranker_jax.errors import UserError
from disranker_jax.pipeline import systems
from disranker_jax.rewriting import start
from disranker_jax.stages import earlier


@pytest.fixture
def config(tmp_path):
  """A config that starts from a run with the defaults."""
  c = defaults('query_rewriting')
  c.rewriter.model = 'tiny-decoder'
  save(c, tmp_path / 'config.json')
  c.rewriter.init_from = str(tmp_path)
  return c


def test_what_the_rewriter_has_learned_to_read_must_be_the_same(config, tmp_path):
  with pytest.raises(UserError, match='stage cpt is not done'):  # nothing differs
    earlier.fingerprint(config, tmp_path / 'new', 'rewriter')
  config.rewriter.template = 'Rewrite {query} : {title}'
  message = r"config\.rewriter\.template='{query} : {title}'; here it is 'Rewrite {query}"
  with pytest.raises(UserError, match=message):
    earlier.fingerprint(config, tmp_path / 'new', 'rewriter')


@pytest.mark.parametrize('stages', [('prepare', 'rewrite', 'search'), ('prepare', 'search')])
def test_what_may_differ_is_named_once(config, capsys, stages):
  """By the checks of all stages that the config lists."""
  config.stages = stages
  listed = systems.listed(config)
  assert tuple(stage.name for stage in listed) == stages
  for stage in listed:
    stage.check(config)
  assert 'other settings' not in capsys.readouterr().err
  config.rewrite.update(mode='replace', max_new=12)
  for stage in listed:
    stage.check(config)
  (said,) = [line for line in capsys.readouterr().err.splitlines() if 'other settings' in line]
  assert said.endswith('set them to the same values if that is not meant')
  assert "rewrite.mode='replace' (there 'append')" in said and 'max_new=12 (there 16)' in said
  assert 'repeat' not in said


def test_a_folder_that_is_no_run_is_refused_and_a_deleted_one_is_not_read(config, tmp_path):
  (tmp_path / 'config.json').unlink()
  with pytest.raises(UserError, match=r'config\.rewriter\.init_from=.*is not the workdir of a run'):
    start.check(config)
  config.rewriter.init_from = str(tmp_path / 'gone')
  start.check(config)
