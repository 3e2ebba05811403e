"""Addresses: valid and invalid JSON lines, fingerprints, and mistakes of users."""

import gzip
import hashlib
import json
import os
import resource
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import ROW, error, jsonl, trec_folder

from disranker_jax.commands import prepare
from disranker_jax.data import contents, preparation, preparing, sources, store
from disranker_jax.data.records import UNJUDGED, BadRows, Click
from disranker_jax.data.sources import read
from disranker_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
  return trec_folder(tmp_path)


class TestAddresses:
  @pytest.mark.parametrize('address', ['', 'jsonl', 'data.jsonl', 'parket:x', '/tmp/x', 'JSONL:x'])
  def test_unknown_ones_get_examples(self, address):
    message = error(address)
    assert all(f'{scheme}:' in message for scheme in ('python_docs', 'jsonl', 'trec'))

  def test_options_are_checked(self):
    assert 'qrel=x' in error('trec:dir?qrel=x') and 'qrels' in error('trec:dir?qrel=x')
    assert 'twice' in error('trec:dir?run=a&run=b')
    assert 'takes no path' in error('python_docs:here')
    assert 'has no path' in error('jsonl:') and 'has no folder' in error('trec:')
    assert 'depth: is -1' in error('python_docs:', depth=-1)

  def test_every_scheme_has_an_example_of_its_own(self):
    for scheme, source in sources.SCHEMES.items():
      assert source.example.startswith(f'{scheme}:')

  def test_python_docs_is_an_address(self):
    assert isinstance(next(read('python_docs:', 'clicks')), Click)
    assert len(next(read('python_docs:', 'candidates', depth=2)).docs) <= 2


