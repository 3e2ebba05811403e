"""Rows in the formats of other tools: their records, and the messages for bad rows."""

import json
import math

import pytest

from disranker_jax.data import row_formats, sources
from disranker_jax.data.records import REPEATED, UNJUDGED, BadRow, BadRows, Click
from disranker_jax.data.row_formats import records_of

TEVATRON = {
  'query_id': 7,
  'query': 'red fox',
  'positive_passages': [{'docid': 'a', 'title': 'Foxes', 'text': 'are red'}],
  'negative_passages': [
    {'docid': 9, 'text': 'dogs'},
    {'passage_id': 'c', 'title': 'C', 'text': ''},
  ],
}
ANNOTATED = {
  'query_id': 'q',
  'query': 'red fox',
  'passages': [{'title': 'A', 'text': 'a'}, {'title': None, 'text': 'b'}],
  'scores': [3.5, -1],
}
FLAG = {
  'query': 'red fox', 'pos': ['foxes are red'], 'neg': ['dogs', 'cats'], 'pos_scores': [2.0],
  'neg_scores': [0.5, 0], 'prompt': 'unused',
}  # fmt: skip
DELETE = object()


def changed(row, **fields):
  row = row | fields
  return {name: value for name, value in row.items() if value is not DELETE}


def table(row, kind):
  return [(doc.doc_id, doc.title, doc.summary, doc.label) for _, _, doc in records_of(row, kind)]


def test_tevatron_rows():
  assert table(TEVATRON, 'judgements') == [
    ('a', 'Foxes', 'are red', 1), ('9', '', 'dogs', 0), ('c', 'C', '', 0),
  ]  # fmt: skip
  assert {row[:2] for row in records_of(TEVATRON, 'test')} == {('7', 'red fox')}
  assert [label for *_, label in table(TEVATRON, 'candidates')] == [UNJUDGED] * 3
  assert records_of(TEVATRON, 'clicks') == [Click('red fox', 'Foxes', 'are red')]
  mixed = changed(TEVATRON, negative_passages=DELETE, retrieved_passages=[{'text': 'x'}])
  assert [label for *_, label in table(mixed, 'test')] == [1, UNJUDGED]


def test_flag_embedding_rows_get_ids_from_their_texts():
  first = records_of(FLAG, 'judgements')
  assert [(doc.summary, doc.label) for *_, doc in first] == [
    ('foxes are red', 1), ('dogs', 0), ('cats', 0),
  ]  # fmt: skip
  again = records_of({'query': 'red fox', 'pos': ['dogs'], 'neg': []}, 'judgements')
  assert again[0][0] == first[0][0] and again[0][2].doc_id == first[1][2].doc_id
  assert len({doc.doc_id for *_, doc in first}) == 3
  other = records_of(changed(FLAG, query='blue fox', id='q9'), 'test')
  assert other[0][0] == 'q9'
  # No white space in ids: they go into TREC runs.
  assert all(len(name.split()) == 1 for row in first for name in (row[0], row[2].doc_id))


def test_teachers_scores_belong_to_the_same_ids_as_the_candidates():
  for row, scores in ((ANNOTATED, [3.5, -1]), (FLAG, [2, 0.5, 0])):
    pairs = [(query_id, doc.doc_id) for query_id, _, doc in records_of(row, 'candidates')]
    assert [score[:2] for score in records_of(row, 'scores')] == pairs
    assert [score[2] for score in records_of(row, 'scores')] == scores
  inside = {'query': 'q', 'pos': [{'text': 'a', 'score': 4}]}
  assert records_of(inside, 'scores')[0][2] == 4
  plain = {'query_id': 'q', 'doc_id': 'd', 'score': 1.5, 'title': 'unused'}
  assert records_of(plain, 'scores') == [('q', 'd', 1.5)]


def test_a_teacher_score_is_not_a_first_stage_score():
  doc = records_of(ANNOTATED, 'candidates')[0][2]
  assert (doc.rank, doc.teacher) == (0, 3.5) and math.isnan(doc.score)


@pytest.mark.parametrize(
  ('kind', 'row', 'field', 'says'),
  [
    ('test', changed(TEVATRON, query=DELETE), 'query', 'is missing'),
    ('test', changed(TEVATRON, query_id='a b'), 'query_id', 'white space'),
    ('test', changed(TEVATRON, query_id=True), 'query_id', 'not a string'),
    ('test', changed(TEVATRON, positive_passages='x'), 'positive_passages', 'not a list'),
    ('test', changed(TEVATRON, positive_passages=[3]), 'positive_passages', 'neither text nor'),
    ('test', changed(TEVATRON, positive_passages=[{'text': ' '}]), 'positive_passages', 'without'),
    ('test', changed(TEVATRON, positive_passages=[{'title': 't'}]), 'text', 'is missing'),
    ('test', changed(TEVATRON, positive_passages=[{'docid': 9, 'text': 'x'}]), 'docid', 'twice'),
    ('test', {'query': 'q', 'pos': [], 'neg': []}, 'row', 'has no passages'),
    ('test', changed(FLAG, neg='dogs'), 'neg', 'not a list'),
    ('test', changed(FLAG, neg=['dogs', 'dogs']), 'docid', 'twice, with a different teacher'),
    ('test', changed(FLAG, neg=['dogs', 'foxes are red']), 'docid', 'different label'),
    ('scores', changed(FLAG, neg_scores=[1]), 'neg_scores', 'has 1 entry'),
    ('scores', changed(FLAG, neg_scores=DELETE), 'score', 'is missing'),
    ('scores', changed(FLAG, neg_scores=[1, math.nan]), 'score', 'is nan'),
    ('scores', changed(FLAG, neg_scores=[1, '2']), 'score', 'not a number'),
    ('scores', {'query_id': 'q', 'doc_id': 'd'}, 'score', 'is missing'),
    ('scores', [1], 'row', 'is a list'),
    ('judgements', ANNOTATED, 'row', 'without a label'),
    ('clicks', changed(FLAG, pos=DELETE), 'row', 'no positive passage'),
  ],
)
def test_bad_rows_say_which_field_and_what_to_do(kind, row, field, says):
  with pytest.raises(BadRow) as caught:
    records_of(row, kind)
  assert caught.value.field == field
  assert says in caught.value.what or says in str(caught.value)
  assert caught.value.fix


def test_every_field_that_is_read_is_also_read_from_parquet():
  for row in (TEVATRON, ANNOTATED, changed(FLAG, prompt=DELETE)):
    assert set(row) <= set(row_formats.COLUMNS)


def test_a_passage_that_is_repeated_unchanged_counts_once(tmp_path):
  row = {'query': 'q', 'pos': ['p', 'p'], 'neg': ['a', 'b', 'a']}
  again = row | {'pos': ['p'], 'neg': ['b', 'c']}  # miners write a row for each positive
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(json.dumps(each) + '\n' for each in (row, again)))
  bad_rows = BadRows()
  (group,) = sources.read(f'jsonl:{path}', 'judgements', bad_rows=bad_rows)
  labels = [(doc.summary, doc.label) for doc in group.docs]
  assert labels == [('p', 1), ('a', 0), ('b', 0), ('c', 0)]
  assert bad_rows.notes == {REPEATED: 4}
  assert len(list(sources.read(f'jsonl:{path}', 'clicks'))) == 2
