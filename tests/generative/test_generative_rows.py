"""Rows of DGR's result table, without a model."""

import pytest

from disranker_jax import config as configs
from disranker_jax.generative import rows


@pytest.mark.parametrize(
  ('changes', 'again'),
  [
    ({'queries': 7, 'shown': 3, 'shard_seconds': 1.0, 'matches': 5, 'depth': 3}, False),
    ({'beams': 3}, True),
    ({'query_form': 'capped'}, True),
    ({'hits': 30}, True),
  ],
)
def test_a_row_is_searched_again_only_after_changes_of_what_decides_a_search(changes, again):
  before, after = configs.defaults('dgr'), configs.defaults('dgr')
  after.retrieve.update(changes)
  for row in rows.RETRIEVERS:
    assert (row.reads(before) != row.reads(after)) == again
