"""Statistics of scores against counting by hand, and the error for collapsed scores."""

import types

import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.rankers import score_statistics

SETTINGS = types.SimpleNamespace(min_std=1e-3, max_tied_share=0.5)


def by_hand(scores, sizes) -> float:
  """The share of tied pairs, pair by pair."""
  tied = pairs = at = 0
  for size in sizes:
    of_query = scores[at : at + size]
    at += size
    for i in range(size):
      for j in range(i):
        pairs += 1
        tied += of_query[i] == of_query[j]
  return tied / pairs if pairs else 0.0


@pytest.mark.parametrize('seed', range(5))
def test_ties_are_counted_within_queries(seed):
  rng = np.random.default_rng(seed)
  sizes = rng.integers(0, 6, 40)
  scores = rng.integers(0, 4, sizes.sum()).astype(np.float32)
  found = score_statistics.describe(scores, sizes)
  assert found['ties'] == pytest.approx(by_hand(scores, sizes))
  assert 0 < found['ties'] < 1


def test_queries_of_one_document_have_no_ties():
  assert score_statistics.describe(np.ones(5, np.float32), [1] * 5)['ties'] == 0


def test_moments_quantiles_histogram_and_labels():
  rng = np.random.default_rng(1)
  scores = rng.normal(3, 2, 4000).astype(np.float32)
  labels = rng.integers(0, 3, 4000)
  found = score_statistics.describe(scores, [10] * 400, labels)
  assert (found['pairs'], found['queries']) == (4000, 400)
  assert found['mean'] == pytest.approx(scores.astype(np.float64).mean())
  assert found['quantiles']['0.95'] == pytest.approx(3 + 1.645 * 2, abs=0.2)
  assert sum(found['histogram']['counts']) == 4000
  for label, of_label in found['by_label'].items():
    assert of_label['pairs'] == (labels == label).sum()
    assert of_label['quantiles']['0.5'] == pytest.approx(np.median(scores[labels == label]))
  assert found['saturated'] < 0.01
  assert score_statistics.describe(np.clip(scores, 2, 4), [10] * 400)['saturated'] > 0.5


def test_kinds_together_are_the_moments_of_all_scores():
  rng = np.random.default_rng(2)
  parts = {'a': rng.normal(0, 1, 50), 'b': rng.normal(5, 3, 500)}
  stats = {k: score_statistics.describe(v, [len(v)]) for k, v in parts.items()}
  every = np.concatenate(list(parts.values()))
  found = score_statistics.together(stats)
  assert found['mean'] == pytest.approx(every.mean()) and found['std'] == pytest.approx(every.std())
  around = np.concatenate([v - v.mean() for v in parts.values()])
  assert found['within'] == pytest.approx(around.std())


@pytest.mark.parametrize(
  ('scores', 'said'),
  [(np.full(12, 0.3), 'their deviation is 0'), ([1, 1, 1, 5] * 3, '50% of the pairs of one query')],
)
def test_collapsed_scores_are_refused(scores, said):
  scores = np.array(scores, np.float32)
  settings = types.SimpleNamespace(min_std=1e-3, max_tied_share=0.4)
  stats = score_statistics.describe(scores, [4, 4, 4])
  with pytest.raises(UserError, match=said):
    score_statistics.refuse_collapsed('candidates', stats, settings)


def test_scores_with_an_order_are_not():
  stats = score_statistics.describe(np.arange(12, dtype=np.float32), [4, 4, 4])
  score_statistics.refuse_collapsed('candidates', stats, SETTINGS)