class TestJsonl:
  @pytest.mark.parametrize(
    'name', ['a.jsonl', 'a.jsonl.gz', 'gzip.jsonl', 'bom.jsonl', 'crlf.jsonl']
  )
  def test_plain_and_gzip_by_name_or_content(self, tmp_path, name):
    data = jsonl(ROW, ROW | {'doc_id': 'd2', 'label': 0})
    if name == 'bom.jsonl':
      data = b'\xef\xbb\xbf' + data
    if name == 'crlf.jsonl':
      data = data.replace(b'\n', b'\r\n') + b'\r\n'
    if 'gz' in name:
      data = gzip.compress(data)
    (tmp_path / name).write_bytes(data)
    (group,) = read(f'jsonl:{tmp_path / name}', 'judgements')
    assert [(doc.doc_id, doc.label) for doc in group.docs] == [('d1', 1), ('d2', 0)]

  def test_gzip_of_several_members_is_read_to_its_end(self, tmp_path):
    rows = [ROW | {'doc_id': f'd{i}'} for i in range(3)]
    file = tmp_path / 'logrotate.jsonl.gz'
    file.write_bytes(b''.join(gzip.compress(jsonl(row)) for row in rows))
    (group,) = read(f'jsonl:{file}', 'judgements')
    assert [doc.doc_id for doc in group.docs] == ['d0', 'd1', 'd2']

  def test_characters_that_look_like_line_ends_do_not_end_a_row(self, tmp_path):
    text = 'one\u2028two\u2029three\x85four\x0bfive'
    line = json.dumps(ROW | {'summary': text}, ensure_ascii=False) + '\n'
    (tmp_path / 'a.jsonl').write_bytes(line.encode())
    (group,) = read(f'jsonl:{tmp_path}/a.jsonl', 'judgements')
    assert group.docs[0].summary == text

  @pytest.mark.parametrize('text', ['नमस्ते', '文件读取', 'قراءة', '👩‍👩‍👧‍👦 naïve ﬁle'])
  def test_a_path_with_blanks_brackets_and_umlauts_and_text_in_any_script(self, tmp_path, text):
    folder = tmp_path / 'Ärger (2) [alt]'
    folder.mkdir()
    row = ROW | {'query': text, 'title': text, 'summary': text}
    (folder / 'ö ü.jsonl').write_text(json.dumps(row, ensure_ascii=False) + '\n', 'utf-8')
    (group,) = read(f'jsonl:{folder}/ö ü.jsonl', 'judgements')
    assert (group.query, group.docs[0].title, group.docs[0].summary) == (text, text, text)

  def test_thousands_of_part_files_need_few_open_files(self, tmp_path):
    for i in range(3000):
      (tmp_path / f'part-{i:04}.jsonl').write_bytes(jsonl(ROW | {'query_id': f'q{i}'}))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
      groups = list(read(f'jsonl:{tmp_path}/part-*.jsonl', 'judgements'))
    finally:
      resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(groups) == 3000

  def test_a_document_of_8_megabytes_is_whole(self, tmp_path):
    text = 'word ' * 1_600_000
    (tmp_path / 'a.jsonl').write_bytes(jsonl(ROW | {'summary': text}))
    (group,) = read(f'jsonl:{tmp_path}/a.jsonl', 'judgements')
    assert group.docs[0].summary.split() == text.split()

  def test_globs_in_the_order_of_names_and_groups_across_files(self, tmp_path):
    (tmp_path / 'part-2.jsonl').write_bytes(jsonl(ROW | {'doc_id': 'd2'}))
    (tmp_path / 'part-1.jsonl').write_bytes(jsonl(ROW))
    (group,) = read(f'jsonl:{tmp_path}/part-?.jsonl', 'judgements')
    assert [doc.doc_id for doc in group.docs] == ['d1', 'd2']
    assert 'matches no file' in error(f'jsonl:{tmp_path}/*.json')

  @pytest.mark.parametrize('name', ['part-1.jsonl', 'part-3.jsonl', 'part-1.jsonl.gz', 'part-3.gz'])
  @pytest.mark.parametrize('text', [b'', b'\n \n'])
  def test_a_part_without_rows_is_skipped_and_named(self, tmp_path, capsys, name, text):
    for part in ('part-0.jsonl', 'part-2.jsonl'):
      (tmp_path / part).write_bytes(jsonl(ROW | {'doc_id': part}))
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith('gz') else text)
    (group,) = read(f'jsonl:{tmp_path}/part-*', 'test')
    assert [doc.doc_id for doc in group.docs] == ['part-0.jsonl', 'part-2.jsonl']
    assert f'{tmp_path / name}: has no rows; skipped' in capsys.readouterr().err
    assert [number for _, number, _ in sources.open(f'jsonl:{tmp_path}/*').places(1)] == [1]
    assert len(sources.documents(tmp_path / 'part-*')) == 2

  @pytest.mark.parametrize('pack', [bytes, gzip.compress])
  def test_a_pipe_is_read_once_and_then_asks_for_a_file(self, pipe, pack):
    path = pipe(pack(jsonl(ROW)))
    assert len(list(read(f'jsonl:{path}', 'test'))) == 1
    assert 'write the data to a file' in error(f'jsonl:{path}')
    docs = pipe(pack(jsonl({'doc_id': 'd', 'title': 't', 'summary': ''})))
    assert [doc.doc_id for doc in sources.documents(docs)] == ['d']

  def test_what_needs_a_file_says_so_of_a_pipe(self, tmp_path, pipe, folder):
    path = pipe(jsonl(ROW))
    assert f'{path}: is a pipe' in error(f'parquet:{path}')
    docs = pipe(gzip.decompress((folder / 'docs.jsonl.gz').read_bytes()))
    assert 'write the data to a file' in error(f'trec:{folder}?docs={docs}&run=bm25', 'candidates')
    for address in (f'jsonl:{path}', f'trec:{folder}?run={path}'):
      with pytest.raises(UserError, match=f'{path}: is a pipe.* write it to a file'):
        prepare.main(['--source', address, '--kind', 'test', '--out', str(tmp_path / 'out')])

  def test_parts_that_are_all_without_rows_are_an_error(self, tmp_path):
    for i in range(3):
      (tmp_path / f'part-{i}').touch()
    assert 'part-2: is empty' in error(f'jsonl:{tmp_path}/part-*')

  def test_kinds(self, tmp_path):
    path = tmp_path / 'a.jsonl'
    unlabelled = {name: ROW[name] for name in ROW if name != 'label'} | {'doc_id': 'd2', 'rank': 5}
    path.write_bytes(jsonl(ROW, unlabelled))
    assert list(read(f'jsonl:{path}', 'clicks')) == [Click('red fox', 'T', '')] * 2
    (group,) = read(f'jsonl:{path}', 'candidates')
    assert [(doc.label, doc.rank) for doc in group.docs] == [(UNJUDGED, 0), (UNJUDGED, 5)]
    (group,) = read(f'jsonl:{path}', 'test')
    assert [doc.label for doc in group.docs] == [1, UNJUDGED]
    assert f'{path}:2:label: is missing' in error(f'jsonl:{path}')

  @pytest.mark.parametrize(
    ('line', 'says'),
    [
      (b'{"query": ', 'invalid JSON'),
      (b'\xff\xfe{}', 'not UTF-8'),
      (b'[1]', 'is a list'),
      (b'"text"', 'is text'),
      (b'[' * 100_000, 'row: is'),
      (b'{"label": ' + b'9' * 5000 + b'}', 'row: is'),
      (b'{"label": 1, "label": 2}', 'label: appears twice'),
    ],
  )
  @pytest.mark.parametrize('kind', ['clicks', 'test'])
  def test_bad_lines(self, tmp_path, line, says, kind):
    path = tmp_path / 'a.jsonl'
    path.write_bytes(jsonl(ROW) + b'\n' + line + b'\n')
    message = error(f'jsonl:{path}', kind)
    assert message.startswith(f'{path}:3:') and says in message
    bad_rows = BadRows('quarantine', tmp_path / 'bad.jsonl')
    assert len(list(read(f'jsonl:{path}', kind, bad_rows=bad_rows))) == 1
    assert (bad_rows.rows_in, bad_rows.quarantined) == (2, 1)
    (entry,) = map(json.loads, bad_rows.path.read_text().splitlines())
    assert entry['line'] == 3 and entry['file'] == str(path) and says in entry['reason']

  def test_bad_files(self, tmp_path):
    assert 'does not exist' in error(f'jsonl:{tmp_path}/none.jsonl')
    assert 'is a folder' in error(f'jsonl:{tmp_path}')
    whole = gzip.compress(jsonl(*[ROW | {'doc_id': str(i)} for i in range(999)]))
    for name, data, says in [
      ('empty', b'', 'is empty'),
      ('blank', b'\n \n', 'has no rows'),
      ('cut.gz', whole[: len(whole) // 2], 'cut short after line'),
      ('cut-early.gz', whole[:5], 'cut short'),
      ('odd.gz', jsonl(ROW), 'is not gzip'),
      ('rotten.gz', whole[:40] + b'\0\0\0\0' + whole[44:], 'copy it again'),
    ]:
      (tmp_path / name).write_bytes(data)
      message = error(f'jsonl:{tmp_path / name}')
      assert message.startswith(str(tmp_path / name)) and says in message, message
      # A file that cannot be read is not a matter of single rows.
      assert error(f'jsonl:{tmp_path / name}', bad_rows=BadRows('quarantine', tmp_path / 'bad'))


def test_fingerprints_follow_every_file_that_is_named(tmp_path, folder):
  run = tmp_path / 'other.run'
  run.write_text('q1 Q0 d1 1 1 x\n')
  (tmp_path / 'a.jsonl').write_bytes(jsonl(ROW))
  addresses = {
    f'trec:{folder}?run={run}': [run, folder / 'docs.jsonl.gz'],
    f'ir_datasets:vaswani?run={run}': [run],
    f'jsonl:{tmp_path}/*.jsonl': [tmp_path / 'a.jsonl'],
    f'trec:{run}': [run],
  }
  for address, files in addresses.items():
    for file in files:
      before = sources.fingerprint(address)
      assert before == sources.fingerprint(address)
      file.write_bytes(file.read_bytes() + b'\n')
      assert sources.fingerprint(address) != before, (address, file)


@pytest.mark.parametrize('pattern', ['**/*.jsonl', 'deep[1].jsonl', 'deep[[]1].jsonl', 'dee*'])
def test_a_fingerprint_follows_the_files_that_reading_finds(tmp_path, pattern):
  (tmp_path / 'logs' / 'may').mkdir(parents=True)
  for file in ('deep[1].jsonl', 'logs/may/deep.jsonl'):
    (tmp_path / file).write_bytes(jsonl(ROW))
  address = f'jsonl:{tmp_path}/{pattern}'
  read_files = sources.open(address).files
  assert read_files
  for file in read_files:
    before = sources.fingerprint(address)
    file.write_bytes(jsonl(ROW | {'title': 'other'}))
    assert sources.fingerprint(address) != before
  assert sources.fingerprint(f'jsonl:{tmp_path}/none*.jsonl') == [f'jsonl:{tmp_path}/none*.jsonl']


def test_a_file_that_is_not_read_leaves_the_fingerprint_as_it_was(tmp_path, folder):
  job = preparation.Job(f'trec:{folder}', 'test', tmp_path / 'done', tmp_path / 'bad')
  preparing.prepare(job)
  (folder / 'my.qrels').write_text('q1 0 d1 1\n')
  inside = {'queries.tsv', 'docs.jsonl.gz', 'qrels.txt', 'bm25.run.gz'}
  prepared = {file.name for file in (tmp_path / 'done').iterdir()} - {store.RESULT}
  for address, place, read_files in (
    (f'trec:{folder}', folder, inside),
    (f'trec:{folder}?qrels=my.qrels&pool=run', folder, inside | {'my.qrels'}),
    (f'tfds:{tmp_path}/done', tmp_path / 'done', prepared),
  ):
    before = sources.fingerprint(address)
    assert {os.path.basename(file) for file, _ in before[1:]} == read_files
    for name in ('.DS_Store', *(('student.run', 'docs.jsonl.gz.md5') if place == folder else ())):
      (place / name).write_text('q1 Q0 d1 1 1 x\n')
    assert sources.fingerprint(address) == before


def test_without_a_home_directory_ir_datasets_names_its_variable(tmp_path, monkeypatch):
  (tmp_path / 'ir_datasets.py').write_text("raise PermissionError(13, 'denied', '/.ir_datasets')")
  monkeypatch.syspath_prepend(tmp_path)
  for name in [n for n in sys.modules if n.split('.')[0] == 'ir_datasets']:
    monkeypatch.delitem(sys.modules, name)
  assert '$IR_DATASETS_HOME' in error('ir_datasets:vaswani')


def test_a_fingerprint_is_of_the_content_not_of_the_time(tmp_path):
  small, large = (tmp_path / name for name in ('a.jsonl', 'b.jsonl'))
  small.write_bytes(jsonl(ROW))
  large.write_bytes(b' ' * contents.SMALL + b'a')
  address = f'jsonl:{tmp_path}/*.jsonl'
  before = sources.fingerprint(address)
  for file in small, large:
    os.utime(file, (1, 1))
    assert sources.fingerprint(address) == before
    text = file.read_bytes()
    file.write_bytes(text[:-1] + b'b')  # of the same size
    os.utime(file, (2, 2))
    assert sources.fingerprint(address) != before
    file.write_bytes(text)
  os.utime(large, (3, 3))
  assert sources.fingerprint(address) == before


def test_a_large_file_is_read_once_and_again_only_if_its_time_changes(tmp_path, monkeypatch):
  monkeypatch.setenv('DISRANKER_CACHE', str(tmp_path / 'cache'))
  file, read = tmp_path / 'a', []
  file.write_bytes(b'a' * contents.SMALL)
  whole = contents._read
  monkeypatch.setattr(contents, '_read', lambda path: read.append(path) or whole(path))
  expected = hashlib.sha256(file.read_bytes()).hexdigest()
  for _ in range(2):
    contents._large.cache_clear()  # as in another process
    assert contents.digest(file) == expected and len(read) == 1
  os.utime(file, (1, 1))
  assert contents.digest(file) == expected and len(read) == 2
  (kept,) = (tmp_path / 'cache' / 'digests').iterdir()
  kept.write_text('cut short')
  contents._large.cache_clear()
  assert contents.digest(file) == expected and len(read) == 3
  monkeypatch.setenv('DISRANKER_CACHE', os.devnull)  # no cache can be there
  contents._large.cache_clear()
  assert contents.digest(file) == expected and len(read) == 4


def test_data_prepared_again_from_the_same_source_has_the_same_fingerprint(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(jsonl(ROW))
  prints = []
  for seconds in (1.0, 2.0):
    job = preparation.Job(f'jsonl:{tmp_path}/a.jsonl', 'test', tmp_path / 'out', tmp_path / 'bad')
    preparing.prepare(job)
    note = json.loads((tmp_path / 'out' / store.RESULT).read_text()) | {'wall_s': seconds}
    (tmp_path / 'out' / store.RESULT).write_text(json.dumps(note))
    prints.append(sources.fingerprint(f'tfds:{tmp_path}/out'))
    (tmp_path / 'out' / store.RESULT).write_text(json.dumps(note | {'digest': ''}))  # run it again
  assert prints[0] == prints[1]


class TestScores:
  """Other teachers' scores, in files of every kind."""

  def test_a_run_a_margin_file_and_our_own_shards(self, tmp_path, folder):
    (tmp_path / 'm.tsv').write_text('9\t1\tq1\td1\td2\n')
    assert list(read(f'trec:{tmp_path}/m.tsv', 'scores')) == [('q1', 'd1', 9), ('q1', 'd2', 1)]
    found = list(read(f'trec:{folder}', 'scores'))
    assert ('q1', 'd2', 9.5) in found and len(found) == 5
    rows = [{'query_id': 'q', 'doc_id': 'd', 'score': 0.25}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / '00000.parquet')
    assert list(read(f'parquet:{tmp_path}/*.parquet', 'scores')) == [('q', 'd', 0.25)]

  def test_a_score_that_is_none_is_a_bad_row(self, tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_text('{"query_id": "q", "doc_id": "d", "score": NaN}\n')
    assert f'{path}:1:score: is nan' in error(f'jsonl:{path}', 'scores')
    (tmp_path / 'a.run').write_text('q Q0 d 1 inf x\n')
    assert 'a.run:1:score: is inf' in error(f'trec:{tmp_path}/a.run', 'scores')
    assert "no teacher's scores" in error('python_docs:', 'scores')


class TestTfds:
  def test_prepared_data_is_a_source(self, tmp_path, folder):
    groups = list(read(f'trec:{folder}', 'test', depth=2))
    store.write('test', groups, tmp_path / 'prepared')
    address = f'tfds:{tmp_path}/prepared'
    assert list(map(repr, read(address, 'test'))) == list(map(repr, groups))
    candidates = list(read(address, 'candidates'))
    assert {doc.label for group in candidates for doc in group.docs} == {UNJUDGED}
    assert 'without a label' in error(address, 'judgements')
    clicks = [Click('red fox', 't', 's', 3)]
    store.write('clicks', clicks, tmp_path / 'c')
    assert list(read(f'tfds:{tmp_path}/c?split=rows', 'clicks')) == clicks

  def test_mistakes_are_one_line(self, tmp_path):
    (tmp_path / 'other').mkdir()
    for address in (f'tfds:{tmp_path}/other', f'tfds:{tmp_path}/none', 'tfds:no_such_name'):
      assert 'cannot be opened' in error(address)
    store.write('clicks', [Click('q', 't', 's')], tmp_path / 'c')
    assert 'cannot be opened' in error(f'tfds:{tmp_path}/c?split=train')
    assert 'has no dataset' in error('tfds:')
