"""A request to stop that comes as a stage ends: the stage is done, the next one does not start."""

import dataclasses
import os
import runpy
import signal
from pathlib import Path

import pytest

from disranker_jax.devices import processes
from disranker_jax.errors import Stopped
from disranker_jax.pipeline import manifest, runner
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import prepare

TINY = Path(__file__).parents[1] / 'configs' / 'tiny.py'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_next_stage_does_not_start(tmp_path, number):
  def execute(run):
    with processes.StopRequest() as request:
      os.kill(os.getpid(), number)
      assert request
    return {}

  pipeline = runner.Pipeline(Run(runpy.run_path(str(TINY))['get_config'](), tmp_path, None))
  pipeline.chosen = [dataclasses.replace(prepare.STAGE, execute=execute), *pipeline.chosen[1:]]
  with pytest.raises(Stopped, match='stopped; prepare is done; the same command continues') as end:
    pipeline.run_stages([])
  assert end.value.interrupted == (number == signal.SIGINT)
  assert manifest.read(tmp_path / 'data')['status'] == 'done'
  assert not (tmp_path / 'cpt').exists()
  assert not processes.asked()  # once only


def test_work_inside_of_other_work_is_asked_together_with_it():
  """A search inside of training that ends just then must not swallow the request."""
  with processes.StopRequest() as outer:
    with processes.StopRequest() as inner:
      assert not outer
      os.kill(os.getpid(), signal.SIGTERM)
      assert inner and outer
    with processes.StopRequest() as later:  # before training has seen the request
      assert later
    assert outer.stopped('').interrupted is False
  assert processes.asked() == signal.SIGTERM
  with processes.StopRequest() as request:
    assert not request


def test_a_watchdog_is_fed_by_the_work_inside_of_it():
  with processes.Watchdog('training', 0.0) as outer, processes.Watchdog('search', 0.0) as inner:
    outer._last = 0.0
    inner.beat()
    assert outer._last == inner._last > 0
  outer._last = 0.0
  inner.beat()
  assert outer._last == 0.0
