"""From a teacher's scores to a student's targets."""

import numpy as np
import pytest

from disranker_jax import losses
from disranker_jax.errors import UserError
from disranker_jax.rankers import score_statistics
from disranker_jax.stages import distill


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
