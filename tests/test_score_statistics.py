"""Statistics of scores against counting by hand, and the error for collapsed scores."""

import functools
import types

import numpy as np
import pytest

from disranker_jax import config as configs
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.models import weights
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run
from disranker_jax.rankers import filling, score_statistics
from disranker_jax.rankers.shards import Shards
from disranker_jax.rankers.work import Work
from disranker_jax.stages import quantise_gate, roles, score

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


class Constant:
  """A scorer that gives every document the same score."""

  positions, least_unit = 100, 1

  def __init__(self):
    self.scored, self.work = [], Work()

  def tokens_of(self, group):
    return 10.0 * len(group.docs)

  def parts(self, parts):
    for unit, groups in parts:
      for group in groups:
        self.scored.append(group.query_id)
        yield unit, group, np.full(len(group.docs), 0.3, np.float32)


def test_a_collapse_shows_after_the_first_queries_and_nothing_is_lost(tmp_path, monkeypatch):
  monkeypatch.setattr(filling, 'FIRST', 5)
  docs = tuple(Document(str(i), 'title', '') for i in range(3))
  groups = [Group(f'q{i}', f'q{i}', docs) for i in range(40)]
  shards = Shards(tmp_path, len(groups), {'model': 'm'})
  c, scorer = types.SimpleNamespace(min_std=1e-3, max_tied_share=0.5), Constant()
  look = functools.partial(score.look_at_first, 'candidates', shards, c)
  fill = functools.partial(
    filling.score_missing, 'score', groups, shards, scorer, shard_seconds=60.0, unit_queries=3,
    look=look,
  )  # fmt: skip
  for _ in range(2):  # the same command again scores nothing
    with pytest.raises(UserError, match=r'first 6 queries of candidates have collapsed.*min_std'):
      fill()
    assert scorer.scored == [f'q{i}' for i in range(6)]
  c.min_std, c.max_tied_share = 0.0, 1.0  # as the message advises
  fill()
  assert scorer.scored == [g.query_id for g in groups]
  assert [row[0] for row in shards.rows()] == [g.query_id for g in groups for _ in docs]


def test_the_version_of_the_teacher_is_noted_and_scores_without_one_stay(tmp_path, monkeypatch):
  config = configs.defaults()
  config.stages, config.teacher.model = ('prepare', 'score'), 'tiny-decoder'
  run, teacher = Run(config, tmp_path, None), roles.open_role(config, 'teacher')
  before = score.maker(run, teacher)  # a model that is made here has no version
  monkeypatch.setattr(weights, 'version', lambda name: f'{name}@1')
  now = score.maker(run, teacher)
  later = now | {'version': 'tiny-decoder@2'}
  assert now == before | {'version': 'tiny-decoder@1'}
  group = Group('q', 'q', (Document('d', 'title', ''),))
  for made, is_kept in ((before, True), (now, False)):
    shards = Shards(tmp_path / str(is_kept), 1, made)
    shards.folder.mkdir()
    shards.write(range(1), [(group, np.ones(1, np.float32))])
    assert Shards(shards.folder, 1, now).missing() == []
    run.folder('score').mkdir(exist_ok=True)
    quantise_gate.write(run, made, {'pairs': 1})
    assert quantise_gate.stored(run, now) == {'pairs': 1}
    assert bool(quantise_gate.stored(run, later)) == is_kept
  with pytest.raises(UserError, match='made with another version; do the scores again'):
    Shards(shards.folder, 1, later).missing()


@pytest.mark.parametrize('key', ['min_std', 'max_tied_share'])
def test_what_the_message_advises_keeps_the_scores(key):
  config = configs.defaults()
  before = manifest.settings_of(config, ('score',))
  config.score[key] /= 2
  assert manifest.settings_of(config, ('score',)) == before


def test_scores_with_an_order_are_not():
  stats = score_statistics.describe(np.arange(12, dtype=np.float32), [4, 4, 4])
  score_statistics.refuse_collapsed('candidates', stats, SETTINGS)
