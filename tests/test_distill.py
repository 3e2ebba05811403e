"""From a teacher's scores to a student's targets."""

import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from disranker_jax import config as configs
from disranker_jax import losses
from disranker_jax.errors import UserError
from disranker_jax.models import weights
from disranker_jax.pipeline import systems
from disranker_jax.rankers import score_statistics
from disranker_jax.stages import distill, roles


def scored(offset: float = 0.0, scale: float = 1.0) -> tuple[list[np.ndarray], dict]:
  """Scores of three queries, each moved by its own multiple of `offset`, and their statistics."""
  rng = np.random.default_rng(0)
  sizes = [4, 7, 2]
  queries = [
    (scale * rng.normal(size=n) + offset * i).astype(np.float32) for i, n in enumerate(sizes)
  ]
  stats = score_statistics.describe(np.concatenate(queries), sizes)
  return queries, score_statistics.together({'candidates': stats})


def test_over_all_the_targets_have_mean_0_and_deviation_1():
  queries, facts = scored(offset=3.0)
  targets, numbers = distill.normalizer(facts, 'all')
  found = np.concatenate([targets(q) for q in queries])
  assert found.mean() == pytest.approx(0, abs=1e-6) and found.std() == pytest.approx(1)
  assert numbers == {'mean': facts['mean'], 'std': facts['std']}


def test_by_query_each_has_mean_0_and_all_have_deviation_1():
  queries, facts = scored(offset=3.0)
  targets, numbers = distill.normalizer(facts, 'query')
  found = [targets(q) for q in queries]
  np.testing.assert_allclose([t.mean() for t in found], 0, atol=1e-6)
  assert np.concatenate(found).std() == pytest.approx(1)
  assert numbers == {'std': facts['within']}


def test_by_query_the_targets_do_not_depend_on_a_querys_offset_or_the_teachers_unit():
  before, facts = scored()
  after, moved = scored(offset=50.0, scale=7.0)
  plain, changed = (distill.normalizer(f, 'query')[0] for f in (facts, moved))
  for one, two in zip(before, after, strict=True):
    np.testing.assert_allclose(plain(one), changed(two), atol=1e-4)


def test_without_normalisation_scores_are_unchanged():
  queries, facts = scored()
  targets, numbers = distill.normalizer(facts, '')
  assert targets(queries[0]) is queries[0] and numbers == {}


def test_margins_between_documents_are_the_same_under_all_but_for_the_unit():
  queries, facts = scored(offset=3.0)
  scores = np.zeros((1, len(queries[1])), np.float32)
  mask = np.ones_like(scores, bool)
  made = {}
  for how in ('all', 'query'):
    targets, numbers = distill.normalizer(facts, how)
    loss = losses.margin_mse(scores, targets(queries[1])[None], mask)
    made[how] = float(loss) * numbers['std'] ** 2
  assert made['all'] == pytest.approx(made['query'], rel=1e-4)


def test_scores_that_do_not_differ_within_queries_are_refused():
  facts = {'mean': 1.0, 'std': 2.0, 'within': 0.0}
  with pytest.raises(UserError, match='are equal'):
    distill.normalizer(facts, 'query')


@pytest.fixture(scope='module')
def headless(tmp_path_factory):
  """An encoder without the two matrices of its head."""
  folder = tmp_path_factory.mktemp('student') / 'encoder'
  shutil.copytree(weights.find('tiny-encoder'), folder)
  file = folder / 'model.safetensors'
  kept = {k: v for k, v in load_file(file).items() if not re.search('pooler|classifier', k)}
  save_file(kept, file)
  return folder


@pytest.mark.parametrize(
  ('stage', 'trainable', 'advice'),
  [
    ('distill', 'blocks', 'blocks|pooler|classifier'),
    ('distill', 'blocks|classifier', 'blocks|classifier|pooler'),
    ('student_sft', 'params/pooler', 'params/pooler|classifier'),
    ('distill', 'classifier|pooler', None),
    ('distill', '.*', None),
  ],
)
def test_a_student_whose_head_would_stay_random_is_refused(headless, stage, trainable, advice):
  config = configs.defaults()
  config.student.update(model=str(headless), layers=(), max_len=32, row_len=32)
  config[stage].trainable = trainable
  models = {'student': roles.open_role(config, 'student')}
  check = systems.find(config, stage).check_models
  if advice is None:
    return check(config, models)
  with pytest.raises(UserError) as caught:
    check(config, models)
  assert f'config.{stage}.trainable={trainable!r}: leaves a part of the head' in str(caught.value)
  assert str(caught.value).endswith(f'write {advice!r}')
  config[stage].trainable = advice
  check(config, models)


def test_a_head_that_student_sft_trains_may_stay_as_it_is(headless):
  config = configs.defaults()
  config.student.update(model=str(headless), layers=(), max_len=32, row_len=32)
  config.distill.update(trainable='blocks', init_from='student_sft')
  systems.find(config, 'distill').check_models(
    config, {'student': roles.open_role(config, 'student')}
  )
