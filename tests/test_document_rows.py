"""Rows of documents alone: which fields they may lack, and the error for bad ones."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import jsonl, trec_folder

from disranker_jax.commands import describe
from disranker_jax.data import sources
from disranker_jax.data.records import UNTITLED, BadRows, Document
from disranker_jax.errors import UserError

DOC = {'doc_id': 'd1', 'title': 'Foxes', 'summary': 'All red.'}


def write(folder, *rows):
  (folder / 'docs.jsonl').write_bytes(jsonl(*rows))
  return f'jsonl:{folder}/docs.jsonl'


def without(field, **changes):
  return {name: value for name, value in (DOC | changes).items() if name != field}


def test_documents_without_a_title_are_read_and_counted(tmp_path, capsys):
  rows = [DOC, without('title', doc_id='d2'), DOC | {'doc_id': 'd3', 'title': None},
          DOC | {'doc_id': 'd4', 'title': '', 'summary': None}]  # fmt: skip
  address = write(tmp_path, *rows)
  assert sources.documents(address) == [
    Document('d1', 'Foxes', 'All red.'), Document('d2', '', 'All red.'),
    Document('d3', '', 'All red.'), Document('d4', '', ''),
  ]  # fmt: skip
  assert capsys.readouterr().err == f'{address}: 2 {UNTITLED}\n'


def test_null_is_no_text_in_parquet_either(tmp_path):
  rows = [DOC, DOC | {'doc_id': 'd2', 'title': None}, DOC | {'doc_id': 'd3', 'summary': None}]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'docs.parquet')
  found = sources.documents(f'parquet:{tmp_path}/docs.parquet')
  assert [(doc.title, doc.summary) for doc in found] == [
    ('Foxes', 'All red.'), ('', 'All red.'), ('Foxes', ''),
  ]  # fmt: skip


def test_the_documents_of_a_collection_need_no_title_either(tmp_path):
  folder = trec_folder(tmp_path)
  (folder / 'docs.jsonl.gz').unlink()
  docs = [{'doc_id': f'd{i}', 'summary': 's'} for i in range(1, 5)]
  (folder / 'docs.jsonl').write_bytes(jsonl(*docs))
  bad_rows = BadRows()
  assert list(sources.read(f'trec:{folder}', 'judgements', bad_rows=bad_rows))
  assert bad_rows.notes[UNTITLED] == 4


@pytest.mark.parametrize(
  ('bad', 'says'),
  [
    (without('title', headline='Foxes'), 'title: is missing; rename "headline" to "title"'),
    (without('summary'), 'summary: is missing; add "summary" as a string, which may be empty'),
    (DOC | {'title': 3}, 'title: is a int (3), not a string; write it as text'),
    (DOC | {'doc_id': 'good'}, "doc_id: 'good' appears twice, with another text; give each"),
  ],
)
def test_bad_documents_are_counted_in_one_error(tmp_path, bad, says):
  address = write(tmp_path, {'doc_id': 'good', 'title': '', 'summary': 's'}, bad, [], DOC)
  with pytest.raises(UserError) as caught:
    sources.documents(address)
  message = str(caught.value)
  assert message.startswith(f'{tmp_path}/docs.jsonl:2:{says}')
  assert '; 2 of 4 rows are bad, and documents are not set aside' in message


def test_describe_counts_them(tmp_path, capsys):
  other = DOC | {'doc_id': 'd2'}
  rows = (DOC, other, without('title', doc_id='d3'), DOC | {'doc_id': 'd4', 'title': 3},
          {'doc_id': 'd5', 'title': '', 'summary': ' '})  # fmt: skip
  address = write(tmp_path, *rows)
  with pytest.raises(SystemExit):
    describe.main([address, '--kind', 'documents'])
  out = capsys.readouterr().out
  for line in (
    '4 documents of 5 rows; 1 bad row', f'1  {UNTITLED}', '2 documents have no title',
    '1 document has no text', '0  doc ids with several texts', '1  texts with several doc ids',
  ):  # fmt: skip
    assert line in out
  assert '\nquery' not in out and '\n  Foxes\n' in out


def test_rows_of_documents_are_recognised_as_such(tmp_path, capsys):
  with pytest.raises(SystemExit):
    describe.main([write(tmp_path, DOC)])
  assert 'no row is of kind test; try --kind documents\n' in capsys.readouterr().out
