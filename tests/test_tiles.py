"""The tiles at the head of a report: which there are, and what they claim."""

import pytest
from test_findings import facts_of

from disranker_jax.report import tables, tiles

MINUS = '\N{MINUS SIGN}'
TIMES = {'parameters': 22, 'ms_per_pair': 2.5}


def run(student: float, teacher: float = 0.8, spread: float = 0.02, **results):
  """Facts of 40 queries whose rows differ a little from query to query."""
  level = {'bm25': 0.6, 'student_sft': 0.5, 'teacher': teacher, 'student': student, 'fused': 0.7}
  values = {
    name: [value + spread * ((i * 7 + k) % 5 - 2) / 2 for i in range(40)]
    for k, (name, value) in enumerate(level.items())
  }
  results = {'teacher': {'parameters': 99, 'ms_per_pair': 82.75}, 'student': TIMES} | results
  return facts_of(values, **results)


def test_a_share_of_the_lead_is_told_if_there_is_one():
  found = tiles.tiles(run(student=0.7))
  assert [each.figure for each in found[:2]] == ['0.700', f'50{tiles.SPACE}%']
  assert found[1].what == "of the teacher's lead over BM25 kept"


def test_a_student_below_the_first_stage_is_told_by_how_much_and_not_as_a_share():
  _, behind, *_ = tiles.tiles(run(student=0.52))
  assert (behind.figure, behind.what) == (f'{MINUS}0.080', 'nDCG@5 against BM25')
  assert '%' not in behind.interval and behind.interval.startswith(f'{MINUS}0.')


def test_the_row_that_is_fused_by_weight_has_a_tile():
  how = {'title': 'distilled student + BM25', 'fusion': {'row': 'student'}, 'against': ['bm25']}
  [tile] = [t for t in tiles.tiles(run(0.65, fused=how)) if t.what.endswith('student + BM25')]
  assert tile.figure == '0.700' and tile.what.startswith('nDCG@5 of the ')
  assert not [t for t in tiles.tiles(run(0.65)) if 'first stage' in t.what]


def test_speed_has_two_digits_and_is_left_out_if_equal_networks_differ():
  [*_, speed] = tiles.tiles(run(0.65))
  assert speed.figure == '33 \N{MULTIPLICATION SIGN}' and speed.what.endswith(
    '2.5 ms per pair against 83'
  )
  slow = TIMES | {'ms_per_pair': 9.0}
  assert not [t for t in tiles.tiles(run(0.65, student_sft=slow)) if 'as fast' in t.what]


@pytest.mark.parametrize(
  ('value', 'text'),
  [(3.349, '3.3'), (33.1, '33'), (331.4, '330'), (175.2, '180'), (1234.0, '1,200'), (0.55, '0.55')],
)
def test_ratios_and_times_have_two_digits(value, text):
  assert tables.rounded(value, 2) == text
