"""The records of a stage are read once to find those that are held out, whatever happens later."""

import types

import numpy as np
import pytest

from disranker_jax.config import defaults
from disranker_jax.data.records import Click
from disranker_jax.pipeline import manifest
from disranker_jax.stages import held_out, held_out_file, prepare


class Clicks(list):
  """Counts how often it is read from one end to the other."""

  passes = 0

  def __iter__(self):
    self.passes += 1
    return super().__iter__()


CLICKS = [Click(f'query {i}', 'title', 'text') for i in range(600)]


@pytest.fixture
def run(tmp_path):
  c = defaults()
  c.validation.share = 0.1
  manifest.Manifest(tmp_path / 'cpt', 'cpt', {'seed': 0}, {'prepare clicks': 'a'})
  return types.SimpleNamespace(config=c, folder=lambda stage: tmp_path / stage)


def passes(run, clicks=CLICKS) -> int:
  """How often `split` reads the clicks; what it finds is what `find` does."""
  clicks = Clicks(clicks)
  split = held_out.split(run, 'cpt', clicks)
  read = clicks.passes
  held, firsts, _ = held_out.find(run, clicks)
  assert split.measured == [clicks[i] for i in firsts] and len(firsts) >= 10
  assert list(split.learned) == [clicks[i] for i in range(len(clicks)) if i not in set(held)]
  return read


def test_a_later_start_reads_no_record(run):
  assert passes(run) == 1
  manifest.Manifest(run.folder('cpt'), 'cpt', {'seed': 0}, {'prepare clicks': 'a'})
  assert [passes(run), passes(run)] == [0, 0]


def begun_again(run, monkeypatch):
  (run.folder('cpt') / manifest.FILE).unlink()
  monkeypatch.setattr(manifest, 'now', lambda: 'later')
  manifest.Manifest(run.folder('cpt'), 'cpt', {'seed': 0}, {'prepare clicks': 'a'})


@pytest.mark.parametrize(
  'change',
  [
    begun_again,
    lambda run, _: run.config.validation.update(share=0.2),
    lambda run, _: run.config.validation.update(max_queries=11),
    lambda run, _: manifest.Manifest(run.folder('cpt'), 'cpt', {'seed': 1}, {}),
  ],
)
def test_what_it_depends_on_is_looked_at_again(run, monkeypatch, change):
  assert passes(run) == 1
  change(run, monkeypatch)
  assert passes(run) == 1
  assert passes(run) == 0


def test_other_records_and_other_topics_are_looked_at_again(run, monkeypatch):
  assert passes(run) == 1
  assert passes(run, CLICKS[:500]) == 1
  monkeypatch.setattr(prepare, 'kinds', lambda config, stages=None: ['clicks'])
  run.config.data.holdout_by = '^[^-]+'
  for labels in ('b', 'c'):
    done = manifest.Manifest(run.folder('prepare'), 'prepare', {}, {})
    done.finished({'judgements': {'fingerprint': labels}})
    assert [passes(run), passes(run)] == [1, 0]


def flipped(content: bytes) -> bytes:
  middle = len(content) // 2
  return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
  'damage', [lambda c: c[: len(c) // 2], flipped, lambda c: b'', lambda c: b'\x93NUMPY\x01\x00']
)
def test_a_damaged_file_is_not_read(run, damage):
  assert passes(run) == 1
  file = run.folder('cpt') / held_out_file.FILE
  whole = file.read_bytes()
  file.write_bytes(damage(whole))
  assert passes(run) == 1
  assert file.read_bytes() == whole


def test_a_file_with_objects_runs_no_code(run):
  file = run.folder('cpt') / held_out_file.FILE
  key = np.array(held_out_file.key_of(run, 'cpt', len(CLICKS)))
  np.savez(file, key=key, held=np.array([object()]), firsts=np.array([0]), single=np.array(0))
  assert passes(run) == 1


def test_a_file_with_more_than_the_records_need_is_not_read(run):
  """Zeros take no room on disk, and gigabytes in memory."""
  file = run.folder('cpt') / held_out_file.FILE
  key = np.array(held_out_file.key_of(run, 'cpt', len(CLICKS)))
  large = np.zeros(held_out_file.RECORD * len(CLICKS) + held_out_file.OTHERS, bool)
  for more in ({}, {'more': large}):
    np.savez_compressed(file, key=key, held=np.array([0]), firsts=np.array([0]), **more)
    assert (held_out_file.read(file, str(key), len(CLICKS)) is None) == bool(more)


def test_what_no_run_has_started_leaves_no_file(run):
  (run.folder('cpt') / manifest.FILE).unlink()
  assert passes(run) == 1 and not any(run.folder('cpt').iterdir())


def test_the_check_before_the_first_stage_reads_until_there_are_enough(run, monkeypatch):
  run.config.cpt.validation.keep_best = True
  read = []

  def clicks():
    for click in CLICKS:
      read.append(click)
      yield click

  class Some(list):
    def __iter__(self):
      return clicks()

  monkeypatch.setattr(prepare, 'records', lambda run, kind: Some(CLICKS))
  held_out.check_records(run, 'cpt', 'clicks')
  assert 10 <= len(read) < 300
