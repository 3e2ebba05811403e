"""The student fused with the first stage: which queries choose the weight, and what lacks."""

import dataclasses
import json
import math
import types

import pytest

from disranker_jax import config as configs
from disranker_jax.data.records import UNJUDGED, Document, Group
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import (
  best_student,
  evaluate,
  fused_rows,
  held_out,
  prepare,
  result_table,
  roles,
)
from disranker_jax.stages.fused_rows import FEWEST
from disranker_jax.stages.result_rows import FUSED, FUSED_RANKS, ROWS
from disranker_jax.stages.result_table import Lacking, Row


def group(i: int, *docs: tuple[str, int, int, float], kind: str = 'q') -> Group:
  """A query with documents of (id, label, rank, score)."""
  made = [
    Document(doc_id, doc_id, '', label=label, rank=rank, score=score)
    for doc_id, label, rank, score in docs
  ]
  return Group(f'{kind}{i}', f'query {i}', tuple(made))


def judged_group(i: int) -> Group:
  """b is relevant; the first stage has it second, in a pool of three."""
  return group(i, ('a', 0, 1, 3.0), ('b', 2, 2, 2.0), ('c', 0, 3, 0.0), ('far', 2, 0, math.nan))


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A run whose student scores documents by SCORES, and whose records are in `run.records`."""
  records: dict[str, list[Group]] = {}
  config = configs.defaults()
  config.stages = ('prepare', 'student_sft', 'distill', 'evaluate')
  made = Run(config, tmp_path, None)
  monkeypatch.setattr(prepare, 'records', lambda run, kind: records[kind])
  monkeypatch.setattr(prepare, 'kinds', lambda config, stages=None: list(records))
  monkeypatch.setattr(held_out, 'find', found_all)
  monkeypatch.setattr(best_student, 'choose', lambda run: best_student.Choice('student', 'best'))
  monkeypatch.setattr(Row, 'load', lambda row, run: ('model', {}, 'score_head'))
  monkeypatch.setattr(roles, 'scorer', lambda run, *loaded, rows: loaded[0])
  monkeypatch.setattr(result_table, 'score_all', lambda name, scorer, groups: ranking(groups))
  costs = {'parameters': 250, 'ms_per_pair': 2.5}
  of_row = lambda run, row, groups: (ranking(groups), costs | {'device': 'cpu'})  # noqa: E731
  monkeypatch.setitem(ROWS, 'student', dataclasses.replace(ROWS['student'], rank=of_row))
  return types.SimpleNamespace(run=made, records=records)


SCORES = {'a': 0.0, 'b': 1.0, 'c': 0.9, 'far': 5.0}


def ranking(groups):
  return {g.query_id: {d.doc_id: SCORES[d.doc_id] for d in g.docs} for g in groups}


def found_all(run, records, usable=bool):
  return [], [i for i, record in enumerate(records) if usable(record)], 0


def choose(run, signal='scores') -> Fusion:
  return fused_rows.choose(run.run, 'student', signal)


class TestChoose:
  def test_ranks_what_the_first_stage_found_and_knows_all_judgements(self, run, capsys):
    run.records['judgements'] = [judged_group(i) for i in range(FEWEST)]
    found = choose(run)
    # Scaled: a 1 - w, b w + 2/3 (1 - w), so b is first above 1/4, c w .9: .5 is one of the best.
    assert (found.weight, found.signal, found.queries) == (0.5, 'scores', FEWEST)
    # `far` is relevant too, but the first stage does not find it: the best nDCG is not 1.
    ideal = 3 * (1 + 1 / math.log2(3))
    assert found.fused == found.model == pytest.approx(3 / ideal)
    assert found.first_stage == pytest.approx(3 / math.log2(3) / ideal)
    assert f'chosen on {FEWEST} held-out training queries' in capsys.readouterr().err

  def test_prefers_the_candidates_of_a_query_to_its_judged_documents(self, run):
    run.records['judgements'] = [
      # Of the judged documents alone no order would be wrong.
      group(i, ('b', 2, 0, math.nan), *[('a', 0, 0, math.nan)] * (i % 2))
      for i in range(FEWEST)
    ]
    run.records['candidates'] = [
      group(i, ('a', UNJUDGED, 1, 3.0), ('b', UNJUDGED, 2, 1.0), ('c', UNJUDGED, 3, 0.0), kind='c')
      for i in range(5 * FEWEST)
    ]
    groups = fused_rows.first_stage_of(run.run, run.records['judgements'])
    assert [g.query_id for g in groups] == [f'q{i}' for i in range(FEWEST)]
    assert groups[0].grades == {'b': 2} and groups[1].grades == {'a': 0, 'b': 2}
    assert len(groups[0].docs) == 3
    assert choose(run).queries == FEWEST

  def test_keeps_the_judged_documents_where_the_candidates_are_others(self, run):
    run.records['judgements'] = [judged_group(i) for i in range(FEWEST)]
    run.records['candidates'] = [group(i, ('c9', UNJUDGED, 1, 3.0)) for i in range(FEWEST)]
    groups = fused_rows.first_stage_of(run.run, run.records['judgements'])
    assert [[d.doc_id for d in g.docs] for g in groups] == [['a', 'b', 'c']] * FEWEST

  @pytest.mark.parametrize(('scored', 'signal'), [(True, 'scores'), (False, 'ranks')])
  def test_uses_scores_only_where_all_have_them(self, run, scored, signal):
    groups = [judged_group(i) for i in range(FEWEST)]
    if not scored:
      docs = groups[3].docs
      docs = (dataclasses.replace(docs[0], score=math.nan), *docs[1:])
      groups[3] = dataclasses.replace(groups[3], docs=docs)
    run.records['judgements'] = groups
    assert choose(run).signal == choose(run, '').signal == signal
    assert choose(run, 'ranks').signal == 'ranks'

  def test_uses_ranks_where_scores_contradict_them(self, run, capsys):
    """Such as distances, of which the smaller is better."""
    distances = [
      group(i, ('b', 2, 1, 0.1), ('a', 0, 2, 0.5), ('c', 0, 3, 0.9)) for i in range(FEWEST)
    ]
    run.records['judgements'] = distances
    found = choose(run, '')
    assert (found.signal, found.first_stage) == ('ranks', 1.0)
    assert 'on held-out queries its scores do not have the order' in capsys.readouterr().err
    # One contradiction among the test's documents is enough.
    run.records['judgements'] = [judged_group(i) for i in range(FEWEST)]
    tests = [judged_group(98), distances[0]]
    facts = fused_rows.rank(run.run, ROWS[FUSED], tests)[1]
    assert facts['fusion']['signal'] == 'ranks'
    only_first = fused_rows.first_of(tests, facts['fusion']['signal'])
    for of_test in tests:
      found = {d.doc_id: d.rank for d in of_test.docs if d.rank}
      scores = only_first[of_test.query_id]
      assert sorted(scores, key=scores.get, reverse=True) == sorted(found, key=found.get)

  def test_takes_the_default_with_a_message_if_there_are_too_few(self, run, capsys):
    run.records['judgements'] = [judged_group(i) for i in range(FEWEST - 1)]
    assert choose(run) == Fusion(0.5, 'scores')
    said = capsys.readouterr().err
    assert f'{FEWEST - 1} held-out training queries have' in said and '0.5 is taken' in said
    run.records['judgements'] = run.records['judgements'][:9]
    choose(run)
    assert 'fewer than 10 labelled queries' in capsys.readouterr().err

  def test_takes_no_queries_that_stages_have_learned(self, run, capsys):
    """With few judged queries of two grades, stages learn from all; pools have two grades here."""
    single = [group(i, ('a', 1, 1, 2.0)) for i in range(3 * FEWEST)]
    pools = [group(i, ('a', 1, 1, 2.0), ('b', 0, 2, 1.0)) for i in range(3 * FEWEST)]
    run.records.update(judgements=single, candidates=pools)
    assert choose(run) == Fusion(0.5, 'scores')
    assert 'fewer than 10 labelled queries with documents of two grades' in capsys.readouterr().err

  def test_counts_only_queries_whose_found_documents_can_be_ranked_wrongly(self, run, capsys):
    lacking = [group(i, ('a', 0, 1, 2.0), ('far', 2, 0, math.nan)) for i in range(FEWEST)]
    alike = [
      group(i, ('a', 1, 1, 2.0), ('b', 1, 2, 1.0), ('far', 0, 0, math.nan)) for i in range(FEWEST)
    ]
    for none in (lacking, alike):
      run.records['judgements'] = none
      assert choose(run).queries == 0
    capsys.readouterr()
    more = [judged_group(FEWEST + i) for i in range(FEWEST)]
    run.records['judgements'] = alike + more
    mixed = choose(run)
    assert f'({FEWEST} more have documents of one grade only)' in capsys.readouterr().err
    # They would raise every value alike, to 1.
    run.records['judgements'] = more
    assert mixed == choose(run) and mixed.queries == FEWEST

  def test_is_nothing_without_any_first_stage(self, run):
    run.records['judgements'] = [group(i, ('b', 2, 0, math.nan)) for i in range(FEWEST)]
    assert choose(run, '') is None


class TestRows:
  def test_are_the_weighted_scores_and_the_reciprocal_ranks(self, run):
    run.run.config.data.test = 'python_docs:'
    run.records['judgements'] = [judged_group(i) for i in range(FEWEST)]
    tests = [judged_group(99)]
    fused, facts = fused_rows.rank(run.run, ROWS[FUSED], tests)
    # The model's scores scaled by 5: a 0, b .2, c .18, far 1; the first stage's: a 1, b 2/3, c 0.
    wanted = {'a': 0.5, 'b': 0.5 * (0.2 + 2 / 3), 'c': 0.5 * 0.18, 'far': 0.5}
    assert fused['q99'] == pytest.approx(wanted)
    assert facts['title'] == 'distilled student + BM25' and facts['against'] == ['bm25', 'student']
    assert facts['fusion']['weight'] == 0.5 and facts['fusion']['row'] == 'student'
    fused, facts = fused_rows.rank(run.run, ROWS[FUSED_RANKS], tests)
    wanted = {'far': 1 / 61, 'b': 2 / 62, 'c': 2 / 63, 'a': 1 / 64 + 1 / 61}
    assert fused['q99'] == pytest.approx(wanted) and facts['against'] == []
    assert facts['title'] == 'distilled student + BM25, by ranks'

  def test_cost_what_their_student_costs(self, run):
    run.run.config.data.test = 'python_docs:'
    run.records['judgements'] = [judged_group(i) for i in range(FEWEST)]
    for name in (FUSED, FUSED_RANKS):
      _, facts = fused_rows.rank(run.run, ROWS[name], [judged_group(99)])
      assert (facts['parameters'], facts['ms_per_pair']) == (250, 2.5)
      assert 'device' not in facts

  def test_take_the_ranking_of_their_student_from_disk(self, run, monkeypatch):
    """Also where the config does not name its row any more; remarks take only named rows."""
    config, student = run.run.config, ROWS['student']
    config.data.test = 'python_docs:'
    run.records['judgements'] = [judged_group(i) for i in range(FEWEST)]
    run.records['test'] = tests = [judged_group(99)]
    run.run.folder('evaluate').mkdir()
    config.evaluate.models = ('student',)
    evaluate.execute(run.run)
    expected, _ = fused_rows.rank(run.run, ROWS[FUSED], tests)
    assert evaluate.on_disk(run.run, 'student')[0] == ranking(tests)

    def again(run, row, groups):
      raise Lacking('ranks again')

    monkeypatch.setitem(ROWS, 'student', dataclasses.replace(student, rank=again))
    config.evaluate.models = (FUSED,)
    assert fused_rows.rank(run.run, ROWS[FUSED], tests)[0] == expected
    assert evaluate.on_disk(run.run, 'student') is None
    # A row that is left out now may have its ranking of before on disk.
    evaluate.write_row(run.run, ROWS['student'], {})
    with pytest.raises(Lacking, match='ranks again'):
      evaluate.ranked(run.run, 'student', tests)

  def test_are_left_out_with_a_message_where_the_test_has_no_ranks(self, run, capsys):
    run.run.config.evaluate.models = ('random', FUSED, FUSED_RANKS)
    docs = ('b', 2, 0, math.nan), ('c', 0, 0, math.nan)
    run.records['test'] = [group(i, *docs) for i in range(3)]
    folder = run.run.folder('evaluate')
    folder.mkdir()
    assert list(evaluate.execute(run.run)) == ['random']
    said = capsys.readouterr().err
    for row in (FUSED, FUSED_RANKS):
      assert f'evaluate {row}: left out: the test documents have no first-stage ranks' in said
    assert list(json.loads((folder / 'results.json').read_text())) == ['random']
    assert evaluate.is_complete(run.run)
    # They are not tried again.
    evaluate.execute(run.run)
    assert 'left out' not in capsys.readouterr().err

  def test_need_a_student_of_the_run(self):
    config = configs.defaults()
    config.stages = ('prepare', 'sft', 'evaluate')
    assert not ROWS[FUSED].is_available(config)
    config.stages = ('prepare', 'student_sft', 'evaluate')
    assert ROWS[FUSED].is_available(config)
    assert {'student_sft', 'distill'} <= set(ROWS[FUSED].needs('disranker'))
