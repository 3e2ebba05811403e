"""What no shard has is computed once, also after a stop; scoring has its tests elsewhere."""

import numpy as np
import pytest

from disranker_jax import progress
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import Stopped
from disranker_jax.rankers import filling, shards
from disranker_jax.rankers.shards import Shards
from disranker_jax.rankers.work import Work

GROUPS = [Group(f'q{i}', 'words', (Document('d', 't', 's'),)) for i in range(10)]


def fill(into: Shards, stop_after: int = 10) -> list[int]:
  """Fills it in units of three, up to a stop; the items that were computed."""
  computed = []

  def found(units):
    for unit in units:
      for i in unit:
        if len(computed) == stop_after:
          raise Stopped('test: stopped')
        computed.append(i)
        yield unit, (GROUPS[i], np.full(1, i, np.float32)), 1

  if missing := filling.missing('test', into):
    units = shards.units(missing, 3)
    filling.store('test', into, units, found(units), 'texts', seconds=1000)
  return computed


def test_a_restart_computes_the_units_that_are_not_finished(tmp_path):
  into = Shards(tmp_path / 'a' / 'b', len(GROUPS), {'model': 'm'})
  with pytest.raises(Stopped):
    fill(into, stop_after=7)
  assert into.kept() == 6
  assert fill(into) == [6, 7, 8, 9]
  assert fill(into) == []
  assert list(into.rankings()) == [(f'q{i}', {'d': float(i)}) for i in range(10)]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
  into = Shards(tmp_path / 'b', len(GROUPS), {'model': 'm'})
  monkeypatch.setattr(filling.processes, 'is_first', lambda: False)
  assert fill(into) == list(range(10))
  assert not list(into.folder.iterdir())


class OneADocument:
  """A ranker that gives each document 1."""

  least_unit, positions = 1, 1

  def __init__(self):
    self.work = Work()

  def tokens_of(self, group):
    return 1

  def parts(self, parts):
    for part, groups in parts:
      for group in groups:
        yield part, group, np.ones(len(group.docs), np.float32)


def test_the_progress_of_one_of_two_processes_is_that_of_the_whole(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(progress, 'LINE_SECONDS', 0.0)
  monkeypatch.setattr('jax.process_count', lambda: 2)
  monkeypatch.setattr(filling.processes, 'barrier', lambda name: None)
  monkeypatch.setattr(filling.processes, 'first_alone', lambda name, work: work())
  monkeypatch.setattr(shards, 'agreed', lambda ranges: ranges)

  def lines() -> list[str]:
    into = Shards(tmp_path / 'c', len(GROUPS), {'model': 'm'})
    filling.score_missing('score', GROUPS, into, OneADocument(), shard_seconds=0, unit_queries=1)
    said = capsys.readouterr().err.splitlines()
    return [line.split()[1] for line in said if 'pairs/s' in line]

  assert lines() == [f'{n}/10' for n in (2, 4, 6, 8, 10)]
  # The other process has stored nothing, and this one does its share of that.
  assert lines() == [f'{n}/10' for n in (7, 8, 10)]
