"""Files of strangers: small ones never take gigabytes, or hours."""

import gzip
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from disranker_jax.data import lines, parquet_pages, rows
from disranker_jax.data.records import BadRow, BadRows
from disranker_jax.errors import UserError
from disranker_jax.evaluation.online import events


def repeated(count: int, size: int) -> pa.Array:
  """One text of `size` bytes, `count` times."""
  return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array(['x' * size]))


def bombs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Files of kilobytes that were gigabytes in memory."""
  texts = pa.array(['x' * (20 << 20)] * 14)
  tables = {
    'dictionary': (repeated(1024, 1 << 19), {}),
    'list': (pa.ListArray.from_arrays([0, 100_000], repeated(100_000, 1 << 16)), {}),
    'pages': (texts, {'use_dictionary': False, 'write_batch_size': 1, 'data_page_size': 1}),
  }
  tables['texts'] = (pa.ListArray.from_arrays([0, len(texts)], texts), tables['pages'][1])
  made = {}
  for name, (column, options) in tables.items():
    made[name] = folder / f'{name}.parquet'
    pq.write_table(pa.table({'title': column}), made[name], compression='zstd', **options)
  made['line'], made['values'] = folder / 'line.jsonl.gz', folder / 'values.jsonl.gz'
  made['page'] = folder / 'page.parquet'
  columns = {f'c{i}': texts[:1] for i in range(13)}
  pq.write_table(pa.table(columns), made['page'], compression='zstd', use_dictionary=False)
  with gzip.open(made['line'], 'wb', 1) as file:
    for _ in range(40):
      file.write(b'x' * (1 << 20))
  with gzip.open(made['values'], 'wb', 1) as file:
    file.write(b'{"a":[' + b'{"":0},' * 1_000_000 + b'0]}\n')
  return made


READ = """
import pathlib, re, sys
from disranker_jax.data import rows
from disranker_jax.errors import UserError

def peak():  # not getrusage: it begins with the memory of the parent
  return int(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]) >> 10

before = peak()
for name in sys.argv[1:]:
  count, last = 0, ''
  try:
    for _, row in rows.read(pathlib.Path(name)):
      count += 1
      try:
        rows.decode(row)
      except Exception as error:
        last = str(error)
  except UserError as error:
    last = str(error)
  print(count, last)
