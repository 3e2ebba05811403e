"""The rows of the result table: when there are any, and what they depend on."""

import json

import pytest

from disranker_jax.config import defaults
from disranker_jax.data import store
from disranker_jax.data.records import UNJUDGED, Document, Group
from disranker_jax.errors import UserError
from disranker_jax.pipeline.stage import Run
from disranker_jax.rewriting import rows
from disranker_jax.stages import collection_rows


def config(*stages, **search):
  c = defaults('query_rewriting')
  c.stages = stages
  c.search.update(search)
  return c


def test_a_run_without_training_has_the_rows_of_an_earlier_rewriter():
  c = config('prepare', 'search', reranker='minilm-l6')
  assert not {'rewrite', 'rewrite_reranked'} & rows.TABLE.rows_of(c).keys()
  c.rewriter.init_from = 'runs/earlier'
  assert {'rewrite', 'rewrite_reranked'} < rows.TABLE.rows_of(c).keys()


def test_there_is_no_nearest_training_query_where_no_stage_reads_any():
  both = {'nearest', 'nearest_reranked'}
  assert both < rows.TABLE.rows_of(config('prepare', 'rewrite', 'search', reranker='x')).keys()
  assert not both & rows.TABLE.rows_of(config('prepare', 'search', reranker='x')).keys()


def test_nearest_depends_on_the_training_queries(tmp_path):
  c, file = config('prepare', 'rewrite', 'search'), tmp_path / 'judgements.jsonl'
  row = {'query_id': '1', 'query': 'red', 'doc_id': 'a', 'title': 'A', 'summary': '', 'label': 1}
  file.write_text(json.dumps(row) + '\n')
  c.data.judgements = f'jsonl:{file}'
  nearest, original = (rows.ROWS[name] for name in ('nearest', 'original'))
  before = nearest.reads(c), original.reads(c)
  file.write_text(json.dumps(row | {'query': 'blue'}) + '\n')
  assert nearest.reads(c) != before[0] and original.reads(c) == before[1]


def test_relevant_documents_outside_the_collection_are_counted(tmp_path, capsys):
  docs = Document('a', 'A', '', 1), Document('b', 'B', '', 2), Document('c', 'C', '', UNJUDGED)
  store.write('test', [Group('1', 'red', docs)], tmp_path / 'data' / 'test')
  run = Run(config('prepare', 'search'), tmp_path, None)
  collection_rows.check_judged(run, 'test', {'a', 'b'}, 'jsonl:all.jsonl')
  assert not capsys.readouterr().err
  collection_rows.check_judged(run, 'test', {'a', 'c'}, 'jsonl:all.jsonl')
  assert '1 of 2 relevant documents are not in jsonl:all.jsonl' in capsys.readouterr().err
  with pytest.raises(UserError, match=r"config\.data\.test: none of its 2 .*'a', is in the coll"):
    collection_rows.check_judged(run, 'test', {'c'}, 'jsonl:all.jsonl')
