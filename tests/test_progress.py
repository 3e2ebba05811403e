"""What a progress line shows, and that it fits the terminal; by a clock of the test's own."""

import io
import re

import numpy as np
import pytest

from disranker_jax import progress
from disranker_jax.data import overlap, trec_lines
from disranker_jax.data.batches import EncodedGroup, Shape, unfit
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.preparing import Prepared
from disranker_jax.data.records import BadRow
from disranker_jax.errors import UserError
from disranker_jax.generative import examples
from disranker_jax.generative.examples import Example
from disranker_jax.report import tables
from disranker_jax.serve import apis


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still; `clock[0]` is the time."""
  time = [0.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: time[0])
  return time


def seconds_left(capsys) -> list[int]:
  """What the lines printed so far say, in seconds."""
  said = re.findall(r'(\d+)m(\d+)s left', capsys.readouterr().err)
  return [60 * int(m) + int(s) for m, s in said]


def test_the_compiler_and_queries_of_one_batch_do_not_distort_the_time_left(clock, capsys):
  # 40 queries of 25 documents in 10 batches of 20 s; before the first one the compiler takes 60 s.
  done = [0]

  def work():
    return 100 * done[0], 20.0 * done[0]

  with progress.Progress('evaluate', 40, 'pairs', 0, 1000, work) as shown:
    clock[0] = 60.0
    for batch in range(10):
      clock[0] += 20.0
      done[0] += 1
      for query in range(4):
        shown.update(4 * batch + query + 1, 25)
  assert seconds_left(capsys) == [180, 160, 140, 120, 100, 80, 60, 40, 20, 0]


def test_queries_with_many_documents_count_as_more_work(clock, capsys):
  sizes, done = [10] * 50 + [190] * 50, [0]
  with progress.Progress(
    'score', 100, 'pairs', 0, sum(sizes), lambda: (done[0], clock[0])
  ) as shown:
    for query, size in enumerate(sizes):
      clock[0] += size / 10
      done[0] += size
      shown.update(query + 1, size)
  left = seconds_left(capsys)
  assert left == sorted(left, reverse=True)
  assert left[0] == pytest.approx(sum(sizes) / 10, rel=0.05)


def test_work_of_an_earlier_pass_is_not_that_of_this_one(clock, capsys):
  done = [500]  # the judged queries, with the same model
  with progress.Progress('score', 10, 'pairs', 0, 100, lambda: (done[0], done[0] / 1.0)) as shown:
    clock[0], done[0] = 20.0, 520
    shown.update(2, 20)
  assert seconds_left(capsys) == [80]


def test_one_of_several_processes_shows_about_what_all_have_done(clock, capsys):
  done = [0]
  with progress.Progress(
    'score', 100, 'pairs', 40, 600, lambda: (done[0], clock[0]), own=15
  ) as shown:
    for query in range(1, 16):
      clock[0] += 10.0
      done[0] += 10
      shown.update(40 + query, 10)
  said = capsys.readouterr().err.splitlines()
  assert said[0] == 'score 44/100 queries, 4.0 pairs/s, 2m20s left'
  assert said[-1] == 'score 100/100 queries, 4.0 pairs/s, in 2m30s'


def test_steps_of_training_are_equally_long_and_those_of_before_do_not_count(clock, capsys):
  with progress.Progress('sft', 20, 'pairs', 10) as shown:
    for step in (11, 12, 13):
      clock[0] += 10.0
      shown.update(step, 64)
  assert seconds_left(capsys) == [90, 80, 70]


def test_a_slow_first_step_does_not_distort_the_time_left_for_long(clock, capsys):
  with progress.Progress('sft', 20, 'pairs') as shown:
    for step, seconds in enumerate((100.0, 10.0, 10.0), 1):
      clock[0] += seconds
      shown.update(step, 64)
  assert seconds_left(capsys) == [1900, 180, 170]


def test_the_last_line_says_how_long_it_took_and_what_was_counted(clock, capsys):
  with progress.Progress('evaluate bm25', 12, 'pairs') as shown:
    clock[0] = 75.0
    shown.update(12, 240)
  assert capsys.readouterr().err == 'evaluate bm25 12/12 queries, 3.2 pairs/s, in 1m15s\n'


@pytest.mark.parametrize(
  ('said', 'counted'),
  [
    (progress.amount(1, 'query', 'queries'), '1 query'),
    (progress.amount(0, 'row'), '0 rows'),
    (progress.amount(1200, 'row'), '1,200 rows'),
    (progress.amount(1, 'click is', 'clicks are'), '1 click is'),
    (progress.part_of(1, 3, 'query', 'queries', 'has its', 'have their'), '1 of 3 queries has its'),
    (progress.part_of(1, 1, 'query', 'queries', 'is', 'are'), '1 of 1 query is'),
    (progress.part_of(2, 1200, 'row', 'rows', 'is', 'are'), '2 of 1,200 rows are'),
    (progress.of_units(1, 'queries'), '1 query'),
    (progress.of_units(1, 'pairs'), '1 pair'),
    (progress.of_units(2, 'queries'), '2 queries'),
  ],
)
def test_one_is_said_in_the_singular(said, counted):
  assert said == counted


ONE = re.compile(
  r'(?<![\d.,])1 (?:[a-z-]+ )?(?:queries|documents|rows|pairs|clicks|texts|columns)\b'
)


def said_of(count: int) -> list[str]:
  """Messages of the package about so many queries, rows and the like."""
  docs = [Encoded(np.zeros(9, np.int32), np.zeros(9, np.int32), 0)] * count
  group = EncodedGroup(docs, np.zeros(count), np.zeros(count), 'a query')
  facts = dict.fromkeys(('queries', 'query_texts', 'query_ids', 'pairs', 'records'), count)
  facts |= {'of_queries': count, 'of_pairs': count}
  with pytest.raises(UserError) as few:
    examples.mean_best([Example('q', ())] * count, 2)
  with pytest.raises(BadRow) as short:
    trec_lines.columns(b' '.join([b'x'] * count), 'query_id doc_id score')
  return [
    str(unfit(group, Shape(count, 8, 1))),
    overlap.described('clicks', facts),
    overlap.described('judgements', facts),
    str(few.value),
    str(short.value),
    apis.too_many(count, 0).message,
    tables.drawn(5, count),
    Prepared(count, count, 0, 0.0).described('queries', '--limit'),
  ]


def test_messages_about_one_of_something_are_in_the_singular():
  ones = said_of(1)
  assert not [said for said in ones if ONE.search(said)]
  assert all(re.search(r'(?<![\d.,])1 [a-z]', said) for said in ones)
  for said in said_of(2):
    assert re.search(r'\b2 (?:[a-z-]+ )?[a-z]+s\b', said), said


class Terminal(io.StringIO):
  encoding = 'utf-8'

  def isatty(self) -> bool:
    return True


@pytest.mark.parametrize(
  ('columns', 'label', 'line'),
  [
    (80, 'cpt', 'cpt 1/6 steps, loss 6.392, 14.1 clicks/s, 0m03s left'),
    (58, 'cpt', 'cpt 1/6 steps, loss 6.392, 14.1 clicks/s, 0m03s left'),
    (44, 'cpt', 'cpt 1/6 steps, loss 6.392, 0m03s left'),
    (44, 'student_sft', 'student_sft 1/6 steps, 0m03s left'),
    (80, 'a {name}', 'a {name} 1/6 steps, loss 6.392, 14.1 clicks/s, 0m03s left'),
  ],
)
def test_the_line_of_a_bar_fits_the_terminal(columns, label, line, monkeypatch):
  monkeypatch.setattr(progress.sys, 'stderr', Terminal())
  with progress.Progress(label, 6, 'clicks', of='steps') as shown:
    shown._bar.dynamic_ncols = lambda file: (columns, 24)
    monkeypatch.setattr(shown, '_speed', lambda step, now: (14.1, 3.0))
    shown.update(1, 8, loss=6.392)
    drawn = str(shown._bar)
  assert re.sub('[█▏▎▍▌▋▊▉ ]+', ' ', drawn) == line and len(drawn) <= columns
