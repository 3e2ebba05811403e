"""Queries that do not fit into a batch are an error before the first step, not in the middle."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from disranker_jax import config as configs
from disranker_jax.data import scored_groups
from disranker_jax.data.batches import EncodedGroup, Packer, Shape
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.records import Click, Document, Group
from disranker_jax.errors import UserError
from disranker_jax.pipeline import systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import distill, held_out, prepare, room


def encoded(*lengths: int, predicted: int = 0) -> EncodedGroup:
  docs = [
    Encoded(np.ones(n, np.int32), np.zeros(n, np.int32), n - 1, (1, 1 + predicted)) for n in lengths
  ]
  return EncodedGroup(docs, np.zeros(len(docs)), np.zeros(len(docs)), 'q')


MAX_LEN, QUERY = 12, 5
SIZES = st.tuples(st.integers(1, 4), st.integers(MAX_LEN, 40), st.integers(1, 6))


@given(SIZES, st.booleans(), st.data())
@settings(max_examples=200, deadline=None)
def test_where_any_text_fits_none_is_read_and_each_query_is_packed(sizes, likelihood, data):
  rows, row_len, docs = sizes
  shape = Shape(rows, row_len, docs, predicted=row_len // 2 if likelihood else 0)
  lengths = data.draw(st.lists(st.integers(QUERY + 2, MAX_LEN), min_size=1, max_size=docs))
  group = encoded(*lengths, predicted=QUERY if likelihood else 0)
  if room.is_enough(shape, ConfigDict({'max_len': MAX_LEN, 'max_query_len': QUERY})):
    assert Packer(shape).add(group)
  # Elsewhere the packer decides: of a query whose documents are all drawn, as it does.
  if room.fits(group, shape):
    assert Packer(shape).add(group)
  else:
    with pytest.raises(UserError):
      Packer(shape).add(group)


def test_the_longest_documents_that_can_be_drawn_count():
  shape = Shape(2, 32, 2)
  assert room.fits(encoded(20, 20, 8, 8), shape)
  assert not room.fits(encoded(20, 20, 20, 8), Shape(2, 32, 3))
  # A likelihood also predicts the query of each document.
  assert room.fits(encoded(12, 12, 12, predicted=8), Shape(2, 36, 3, predicted=18))
  assert not room.fits(encoded(12, 12, 12, predicted=13), Shape(2, 36, 3, predicted=18))


# The stages


WORDS = 'long ' * 40


def judged(long_ones=('q7',), count: int = 30) -> list[Group]:
  def group(name):
    text = WORDS if name in long_ones else 'short'
    docs = [Document(str(i), text, '', label=i % 3) for i in range(6)]
    return Group(name, f'query {name}', tuple(docs))

  return [group(f'q{i}') for i in range(count)]


def run_of(monkeypatch, records, **changes) -> Run:
  config = configs.defaults()
  sizes = {'precision': 'float32', 'max_len': 32, 'max_query_len': 8, 'row_len': 64}
  config.teacher.update(model='tiny-decoder', **sizes)
  config.student.update(model='tiny-encoder', layers=(), **sizes)
  for stage in ('sft', 'student_sft', 'distill'):
    config[stage].update({'batch_rows': 2, 'group_size': 6, **changes})
  config.score.judgements = False
  monkeypatch.setattr(prepare, 'records', lambda run, kind: records)
  return Run(config, Path('nowhere'), None)


@pytest.mark.parametrize('stage', ['sft', 'student_sft', 'distill'])
def test_a_long_query_is_named_before_the_first_stage_with_values_that_fit(stage, monkeypatch):
  run = run_of(monkeypatch, judged(('q7', 'q20')))
  check = systems.find(run.config, stage).check_records
  with pytest.raises(UserError) as caught:
    check(run)
  message = str(caught.value)
  assert message.startswith(f'config.{stage}.batch_rows=2: a batch has 2 rows of 64 tokens, ')
  assert "2 of 30 queries, such as 'q7', do not fit with their 6 longest documents" in message
  [rows, size] = re.search(
    r'set config\.\w+\.batch_rows=(\d+) or group_size=(\d+),', message
  ).groups()
  for changes in ({'batch_rows': int(rows)}, {'group_size': int(size)}):
    check(run_of(monkeypatch, judged(('q7', 'q20')), **changes))
  for changes in ({'batch_rows': int(rows) - 1}, {'group_size': int(size) + 1}):
    with pytest.raises(UserError, match='do not fit'):
      check(run_of(monkeypatch, judged(('q7', 'q20')), **changes))


def test_short_queries_are_measured_and_train_with_few_rows(monkeypatch):
  run = run_of(monkeypatch, judged(()))
  assert not room.is_enough(distill.shape_of(run.config), run.config.student)
  systems.find(run.config, 'distill').check_records(run)


@pytest.mark.parametrize('stage', ['sft', 'student_sft', 'distill'])
def test_held_out_queries_are_not_learned(stage, monkeypatch):
  run = run_of(monkeypatch, records := judged((), 60))
  run.config.validation.share = 0.5
  where, check = held_out.placer(run), systems.find(run.config, stage).check_records
  sides = {
    side: [g.query_id for g in records if (where(g) < 0.5) == side] for side in (True, False)
  }
  assert len(sides[True]) > 10 and len(sides[False]) > 10
  records[:] = judged(sides[True], 60)
  check(run)
  records[:] = judged(sides[False][:1], 60)
  with pytest.raises(UserError, match=rf'1 of {len(sides[False])} queries, '):
    check(run)


@pytest.mark.parametrize('stage', ['sft', 'student_sft', 'distill'])
def test_a_stage_that_continues_reads_no_text(stage, monkeypatch, tmp_path):
  run = dataclasses.replace(run_of(monkeypatch, judged()), workdir=tmp_path)
  check = systems.find(run.config, stage).check_records
  with pytest.raises(UserError, match='does not fit'):
    check(run)
  (run.folder(stage) / 'checkpoints' / '5').mkdir(parents=True)
  check(run)


def test_distillation_draws_of_the_documents_that_are_scored(monkeypatch):
  run = run_of(monkeypatch, records := judged())
  run.config.student.max_len, run.config.score.ranks = 40, 'top'
  # Of three documents the longest ones could take three rows, so the texts are read.
  run.config.score.group_size = 3
  with pytest.raises(UserError, match="1 of 30 queries, 'q7', does not fit with its 3 long"):
    distill.check_records(run)
  # The best-labelled document and the first ones are scored.
  [group] = judged(count=1, long_ones=())
  long = (dataclasses.replace(d, title=WORDS) if d.doc_id in '134' else d for d in group.docs)
  records[:] = [dataclasses.replace(group, docs=tuple(long))]
  distill.check_records(run)
  # So few documents of any length fit.
  run.config.score.group_size = 2
  monkeypatch.setattr(distill.roles, 'open_role', lambda *_: pytest.fail('was opened'))
  distill.check_records(run)


def test_distillation_draws_of_the_documents_that_teachers_score(monkeypatch):
  def scored(*missing):
    docs = judged(count=1, long_ones=('q0',))[0].docs
    docs = (dataclasses.replace(d, teacher=math.nan if d.doc_id in missing else 1.0) for d in docs)
    return Group('q0', 'query', tuple(docs))

  run = run_of(monkeypatch, records := [scored('1', '2', '3')])
  run.config.data.teachers = ('trec:t.run',)
  facts = {'mean': 0.0, 'std': 1.0, 'within': 1.0}
  monkeypatch.setattr(
    distill, 'open_scored', lambda run: scored_groups.from_records(records, None, facts)
  )
  distill.check_records(run)
  records[:] = [scored()]
  with pytest.raises(UserError, match='1 of 1 query'):
    distill.check_records(run)


def test_the_parts_of_a_batch_are_named(monkeypatch):
  run = run_of(monkeypatch, judged(), batch_rows=4, data_shards=2)
  with pytest.raises(UserError, match=r'each of data_shards=2 parts .* 2 rows .*batch_rows=6 or'):
    systems.find(run.config, 'distill').check_records(run)


def test_no_text_is_read_where_the_longest_ones_fit(monkeypatch):
  run = run_of(monkeypatch, judged(), batch_rows=3)
  monkeypatch.setattr(distill.roles, 'open_role', lambda *_: pytest.fail('was opened'))
  systems.find(run.config, 'distill').check_records(run)


def test_a_click_whose_query_is_more_than_half_of_the_only_row_is_named(monkeypatch):
  clicks = [Click('short', 'a title', ''), Click(WORDS, 'a title', '')]
  run = run_of(monkeypatch, clicks)
  run.config.teacher.update(max_query_len=24, row_len=32)
  run.config.cpt.update(batch_rows=1, predict='query')
  with pytest.raises(UserError, match=r'1 of 2 queries.*; set config.cpt.batch_rows=2, or lower'):
    systems.find(run.config, 'cpt').check_records(run)
