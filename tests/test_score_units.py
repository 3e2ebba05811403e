"""The units in which the teacher's queries are scored: by work, whatever the number of queries."""

import numpy as np
import pytest

from disranker_jax.data.records import Document, Group
from disranker_jax.rankers import filling, shards


class Words:
  """A prompt whose tokens are words."""

  def encode(self, query, docs):
    return [np.zeros(len(f'{query} {d.title} {d.summary}'.split())) for d in docs]


def groups(queries: int, docs: int) -> list[Group]:
  found = tuple(
    Document(f'd{i}', 'title', 'of eight words with its own query it') for i in range(docs)
  )
  return [Group(f'q{i}', 'query', found) for i in range(queries)]


@pytest.mark.parametrize(('queries', 'docs'), [(24, 400), (600, 16), (9600, 1)])
def test_as_many_pairs_make_as_many_units_whether_in_few_queries_or_in_many(queries, docs):
  words = Words()
  tokens_of = lambda g: sum(map(len, words.encode(g.query, g.docs)))  # noqa: E731
  work = filling.measured(groups(queries, docs), tokens_of)
  assert work == (docs, 10 * docs)
  size = filling.unit_size(work.tokens, positions=2000)
  units = shards.units([range(queries)], size)
  batches = 10 * docs * size / 2000
  assert batches <= filling.UNIT_BATCHES and len(units) in (11, 12)  # of 96,000 / 2000 batches
  # The last batch of a unit is almost full.
  assert batches >= 0.8 * filling.UNIT_BATCHES


def test_a_query_larger_than_a_unit_is_a_unit():
  assert filling.unit_size(1e6, positions=2000) == 1
