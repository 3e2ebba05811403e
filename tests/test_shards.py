"""Shards of scores: atomic, checked against their notes, complete and without duplicates."""

import errno
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from disranker_jax.commands import common
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.rankers import shards

MADE = {'model': 'm', 'tokenizer': 't'}
QUERIES, SIZE = 7, 3
rng = np.random.default_rng(0)
GROUPS = [
  Group(f'q{i}', 'words', tuple(Document(f'd{j}', 't', 's') for j in range(i % 4)))
  for i in range(QUERIES)
]
SCORES = [rng.normal(size=len(g.docs)).astype(np.float32) for g in GROUPS]


def pairs_of(i):
  return GROUPS[i].query_id, [d.doc_id for d in GROUPS[i].docs]


def opened(folder, made=MADE) -> shards.Shards:
  return shards.Shards(folder, QUERIES, SIZE, made)


def write(store, shard) -> None:
  store.write(shard, [(GROUPS[i], SCORES[i]) for i in store.span(shard)])


@pytest.fixture
def store(tmp_path):
  """All three shards, written."""
  found = opened(tmp_path)
  for shard in range(len(found)):
    write(found, shard)
  return found


def test_rows_are_read_in_order_by_us_and_by_any_parquet_reader(store):
  expected = [
    (g.query_id, d.doc_id, float(s))
    for g, scores in zip(GROUPS, SCORES, strict=True)
    for d, s in zip(g.docs, scores, strict=True)
  ]
  assert list(store.rows()) == expected
  assert [tuple(r.values()) for r in pq.read_table(store.folder).to_pylist()] == expected
  assert store.missing() == []
  np.testing.assert_array_equal(store.audit(pairs_of), np.concatenate(SCORES))


def test_the_same_scores_make_the_same_bytes(store, tmp_path):
  other = opened(tmp_path / 'other')
  other.folder.mkdir()
  for shard in reversed(range(3)):
    write(other, shard)
  for file in store.folder.iterdir():
    if file.is_file():
      assert (other.folder / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize('position', [0.0, 0.5, 0.999])
def test_a_flipped_bit_is_detected_and_only_that_shard_is_missing(store, position, capsys):
  file = store.file(1)
  content = bytearray(file.read_bytes())
  content[int(position * len(content))] ^= 4
  file.write_bytes(content)
  assert store.missing() == [1]
  assert f'{file} is not what was written' in capsys.readouterr().err
  with pytest.raises(UserError, match='is damaged'):
    store.read(1)
  write(store, 1)
  assert store.missing() == []


@pytest.mark.parametrize('what', ['shard', 'note', 'cut', 'empty note', 'other note', 'partial'])
def test_a_shard_that_is_gone_or_partial_is_missing(store, what):
  file, note = store.file(2), store.note_file(2)
  if what == 'shard':
    file.unlink()
  elif what == 'cut':
    file.write_bytes(file.read_bytes()[:-1])
  elif what == 'note':
    note.unlink()
  elif what == 'partial':
    note.rename(note.with_suffix('.json.partial'))
  else:
    note.write_text('' if what == 'empty note' else '[]')
  assert store.missing() == [2]


def test_another_models_shards_are_refused_by_what_differs(store):
  with pytest.raises(UserError, match=r'00000\.parquet: was made with another tokenizer'):
    opened(store.folder, MADE | {'tokenizer': 'u'}).missing()


def test_a_pair_too_few_too_many_or_of_another_query_fails_the_audit(store):
  for wrong in (
    lambda i: (f'q{i}', ['d0']),
    lambda i: ('q0', pairs_of(i)[1]),
    lambda i: (f'q{i}', [*pairs_of(i)[1], 'more']),
  ):
    with pytest.raises(UserError, match=r'are not the .* pairs that were to be scored'):
      store.audit(wrong)
  store.write(1, [(GROUPS[i], np.full(len(GROUPS[i].docs), np.nan)) for i in store.span(1)])
  with pytest.raises(UserError, match=r'00001\.parquet: has scores that are not finite'):
    store.audit(pairs_of)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written_leaves_no_partial_file(store, number, monkeypatch, capsys):
  store.file(0).unlink()
  store.note_file(0).unlink()
  before = sorted(os.listdir(store.folder))

  def full(handle):
    raise OSError(number, os.strerror(number), 'the file')

  monkeypatch.setattr(shards.os, 'fsync', full)
  with pytest.raises(SystemExit) as ended, common.guarded():
    write(store, 0)
  assert ended.value.code == 2
  said = capsys.readouterr().err
  assert said.startswith('error: the file: ') and said.count('\n') == 1
  assert 'run the same command again' in said
  assert sorted(os.listdir(store.folder)) == before and store.missing() == [0]


def test_notes_record_what_made_a_shard(store):
  note = json.loads(store.note_file(0).read_text())
  assert note['made'] == MADE and note['rows'] == sum(len(g.docs) for g in GROUPS[:SIZE])
  assert note['queries'] == SIZE
