"""Queries with their positive documents, from prepared records; what is searched."""

import pytest
from ml_collections import ConfigDict

from disranker_jax.data import store
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.pipeline.stage import Run
from disranker_jax.rewriting import queries

GROUPS = [
  Group('1', 'red', (Document('a', 'A', '', 2), Document('b', 'B', '', 1), Document('c', 'C', ''))),
  Group('2', 'blue', (Document('b', 'B', '', 1),)),
]


def run_of(folder, min_relevance=1, address='jsonl:rows.jsonl'):
  for kind in ('judgements', 'test'):
    store.write(kind, GROUPS, folder / 'data' / kind)
  data = {'judgements': address, 'test': address, 'documents': ''}
  config = ConfigDict({'data': data, 'rewrite': {'min_relevance': min_relevance}})
  return Run(config, folder, None)


class TestReading:
  def test_positives_and_labels(self, tmp_path):
    first, second = queries.training(run_of(tmp_path))
    assert (first.query_id, first.text) == ('1', 'red')
    assert [doc.doc_id for doc in first.positives] == ['a', 'b']
    assert first.relevant == {'a': 2, 'b': 1} and not first.excluded
    assert [doc.title for doc in second.positives] == ['B']

  def test_queries_without_a_positive_are_left_out_of_training_and_counted(self, tmp_path, capsys):
    run = run_of(tmp_path, min_relevance=2)
    (kept,) = queries.training(run)
    assert kept.relevant == {'a': 2}
    left = '1 of 2 queries is left out: no document has a label of 2 or better'
    assert left in capsys.readouterr().err
    # A test without them would look better than it is.
    assert [len(query.positives) for query in queries.test(run)] == [1, 0]

  def test_none_left_is_an_error(self, tmp_path):
    with pytest.raises(UserError, match=r"'jsonl:rows.jsonl': none of its 2 .*label of 3"):
      queries.training(run_of(tmp_path, min_relevance=3))

  def test_excluded_documents_come_from_the_address(self, tmp_path):
    for table, row in (
      ('examples', '{"id": "2", "query": "blue", "gold_ids": ["b"], "gold_ids_long": [], '
       '"excluded_ids": ["x y"]}'),
      ('documents', '{"id": "b", "content": "B"}'),
    ):  # fmt: skip
      (tmp_path / table).mkdir()
      (tmp_path / table / 'biology.jsonl').write_text(row + '\n')
    run = run_of(tmp_path, address=f'bright:{tmp_path}?task=biology')
    assert [query.excluded for query in queries.test(run)] == [frozenset(), {'x_y'}]
    assert [doc.doc_id for doc in queries.collection(run.config)] == ['b']

  def test_positives_outside_the_collection_are_counted(self, tmp_path, capsys):
    found = queries.training(run_of(tmp_path))
    queries.check_collection(found, {'a', 'b', 'c'}, 'jsonl:all')
    assert not capsys.readouterr().err
    queries.check_collection(found, {'a', 'c'}, 'jsonl:some')
    said = capsys.readouterr().err
    line = "judgements: 1 of 2 relevant documents, such as 'b', is not in jsonl:some, and cannot"
    assert line in said and 'config.data.documents is the address' in said
    assert 'rewrite: 1 of 2 queries has no document that can be found' in said

  def test_positives_of_another_collection_are_an_error(self, tmp_path):
    found = queries.training(run_of(tmp_path))
    with pytest.raises(
      UserError, match=r"none of its 2 .*'a', is in the collection jsonl:x; set config\.data\.doc"
    ):
      queries.check_collection(found, {'c'}, 'jsonl:x')


def test_excluded_documents_are_removed_before_the_ranking_is_cut():
  docs = [Document(name, 'red fox', '') for name in 'abcd']
  asked = [
    queries.Query(str(i), '', (), excluded=frozenset(ids)) for i, ids in enumerate(('', 'ac'))
  ]
  got = queries.found(BM25(docs).top, 'abcd', asked, ['red', 'fox'], 2)
  assert [list(ranking) for ranking in got] == [['a', 'b'], ['b', 'd']]
  weighted = queries.found(BM25(docs).top_weighted, 'abcd', asked, [{'red': 2.0}, {'fox': 1.0}], 2)
  assert [list(ranking) for ranking in weighted] == [['a', 'b'], ['b', 'd']]
  assert weighted[0]['a'] == pytest.approx(2 * got[0]['a'])


class TestSearched:
  def test_modes(self):
    assert queries.searched('open file', 'io open') == 'open file open file io open'
    assert queries.searched('open file', 'io open', repeat=1) == 'open file io open'
    assert queries.searched('open file', 'io open', 'replace') == 'io open'

  @pytest.mark.parametrize('mode', queries.MODES)
  @pytest.mark.parametrize('rewrite', ['', ' \n', '?!'])
  def test_a_rewrite_without_words_leaves_the_query(self, mode, rewrite):
    assert queries.searched('open file', rewrite, mode) == 'open file'

  def test_other_scripts_are_words(self):
    assert queries.searched('open', '日本', 'replace') == '日本'

  def test_an_unknown_mode(self):
    with pytest.raises(ValueError, match="mode 'prepend'"):
      queries.searched('a', 'b', 'prepend')