print(peak() - before)
"""


def test_small_files_do_not_take_gigabytes(tmp_path):
  made = bombs(tmp_path)
  assert all(file.stat().st_size < 1 << 20 for file in made.values())
  command = [sys.executable, '-c', READ, *map(str, made.values())]
  *printed, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(
    '\n'
  )[:-1]
  assert int(peak) < 500  # MiB; each of them took 0.4 to 6 GiB
  said = dict(zip(made, printed, strict=True))
  assert said['dictionary'] == '1024 ' and said['pages'] == '14 '
  large = 'row: takes more than 64 MiB of memory; split it, or shorten its texts and lists'
  assert said['list'] == said['values'] == f'1 {large}'
  assert f'0 {made["page"]}: ' in said['page'] and 'such as 20 MiB in the column c0' in said['page']
  assert 'in lists of the column title' in said['texts'] and said['texts'].startswith('0 ')
  assert said['line'] == f'0 {made["line"]}:1: is longer than 16 MiB; write one row per line'


def test_rows_around_a_large_one_are_read(tmp_path):
  lists = [['a'], ['b'] * 3_000_000, ['c']]
  pq.write_table(pa.table({'title': pa.array(lists)}), tmp_path / 'f.parquet')
  found = dict(rows.parquet(tmp_path / 'f.parquet'))
  assert [found[1], found[3]] == [{'title': ['a']}, {'title': ['c']}]
  assert isinstance(found[2], BadRow) and found[2].field == 'row'


def test_values_that_stay_in_their_dictionary_are_the_same(tmp_path, monkeypatch):
  table = pa.table({
    'query': ['a', None, 'b', 'a'], 'label': [1, 2, None, 1],
    'pos': [['x', 'y'], None, [], ['x', None]],
    'docs': [[{'docid': 'd', 'n': 1}], [], None, [{'docid': 'd', 'n': 2}] * 2],
  })  # fmt: skip
  file = tmp_path / 'f.parquet'
  pq.write_table(table, file, row_group_size=3)
  monkeypatch.setattr(parquet_pages, 'BATCH_BYTES', 0)
  [first, *_] = parquet_pages.chunks(file)
  assert parquet_pages.plan(file, pq.ParquetFile(file), 0, None, first) == (1, True)
  assert [row for _, row in rows.parquet(file)] == table.to_pylist()


@pytest.mark.parametrize('version', ['1.0', '2.0'])
@pytest.mark.parametrize('codec', ['none', 'snappy', 'gzip', 'zstd', 'lz4', 'brotli'])
def test_what_headers_of_pages_say_is_what_was_written(tmp_path, codec, version):
  texts = [f'{i:05d}' * (1 + i % 7) for i in range(3000)]
  for name, dictionary in (('plain', False), ('dictionary', True)):
    file = tmp_path / name
    pq.write_table(
      pa.table({'t': texts}), file, compression=codec, data_page_version=version,
      use_dictionary=dictionary, data_page_size=4096,
    )  # fmt: skip
    with file.open('rb') as opened:
      found = parquet_pages.of_chunk(opened, parquet_pages.chunks(file)[0][0])
    assert found.values == 3000
    assert found.entry == (35 if dictionary else 0)
    assert found.repeated == (3000 if dictionary else 0)
    assert (15 < found.mean < 40) != dictionary


def test_a_damaged_footer_is_one_line_and_never_ends_the_process(tmp_path):
  file = tmp_path / 'f.parquet'
  pq.write_table(pa.table({'query': ['a', 'b'], 'score': [0.5, 0.25]}), file)
  content = file.read_bytes()
  start = len(content) - 8 - int.from_bytes(content[-8:-4], 'little')
  refused = 0
  for bit in range(8 * start, 8 * len(content), 3):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    file.write_bytes(damaged)
    try:
      list(rows.parquet(file))
    except UserError as error:
      refused += 1
      assert '\n' not in str(error) and str(file) in str(error)
  assert refused > 100


def test_a_page_without_a_header_is_one_line(tmp_path):
  file = tmp_path / 'f.parquet'
  pq.write_table(pa.table({'query': ['a' * 50] * 9}), file, use_dictionary=False)
  content = bytearray(file.read_bytes())
  content[4:30] = b'\xff' * 26
  file.write_bytes(content)
  with pytest.raises(UserError, match=r'f\.parquet: cannot be read as Parquet \(a header'):
    list(rows.parquet(file))


def test_blank_lines_end(tmp_path, monkeypatch):
  monkeypatch.setattr(lines, 'BLANK_LINES', 10)
  file = tmp_path / 'f.jsonl'
  file.write_text('{}\n' + '\n' * 10 + '{}\n')
  assert [number for number, _ in lines.read(file)] == [1, 12]
  file.write_text('{}\n' + '\n' * 11 + '{}\n')
  with pytest.raises(UserError, match=r'f\.jsonl:12: has 10 blank lines before'):
    list(lines.read(file))


def test_a_line_may_have_the_largest_length(tmp_path, monkeypatch):
  monkeypatch.setattr(lines, 'LINE_BYTES', 8)
  file = tmp_path / 'f.jsonl'
  file.write_bytes(b'1234567\n12345678')
  assert len(list(lines.read(file))) == 2
  file.write_bytes(b'1\n123456789\n')
  with pytest.raises(UserError, match=r'f\.jsonl:2: is longer than'):
    list(lines.read(file))


def test_a_repeated_name_is_found_in_linear_time():
  def seconds(count: int) -> float:
    fields = ','.join(f'"n{i}":0' for i in range(count))
    line = f'{{{fields},"n{count - 1}":1}}'.encode()
    begin = time.process_time()
    with pytest.raises(BadRow, match=f'n{count - 1}: appears twice in one row'):
      lines.from_json(line)
    return time.process_time() - begin

  # A quadratic search takes 100 times as long for 10 times the names; 6 s for 20,000. The best of
  # three, because a garbage collection takes longer than the search.
  fewer, more = (min(seconds(count) for _ in range(3)) for count in (2_000, 20_000))
  assert more < 40 * fewer + 0.1


def test_names_of_events_have_a_limit(tmp_path):
  row = {'user': 'u' * 1001, 'bucket': 'b', 'day': '2024-05-01', 'clicks': 0}
  (tmp_path / 'log.jsonl').write_text(json.dumps(row) + '\n')
  with pytest.raises(UserError, match=r'log\.jsonl:1:user: has 1,001 characters'):
    events.read([str(tmp_path / 'log.jsonl')], bad_rows=BadRows())


def test_a_log_does_not_choose_the_number_of_buckets(tmp_path):
  row = {'user': 'u', 'day': '2024-05-01', 'clicks': 0}
  with (tmp_path / 'log.jsonl').open('w') as file:
    file.writelines(json.dumps(row | {'bucket': f'b{i}'}) + '\n' for i in range(101))
  with pytest.raises(UserError, match='bucket: has 101 different values'):
    events.read([str(tmp_path / 'log.jsonl')])


@pytest.mark.parametrize(
  'lengths',
  [[], [0], [5] * 100, [0] * 100, [5] * 40 + [900] + [5] * 40, [1, 2] * 50 + [7] * 17 + [3, 50],
   [3] * 17, [3] * 18, [3] * 19 + [4]],
)  # fmt: skip
def test_the_longest_text_of_a_dictionary(lengths):
  data = b''.join(n.to_bytes(4, 'little') + b'x' * n for n in lengths)
  assert parquet_pages._longest(data) == max(lengths, default=0)


def test_categories_of_any_type_are_read(tmp_path):
  """As pandas writes its categorical columns."""
  codes = np.array([0, 1, 0], np.int8)
  columns = {
    'label': pa.DictionaryArray.from_arrays(codes, pa.array([7, 9])),
    'query': pa.DictionaryArray.from_arrays(codes, pa.array(['a', 'b'], pa.large_string())),
    'pair': pa.array([[1, 2], [3, 4], None], pa.list_(pa.int64(), 2)),
    'more': pa.array([[('k', 1)], [], None], pa.map_(pa.string(), pa.int64())),
  }
  file = tmp_path / 'f.parquet'
  pq.write_table(pa.table(columns), file)
  found = [row for _, row in rows.parquet(file)]
  assert [row['label'] for row in found] == [7, 9, 7]
  assert [row['query'] for row in found] == ['a', 'b', 'a']
  assert [row['pair'] for row in found] == [[1, 2], [3, 4], None]
  assert [row['more'] for row in found] == [[('k', 1)], [], None]
