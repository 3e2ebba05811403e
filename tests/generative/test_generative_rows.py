"""Rows of DGR's result table, without a model."""

import types

import pytest

from disranker_jax import config as configs
from disranker_jax.data.records import Group
from disranker_jax.generative import rows
from disranker_jax.generative.records import Found
from disranker_jax.generative.stages import retrieve
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import collection_rows


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


@pytest.mark.parametrize('known', [[], [('learned', 0), ('by heart', 1)]])
def test_the_time_of_a_query_leaves_out_what_the_first_search_compiles(
  monkeypatch, tmp_path, known
):
  """Also where no training query is searched before."""
  clock = [0.0]
  asked = []

  class Searching:
    pages = types.SimpleNamespace(doc_ids=['a', 'b'])

    def __call__(self, queries):
      clock[0] += 0 if asked else 100  # it compiles
      for i, query in enumerate(queries):
        asked.append(query)
        clock[0] += 0.25
        yield range(i, i + 1), i, [Found(0, 1.0, ())]

  fake = types.SimpleNamespace(monotonic=lambda: clock[0])
  for module in (rows, collection_rows):
    monkeypatch.setattr(module, 'time', fake)
  monkeypatch.setattr(retrieve, 'open_it', lambda run, stages: Searching())
  monkeypatch.setattr(rows, 'training_queries', lambda run, pages: known)
  groups = [Group(f'q{i}', f'query {i}', ()) for i in range(4)]
  run = Run(configs.defaults('dgr'), tmp_path, None)
  ranking, facts = rows.generated(run, rows.ROWS['memorised'], groups)
  assert facts['ms_per_query'] == 250
  assert ('note' in facts) == bool(known)
  assert ranking == {group.query_id: {'a': 1.0} for group in groups}
  before = [query for query, _ in known] or ['query 0']
  assert asked == [*before, *(group.query for group in groups)]
