"""The gate before a pass in 8 bits: its sample, its figures, its limits, and when it runs."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from disranker_jax.config import defaults
from disranker_jax.data.records import UNJUDGED, Document, Group
from disranker_jax.errors import UserError
from disranker_jax.rankers.work import Work
from disranker_jax.stages import quantise_gate

MADE = {'model': 'm', 'quantize': 'int8'}


def group(name, labels):
  docs = tuple(Document(f'd{i}', f'title {i}', '', label) for i, label in enumerate(labels))
  return Group(name, f'query {name}', docs)


def run_with(folder, **limits):
  config = defaults()
  config.score.quantize = 'int8'
  config.score.quantize_gate.update(limits)
  return SimpleNamespace(config=config, folder=lambda stage: folder / stage)


class Scorer:
  """Scores documents by the functions of their places."""

  def __init__(self, score):
    self.score, self.asked = score, []
    self.work = Work(seconds=1.0, scored=500)

  def __call__(self, groups):
    for each in groups:
      self.asked.append(each)
      yield each, np.array([self.score(i) for i in range(len(each.docs))], np.float32)


def full(place):
  return -float(place)


def swapped(place):
  """The first two documents in the other order."""
  return full({0: 1, 1: 0}.get(place, place))


# The sample


def test_the_sample_has_whole_queries_that_have_an_order_and_is_the_same_each_time():
  groups = [group(str(i), [UNJUDGED] * (1 if i % 5 == 0 else 4)) for i in range(100)]
  taken = quantise_gate.chosen(groups, 38)
  assert [len(g.docs) for g in taken] == [4] * 10
  assert len({g.query_id for g in taken}) == 10
  assert taken == quantise_gate.chosen(groups, 38)
  spread = sorted(int(g.query_id) for g in taken)
  assert spread[0] < 50 < spread[-1]
  assert len(quantise_gate.chosen(groups, 10**6)) == 80


# The figures


def ranking(groups, score):
  return {g.query_id: {d.doc_id: score(i) for i, d in enumerate(g.docs)} for g in groups}


def test_tau_is_a_mean_over_queries_and_ndcg_is_of_the_labelled_ones():
  judged, plain = group('a', [0, 3, 0]), group('b', [UNJUDGED] * 2)
  wanted = ranking([judged, plain], full)
  given = ranking([judged], swapped) | ranking([plain], full)
  found = quantise_gate.compare([judged, plain], given, wanted)
  assert found['tau'] == pytest.approx((1 / 3 + 1) / 2)  # one of three pairs is turned round
  assert (found['ndcg_queries'], found['ndcg_gains']) == (1, 'labels')
  assert found['ndcg_change'] == pytest.approx(1 - 1 / np.log2(3))
  assert (found['queries'], found['pairs']) == (2, 5)


def test_without_labels_the_gains_are_the_scores_in_full_precision():
  groups = [group('a', [UNJUDGED] * 3), group('b', [UNJUDGED] * 3)]
  wanted = ranking(groups, full)  # gains 1, 1/2, 0
  given = ranking(groups[:1], swapped) | ranking(groups[1:], full)
  found = quantise_gate.compare(groups, given, wanted)
  lost = 1 - (0.5 + 1 / np.log2(3)) / (1 + 0.5 / np.log2(3))
  assert found['ndcg_gains'] == 'scores in full precision'
  assert found['ndcg_change'] == pytest.approx(-lost / 2)
  assert found['ndcg_error'] == pytest.approx(lost / 2)  # of two values, 0 and the loss
  level = ranking(groups, lambda place: 1.0)
  assert quantise_gate.compare(groups, given, level)['ndcg_queries'] == 0


# When it runs


def opened(folder, kinds, score, **limits):
  """(the scorers by format, what the gate found)."""
  scorers = {}

  def open_scorer(quantize):
    scorers[quantize] = Scorer(score if quantize else full)
    return scorers[quantize]

  run = run_with(folder, **limits)
  scorer, found = quantise_gate.opened(run, MADE, kinds, open_scorer)
  assert scorer is scorers['int8']
  return scorers, found


def test_both_score_the_same_sample_of_each_kind_and_the_result_is_kept(tmp_path, capsys):
  # The same ids in both kinds are different queries.
  kinds = {
    'candidates': [group(str(i), [UNJUDGED] * 4) for i in range(9)],
    'judgements': [group(str(i), [0, 1, 0]) for i in range(9)],
  }
  scorers, found = opened(tmp_path, kinds, full, pairs=12)
  assert scorers['int8'].asked == scorers[''].asked
  assert sorted(len(g.docs) for g in scorers['int8'].asked) == [3, 3, 3, 3, 4, 4, 4]
  assert (found['queries'], found['pairs'], found['tau'], found['ndcg_change']) == (7, 24, 1.0, 0.0)
  said = capsys.readouterr().err
  assert 'score in int8:' in said and '24 pairs of 7 queries, 1.00 times as fast' in said
  again, kept = opened(tmp_path, kinds, full, pairs=12)
  assert kept == found and '' not in again and not again['int8'].asked
  assert opened(tmp_path, kinds, full, pairs=13)[0][''].asked  # another sample


def test_another_order_is_refused_with_the_figures_and_limits_can_change(tmp_path):
  kinds = {'candidates': [group(str(i), [UNJUDGED] * 4) for i in range(9)]}
  with pytest.raises(UserError) as caught:
    opened(tmp_path, kinds, swapped)
  message = str(caught.value)
  assert message.startswith("config.score.quantize='int8': Kendall's tau 0.6667, nDCG@5 -0.")
  assert 'quantize_gate.min_tau=0.98 and config.score.quantize_gate.max_ndcg_change' in message
  assert '\n' not in message and "'fp8' where the device has it" in message
  scorers, found = opened(tmp_path, kinds, swapped, min_tau=0.6, max_ndcg_change=0.5)
  assert '' not in scorers and found['tau'] == pytest.approx(2 / 3)
  with pytest.raises(UserError, match=r'outside config\.score\.quantize_gate\.min_tau=0\.7\. Set'):
    opened(tmp_path, kinds, swapped, min_tau=0.7, max_ndcg_change=0.5)


def test_scores_without_an_order_are_refused(tmp_path):
  kinds = {'candidates': [group('a', [UNJUDGED] * 3)]}
  with pytest.raises(UserError, match=r"Kendall's tau 0\.0000"):
    opened(tmp_path, kinds, lambda place: 0.0)


def test_queries_of_one_document_have_no_order_to_compare(tmp_path, capsys):
  _, found = opened(tmp_path, {'candidates': [group('a', [UNJUDGED])]}, full, pairs=5)
  assert found == {} and 'no query has two documents to order' in capsys.readouterr().err


def test_without_pairs_there_is_no_gate(tmp_path):
  scorers, found = opened(tmp_path, {'candidates': [group('a', [0, 1])]}, swapped, pairs=0)
  assert found == {} and '' not in scorers and not scorers['int8'].asked


def test_the_model_in_full_precision_is_gone_before_the_other_is_loaded(tmp_path):
  seen = []

  def open_scorer(quantize):
    gc.disable()  # what is gone is gone without a search for cycles
    seen.append(weakref.ref(scorer := Scorer(full)))
    if quantize:
      assert seen[0]() is None
    return scorer

  kinds = {'candidates': [group('a', [UNJUDGED] * 3)]}
  try:
    quantise_gate.opened(run_with(tmp_path), MADE, kinds, open_scorer)
  finally:
    gc.enable()
  assert len(seen) == 2
