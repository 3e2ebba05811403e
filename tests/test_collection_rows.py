"""Rows that search the whole collection."""

import pytest

from disranker_jax.data import store
from disranker_jax.data.records import UNJUDGED, Document, Group
from disranker_jax.errors import UserError
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import collection_rows


def test_relevant_documents_outside_the_collection_are_counted(tmp_path, capsys):
  docs = Document('a', 'A', '', 1), Document('b', 'B', '', 2), Document('c', 'C', '', UNJUDGED)
  store.write('test', [Group('1', 'red', docs)], tmp_path / 'data' / 'test')
  run = Run(None, tmp_path, None)
  collection_rows.check_judged(run, 'test', {'a', 'b'}, 'jsonl:all.jsonl')
  assert not capsys.readouterr().err
  collection_rows.check_judged(run, 'test', {'a', 'c'}, 'jsonl:all.jsonl')
  said = capsys.readouterr().err
  assert "1 of 2 relevant documents, such as 'b', is not in jsonl:all.jsonl" in said
  with pytest.raises(UserError, match=r"config\.data\.test: none of its 2 .*'a', is in the coll"):
    collection_rows.check_judged(run, 'test', {'c'}, 'jsonl:all.jsonl')
