"""Gains and discounts of nDCG in losses."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from losses_reference import mean

from disranker_jax.losses import ndcg


def test_expected_discounts_of_ties_are_exact_far_down_a_long_list():
  mean_discount, apart = ndcg.tied_discounts(200, 0)
  for above, tied in ((0, 2), (150, 2), (198, 2), (190, 7), (0, 200)):
    places = [1 / np.log2(r + 1) for r in range(above + 1, above + tied + 1)]
    gaps = [abs(x - y) for x, y in itertools.combinations(places, 2)]
    assert mean_discount[above, tied] == pytest.approx(mean(places), rel=1e-10)
    assert apart[above, tied] == pytest.approx(mean(gaps), rel=1e-8)


@pytest.mark.parametrize('grades', [[2, 0, 1, 0], [200, 0, 199, -1], [1000, 998, 0, 3]])
def test_gains_of_any_grade_are_finite_and_those_of_the_definition(grades):
  found = ndcg.normalised_gains(jnp.array([grades], jnp.float32), jnp.ones((1, 4), bool))
  gains = [2 ** max(grade, 0) - 1 for grade in grades]  # Python's integers do not overflow
  ideal = sum(
    gain * float(d) / 2 ** max(grades)
    for gain, d in zip(sorted(gains, reverse=True), ndcg.discounts(4), strict=True)
  )
  np.testing.assert_allclose(found[0], [g / 2 ** max(grades) / ideal for g in gains], 1e-6, 1e-30)
