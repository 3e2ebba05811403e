"""Other teachers' scores and hard negatives: joined to the right pairs, averaged, filtered."""

import dataclasses
import json
import math

import numpy as np
import pytest

from disranker_jax.data import negatives
from disranker_jax.data.negatives import Negatives
from disranker_jax.data.records import UNJUDGED, BadRows, Document, Group
from disranker_jax.data.teacher_scores import Moments, Teachers
from disranker_jax.errors import UserError


def group(name, *ids, **known):
  return Group(name, f'text of {name}', tuple(Document(i, f't{i}', 's', **known) for i in ids))


GROUPS = [group('q2', 'a', 'b', 'c'), group('q1', 'a', 'd'), group('q3', 'x')]


def scores_file(path, rows):
  rows = [{'query_id': q, 'doc_id': d, 'score': s} for q, d, s in rows]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return f'jsonl:{path}'


def joined(addresses, groups=GROUPS, drop=True):
  teachers = Teachers(addresses, drop=drop)
  found = list(teachers(iter(groups), BadRows()))
  return teachers.facts, {(g.query_id, d.doc_id): d.teacher for g in found for d in g.docs}, found


def test_moments_are_numpys():
  values = np.random.default_rng(0).normal(1e6, 3, 500)
  moments = Moments()
  for value in values:
    moments.add(value)
  assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
  assert moments.std == pytest.approx(values.std(), rel=1e-9)


def test_scores_of_one_teacher_are_unchanged(tmp_path):
  address = scores_file(
    tmp_path / 't.jsonl',
    [('q1', 'a', 5), ('q1', 'd', -2), ('q2', 'c', 0.5), ('q2', 'a', 1), ('q9', 'a', 7)],
  )
  facts, scores, found = joined([address])
  assert [g.query_id for g in found] == ['q2', 'q1']  # q3 has none
  assert scores[('q1', 'a')] == 5 and scores[('q2', 'c')] == 0.5
  assert math.isnan(scores[('q2', 'b')])
  values = [5, -2, 0.5, 1]
  assert facts['pairs'] == 4 and facts['queries_without'] == 1
  assert facts['mean'] == pytest.approx(np.mean(values))
  assert facts['std'] == pytest.approx(np.std(values))
  _, kept, _ = joined([address], drop=False)
  assert math.isnan(kept[('q3', 'x')])


def test_several_teachers_are_standardised_and_averaged(tmp_path):
  pairs = [('q2', 'a'), ('q2', 'b'), ('q2', 'c'), ('q1', 'a'), ('q1', 'd')]
  rng = np.random.default_rng(0)
  one, two = rng.normal(5, 100, 5), rng.normal(0, 0.01, 4)
  first = [(*pair, score) for pair, score in zip(pairs, one, strict=True)]
  second = [(*pair, score) for pair, score in zip(pairs, two, strict=False)]
  addresses = [
    scores_file(tmp_path / 'one.jsonl', first), scores_file(tmp_path / 'two.jsonl', second),
  ]  # fmt: skip
  facts, scores, _ = joined(addresses)
  standard = [(one - one.mean()) / one.std(), (two - two.mean()) / two.std()]
  expected = (standard[0][:4] + standard[1]) / 2
  np.testing.assert_allclose([scores[pair] for pair in pairs[:4]], expected, rtol=1e-9)
  assert math.isnan(scores[pairs[4]])  # the second teacher has none for it
  assert facts['pairs'] == 4
  assert facts['std'] == pytest.approx(expected.std())
  assert facts['mean'] == pytest.approx(expected.mean())
  around = np.r_[expected[:3] - expected[:3].mean(), 0.0]  # of q2's three pairs, and q1's one
  assert facts['within'] == pytest.approx(around.std())
  assert facts['teachers'][addresses[0]]['mean'] == pytest.approx(one.mean())
  # Another scale of one teacher changes nothing.
  scaled = scores_file(tmp_path / 'scaled.jsonl', [(q, d, 3 * s + 7) for q, d, s in first])
  _, again, _ = joined([scaled, addresses[1]])
  np.testing.assert_allclose([again[pair] for pair in pairs[:4]], expected, rtol=1e-7)
  # Nor do the other documents that are joined: judgements and candidates are on one scale.
  _, part, _ = joined(addresses, GROUPS[:1])
  assert [part[pair] for pair in pairs[:3]] == [scores[pair] for pair in pairs[:3]]


def test_a_pair_scored_twice_counts_once_with_the_mean(tmp_path):
  rows = [('q1', 'a', 1), ('q1', 'a', 3), ('q1', 'd', 0)]
  facts, scores, _ = joined([scores_file(tmp_path / 't.jsonl', rows)])
  assert scores[('q1', 'a')] == 2 and facts['pairs'] == 2


