"""Parquet and JSON lines: the same rows give the same records; bad files are one line."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from disranker_jax.data import rows, sources
from disranker_jax.data.records import BadRows
from disranker_jax.errors import UserError

ROWS = [
  {'query_id': f'q{i % 3}', 'query': f'text {i % 3}', 'doc_id': f'd{i}', 'title': 'ü',
   'summary': 's', 'label': i % 2, 'rank': i + 1, 'score': i / 3}
  for i in range(10)
]  # fmt: skip
FLAG = [{'query': f'text {i}', 'pos': [f'a{i}'], 'neg': ['b', 'c']} for i in range(5)]


def write(path, table, **options):
  table = pa.Table.from_pylist(table) if isinstance(table, list) else table
  pq.write_table(table, path, **options)
  return path


def both(tmp_path, data):
  write(tmp_path / 'a.parquet', data, row_group_size=3)
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in data))
  return f'parquet:{tmp_path}/a.parquet', f'jsonl:{tmp_path}/a.jsonl'


@pytest.mark.parametrize('data', [ROWS, FLAG])
@pytest.mark.parametrize('kind', ['clicks', 'judgements', 'candidates', 'test'])
def test_the_same_records_as_from_json(tmp_path, monkeypatch, data, kind):
  monkeypatch.setattr(rows, 'BATCH_ROWS', 4)
  parquet, jsonl = (list(sources.read(address, kind)) for address in both(tmp_path, data))
  assert list(map(repr, parquet)) == list(map(repr, jsonl)) and len(jsonl) > 2


def test_rows_can_be_skipped_without_reading_them_as_records(tmp_path):
  for address in both(tmp_path, ROWS):
    places = list(sources.row_files(address).places(start=7))
    assert [number for _, number, _ in places] == [8, 9, 10]


def test_several_files_in_the_order_of_names(tmp_path):
  write(tmp_path / 'b.parquet', ROWS[5:])
  write(tmp_path / 'a.parquet', ROWS[:5])
  found = sources.row_files(f'parquet:{tmp_path}/*.parquet').places()
  assert [row['doc_id'] for _, _, row in found] == [row['doc_id'] for row in ROWS]


def test_a_row_that_is_not_utf8_is_a_bad_row_and_the_others_are_kept(tmp_path):
  table = pa.Table.from_pylist(ROWS)
  bad = pa.array([b'ok', b'\xff\xfe', *[b'ok'] * 8], pa.binary()).view(pa.string())
  path = write(tmp_path / 'a.parquet', table.set_column(3, 'title', bad))
  with pytest.raises(UserError, match=r'a\.parquet:2:title: is not UTF-8'):
    list(sources.read(f'parquet:{path}', 'test'))
  bad_rows = BadRows('quarantine', tmp_path / 'bad.jsonl')
  groups = list(sources.read(f'parquet:{path}', 'test', bad_rows=bad_rows))
  assert sum(len(group.docs) for group in groups) == 9 == bad_rows.kept
  assert json.loads(bad_rows.path.read_text())['line'] == 2


def test_bad_files(tmp_path):
  whole = write(tmp_path / 'whole.parquet', ROWS).read_bytes()
  write(tmp_path / 'none.parquet', pa.Table.from_pylist(ROWS).slice(0, 0))
  (tmp_path / 'cut.parquet').write_bytes(whole[: len(whole) // 2])
  (tmp_path / 'empty.parquet').write_bytes(b'')
  (tmp_path / 'text.parquet').write_text('{}\n')
  (tmp_path / 'folder.parquet').mkdir()
  for name, says in [
    ('none', 'has no rows'), ('cut', 'cannot be read as Parquet'), ('empty', 'cannot be read'),
    ('text', 'cannot be read'), ('folder', 'is a folder'), ('gone', 'does not exist'),
  ]:  # fmt: skip
    with pytest.raises(UserError) as caught:
      list(sources.read(f'parquet:{tmp_path}/{name}.parquet', 'test'))
    message = str(caught.value)
    assert f'{name}.parquet: ' in message and says in message and '\n' not in message


def test_types_that_json_does_not_have_are_bad_rows(tmp_path):
  data = [row | {'label': float(row['label'])} for row in ROWS]
  path = write(tmp_path / 'a.parquet', data)
  with pytest.raises(UserError, match=r'a\.parquet:1:label: is a float'):
    list(sources.read(f'parquet:{path}', 'judgements'))
