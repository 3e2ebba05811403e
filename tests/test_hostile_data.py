"""Data of strangers: they never run code, and small files never take gigabytes."""

import gzip
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore

from disranker_jax.data import lines, parquet_pages, preparing, rows, sources, store, tfds_rows
from disranker_jax.data.preparing import Job
from disranker_jax.data.records import BadRow, BadRows, Click
from disranker_jax.data.spool import Spool
from disranker_jax.errors import UserError
from disranker_jax.evaluation.online import events
from disranker_jax.pipeline import runner
from disranker_jax.training import checkpoint

CLICK = Click('query', 'title', 'summary')


@pytest.fixture
def current(tmp_path, monkeypatch):
  """The current folder, from which `python -m` imports; a module in it says that it has run."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  return tmp_path


def planted(folder: pathlib.Path) -> None:
  """Prepared clicks with a module `evil` beside the shards."""
  store.write('clicks', [CLICK], folder)
  (folder / 'evil.py').write_text("open('PWNED', 'w').close()\n")


def name_class(folder: pathlib.Path, where: str) -> None:
  """Names the class F of the planted module in the metadata, in the way `where`."""
  name = '.'.join((*folder.parts, 'evil', 'F'))
  features, info = folder / 'features.json', folder / 'dataset_info.json'
  value = json.loads(features.read_text())
  text = value['featuresDict']['features']['query']
  if where == 'features':
    text['pythonClassName'] = name
  elif where == 'snake case':
    text['python_class_name'] = name
    del text['pythonClassName']
  elif where == 'legacy':
    value = {'type': name, 'content': {}}
  elif where == 'nested JSON':
    sequence = 'tensorflow_datasets.core.features.sequence_feature.Sequence'
    inner = json.dumps({'feature': {'type': name, 'content': {}}, 'length': None})
    value['featuresDict']['features']['query'] = {
      'pythonClassName': sequence, 'jsonFeature': {'json': inner},
    }  # fmt: skip
  else:
    features.unlink()
    text['pythonClassName'] = name
    info.write_text(json.dumps(json.loads(info.read_text()) | {'features': value}))
    return
  features.write_text(json.dumps(value))


@pytest.mark.parametrize('where', ['features', 'snake case', 'legacy', 'nested JSON', 'info'])
def test_a_class_that_a_dataset_names_is_not_imported(current, where):
  folder = pathlib.Path('downloaded/clicks')
  planted(folder)
  name_class(folder, where)
  with pytest.raises(UserError, match=r'downloaded/clicks/.*json: names the class .*evil\.F'):
    list(sources.read(f'tfds:{folder}', 'clicks'))
  assert not pathlib.Path('PWNED').exists()


def test_a_class_is_not_imported_for_a_name_either(current, monkeypatch):
  folder = pathlib.Path('datasets/mine/1.1.0')
  planted(folder)
  name_class(folder, 'features')
  monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', str(current / 'datasets'))
  with pytest.raises(UserError, match=r'mine/1\.1\.0/features\.json: names the class'):
    tfds_rows.read('mine', {})
  with pytest.raises(UserError, match='whose code TFDS would download and run'):
    tfds_rows.read('huggingface:squad', {})
  assert not pathlib.Path('PWNED').exists()


def test_a_workdirs_prepared_data_need_no_class(current):
  folder = pathlib.Path('runs/stranger/data/clicks')
  planted(folder)
  name_class(folder, 'features')
  assert list(store.open('clicks', folder)) == [CLICK]
  assert not pathlib.Path('PWNED').exists()


def test_shards_are_those_of_the_folder_only(tmp_path):
  store.write('clicks', [CLICK], tmp_path / 'private')
  store.write('clicks', [CLICK], tmp_path / 'c')
  file = tmp_path / 'c' / 'dataset_info.json'
  info = json.loads(file.read_text())
  info['splits'][0]['filepathTemplate'] = '../private/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  file.write_text(json.dumps(info))
  next((tmp_path / 'c').glob('*array_record*')).unlink()
  with pytest.raises(UserError, match='is missing'):
    store.open('clicks', tmp_path / 'c')


def test_a_link_in_prepared_data_is_copied_not_linked(tmp_path):
  store.write('clicks', [CLICK], tmp_path / 'c')
  secret = tmp_path / 'secret'
  secret.write_text('x')
  (tmp_path / 'c' / 'extra').symlink_to(secret)
  store.copy(tmp_path / 'c', tmp_path / 'd', {})
  assert secret.stat().st_nlink == 1 and not (tmp_path / 'd' / 'extra').is_symlink()


class Evil:
  """What a pickle can do."""

  def __reduce__(self):
    return os.system, ('touch PWNED',)


def unfinished(current, monkeypatch, name='run-000000000001.rows') -> tuple[Job, pathlib.Path]:
  """A job whose unfinished folder holds a pickle where sorted rows are expected."""
  row = {'query_id': 'q', 'query': 'q', 'doc_id': 'd', 'title': 't', 'summary': 's', 'label': 1}
  pathlib.Path('j.jsonl').write_text(json.dumps(row) + '\n')
  job = Job('jsonl:j.jsonl', 'judgements', pathlib.Path('out/j'), pathlib.Path('out/bad.jsonl'))
  run = job.partial / 'by_query' / name
  run.parent.mkdir(parents=True)
  run.write_bytes(pickle.dumps([('q', 0, pickle.dumps(Evil()))]))
  state = {
    'digest': job.digest(), 'rows': 1, 'read': True, 'wall_s': 0.0,
    'bad_rows': {'rows_in': 1, 'quarantined': 0, 'bytes': 0},
    'runs': {'count': 1, 'runs': [name]}, 'shards': {'lengths': [], 'bytes': 0},
  }  # fmt: skip
  (job.partial / 'journal.json').write_text(json.dumps(state))
  return job, run


def test_a_pickle_in_unfinished_work_is_not_loaded(current, monkeypatch):
  job, run = unfinished(current, monkeypatch)
  with pytest.raises(UserError, match=r'run-000000000001\.rows: is not a run of sorted rows'):
    preparing.prepare(job)
  run.write_bytes(pickle.dumps(Evil()))
  with pytest.raises(UserError, match='is not a run of sorted rows'):
    preparing.prepare(job)
  assert not pathlib.Path('PWNED').exists()


@pytest.mark.parametrize('name', ['../../elsewhere.rows', '/etc/hostname', '..'])
def test_a_journal_names_files_of_its_folder_only(current, monkeypatch, capsys, name):
  job, _ = unfinished(current, monkeypatch)
  journal = job.partial / 'journal.json'
  state = json.loads(journal.read_text())
  state['runs']['runs'] = [name]
  journal.write_text(json.dumps(state))
  assert preparing.prepare(job).records == 1
  assert 'is not a journal; starts again' in capsys.readouterr().err
  with pytest.raises(ValueError, match='is not a file of'):
    Spool(job.partial).rewind({'count': 1, 'runs': ['../x.rows']})


@pytest.mark.parametrize(('folder', 'lock'), [(0o755, 0o600), (0o775, 0o660), (0o777, 0o660)])
def test_only_those_who_may_write_to_a_workdir_can_lock_it(tmp_path, folder, lock):
  tmp_path.chmod(folder)
  (tmp_path / '.lock').touch(0o644)  # of an earlier version
  with runner.locked(tmp_path):
    assert (tmp_path / '.lock').stat().st_mode & 0o777 == lock


@pytest.mark.parametrize('name', ['../../private', '/dev/zero', 'params/../../private'])
def test_checksums_are_of_files_in_the_checkpoint(tmp_path, name):
  (tmp_path / 'checksums.0.json').write_text(json.dumps({name: [1, 2]}))
  with pytest.raises(ValueError, match='which is not in the checkpoint'):
    checkpoint.check_sums(tmp_path)


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
  assert parquet_pages.plan(file, pq.ParquetFile(file), 0, None) == (1, True)
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
    source = pq.ParquetFile(file)
    with file.open('rb') as opened:
      found = parquet_pages.of_chunk(opened, source.metadata.row_group(0).column(0))
    assert found.values == 3000
    assert found.entry == (35 if dictionary else 0)
    assert found.repeated == (3000 if dictionary else 0)
    assert (15 < found.mean < 40) != dictionary


def test_a_page_without_a_header_is_one_line(tmp_path):
  file = tmp_path / 'f.parquet'
  pq.write_table(pa.table({'query': ['a' * 50] * 9}), file, use_dictionary=False)
  content = bytearray(file.read_bytes())
  content[4:30] = b'\xff' * 26
  file.write_bytes(content)
  with pytest.raises(UserError, match=r'f\.parquet: cannot be read as Parquet \(the header'):
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


def test_checkpoints_are_read_from_their_folder_only(tmp_path):
  """What keeps a stranger's OCDBT manifest inside: a property of the library that Orbax uses."""
  (tmp_path / 'checkpoint').mkdir()
  (tmp_path / 'private').write_bytes(b'secret')
  opened = tensorstore.KvStore.open({'driver': 'file', 'path': f'{tmp_path}/checkpoint/'}).result()
  for key in ('../private', 'x/../../private', str(tmp_path / 'private')):
    with pytest.raises(ValueError, match='Invalid key'):
      opened.read(key).result()


def test_nobody_is_told_to_install_a_name_that_anybody_may_take():
  """The package is in no index."""
  root = pathlib.Path(__file__).parents[1]
  files = [*root.glob('*.md'), *root.glob('docs/*'), *root.rglob('disranker_jax/**/*.py')]
  texts = {f: f.read_text(errors='ignore') for f in files if f.name != 'CHANGELOG.md'}
  assert len(texts) > 100
  assert not [f for f, text in texts.items() if re.search(r'install\W+disranker_jax', text)]


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


def test_nothing_in_the_package_reads_pickles():
  package = pathlib.Path(lines.__file__).parents[1]
  readers = r'\b(import (pickle|marshal|shelve|joblib|dill|cloudpickle)|torch\.load|allow_pickle)\b'
  found = {f.name: re.search(readers, f.read_text()) for f in package.rglob('*.py')}
  assert len(found) > 100
  assert not [name for name, match in found.items() if match]
