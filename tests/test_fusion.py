"""The arithmetic of fusion: values by hand, what changes nothing, and the choice of the weight."""

import math

import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.evaluation import fusion, metrics
from disranker_jax.evaluation.fusion import Fusion

MODEL = {'a': 4.0, 'b': 2.0, 'c': 0.0}
FIRST = {'c': 30.0, 'b': 25.0, 'a': 10.0}


class TestMethods:
  def test_reciprocal_ranks_by_hand(self):
    fused = fusion.fuse((MODEL, FIRST), (1, 2), 'ranks')
    assert fused == pytest.approx(
      {'a': 1 / 61 + 2 / 63, 'b': 1 / 62 + 2 / 62, 'c': 1 / 63 + 2 / 61}
    )

  def test_of_equal_scores_the_greater_id_ranks_first(self):
    assert fusion.reciprocal_ranks({'a': 1.0, 'b': 1.0}) == {'b': 1 / 61, 'a': 1 / 62}

  def test_convex_combination_by_hand(self):
    # Scaled: model a 1, b .5, c 0; first stage a 0, b .75, c 1.
    assert fusion.convex(MODEL, FIRST, 0.6) == pytest.approx(
      {'a': 0.6, 'b': 0.6 * 0.5 + 0.4 * 0.75, 'c': 0.4}
    )

  def test_z_scores_have_mean_0_and_deviation_1(self):
    found = fusion.z_scores(MODEL)
    assert found == pytest.approx({'a': math.sqrt(1.5), 'b': 0, 'c': -math.sqrt(1.5)})

  @pytest.mark.parametrize('method', ['scores', 'zscores'])
  def test_scale_shift_and_order_of_the_documents_change_nothing(self, method):
    plain = fusion.convex(MODEL, FIRST, 0.3, method)
    moved = {d: 7 * FIRST[d] - 1000 for d in sorted(FIRST)}
    other = fusion.convex(dict(reversed(MODEL.items())), moved, 0.3, method)
    assert other == pytest.approx(plain)

  def test_weights_0_and_1_are_the_orders_of_one_side(self):
    assert metrics.ranked(fusion.convex(MODEL, FIRST, 1.0)) == ['a', 'b', 'c']
    assert metrics.ranked(fusion.convex(MODEL, FIRST, 0.0)) == ['c', 'b', 'a']

  @pytest.mark.parametrize('method', ['scores', 'zscores'])
  def test_a_document_that_a_side_lacks_counts_as_its_last(self, method):
    lacks = {'c': 30.0, 'b': 10.0}
    fused = fusion.convex(dict.fromkeys('abc', 1.0), lacks, 0.5, method)
    assert fused['a'] == fused['b'] < fused['c']
    # The other side decides between them.
    assert (
      metrics.ranked(fusion.convex({'a': 2.0, 'b': 1.0, 'c': 0.0}, lacks, 0.9, method))[0] == 'a'
    )

  def test_by_ranks_a_document_that_a_side_lacks_gets_nothing_from_it(self):
    fused = fusion.fuse(({'a': 1.0}, {'b': 5.0, 'a': 1.0}), (1, 1), 'ranks')
    assert fused == pytest.approx({'a': 1 / 61 + 1 / 62, 'b': 1 / 61})

  @pytest.mark.parametrize('method', ['scores', 'zscores'])
  def test_the_only_document_that_a_side_found_is_above_those_that_it_lacks(self, method):
    equal = dict.fromkeys('abc', 1.0)
    assert fusion.convex(equal, {'b': 7.0}, 0.4, method) == {'a': 0.0, 'b': 0.6, 'c': 0.0}
    found = fusion.convex(equal, {'b': 7.0, 'c': 7.0}, 0.4, method)
    assert found == {'a': 0.0, 'b': 0.6, 'c': 0.6}

  @pytest.mark.parametrize('method', ['scores', 'zscores'])
  def test_one_document_and_equal_scores_decide_nothing(self, method):
    assert fusion.convex({'a': 3.0}, {'a': 9.0}, 0.5, method) == {'a': 0.0}
    equal = dict.fromkeys(MODEL, 0.1)
    fused = fusion.convex(MODEL, equal, 0.5, method)
    assert metrics.ranked(fused) == ['a', 'b', 'c']
    assert fusion.convex(MODEL, {}, 0.5, method) == pytest.approx(fused)

  def test_the_largest_numbers_stay_finite(self):
    huge = {'a': 1.7e308, 'b': -1.7e308, 'c': 0.0}
    assert fusion.min_max(huge) == pytest.approx({'a': 1, 'b': 0, 'c': 0.5})
    assert all(map(math.isfinite, fusion.z_scores(huge).values()))

  def test_more_runs_and_queries_that_some_lack(self):
    runs = ({'q': MODEL}, {'q': FIRST, 'p': {'x': 1.0, 'y': 2.0}}, {'q': {'d': 1.0}})
    fused = fusion.fuse_runs(runs, (1, 1, 1))
    assert fused['q']['d'] == pytest.approx(1 / 61) and len(fused['q']) == 4
    assert fused['p'] == pytest.approx({'y': 1 / 61, 'x': 1 / 62})


