"""Which of a query's documents the teacher scores."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disranker_jax.config import defaults
from disranker_jax.data.records import UNJUDGED, Document, Group
from disranker_jax.stages import chosen


def ranks(labels, **settings) -> list[int]:
  """The first-stage ranks that are chosen of documents with these labels, last rank first."""
  docs = [Document(f'd{r}', 'title', 'text', label, r, 0.0) for r, label in enumerate(labels, 1)]
  c = defaults().score
  c.update(settings)
  group = chosen.chosen(Group('q', 'query', tuple(reversed(docs))), c)
  return [doc.rank for doc in group.docs]


def test_the_top_are_the_first_stages_best():
  assert ranks([UNJUDGED] * 9, group_size=4, ranks='top') == [1, 2, 3, 4]


def test_spread_ranks_lie_ever_further_apart():
  found = ranks([UNJUDGED] * 100, group_size=8)
  assert found == [1, 2, 4, 7, 14, 27, 52, 100]  # 100 ** (i / 7), rounded


@pytest.mark.parametrize('how', ['top', 'spread'])
def test_the_best_labelled_documents_come_first(how):
  found = ranks([0, 1, 0, 2, 1, 0, 2, 0], group_size=3, ranks=how)
  assert found[0] == 4 and (how == 'spread' or found == [4, 7, 1])


@pytest.mark.parametrize('size', [0, 5, 6])
@pytest.mark.parametrize('how', ['top', 'spread'])
def test_all_are_scored_where_there_are_no_more(how, size):
  assert sorted(ranks([UNJUDGED] * 5, group_size=size, ranks=how)) == [1, 2, 3, 4, 5]


@given(st.data())
def test_spread_takes_so_many_from_the_first_to_the_last_and_none_twice(data):
  count = data.draw(st.integers(2, 2000))
  size = data.draw(st.integers(2, min(count, 300)))
  places = chosen.spread(count, size)
  assert len(places) == size and places[0] == 0 and places[-1] == count - 1
  assert all(a < b for a, b in itertools.pairwise(places))
