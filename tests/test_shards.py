"""Shards of scores: atomic, checked against their notes, complete, in any sizes."""

import errno
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from disranker_jax.commands import common
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import Stopped, UserError
from disranker_jax.rankers import shards

MADE = {'model': 'm', 'tokenizer': 't'}
QUERIES = 7
rng = np.random.default_rng(0)
GROUPS = [
  Group(f'q{i}', 'words', tuple(Document(f'd{j}', 't', 's') for j in range(i % 4)))
  for i in range(QUERIES)
]
SCORES = [rng.normal(size=len(g.docs)).astype(np.float32) for g in GROUPS]


def pairs_of(i):
  return GROUPS[i].query_id, [d.doc_id for d in GROUPS[i].docs]


SPANS = [range(0, 3), range(3, 6), range(6, 7)]


def opened(folder, made=MADE) -> shards.Shards:
  return shards.Shards(folder, QUERIES, made)


def write(store, span) -> None:
  store.write(span, [(GROUPS[i], SCORES[i]) for i in span])


@pytest.fixture
def store(tmp_path):
  """All three shards, written."""
  found = opened(tmp_path)
  for span in SPANS:
    write(found, span)
  return found


def test_rows_are_read_in_order_by_us_and_by_any_parquet_reader(store):
  expected = [
    (g.query_id, d.doc_id, float(s))
    for g, scores in zip(GROUPS, SCORES, strict=True)
    for d, s in zip(g.docs, scores, strict=True)
  ]
  assert list(store.rows()) == expected
  assert [tuple(r.values()) for r in pq.read_table(store.folder).to_pylist()] == expected
  assert list(store.rankings()) == [
    (g.query_id, dict(zip([d.doc_id for d in g.docs], scores.tolist(), strict=True)))
    for g, scores in zip(GROUPS, SCORES, strict=True)
    if g.docs
  ]
  assert store.missing() == []
  np.testing.assert_array_equal(store.audit(pairs_of), np.concatenate(SCORES))