def test_teachers_that_teach_nothing_are_refused(tmp_path):
  flat = scores_file(tmp_path / 'flat.jsonl', [('q1', 'a', 1), ('q1', 'd', 1)])
  good = scores_file(tmp_path / 'good.jsonl', [('q1', 'a', 1), ('q1', 'd', 2)])
  with pytest.raises(UserError, match=r'flat\.jsonl: gives all pairs the same score, 1'):
    joined([flat])
  with pytest.raises(UserError, match=r'flat\.jsonl: gives all pairs the same score'):
    joined([good, flat])
  other = scores_file(tmp_path / 'other.jsonl', [('Q1', 'a', 1), ('Q1', 'b', 2)])
  with pytest.raises(UserError, match=r'other\.jsonl: no pair has a score'):
    joined([other])
  # Judgements without teacher scores are kept.
  _, scores, _ = joined([other], drop=False)
  assert len(scores) == 6 and all(math.isnan(score) for score in scores.values())


def pool(*docs):
  return Group('q', 'text', tuple(docs))


def doc(name, label=UNJUDGED, rank=0, teacher=math.nan, in_pool=True):
  return Document(name, name, 's', label, rank, 1.0, in_pool, teacher)


class TestNegatives:
  GROUP = pool(
    *(doc(f'n{rank}', rank=rank) for rank in range(1, 51)), doc('good', 2), doc('bad', 0, 60),
  )  # fmt: skip

  def test_come_from_the_range_and_are_never_judged(self):
    found = Negatives(count=5, min_rank=11, max_rank=20).of(self.GROUP)
    negatives = [d for d in found.docs if d.doc_id.startswith('n')]
    assert len(negatives) == 5 and all(11 <= d.rank <= 20 and d.label == 0 for d in negatives)
    assert [(d.doc_id, d.label) for d in found.docs if d not in negatives] == [
      ('good', 2), ('bad', 0),
    ]  # fmt: skip

  def test_the_draw_depends_on_the_query_and_the_seed_alone(self):
    draws = [Negatives(count=5, seed=seed).of(self.GROUP) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    other = dataclasses.replace(self.GROUP, query_id='other')
    assert Negatives(count=5).of(other).docs != draws[0].docs

  def test_every_rank_of_the_range_is_as_likely(self):
    taken = np.zeros(51)
    for i in range(2000):
      found = Negatives(count=5, min_rank=1, max_rank=50).of(
        dataclasses.replace(self.GROUP, query_id=str(i))
      )
      taken[[d.rank for d in found.docs if d.doc_id.startswith('n')]] += 1
    assert taken.sum() == 10_000
    # 200 per rank are expected, with a standard deviation of sqrt(2000 * .1 * .9) = 13.
    assert taken[1:].min() > 200 - 5 * 13.5 and taken[1:].max() < 200 + 5 * 13.5

  def test_fewer_than_the_count_are_all_taken(self):
    assert len(Negatives(count=9, min_rank=49, max_rank=90).of(self.GROUP).docs) == 4

  def test_the_filter_leaves_out_what_the_teacher_finds_good(self):
    group = pool(
      doc('p1', 1, teacher=3.0), doc('p2', 3, teacher=5.0), doc('p3', 1),
      doc('zero', 0, teacher=9.0), doc('near', rank=1, teacher=2.9),
      doc('edge', rank=2, teacher=2.0),
      doc('far', rank=3, teacher=-4.0), doc('unknown', rank=4),
    )  # fmt: skip
    found = Negatives(count=9, filter_false_negatives=True, margin=1.0).of(group)
    assert [d.doc_id for d in found.docs] == ['p1', 'p2', 'p3', 'zero', 'edge', 'far']
    unguarded = Negatives(count=9).of(group)
    assert len(unguarded.docs) == 8
    # Without a scored positive there is no limit to compare with.
    alone = pool(doc('p', 1), doc('far', rank=3, teacher=-4.0))
    assert len(Negatives(count=9, filter_false_negatives=True).of(alone).docs) == 1

  def test_documents_that_were_judged_outside_the_pool_count_as_documents(self):
    found = Negatives(count=1).of(pool(doc('p', 1, in_pool=False), doc('n', rank=1)))
    assert all(d.in_pool for d in found.docs) and len(found.docs) == 2

  def test_what_is_added_and_left_out_is_counted(self):
    bare = pool(doc('n1', rank=1), doc('n2', rank=2))
    alone = pool(doc('good', 1), doc('unranked'))
    bad_rows = BadRows()
    found = list(Negatives(count=5)(iter([self.GROUP, bare, alone]), bad_rows))
    assert [sum(d.label == 0 for d in group.docs) for group in found] == [6, 0]
    assert bad_rows.notes == {negatives.ADDED: 5, negatives.NONE: 1, negatives.UNLABELED: 1}

  @pytest.mark.parametrize('docs', [[('good', 1), ('no rank',)], [('n1', UNJUDGED, 1)]])
  def test_without_any_to_add_the_error_says_what_the_rows_need(self, docs):
    groups = [pool(*(doc(*fields) for fields in docs))]
    with pytest.raises(UserError, match='unlabeled document of first-stage rank 1 to 100; the so'):
      list(Negatives(count=5)(iter(groups), BadRows()))
    with pytest.raises(UserError, match='rank 1 to 9 that the other teachers score low enough'):
      list(Negatives(5, max_rank=9, filter_false_negatives=True)(iter(groups), BadRows()))
