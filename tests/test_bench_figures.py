"""The arithmetic of benches, by hand."""

import json
import math

import pytest

from benchmarks import _figures


def turn(seconds, tokens=100, places=125, **more):
  return {'seconds': seconds, 'tokens': tokens, 'places': places, 'steps': 2, **more}


OURS = [turn(1.0), turn(4.0), turn(2.0)]
# The machine was slow in the second turn, for both.
THEIRS = [turn(2.0), turn(8.0), turn(3.0)]


def test_a_ratio_is_of_turns_that_shared_the_noise():
  found = _figures.ratio(OURS, THEIRS)
  assert found == {'median': 2.0, 'low': 1.5, 'high': 2.0}
  # Of medians over all turns it would be another.
  assert _figures.median(OURS) / _figures.median(THEIRS) == pytest.approx(1.5)


def test_the_cores_time_does_not_count_what_others_do():
  ours, theirs = ([dict(r, cpu_s=s) for r in rows] for rows, s in ((OURS, 2.0), (THEIRS, 3.0)))
  assert _figures.ratio(ours, theirs, 'cpu_s')['high'] == 1.5
  found = _figures.answer({'ours': ours, 'torch_fp32': theirs}, {'ours': {}, 'torch_fp32': {}})
  assert found['cpu_s'] == 1.0 and found['ratio_to_torch_fp32'] == 2.0
  assert found['sides']['torch_fp32']['first_is_cheaper']['median'] == 1.5


def test_a_ratio_needs_as_many_turns_of_each():
  with pytest.raises(ValueError, match='shorter'):
    _figures.ratio(OURS, THEIRS[:2])


def test_a_sides_summary_is_of_medians():
  rows = [turn(s, idle_s=0.1, peak_flops=p) for s, p in ((1.0, 50.0), (4.0, 10.0), (2.0, 40.0))]
  found = _figures.summary(rows, {'flops': 8.0, 'compile_s': 3.0})
  assert found['tokens_per_s'] == 50 and found['padded_tokens_per_s'] == 62.5
  assert found['padding'] == pytest.approx(0.2) and found['step_s'] == 1.0
  assert found['waiting'] == pytest.approx(0.3 / 7) and found['compile_s'] == 3.0
  # 8 FLOPs in a second where 40 were possible.
  assert found['mfu'] == pytest.approx(0.2)


def test_pairs_are_counted_where_there_are_some():
  found = _figures.summary([turn(2.0, pairs=50)], {})
  assert found['pairs_per_s'] == 25 and found['ms_per_pair'] == 40
  assert 'pairs_per_s' not in _figures.summary([turn(2.0)], {})


def test_mfu_is_of_the_time_in_which_batches_were_computed():
  rows = [turn(2.0, busy_s=1.0, peak_flops=40.0)]
  found = _figures.summary(rows, {'flops': 8.0})
  assert found['tokens_per_s'] == 50 and found['step_s'] == 1.0
  # 8 FLOPs in each of two steps, half a second long, where 20 were possible.
  assert found['mfu'] == pytest.approx(0.4)


def test_pairs_per_kilowatt_hour():
  found = _figures.summary([turn(2.0, pairs=50, watts=w) for w in (400.0, 500.0, 900.0)], {})
  assert found['watts'] == 500
  assert found['pairs_per_kwh'] == pytest.approx(25 * 3600 * 1000 / 500)
  assert 'pairs_per_kwh' not in _figures.summary([turn(2.0, pairs=50)], {})


def test_the_answer_has_both_ratios_also_where_torch_has_not_run():
  facts = {'ours': {'device': 'x'}, 'torch_fp32': {'failed': 'out of memory'}}
  found = _figures.answer({'ours': OURS, 'torch_fp32': []}, facts)
  assert found['ratio_to_torch_fp32'] is None and found['ratio_to_torch_bf16'] is None
  assert list(found['sides']) == ['ours'] and found['tokens_per_s'] == 50
  found = _figures.answer({'ours': OURS, 'torch_bf16': THEIRS}, facts | {'torch_bf16': {}})
  assert found['ratio_to_torch_bf16'] == 2.0 and found['ratio_to_torch_fp32'] is None
  assert found['sides']['torch_bf16']['first_is_faster']['low'] == 1.5


def test_json_has_no_nan():
  found = json.dumps(_figures.short({'a': math.nan, 'b': [1 / 3, {'c': math.inf}], 'd': None}))
  assert json.loads(found) == {'a': None, 'b': [0.333333, {'c': None}], 'd': None}


@pytest.mark.parametrize('power', [0.0, 1.0, 2.0])
def test_a_slope_is_the_power(power):
  xs = [10, 20, 40, 80]
  assert _figures.slope(xs, [3 * x**power for x in xs]) == pytest.approx(power, abs=1e-9)


def test_one_point_has_no_slope():
  assert math.isnan(_figures.slope([1], [2.0]))