class TestChoose:
  def test_takes_the_weight_with_the_best_mean(self):
    qrels = {'q1': {'a': 1}, 'q2': {'b': 1}}
    models = {'q1': {'a': 0.5, 'x': 0.0, 'y': 1.0}, 'q2': {'b': 1.0, 'x': 0.1, 'y': 0.0}}
    firsts = {'q1': {'a': 1.0, 'x': 0.0, 'y': 0.2}, 'q2': {'b': 0.0, 'x': 0.6, 'y': 1.0}}
    # a is first below 8/13, because 1 - w / 2 > .2 + .8 w; b is first above 1/2.
    weight, values = fusion.choose(models, firsts, qrels)
    assert weight == 0.55 and values[0.55] == values[0.6] == 1 and len(values) == 21
    assert values[0.65] < 1 and values[0.45] < 1
    assert values[0.0] == pytest.approx((1 + 1 / 2) / 2)
    assert values[1.0] == pytest.approx((1 / math.log2(3) + 1) / 2)

  def test_of_equal_weights_the_nearest_to_one_half_is_taken(self):
    same = {'q1': {'a': 1.0, 'b': 0.0}}
    weight, values = fusion.choose(same, same, {'q1': {'a': 1}})
    assert weight == 0.5 and set(values.values()) == {1.0}
    # The first stage is wrong: it needs a model's weight above 1/2; .55 is the nearest.
    weight, _ = fusion.choose(same, {'q1': {'b': 1.0, 'a': 0.0}}, {'q1': {'a': 1}})
    assert weight == 0.55


class TestFusion:
  def test_is_the_same_after_json(self):
    how = Fusion(0.65, 'ranks', 24, 0.7, 0.6, 0.5)
    assert Fusion.from_dict(how.to_dict(), 'x') == how
    assert how.to_dict()['method'] == 'convex combination'

  def test_says_where_the_weight_is_from(self):
    text = Fusion(0.65, 'scores', 24, 0.7, 0.6, 0.5).text
    assert "weight 0.65 of the model's scores, 0.35 of the first stage (its scores)" in text
    assert 'on 24 held-out training queries: nDCG@5 0.700, the model alone 0.600' in text
    assert 'the default: there were too few' in Fusion(0.5, 'ranks').text

  @pytest.mark.parametrize(
    'value',
    [
      None, [], {}, {'weight': 2}, {'weight': '0.5'}, {'weight': True}, {'weight': math.nan},
      {'weight': 0.5, 'signal': 'rum'}, {'weight': 0.5, 'queries': 'x'},
      {'weight': 0.5, 'fused': [1]},
    ],
  )  # fmt: skip
  def test_a_damaged_record_is_named(self, value):
    with pytest.raises(UserError, match=r'^a/config\.json: fusion is damaged'):
      Fusion.from_dict(value, 'a/config.json')


class TestSignal:
  def test_scores_and_ranks_by_index(self):
    assert fusion.check_signal([3, None, 1.5], 3, 'x', 'scores') == {0: 3.0, 2: 1.5}
    assert fusion.check_signal(np.array([2, 1]), 2, 'x', 'ranks') == {0: 1 / 62, 1: 1 / 61}
    assert fusion.check_signal([None], 1, 'x', 'ranks') == {}

  @pytest.mark.parametrize(
    ('values', 'kind', 'what'),
    [
      ([1.0], 'scores', 'has 1 value for 2 texts; give one per text'),
      ([1.0, math.nan], 'scores', r'first\[1\]: must be a finite number'),
      ([1.0, 10**400], 'scores', r'first\[1\]: must be a finite number'),
      ([1.0, '2'], 'scores', r'first\[1\]: must be a finite number'),
      ([True, 1], 'scores', r'first\[0\]: must be a finite number'),
      ([1, 0], 'ranks', r'first\[1\]: must be an integer of 1 or more'),
      ([1, 2.0], 'ranks', r'first\[1\]: must be an integer of 1 or more'),
      (5, 'scores', 'must be a list'),
      ({0: 1, 1: 2}, 'scores', 'must be a list'),
    ],
  )
  def test_what_is_wrong_is_named(self, values, kind, what):
    with pytest.raises(UserError, match=what):
      fusion.check_signal(values, 2, 'first', kind)

  def test_a_weight_is_a_number_from_0_to_1(self):
    assert fusion.check_weight(1, 'fuse') == 1.0
    for wrong in (-0.1, 1.1, math.nan, '0.5', True, None):
      with pytest.raises(UserError, match='fuse: must be a number from 0'):
        fusion.check_weight(wrong, 'fuse')
