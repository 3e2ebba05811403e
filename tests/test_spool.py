"""Sorting on disk: like `sorted`, for any memory, and the same in another process."""

import errno
import os
import random
import tempfile

import pytest

from disranker_jax.data import spool
from disranker_jax.data.spool import Spool
from disranker_jax.errors import UserError


def filled(rows, **options):
  made = Spool(**options)
  for key, value in rows:
    made.add(key, value)
  return made


@pytest.mark.parametrize('memory', [1, 1000, 1 << 30])
@pytest.mark.parametrize('key', [lambda n: n % 7, lambda n: f'{n % 5} ü', lambda n: (n % 3, -n)])
def test_sorts_stably_and_can_be_read_twice(tmp_path, memory, key):
  numbers = random.Random(1).sample(range(500), 500)
  rows = [(key(n), {'n': n, 'text': 'x' * (n % 40)}) for n in numbers]
  made = filled(rows, folder=tmp_path / 'runs', memory=memory)
  expected = sorted(rows, key=lambda row: row[0])
  assert list(made) == expected == list(made)


def test_small_ones_write_nothing_to_disk(tmp_path):
  made = filled([(2, 'b'), (1, 'a')], folder=tmp_path / 'runs')
  assert list(made) == [(1, 'a'), (2, 'b')] and not (tmp_path / 'runs').exists()


def test_many_runs_are_merged_in_turns(tmp_path, monkeypatch):
  monkeypatch.setattr(spool, 'FAN_IN', 4)
  rows = [(n * 7919 % 101, n) for n in range(100)]
  made = filled(rows, folder=tmp_path, memory=1)
  assert len(made.runs) == 100
  assert list(made) == sorted(rows, key=lambda row: row[0])
  assert len(list(tmp_path.iterdir())) == len(made.runs) <= 4


def test_continues_from_a_mark_and_discards_later_rows(tmp_path):
  rows = [(n * 37 % 11, n) for n in range(60)]
  first = filled(rows[:30], folder=tmp_path, memory=500)
  first.flush()
  mark = first.mark()
  for key, value in rows[30:50]:  # lost: the process dies before its next mark
    first.add(key, value)
  first.flush()
  again = Spool(tmp_path, memory=700)
  again.rewind(mark)
  for key, value in rows[30:]:
    again.add(key, value)
  assert list(again) == sorted(rows, key=lambda row: row[0])


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_folder_and_how_to_choose_another(tmp_path, monkeypatch, number):
  def full(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
  (tmp_path / 'temporary').mkdir()
  monkeypatch.setattr(spool.os, 'replace', full)
  with pytest.raises(UserError, match=f'^{tmp_path}/temporary/.*TMPDIR'):
    filled([(1, 'a')], memory=1)
  # A folder that the caller chose is not moved by TMPDIR; common.guarded says what to do.
  with pytest.raises(OSError, match=os.strerror(number)) as caught:
    filled([(1, 'a')], folder=tmp_path / 'runs', memory=1)
  assert caught.value.filename == str(tmp_path / 'runs') and caught.value.errno == number
