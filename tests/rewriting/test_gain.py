"""The change of held-out values while a rewriter learns."""

import numpy as np
import pytest

from disranker_jax.rewriting import gain


def test_the_difference_is_paired_by_query_and_its_p_is_exact():
  before = {'reward': np.arange(6.0), 'ndcg@10': np.zeros(6)}
  after = {'reward': np.arange(6.0) + 0.5, 'ndcg@10': np.array([1, 0, 0, 0, 0, 0.0])}
  found = gain.gained(before, after)
  # Of 2^6 ways to swap, the two with equal signs are as extreme; unpaired, .5 would be nothing.
  reward = {'value': 0.5, 'low': 0.5, 'high': 0.5, 'p': 2 / 64, 'queries': 6}
  assert found['reward'] == pytest.approx(reward)
  assert found['ndcg@10']['p'] == 1 and found['ndcg@10']['value'] == pytest.approx(1 / 6)
  assert gain.described({'reward': found['reward']}) == (
    'reward +0.500 (95 % interval +0.500 to +0.500, p 0.031)'
  )


def test_one_query_tells_nothing():
  one = {'reward': np.array([1.0])}
  assert gain.gained(one, one) == {}
