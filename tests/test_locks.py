"""Locks: one holder at a time, also when the file is removed between opening and locking it."""

import fcntl

import pytest

from disranker_jax import locks
from disranker_jax.errors import UserError


def test_one_holder_at_a_time_and_nothing_stays_behind(tmp_path):
  with locks.beside(tmp_path / 'out'):
    with pytest.raises(UserError, match=r'out: another process is writing it; wait for it'):
      locks.beside(tmp_path / 'out').__enter__()
    with locks.beside(tmp_path / 'other'):
      pass
  assert not list(tmp_path.iterdir())
  with locks.beside(tmp_path / 'out'):
    pass


def test_a_file_that_its_holder_removed_meanwhile_does_not_count(tmp_path, monkeypatch):
  flock, removed = fcntl.flock, []

  def late(opened, how):
    flock(opened, how)
    if not removed:
      removed.append((tmp_path / '.lock').unlink())

  monkeypatch.setattr(fcntl, 'flock', late)
  with locks.locked(tmp_path), pytest.raises(UserError, match='another process is running in it'):
    locks.locked(tmp_path)


def test_a_file_system_without_locks_is_written_anyway(tmp_path, monkeypatch):
  def refuse(opened, how):
    raise OSError(38, 'not implemented')

  monkeypatch.setattr(fcntl, 'flock', refuse)
  with locks.beside(tmp_path / 'out'):
    pass
