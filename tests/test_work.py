"""The books of a ranker: overlapping batches, waiting, and the time between passes."""

import numpy as np
import pytest

from disranker_jax.devices import processes
from disranker_jax.rankers.work import Work


def counted(*batches, work=None) -> Work:
  work = work or Work()
  work.begin()
  for begun, ready in batches:
    work.add(begun, ready, tokens=30, places=40, scored=5)
  return work


def test_batches_that_overlap_count_once_and_gaps_are_waiting():
  work = counted((10.0, 12.0), (11.0, 15.0), (18.0, 19.0))
  assert (work.seconds, work.idle) == (2 + 3 + 1, 3)
  assert work.so_far() == (15, 9.0)
  assert work.idle_share == pytest.approx(1 / 3) and work.padding == pytest.approx(1 / 4)
  assert work.ms_per_pair == pytest.approx(1000 * 6 / 15)
  assert work.as_text() == (
    '10 tokens/s, 25.0% padding, 33.3% of the time the device waited for data'
  )


def test_the_time_between_two_passes_is_not_waiting():
  work = counted((10.0, 12.0))
  counted((500.0, 501.0), (502.0, 503.0), work=work)
  assert (work.seconds, work.idle, work.scored) == (2 + 1 + 1, 1, 15)


def test_without_a_batch_nothing_is_divided_by_0():
  work = Work()
  assert work.so_far() == (0, 0.0) and work.padding == work.idle_share == work.ms_per_pair == 0
  assert work.as_text() == 'all scores were there'


def test_of_several_processes_pairs_add_up_and_the_time_is_the_mean(monkeypatch):
  own, other = counted((10.0, 12.0), (13.0, 14.0)), counted((10.0, 13.0), (14.0, 16.0))
  whole = np.array([[w.seconds, w.idle, w.scored, w.tokens, w.places] for w in (own, other)])
  monkeypatch.setattr('jax.process_count', lambda: 2)
  monkeypatch.setattr(processes, 'add_up', lambda values: whole.sum(0))
  work = own.of_all()
  assert work.ms_per_pair == pytest.approx(1000 * 4 / 20) and work.ms_per(8) == 500
  assert (work.idle_share, work.padding) == (1 / 5, 1 / 4)
  assert work.as_text().startswith('24 tokens/s')


def test_of_one_process_the_books_are_its_own():
  own = counted((10.0, 12.0))
  assert own.of_all() is own
