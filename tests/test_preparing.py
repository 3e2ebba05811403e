"""Preparing a source: complete, in bounded pieces, and the same after a kill at any moment."""

import dataclasses
import json
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from disranker_jax import locks
from disranker_jax.commands import prepare
from disranker_jax.data import preparation, preparing, records, row_files, sources, spool, store
from disranker_jax.data.preparing import Job
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError


class Killed(BaseException):
  """Replaces SIGKILL: no code of ours catches it."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
  """Many shards, runs and journal entries of few rows."""
  monkeypatch.setattr(store, 'SHARD_BYTES', 3000)
  monkeypatch.setattr(preparing, 'CHUNK_ROWS', 37)
  monkeypatch.setattr(spool, 'FAN_IN', 3)


def rows_of(queries=30, seed=0):
  """Shuffled rows, some of them bad; the documents of a query are all over the file."""
  rng = random.Random(seed)
  rows = [
    {'query_id': f'q{q}', 'query': f'query {q}', 'doc_id': f'd{d}', 'title': f't{d}',
     'summary': 'words ' * rng.randrange(1, 9), 'label': (q + d) % 4}
    for q in range(queries)
    for d in range(rng.randrange(2, 9))
  ]  # fmt: skip
  rows += [rows[3] | {'label': -1}, rows[4], rows[5] | {'title': 'other'}]
  rows += [rows[7] | {'query': 'other', 'doc_id': 'x'}]
  rng.shuffle(rows)
  return rows


def jsonl(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return f'jsonl:{path}'


def job(tmp_path, address, kind='judgements', name='out', **options):
  options = {'on_bad_row': 'quarantine'} | options
  return Job(address, kind, tmp_path / name, tmp_path / f'{name}.bad.jsonl', **options)


def files(folder):
  """Every file of the result, without the wall time."""
  return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != store.RESULT}


@pytest.mark.parametrize('kind', ['clicks', 'judgements'])
def test_what_is_prepared_is_what_the_source_gives(tmp_path, kind):
  address = jsonl(tmp_path / 'a.jsonl', rows_of())
  task = job(tmp_path, address, kind)
  done = preparing.prepare(task)
  bad_rows = sources.BadRows('quarantine', tmp_path / 'other.jsonl')
  expected = list(sources.read(address, kind, bad_rows=bad_rows))
  assert list(map(repr, store.open(kind, task.folder))) == list(map(repr, expected))
  assert (done.records, done.rows) == (len(expected), bad_rows.rows_in)
  assert (
    done.quarantined == bad_rows.quarantined == (1 if kind == 'clicks' else 3) - (kind == 'clicks')
  )
  assert done.notes == bad_rows.notes == ({} if kind == 'clicks' else {records.REPEATED: 1})
  assert len(list(task.folder.glob('*array_record*'))) > 2
  if done.quarantined:
    assert task.quarantine.read_bytes() == bad_rows.path.read_bytes()
  else:
    assert not task.quarantine.exists()
  assert not task.partial.exists()


def killed_at(monkeypatch, count, task):
  """Runs the task until its `count`-th file is about to get its name; False if it ends before."""
  calls = 0
  replace = os.replace

  def counting(*paths):
    nonlocal calls
    calls += 1
    if calls == count:
      raise Killed
    replace(*paths)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', counting)
    patch.setattr(preparing.Work, 'leave', lambda self: None)
    try:
      preparing.prepare(task)
    except Killed:
      return True
  return False


@pytest.mark.parametrize(
  'source, kind',
  [
    ('jsonl', 'clicks'),
    ('jsonl', 'judgements'),
    ('parquet', 'clicks'),
    ('parquet', 'judgements'),
    ('trec', 'judgements'),
  ],
)
def test_killed_at_every_file_it_continues_to_the_same_bytes(tmp_path, monkeypatch, kind, source):
  rows = rows_of(12)
  address = jsonl(tmp_path / 'a.jsonl', rows)
  if source == 'parquet':
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'a.parquet', row_group_size=20)
    address = f'parquet:{tmp_path}/a.parquet'
  if source == 'trec':
    address = trec(tmp_path / 'trec', rows)
  whole = job(tmp_path, address, kind)
  expected = preparing.prepare(whole)
  count = 1
  while killed_at(monkeypatch, count, again := job(tmp_path, address, kind, name=f'n{count}')):
    # Killed a second time, a little later; only then it runs to the end.
    killed_at(monkeypatch, 3, again)
    done = preparing.prepare(again)
    assert files(again.folder) == files(whole.folder)
    assert dataclasses.replace(done, wall_s=0.0) == dataclasses.replace(expected, wall_s=0.0)
    if expected.quarantined:
      assert again.quarantine.read_bytes() == whole.quarantine.read_bytes()
    assert not again.partial.exists()
    count += 1
  assert count > 6


def trec(folder, rows):
  folder.mkdir()
  rows = [row for row in rows if row['label'] >= 0 and row['query'] != 'other']
  queries = {row['query_id']: row['query'] for row in rows}
  docs = {row['doc_id']: row for row in rows}
  (folder / 'queries.tsv').write_text(''.join(f'{q}\t{text}\n' for q, text in queries.items()))
  jsonl(folder / 'docs.jsonl', docs.values())
  judged = {(row['query_id'], row['doc_id']): row['label'] for row in rows}
  lines = [f'{q} 0 {d} {label}\n' for (q, d), label in judged.items()]
  (folder / 'qrels.txt').write_text(''.join([*lines, 'q1 0 nowhere 1\n']))
  return f'trec:{folder}'


def test_rows_are_not_read_twice(tmp_path, monkeypatch, capsys):
  address = jsonl(tmp_path / 'a.jsonl', rows_of())
  task = job(tmp_path, address)
  seen = []
  make = row_files.made

  def watched(kind):
    parse = make(kind)
    return lambda raw: seen.append(raw) or parse(raw)

  monkeypatch.setattr(row_files, 'made', watched)
  assert killed_at(monkeypatch, 8, task)
  before = len(seen)
  preparing.prepare(task)
  total = len((tmp_path / 'a.jsonl').read_text().splitlines())
  # At most the unfinished chunk is read again.
  assert before > 60 and total <= len(seen) <= total + preparing.CHUNK_ROWS
  assert 'continues after' in capsys.readouterr().err


def test_a_finished_job_runs_again_only_if_source_or_setting_change(tmp_path, monkeypatch, capsys):
  rows = rows_of()
  address = jsonl(tmp_path / 'a.jsonl', rows)
  first = preparing.prepare(job(tmp_path, address))
  before = {f: f.stat().st_mtime_ns for f in (tmp_path / 'out').iterdir()}
  assert preparing.prepare(job(tmp_path, address)) == first
  assert {f: f.stat().st_mtime_ns for f in (tmp_path / 'out').iterdir()} == before
  assert 'done before' in capsys.readouterr().err
  assert preparing.prepare(job(tmp_path, address, limit=4)).records == 4
  assert len(store.open('judgements', tmp_path / 'out')) == 4
  killed_at(monkeypatch, 5, job(tmp_path, address, name='other'))
  jsonl(tmp_path / 'a.jsonl', rows_of(5, seed=1))
  done = preparing.prepare(job(tmp_path, address, name='other'))
  assert done.records == 5 and 'starts again' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['clicks', 'judgements'])
def test_a_limit_takes_the_first(tmp_path, kind):
  address = jsonl(tmp_path / 'a.jsonl', rows_of())
  task = job(tmp_path, address, kind, limit=7)
  done = preparing.prepare(task)
  assert (done.records, done.is_cut) == (7, True)
  every = list(sources.read(address, kind, bad_rows=sources.BadRows.nowhere()))
  assert list(map(repr, store.open(kind, task.folder))) == list(map(repr, every[:7]))
  assert done.described('queries', '--limit').startswith(
    'the first 7 queries; there are more (--limit)'
  )
  assert preparing.prepare(task) == done
  # A limit that cuts nothing is not worth a word.
  for limit in (0, len(every), len(every) + 1):
    done = preparing.prepare(job(tmp_path, address, kind, name=f'all{limit}', limit=limit))
    assert done.described('queries', '--limit') == f'{len(every)} queries'


def test_the_record_after_a_limit_is_seen_and_not_judged(tmp_path):
  """It is read only to know that there is one: it is no bad row, and counts nowhere."""
  row = {'title': 't', 'summary': 's', 'rank': 1}
  rows = [row | {'query_id': q, 'query': q, 'doc_id': 'd'} for q in ('q1', 'q2')]
  address = jsonl(tmp_path / 'ranks.jsonl', [*rows, rows[1] | {'doc_id': 'e', 'rank': None}])
  first, both = (
    preparing.prepare(job(tmp_path, address, 'candidates', name=f'{n}', limit=n, depth=1))
    for n in (1, 2)
  )
  assert (first.records, first.is_cut, first.notes) == (1, True, {})
  assert (both.records, both.is_cut, len(both.notes)) == (2, False, 1)
  good = ''.join(json.dumps(r) + '\n' for r in [r for r in rows_of() if r['label'] >= 0][:3])
  (tmp_path / 'a.jsonl').write_text(good + 'no row\n')
  done = preparing.prepare(
    job(tmp_path, f'jsonl:{tmp_path}/a.jsonl', 'clicks', name='clicks', limit=3, on_bad_row='error')
  )
  assert (done.rows, done.is_cut) == (3, True)


@dataclasses.dataclass(frozen=True)
class Named:
  """Keeps the records of some queries."""

  queries: tuple[str, ...]

  def __call__(self, record) -> bool:
    return record.query in self.queries


@pytest.mark.parametrize(('kind', 'least'), [('clicks', None), ('clicks', 1), ('judgements', None)])
def test_only_records_that_are_kept_are_more_than_a_limit(tmp_path, kind, least):
  """Held-out queries after the limit, and bad rows, are not what a limit cuts."""
  rows = [
    {'query_id': f'q{q}', 'query': f'q{q}', 'doc_id': 'd', 'title': 't', 'summary': '', 'label': 1}
    for q in range(5)
  ]
  rows.insert(3, rows[2] | {'title': 7, 'doc_id': 'e'})
  address = jsonl(tmp_path / 'a.jsonl', rows)

  def done(*queries: str):
    folder = tmp_path / '-'.join(queries)
    keep, mode = Named(queries), 'quarantine'
    made = preparation.job(address, kind, folder, least=least, limit=2, on_bad_row=mode, keep=keep)
    found = preparing.prepare(made)
    bad = made.quarantine.read_text() if made.quarantine.exists() else ''
    assert bad.count('\n') == found.quarantined
    return found

  assert (done('q0', 'q1').records, done('q0', 'q1').is_cut) == (2, False)
  more = done('q0', 'q1', 'q4')
  assert (more.records, more.is_cut) == (2, True)
  # Rows of clicks count up to the limit; the others are all read to group them.
  assert (more.rows, more.quarantined) == ((2, 0) if kind == 'clicks' and not least else (6, 1))


def test_bad_input_leaves_what_was_there(tmp_path):
  good = jsonl(tmp_path / 'a.jsonl', [row for row in rows_of(3) if row['label'] >= 0][:1])
  preparing.prepare(job(tmp_path, good))
  before = files(tmp_path / 'out')
  bad = jsonl(tmp_path / 'b.jsonl', rows_of())
  with pytest.raises(UserError, match=r'b\.jsonl:\d+:'):
    preparing.prepare(job(tmp_path, bad, on_bad_row='error'))
  assert files(tmp_path / 'out') == before
  with pytest.raises(UserError, match='there are no judgements'):
    preparing.prepare(job(tmp_path, jsonl(tmp_path / 'c.jsonl', [{'label': -1}])))
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.txt').write_text('x')
  with pytest.raises(UserError, match='not prepared data'):
    preparing.prepare(job(tmp_path, good, name='mine'))


def test_prepared_data_is_linked_and_not_read_again(tmp_path):
  address = jsonl(tmp_path / 'a.jsonl', rows_of())
  first = job(tmp_path, address, 'test', name='first')
  done = preparing.prepare(first)
  again = job(tmp_path, f'tfds:{tmp_path}/first', 'test', name='again')
  assert preparing.prepare(again).records == done.records
  assert files(again.folder) == files(first.folder)
  shards = [next(j.folder.glob('*array_record*')) for j in (first, again)]
  assert shards[0].stat().st_ino == shards[1].stat().st_ino
  assert preparing.prepare(again).records == done.records  # done before
  # Another kind, or a part of it, is read.
  part = job(tmp_path, f'tfds:{tmp_path}/first', 'test', name='part', limit=3)
  assert preparing.prepare(part).records == 3
  other = job(tmp_path, f'tfds:{tmp_path}/first', 'candidates', name='other')
  preparing.prepare(other)
  labels = {doc.label for group in store.open('candidates', other.folder) for doc in group.docs}
  assert labels == {-1}


def test_labels_of_prepared_candidates_are_the_same_linked_and_read(tmp_path):
  docs = tuple(Document(f'd{i}', f't{i}', 's', int(i == 1), i, 1.0) for i in range(3))
  groups = [Group(f'd{i}#0', f'query {i}', docs) for i in range(4)]
  store.write('candidates', groups, tmp_path / 'made')
  found = []
  for name, options in (('linked', {}), ('read', {'limit': 99}), ('kept', {'keep': bool})):
    task = job(tmp_path, f'tfds:{tmp_path}/made', 'candidates', name=name, **options)
    preparing.prepare(task)
    found.append(list(map(repr, store.open('candidates', task.folder))))
  assert found[0] == found[1] == found[2] == list(map(repr, groups))
  cut = job(tmp_path, f'tfds:{tmp_path}/made', 'candidates', name='cut', depth=1)
  preparing.prepare(cut)
  docs = [
    (doc.doc_id, doc.label) for group in store.open('candidates', cut.folder) for doc in group.docs
  ]
  assert docs == [('d1', 1)] * 4


def test_the_same_job_of_another_run_is_taken_with_its_bad_rows(tmp_path):
  address = jsonl(tmp_path / 'a.jsonl', rows_of())
  first = job(tmp_path, address, name='first')
  done = preparing.prepare(first)
  assert done.quarantined
  for other in ({'limit': 3}, {'depth': 7}, {'change_settings': 'x'}):
    assert not preparing.take(job(tmp_path, address, name='other', **other), first)
  again = job(tmp_path, address, name='again')
  assert preparing.take(again, first)
  assert files(again.folder) == files(first.folder)
  assert again.quarantine.read_bytes() == first.quarantine.read_bytes()
  assert preparing.prepare(again) == done
  # What is there is not replaced, and another source is another job.
  assert not preparing.take(again, first)
  jsonl(tmp_path / 'a.jsonl', rows_of(seed=1))
  assert not preparing.take(job(tmp_path, address, name='new'), first)


@pytest.mark.parametrize('kind', ['clicks', 'judgements'])
def test_a_second_process_is_refused_and_the_first_one_gets_its_result(tmp_path, monkeypatch, kind):
  address = jsonl(tmp_path / 'a.jsonl', rows_of())
  whole, task = job(tmp_path, address, kind, name='whole'), job(tmp_path, address, kind)
  expected = preparing.prepare(whole)
  run, refused = preparing.Work.run, []

  def interrupted(self):
    # In the middle of the first one's work; a process of its own has an open file of its own too.
    with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
      patch.setattr(preparing.Work, 'run', run)
      preparing.prepare(job(tmp_path, address, kind, limit=3))
    refused.append(str(caught.value))
    return run(self)

  monkeypatch.setattr(preparing.Work, 'run', interrupted)
  done = preparing.prepare(task)
  assert refused == [f'{task.folder}: another process is writing it; wait for it, or stop it']
  assert files(task.folder) == files(whole.folder) and done.records == expected.records
  assert not list(tmp_path.glob('.*'))


def test_a_count_of_clicks_is_said_to_weight_nothing(tmp_path):
  rows = [{'query': 'q', 'title': 't', 'summary': 's', **more} for more in ({}, {'count': 1})]
  rows += [rows[0] | {'count': 40}] * 3
  done = preparing.prepare(job(tmp_path, jsonl(tmp_path / 'a.jsonl', rows), 'clicks'))
  assert done.notes == {records.COUNTED: 3} and done.records == 5


def test_a_link_as_output_is_the_folder_that_it_names(tmp_path):
  address = jsonl(tmp_path / 'a.jsonl', rows_of())
  (tmp_path / 'there').mkdir()
  kept, link = tmp_path / 'there' / 'kept', tmp_path / 'link'
  link.symlink_to(kept)
  flags = ['--source', address, '--on-bad-row', 'quarantine', '--out', str(link)]
  for more in ([], ['--limit', '3']):  # the second time it replaces what there is
    with locks.beside(kept), pytest.raises(UserError, match='kept: another process is writing it'):
      prepare.main([*flags, *more])
    prepare.main([*flags, *more])
  assert link.is_symlink() and len(store.open('candidates', kept)) == 3
  names = sorted(file.name for file in (tmp_path / 'there').iterdir())
  assert names == ['kept', 'kept.quarantine.jsonl']


def test_data_that_is_done_is_read_while_another_process_has_the_lock(tmp_path):
  task = job(tmp_path, jsonl(tmp_path / 'a.jsonl', rows_of()))
  done = preparing.prepare(task)
  with locks.beside(task.folder):
    assert preparing.prepare(task) == done
