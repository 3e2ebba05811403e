"""A missing field whose usual other name is in the row is named in the error."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from disranker_jax.data import field_names
from disranker_jax.data.sources import read
from disranker_jax.errors import UserError
from tests.source_files import ROW


def refused(address, kind):
  with pytest.raises(UserError) as caught:
    list(read(address, kind))
  return str(caught.value)


def renamed(field, name, row=ROW):
  return {name if key == field else key: value for key, value in row.items()}


@pytest.mark.parametrize(
  ('field', 'name', 'kind'),
  [
    ('summary', 'text', 'test'), ('summary', 'body', 'clicks'), ('summary', 'contents', 'test'),
    ('summary', 'passage', 'candidates'), ('query_id', 'qid', 'test'), ('doc_id', 'pid', 'test'),
    ('doc_id', 'docno', 'judgements'), ('doc_id', 'id', 'test'), ('doc_id', 'Doc-ID', 'test'),
    ('query', 'queryText', 'clicks'), ('label', 'relevance', 'judgements'),
    ('label', 'rating', 'judgements'), ('label', 'relevance', 'test'),
    ('title', 'headline', 'test'),
  ],
)  # fmt: skip
@pytest.mark.parametrize('kind_of_file', ['jsonl', 'parquet'])
def test_the_error_says_what_to_rename(tmp_path, field, name, kind, kind_of_file):
  row = renamed(field, name)
  file = tmp_path / f'a.{kind_of_file}'
  if kind_of_file == 'jsonl':
    file.write_text(json.dumps(row))
  else:
    pq.write_table(pa.Table.from_pylist([row]), file)
  message = refused(f'{kind_of_file}:{file}', kind)
  assert message.startswith(f'{file}:1:{field}: is missing')
  assert message.endswith(f'; rename "{name}" to "{field}"')


def test_a_teachers_score_and_a_passages_text(tmp_path):
  file = tmp_path / 'a.jsonl'
  file.write_text(json.dumps({'query_id': 'q', 'doc_id': 'd', 'logit': 2.5}))
  assert refused(f'jsonl:{file}', 'scores').endswith('rename "logit" to "score"')
  file.write_text(
    json.dumps({'query': 'q', 'positive_passages': [{'docid': 'd', 'contents': 'x'}]})
  )
  assert refused(f'jsonl:{file}', 'test').endswith('rename "contents" to "text"')


def test_without_another_name_nothing_is_guessed():
  assert field_names.fix('summary', {'query': 'x', 'price': 3}, 'add it') == 'add it'
  assert field_names.meant('query_id', {'id': 'of the document'}) == ''


def test_a_label_that_is_there_is_not_questioned(tmp_path):
  file = tmp_path / 'a.jsonl'
  file.write_text(json.dumps(ROW | {'relevance': 'high'}) + '\n' + json.dumps(
    {k: v for k, v in ROW.items() if k != 'label'} | {'doc_id': 'd2', 'rating': 4.5}))  # fmt: skip
  [group] = read(f'jsonl:{file}', 'test')
  assert [doc.label for doc in group.docs] == [1, -1]
  [candidates] = read(f'jsonl:{file}', 'candidates')
  assert len(candidates.docs) == 2


def test_other_columns_of_parquet_are_not_read():
  names = ['query_id', 'query', 'doc_id', 'title', 'summary', 'label', 'score', 'text', 'body']
  assert field_names.columns(names, ('summary',)) == ('summary',)