def test_the_same_scores_make_the_same_bytes(store, tmp_path):
  other = opened(tmp_path / 'other')
  other.folder.mkdir()
  for span in reversed(SPANS):
    write(other, span)
  for file in store.folder.iterdir():
    if file.is_file():
      assert (other.folder / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize('position', [0.0, 0.5, 0.999])
def test_a_flipped_bit_is_detected_and_only_that_shard_is_missing(store, position, capsys):
  file = store.found()[1].file
  content = bytearray(file.read_bytes())
  content[int(position * len(content))] ^= 4
  file.write_bytes(content)
  with pytest.raises(UserError, match=r'000000003-000000006\.parquet: is not what was written'):
    list(store.rows())
  assert store.missing() == [SPANS[1]]
  assert f'{file} is not what was written' in capsys.readouterr().err
  write(store, SPANS[1])
  assert store.missing() == []


@pytest.mark.parametrize('what', ['shard', 'note', 'cut', 'empty note', 'other note', 'partial'])
def test_a_shard_that_is_gone_or_partial_is_missing(store, what):
  shard = store.found()[2]
  file, note = shard.file, shard.note_file
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
  assert store.missing() == [SPANS[2]]
  # A reader of the folder must not find what does not count.
  assert {f.name for f in store.folder.glob('*.parquet')} == {s.file.name for s in store.found()}
  with pytest.raises(UserError, match=r'no shard holds the queries 6 to 6'):
    store.audit(pairs_of)


def test_another_models_shards_are_refused_by_what_differs(store):
  with pytest.raises(
    UserError, match=r'000000000-000000003\.parquet: was made with another tokenizer'
  ):
    opened(store.folder, MADE | {'tokenizer': 'u'}).missing()


def test_a_key_that_only_one_side_has_refuses_shards(store):
  """Such as the 8-bit format, which exact scores leave out."""
  with pytest.raises(UserError, match='was made with another quantize; do the scores again'):
    opened(store.folder, MADE | {'quantize': 'int8'}).missing()
  write(shards.Shards(store.folder, QUERIES, MADE | {'quantize': 'int8'}), SPANS[0])
  with pytest.raises(UserError, match='was made with another quantize; do the scores again'):
    opened(store.folder, MADE).missing()


def test_a_pair_too_few_too_many_or_of_another_query_fails_the_audit(store):
  for wrong in (
    lambda i: (f'q{i}', ['d0']),
    lambda i: ('q0', pairs_of(i)[1]),
    lambda i: (f'q{i}', [*pairs_of(i)[1], 'more']),
  ):
    with pytest.raises(UserError, match=r'are not the .* pairs of query_id and doc_id'):
      store.audit(wrong)
  store.write(SPANS[1], [(GROUPS[i], np.full(len(GROUPS[i].docs), np.nan)) for i in SPANS[1]])
  with pytest.raises(UserError, match=r'003-000000006\.parquet: has scores that are not finite'):
    store.audit(pairs_of)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written_leaves_no_partial_file(store, number, monkeypatch, capsys):
  store.found()[0].file.unlink()
  store.found()[0].note_file.unlink()
  before = sorted(os.listdir(store.folder))

  def full(handle):
    raise OSError(number, os.strerror(number), 'the file')

  monkeypatch.setattr(shards.os, 'fsync', full)
  with pytest.raises(SystemExit) as ended, common.guarded():
    write(store, SPANS[0])
  assert ended.value.code == 2
  said = capsys.readouterr().err
  assert said.startswith('error: the file: ') and said.count('\n') == 1
  assert 'run the same command again' in said
  assert sorted(os.listdir(store.folder)) == before and store.missing() == [SPANS[0]]


def test_notes_record_what_made_a_shard(store):
  note = store.found()[0].note()
  assert note['made'] == MADE and note['rows'] == sum(len(GROUPS[i].docs) for i in SPANS[0])
  assert note['queries'] == len(SPANS[0])


@pytest.mark.parametrize('spans', [[range(0, 7)], [range(0, 1), range(1, 5), range(5, 7)]])
def test_the_sizes_of_shards_change_nothing_for_readers(store, tmp_path, spans):
  other = opened(tmp_path / 'other')
  other.folder.mkdir()
  for span in spans:
    write(other, span)
  assert list(other.rows()) == list(store.rows())
  np.testing.assert_array_equal(other.audit(pairs_of), store.audit(pairs_of))
  assert other.missing() == [] and other.kept() == QUERIES


def test_of_shards_that_overlap_one_counts_and_no_pair_is_read_twice(store):
  before = list(store.rows())
  write(store, range(2, 4))
  assert list(store.rows()) == before and store.kept() == QUERIES
  assert store.missing() == []
  assert len(list(store.folder.glob('*.parquet'))) == len(SPANS)


def test_shards_that_were_made_alike_are_taken_where_some_are_missing(store, tmp_path):
  write(shards.Shards(store.folder, QUERIES, MADE | {'model': 'other'}), SPANS[2])
  own = opened(tmp_path / 'own')
  own.folder.mkdir()
  write(own, range(0, 2))  # shares queries with the first shard of the other folder
  before = own.found()[0].file.read_bytes()
  assert own.take(store) == len(SPANS[1])
  assert own.missing() == [range(2, 3), SPANS[2]] and own.take(store) == 0
  taken = own.found()[1]
  assert taken.file.read_bytes() == store.found()[1].file.read_bytes()
  assert own.found()[0].file.read_bytes() == before


def test_a_link_in_a_strangers_folder_is_not_taken(store, tmp_path):
  file, secret = store.found()[1].file, tmp_path / 'secret'
  os.rename(file, secret)
  file.symlink_to(secret)
  own = opened(tmp_path / 'own')
  assert own.take(store) == QUERIES - len(SPANS[1]) and own.missing() == [SPANS[1]]
  assert secret.stat().st_nlink == 1


def test_what_is_missing_between_shards_is_found(store):
  for shard in (store.found()[0], store.found()[2]):
    shard.note_file.unlink()
  assert store.missing() == [SPANS[0], SPANS[2]] and store.kept() == len(SPANS[1])


def test_units_are_the_same_whatever_is_missing():
  whole = shards.units([range(0, 23)], 5)
  assert whole == [range(0, 5), range(5, 10), range(10, 15), range(15, 20), range(20, 23)]
  assert shards.units([range(5, 10), range(20, 23)], 5) == [whole[1], whole[4]]
  # With another size before, a shard may end inside a unit.
  assert shards.units([range(7, 12), range(13, 14)], 5) == [
    range(7, 10),
    range(10, 12),
    range(13, 14),
  ]


def add(writer, *units):
  for unit in units:
    for i in unit:
      writer.add(unit, (GROUPS[i], SCORES[i]))


def spans(store) -> list[range]:
  return [shard.span for shard in store.found()]


def test_finished_units_become_one_shard_unless_the_time_is_over(tmp_path):
  store = opened(tmp_path)
  with shards.Writer(store, 1000) as writer:
    add(writer, range(0, 2), range(2, 3), range(4, 6))
  assert spans(store) == [range(0, 3), range(4, 6)]  # neighbours only
  store = opened(tmp_path / 'at once')
  store.folder.mkdir()
  with shards.Writer(store, 0) as writer:
    add(writer, range(0, 2), range(2, 3))
    assert spans(store) == [range(0, 2), range(2, 3)]


@pytest.mark.parametrize('how', [Stopped('stop'), KeyboardInterrupt()])
def test_when_the_work_is_stopped_finished_units_are_kept_and_no_part_of_one(tmp_path, how):
  store = opened(tmp_path)
  with pytest.raises(type(how)), shards.Writer(store, 1000) as writer:
    add(writer, range(0, 2))
    writer.add(range(2, 4), (GROUPS[2], SCORES[2]))
    assert store.kept() == 0
    raise how
  assert spans(store) == [range(0, 2)] and store.missing() == [range(2, 7)]
