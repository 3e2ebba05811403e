"""Parquet and JSON lines: the same rows give the same records; bad files are one line."""

import datetime
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from disranker_jax.data import parquet_pages, rows, sources
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
  monkeypatch.setattr(parquet_pages, 'BATCH_ROWS', 4)
  parquet, jsonl = (list(sources.read(address, kind)) for address in both(tmp_path, data))
  assert list(map(repr, parquet)) == list(map(repr, jsonl)) and len(jsonl) > 2


def test_rows_can_be_skipped_without_reading_them_as_records(tmp_path):
  for address in both(tmp_path, ROWS):
    places = list(sources.open(address).places(start=7))
    assert [number for _, number, _ in places] == [8, 9, 10]


def test_several_files_in_the_order_of_names(tmp_path):
  write(tmp_path / 'b.parquet', ROWS[5:])
  write(tmp_path / 'a.parquet', ROWS[:5])
  found = sources.open(f'parquet:{tmp_path}/*.parquet').places()
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


def test_integer_ids_and_decimal_numbers_are_read_exactly(tmp_path):
  big = 2**63 - 1
  data = [
    {'query_id': big, 'query': 'a', 'doc_id': 2**53 + 1, 'title': 't', 'summary': 's',
     'label': Decimal(2), 'rank': Decimal(3), 'score': Decimal('-0.10')},
  ]  # fmt: skip
  kinds = {'label': pa.decimal128(38, 0), 'rank': pa.decimal128(9, 0), 'score': pa.decimal128(9, 2)}
  table = pa.Table.from_pylist(data)
  for name, kind in kinds.items():
    table = table.set_column(table.schema.names.index(name), name, table[name].cast(kind))
  address = f'parquet:{write(tmp_path / "a.parquet", table)}'
  (group,) = sources.read(address, 'test')
  (doc,) = group.docs
  assert (group.query_id, doc.doc_id) == (str(big), str(2**53 + 1))
  assert (doc.label, doc.rank, doc.score) == (2, 3, -0.1) and type(doc.label) is int
  assert list(sources.read(address, 'scores')) == [(str(big), str(2**53 + 1), -0.1)]


@pytest.mark.parametrize('list_of', [pa.list_, pa.large_list])
def test_decimals_within_lists_and_objects_are_numbers(tmp_path, list_of):
  passage = pa.struct([('docid', pa.decimal128(5, 0)), ('text', pa.string())])
  kind = pa.schema([
    ('query', pa.string()), ('passages', list_of(passage)), ('scores', list_of(pa.decimal256(5, 1)))
  ])  # fmt: skip
  passages = [{'docid': Decimal(i), 'text': f'text {i}'} for i in range(2)]
  row = {'query': 'q', 'passages': passages, 'scores': [Decimal('1.5'), Decimal('0.1')]}
  path = write(tmp_path / 'a.parquet', pa.Table.from_pylist([row], kind))
  scores = [(doc, score) for _, doc, score in sources.read(f'parquet:{path}', 'scores')]
  assert scores == [('0', 1.5), ('1', 0.1)]


def test_a_decimal_beyond_64_bits_is_a_bad_row_and_the_others_are_kept(tmp_path):
  table = pa.Table.from_pylist(ROWS[:2])
  labels = pa.array([Decimal(10) ** 30, Decimal(1)], pa.decimal128(38, 0))
  path = write(tmp_path / 'a.parquet', table.set_column(5, 'label', labels))
  bad_rows = BadRows('quarantine', tmp_path / 'bad.jsonl')
  (group,) = sources.read(f'parquet:{path}', 'test', bad_rows=bad_rows)
  assert [doc.doc_id for doc in group.docs] == ['d1'] and bad_rows.quarantined == 1
  assert json.loads(bad_rows.path.read_text())['field'] == 'label'


def test_times_with_nanoseconds_are_read_without_pandas(tmp_path):
  table = pa.table(
    {
      'at': pa.array([1_700_000_000_123_456_789, None], pa.timestamp('ns', 'UTC')),
      'list': pa.array([[86_400 * 10**9 + 1], []], pa.list_(pa.timestamp('ns'))),
      'time': pa.array([1_001, None], pa.time64('ns')),
      'gap': pa.array([1_001, None], pa.duration('ns')),
    }
  )
  first, second = (row for _, row in rows.read(write(tmp_path / 'a.parquet', table)))
  assert first['at'].isoformat() == '2023-11-14T22:13:20.123456+00:00'
  assert first['list'] == [datetime.datetime(1970, 1, 2)]
  assert (first['time'], first['gap']) == (datetime.time(0, 0, 0, 1), datetime.timedelta(0, 0, 1))
  assert second == {'at': None, 'list': [], 'time': None, 'gap': None}


def test_a_part_without_rows_is_skipped_and_named(tmp_path, capsys):
  write(tmp_path / 'b.parquet', ROWS)
  write(tmp_path / 'c.parquet', pa.Table.from_pylist(ROWS).slice(0, 0))
  (tmp_path / 'a.parquet').touch()
  places = list(sources.open(f'parquet:{tmp_path}/*.parquet').places())
  assert [(file.name, number) for file, number, _ in places] == [
    ('b.parquet', i) for i in range(1, 11)
  ]
  err = capsys.readouterr().err
  assert all(f'{tmp_path}/{name}.parquet: has no rows; skipped' in err for name in 'ac')
