"""Rows: which are accepted, which are rejected with which message, and every row is counted."""

import math

import pytest

from disranker_jax.data import records
from disranker_jax.data.records import UNJUDGED, BadRows, Document
from disranker_jax.errors import UserError

GOOD = {
  'query_id': 'q1', 'query': 'red fox', 'doc_id': 'd1', 'title': 'Foxes', 'summary': 'All red.',
  'label': 3, 'rank': 2, 'score': 1.5,
}  # fmt: skip
DELETE = object()


def changed(**fields):
  row = GOOD | fields
  return {name: value for name, value in row.items() if value is not DELETE}


def parse(kind, row):
  return BadRows().parse('f.jsonl', 7, row, records.ROW_PARSERS[kind])


def test_rows_become_records():
  assert parse('judgements', GOOD) == (
    'q1',
    'red fox',
    Document('d1', 'Foxes', 'All red.', 3, 2, 1.5),
  )
  assert parse('candidates', GOOD)[2].label == UNJUDGED
  click = parse('clicks', GOOD | {'count': 4, 'browser': 'lynx'})
  assert (click.query, click.title, click.summary, click.count) == (
    'red fox',
    'Foxes',
    'All red.',
    4,
  )


def test_optional_fields_may_be_absent_or_null():
  for absent in (DELETE, None):
    doc = parse('test', changed(label=absent, rank=absent, score=absent))[2]
    assert (doc.label, doc.rank, doc.in_pool) == (UNJUDGED, 0, True)
    assert math.isnan(doc.score)


@pytest.mark.parametrize(
  ('kind', 'row', 'field', 'says'),
  [
    ('judgements', changed(query=DELETE), 'query', 'is missing'),
    ('judgements', changed(summary=DELETE), 'summary', 'is missing'),
    ('judgements', changed(label=DELETE), 'label', 'is missing'),
    ('judgements', changed(query=''), 'query', 'is blank'),
    ('judgements', changed(query=' \t\n'), 'query', 'is blank'),
    ('judgements', changed(query_id=' '), 'query_id', 'is blank'),
    ('candidates', changed(doc_id=''), 'doc_id', 'is blank'),
    ('candidates', changed(doc_id='a b'), 'doc_id', "'a b' contains white space"),
    ('test', changed(query_id='a\n'), 'query_id', 'contains white space'),
    ('judgements', changed(query_id=12.0), 'query_id', 'is a float (12.0), not a string'),
    ('judgements', changed(query_id=True), 'query_id', 'is a boolean (True), not a string'),
    ('clicks', changed(title=None), 'title', 'is null, not a string'),
    ('clicks', changed(title=['x']), 'title', "is a list (['x']), not a string"),
    ('clicks', changed(title=' ', summary=''), 'title', 'and summary are both empty'),
    ('clicks', changed(query='\ud800'), 'query', 'half a surrogate'),
    ('clicks', changed(count=0), 'count', 'outside 1..'),
    ('judgements', changed(label=-1), 'label', 'is -1, outside 0..'),
    ('judgements', changed(label=True), 'label', 'is a boolean (True), not an integer'),
    ('judgements', changed(label=2.0), 'label', 'is a float (2.0), not an integer'),
    ('judgements', changed(label=math.nan), 'label', 'is a float (nan), not an integer'),
    ('judgements', changed(label='2'), 'label', "is text ('2'), not an integer"),
    ('judgements', changed(label=2**31), 'label', 'outside 0..'),
    ('candidates', changed(rank=0), 'rank', 'is 0, outside 1..'),
    ('candidates', changed(score=math.inf), 'score', 'is inf'),
    ('candidates', changed(score=math.nan), 'score', 'is nan'),
    ('candidates', changed(score=10**400), 'score', 'is inf'),
    ('candidates', changed(score='1'), 'score', 'not a number'),
    ('candidates', changed(score=True), 'score', 'not a number'),
    ('test', ['q1'], 'row', 'is a list'),
    ('test', None, 'row', 'is null'),
  ],
)
def test_a_bad_row_says_where_what_and_what_to_do(kind, row, field, says):
  with pytest.raises(UserError) as caught:
    parse(kind, row)
  message = str(caught.value)
  assert message.startswith(f'f.jsonl:7:{field}: ')
  assert says in message and '; ' in message and '\n' not in message


def test_settings_of_bad_rows_are_checked(tmp_path):
  with pytest.raises(UserError, match='skip'):
    BadRows('skip')
  with pytest.raises(UserError, match='give its path'):
    BadRows('quarantine')
