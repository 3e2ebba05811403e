"""The unit of tests for each way to set it, and the warnings about it."""

import pytest

from disranker_jax.evaluation.units import Units

GRADES = {
  f'{topic}-{i}': {f'{topic}{doc}': doc for doc in range(4)} for topic in 'ab' for i in range(3)
}


@pytest.mark.parametrize(
  ('by', 'of_Q'),
  [
    (None, ['a-0', 'a-0', 'b-0']),
    ('', ['a-0', 'a-1', 'b-0']),
    ('^[^-]+', ['a', 'a', 'b']),
    (r'\d$', ['0', '1', '0']),
  ],
)
def test_an_expression_goes_before_shared_judgements(by, of_Q):
  units = Units(GRADES, ['a-0', 'a-1', 'b-0'], by)
  assert (units.of_Q, units.count) == (of_Q, len(set(of_Q)))
  assert units.clusters(['b-0', 'new']) == [of_Q[2], 'new']


def test_queries_that_only_the_judgements_have_are_not_counted():
  """The table has two queries of topic a and one of b, which shares with no other one."""
  units = Units(GRADES, ['a-0', 'a-2', 'b-1'])
  assert units.together('by {}'.format, 'test queries') == (
    '2 of 3 test queries share their judgements, so 2 clusters are drawn instead of 3 queries, '
    'as with by ^[^-]+'
  )
  assert Units(GRADES, ['a-0', 'a-2', 'b-1'], '').separated(repr) == (
    "2 of 3 queries share their judgements; '' separates 1 of their groups"
  )
  assert Units(GRADES, ['a-0', 'a-2', 'b-1']).sharing_sizes == [2]
  alone = Units(GRADES, ['a-0', 'b-1'])
  assert alone.kind == 'queries' and not alone.together(repr) and not alone.separated(repr)


def test_several_queries_can_be_one_unit_and_one_query_is_none_to_warn_of():
  assert Units(GRADES, ['a-0', 'a-1']).are_one and Units({}, ['x1', 'x2'], 'x').are_one
  assert not Units(GRADES, ['a-0']).are_one and not Units({}, []).are_one


def test_an_expression_is_shown_as_a_shell_takes_it():
  units = Units({}, [])
  vars(units)['related'] = (r'^.*(?=\.)', 0.36, 0.0)  # as found among dotted names
  assert units.alike().startswith(r"queries whose ids match '^.*(?=\.)' alike often")
