"""The sentences and warnings of a report: when they are said, and with which numbers."""

import dataclasses
import functools
import types

import pytest

from disranker_jax.data.records import Document, Group
from disranker_jax.evaluation import metrics, shared_judgements
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.evaluation.units import Units
from disranker_jax.generative import rows as search_rows
from disranker_jax.report import cautions, findings, intervals
from disranker_jax.rewriting.rows import TABLE as REWRITES
from disranker_jax.stages.result_rows import TABLE


def facts_of(values: dict[str, list[float]], **results):
  """Facts of rows whose nDCG@5 per query is given."""
  counts = dict.fromkeys(('pnr', 'ndcg@10', 'mrr@10', 'concordant', 'discordant'), 1.0)
  rows = {
    name: {f'q{i}': counts | {'ndcg@5': value} for i, value in enumerate(of_row)}
    for name, of_row in values.items()
  }
  found = {name: {'ndcg@5': sum(v) / len(v)} | results.get(name, {}) for name, v in values.items()}
  against = {name: of_row['against'] for name, of_row in found.items() if 'against' in of_row}
  return types.SimpleNamespace(
    table=TABLE, rows=rows, results=found, overlap={}, tests={},
    validation={}, before={}, gains={}, tried={}, best={}, logs={}, seeds={}, served={}, config={},
    quantised={}, other_seeds={},
    intervals=intervals.analyse(TABLE, rows, against=against),
    drawn=Units({}, list(next(iter(rows.values())))),
    title=functools.partial(TABLE.row_title, results=found),
  )  # fmt: skip


def test_a_teacher_that_training_made_worse_is_a_warning_with_both_values():
  facts = facts_of({'zero_shot': [0.3] * 40, 'teacher': [0.2] * 20 + [0.3] * 20})
  [warning] = cautions.missed(facts)
  assert warning.startswith(
    '"teacher" ranks no better than "zero-shot LLM": nDCG@5 0.250 against 0.300'
  )
  assert '-0.050' in warning and warning.endswith('; docs/choose.md says what to try')


def test_a_student_is_held_against_the_first_stage_and_against_labels_alone():
  rows = {'bm25': [0.6] * 40, 'student_sft': [0.5] * 40, 'teacher': [0.7] * 40}
  said = cautions.missed(facts_of(rows | {'student': [0.5] * 40}))
  assert [w.split(': ')[0] for w in said] == [
    '"student, labels only" ranks no better than "BM25"',
    '"distilled student" ranks no better than "BM25"',
    '"distilled student" ranks no better than "student, labels only"',
  ]
  assert 'interval' in said[1]
  # The page to read is named once, for all of them.
  assert [w.count('docs/choose.md') for w in said] == [0, 0, 1]
  assert said[-1].endswith('; docs/choose.md says what to try in these 3 cases')


def test_rows_that_improve_on_all_that_they_should_are_not_mentioned():
  rows = {'bm25': [0.3] * 40, 'zero_shot': [0.4] * 40, 'student_sft': [0.5] * 40}
  assert not cautions.missed(facts_of(rows | {'teacher': [0.9] * 40, 'student': [0.8] * 40}))


def test_the_student_is_compared_with_production_as_with_a_baseline():
  student = [0.5 + 0.01 * (i % 3) for i in range(40)]
  facts = facts_of({'bm25': [0.4] * 40, 'production': [0.45] * 40, 'student': student})
  said = findings.comparisons(facts)
  assert [each.baseline for each in said] == ['BM25', 'production']
  # Two in three queries gain .06 or .07, one gains .05.
  assert str(said[1]).startswith('"distilled student" against "production": +0.060 nDCG@5 (95 % ')
  # The correction is explained once, after the comparisons.
  lines = findings.sentences(facts)
  tests = len(facts.intervals.differences)
  assert lines[2] == f"Holm: p with Holm's correction for the {tests} tests of the report"
  assert [line.count('correction') for line in lines].count(1) == 1


def test_the_student_with_the_first_stage_is_compared_with_both_and_its_weight_is_said():
  how = Fusion(0.65, 'scores', 24, 0.7, 0.6, 0.5)
  student, together = ([x + 0.01 * (i % 3) for i in range(40)] for x in (0.5, 0.6))
  facts = facts_of(
    {'bm25': [0.4] * 40, 'student': student, 'fused': together},
    fused={
      'title': 'distilled student + BM25', 'against': ['bm25', 'student'],
      'fusion': how.to_dict() | {'row': 'student'},
    },
  )  # fmt: skip
  said = [str(each) for each in findings.comparisons(facts)]
  assert [each.split(': ')[0] for each in said] == [
    '"distilled student" against "BM25"',
    '"distilled student + BM25" against "BM25"',
    '"distilled student + BM25" against "distilled student"',
  ]
  assert '+0.100 nDCG@5' in said[2]
  [text] = findings.fused(facts)
  assert text.startswith("distilled student + BM25: weight 0.65 of the model's scores")
  assert not findings.fused(facts_of({'bm25': [0.4] * 40}))


@pytest.mark.parametrize(
  ('bm25', 'student', 'fused', 'said'),
  [
    (0.4, 0.5, 0.6, '"student + first stage" ranks the test best: nDCG@5 0.600 ("distilled'),
    (0.4, 0.7, 0.6, '"distilled student" ranks the test best: nDCG@5 0.700 ("student + first'),
    (0.8, 0.5, 0.6, 'the exported student does not improve on it'),
  ],
)
def test_what_to_serve_is_said_of_the_first_stage_the_exported_student_and_both(
  bm25, student, fused, said
):
  how = Fusion(0.5, 'scores').to_dict() | {'row': 'student'}
  rows = {'bm25': [bm25] * 40, 'student': [student] * 40, 'fused': [fused] * 40}
  facts = facts_of(rows, fused={'against': ['bm25', 'student'], 'fusion': how})
  [sentence] = findings.to_serve(facts)
  assert said in sentence
  facts.best = {'row': 'student_sft', 'why': 'best'}  # the fused row has another student
  assert not findings.to_serve(facts)


@pytest.mark.parametrize(('slow', 'is_said'), [(5.9, False), (6.1, True)])
def test_equal_networks_with_very_different_times_are_a_warning(slow, is_said):
  times = {'parameters': 22, 'ms_per_pair': 4.0}
  rows = {name: [0.5] * 40 for name in ('student_sft', 'student', 'teacher', 'zero_shot')}
  facts = facts_of(
    rows, student=times, student_sft=times | {'ms_per_pair': slow},
    # Larger ones, and rows that read other prompts, may take longer.
    teacher={'parameters': 99, 'ms_per_pair': 9.0}, zero_shot={'parameters': 99, 'ms_per_pair': 50},
  )  # fmt: skip
  said = cautions.noisy(facts)
  assert bool(said) == is_said
  if is_said:
    assert '4 ms per pair ("distilled student") and 6.1 ms per pair ("student, labels' in said[0]


@pytest.mark.parametrize(
  'queries, said', [(1, 'there are no intervals'), (29, 'only 29 queries'), (30, '')]
)
def test_few_queries_are_told(queries, said):
  found = cautions.few(facts_of({'bm25': [0.5] * queries}))
  assert (said in found[0]) if said else not found


def test_what_training_has_of_the_test_is_told():
  facts = facts_of({'bm25': [0.5] * 40})
  counts = {
    'queries': 3, 'query_texts': 3, 'query_ids': 1, 'pairs': 20, 'records': 3, 'of_queries': 40,
    'of_pairs': 400,
  }  # fmt: skip
  none = dict.fromkeys(counts, 0) | {'of_queries': 40, 'of_pairs': 400}
  facts.overlap = {'judgements': counts | {'same_judgements': 5}, 'candidates': none}
  first, second = cautions.overlaps(facts)
  assert first.startswith('judgements: 3 of 40 test queries are here too')
  assert second.startswith('5 test queries have the same relevant documents')


def test_how_a_row_was_made_is_told_with_its_own_title():
  facts = facts_of({'bm25': [0.5] * 40}, bm25={'title': 'first stage', 'note': '3 of 9 come last'})
  assert cautions.of(facts) == ['first stage: 3 of 9 come last']


def test_what_a_row_says_of_its_results_is_no_warning():
  facts = facts_of({'bm25': [0.5] * 40}, bm25={'title': 'first stage', 'remark': 'rises for 3'})
  facts.quantised = {}
  assert 'first stage: rises for 3' in findings.sentences(facts) and not cautions.of(facts)


def test_what_a_stage_gained_on_held_out_queries_has_its_interval_and_p():
  facts = facts_of({'bm25': [0.5] * 40})
  cell = {'value': 0.021, 'low': 0.01, 'high': 0.032, 'p': 0.0003, 'queries': 712}
  facts.gains = {'rewrite': {'reward': cell, 'ndcg@10': cell | {'p': 0.04}}}
  [said] = findings.gains(facts)
  assert 'rewrite' in said and '712' in said
  interval = '+0.021 (95 % interval +0.010 to +0.032, p'
  assert f'reward {interval}' in said and f'nDCG@10 {interval} 0.04' in said


def test_queries_that_look_like_those_of_topics_are_a_warning_with_what_to_type(monkeypatch):
  facts = facts_of({'bm25': [0.5] * 40})
  found = shared_judgements.Related('^[^-]+', 0.61, 0.004)
  monkeypatch.setattr(shared_judgements, 'related', lambda grades: found)
  [said] = cautions.related(facts)
  assert '61 % of pairs, others 0 %' in said
  assert said.endswith("--config.report.cluster='^[^-]+' --rerun=report")
  facts.drawn = dataclasses.replace(facts.drawn, by='^[^-]+')
  assert not cautions.related(facts)


def test_pairs_and_queries_that_tell_nothing_are_counted():
  facts = facts_of({'bm25': [0.5] * 40}, bm25={'queries_without_relevant': 7, 'queries': 40})
  docs = [Document('a', 'a', '', 1), Document('b', 'b', ''), Document('c', 'c', '', in_pool=False)]
  facts.tests = {'q': Group('q', 'q', tuple(docs))}
  first, second = cautions.unjudged(facts)
  assert first == (
    '7 of 40 test queries have no relevant document, so their nDCG and MRR are 0 in every row'
  )
  assert second == (
    '1 of 2 test pairs is not judged; it counts as not relevant in nDCG and MRR, and not at all '
    'in PNR'
  )


def test_queries_that_no_model_can_rank_wrongly_are_counted():
  """A document outside the pool is not ranked; one without a judgement is not relevant."""
  facts = facts_of({'bm25': [0.5] * 40})
  labels = {'all': (1, 1), 'zero': (0, 0), 'two': (2, 1), 'outside': (0, 0, 3), 'open': (1, -1)}
  facts.tests = {
    q: Group(q, q, tuple(Document(f'{i}', '', '', x, in_pool=i < 2) for i, x in enumerate(of_q)))
    for q, of_q in labels.items()
  }
  said = cautions.unjudged(facts)
  assert said[0] == (
    '2 of 5 test queries have ranked documents of one grade only, so every order of them is as good'
  )
  facts.table = search_rows.TABLE  # any document of the collection can be found
  assert not any('one grade' in line for line in cautions.unjudged(facts))


def test_queries_without_a_relevant_document_name_the_metrics_of_their_table():
  facts = facts_of({'bm25': [0.5] * 40}, bm25={'queries_without_relevant': 7, 'queries': 40})
  facts.tests = {}
  for table, names in ((search_rows.TABLE, 'Hits, MRR and nDCG'), (REWRITES, 'nDCG, MRR and Hits')):
    facts.table = table
    [said] = cautions.unjudged(facts)
    assert said.endswith(f'so their {names} are 0 in every row')


def test_a_threshold_above_the_labels_is_said_of_the_metrics_that_have_one():
  facts = facts_of({'bm25': [0.5] * 40}, bm25={'queries_without_relevant': 40, 'queries': 40})
  facts.config = {'evaluate.min_relevance': 4}
  facts.labels = lambda: {('q', 'a'): 0, ('q', 'b'): 2}
  facts.tests = {}
  assert cautions.unjudged(facts) == [
    '40 of 40 test queries have no document with a label of config.evaluate.min_relevance=4 or '
    'better (the highest label is 2), so their MRR is 0 in every row'
  ]
  # nDCG of such queries is not 0, which is why it is not named.
  graded = metrics.per_query({'q': {'a': 1.0, 'b': 0.5}}, {'q': {'a': 0, 'b': 2}}, relevant=4)
  assert graded['q']['mrr@10'] == 0 < graded['q']['ndcg@5']


class TestTogether:
  def facts(self, by: str | None):
    """Queries of three topics, whose ids are TOPIC-QUERY."""
    grades = {
      f'{topic}-{i}': {f'{topic}{doc}': doc for doc in range(4)}
      for topic, count in (('a', 2), ('b', 3), ('c', 1))
      for i in range(count)
    }
    return types.SimpleNamespace(drawn=Units(grades, list(grades), by))

  def test_queries_with_the_same_judgements_are_drawn_together_and_counted(self):
    [said] = cautions.together(self.facts(None))
    assert said == (
      '5 of 6 test queries share their judgements, so 3 clusters are drawn instead of 6 queries, '
      "as with report.cluster='^[^-]+'"
    )

  def test_an_expression_that_separates_them_is_a_warning(self):
    [said] = cautions.together(self.facts('.+'))
    assert "'.+' separates 2 of their groups, so p is too small; use report.cluster" in said

  def test_an_expression_that_keeps_them_together_is_none(self):
    assert not cautions.together(self.facts('^[ab]'))


def test_the_power_of_the_test_is_told_for_the_difference_to_the_first_stage():
  student = [0.5 + 0.1 * (i % 2) for i in range(40)]
  [said] = findings.power(facts_of({'bm25': [0.5] * 40, 'student': student}))
  # The difference is .05 with a standard error of .05 * sqrt(40 / 39) / sqrt(40) = .0080; a t test
  # with 39 degrees of freedom reaches 2.0227 + .8512 of them.
  assert said.startswith(
    'with 40 queries a true difference of 0.023 nDCG@5 to BM25 is found in 80 % of cases'
  )
  # (1.96 + .8416)^2 * .0513^2 / .05^2 = 8.05, and 11 by Student's t.
  assert said.endswith('one of +0.050 needs about 11 queries')


def held_out(made_of: str = 'abc', **by_stage):
  return {
    stage: {'ndcg@5': value, 'labelled': 24, 'made_of': made_of}
    for stage, value in by_stage.items()
  }


def test_a_teacher_that_only_the_held_out_queries_show_to_be_no_better_is_a_warning():
  facts = facts_of({'student_sft': [0.5] * 40, 'teacher': [0.6] * 40})
  facts.validation = held_out(student_sft=0.71, sft=0.70)
  [warning] = cautions.missed_held_out(facts)
  assert warning.startswith(
    '"teacher" ranks the 24 held-out training queries no better than "student, labels only": '
    'nDCG@5 0.700 against 0.710'
  )
  facts.validation = held_out(student_sft=0.69, sft=0.70)
  assert not cautions.missed_held_out(facts)
  [sentence] = findings.held_out(facts)
  assert '"student, labels only" 0.690, "teacher" 0.700' in sentence and '24 held-out' in sentence


def test_what_the_test_shows_is_not_said_again_of_the_held_out_queries():
  facts = facts_of({'student_sft': [0.5] * 40, 'teacher': [0.4] * 40})
  facts.validation = held_out(student_sft=0.71, sft=0.70)
  assert not cautions.missed_held_out(facts) and len(cautions.missed(facts)) == 1


def test_values_of_different_queries_are_not_compared():
  facts = facts_of({'student_sft': [0.5] * 40, 'teacher': [0.6] * 40})
  facts.validation = held_out(student_sft=0.8) | held_out('other', sft=0.7)
  assert not cautions.missed_held_out(facts) and not findings.held_out(facts)


def test_values_at_different_depths_are_not_compared():
  facts = facts_of({'student_sft': [0.5] * 40, 'teacher': [0.6] * 40})
  facts.validation = held_out(student_sft=0.8, sft=0.7)
  assert findings.held_out(facts) and cautions.missed_held_out(facts)
  facts.validation['sft'] = {'ndcg@10': 0.7, 'labelled': 24, 'made_of': 'abc'}
  assert not findings.held_out(facts) and not cautions.missed_held_out(facts)


def test_a_rewriter_is_told_at_its_own_depth_with_what_it_was_before():
  facts = facts_of({'student': [0.5] * 40})
  facts.table, facts.title = REWRITES, REWRITES.row_title
  facts.validation = {
    'cpt': {'loss': 2.6, 'labelled': 0, 'made_of': 'abc'},
    'rewrite': {'ndcg@10': 0.472, 'reward': 0.05, 'labelled': 100, 'made_of': 'abc'},
  }
  where = 'on 100 held-out training queries, for validation (searches of the whole collection): '
  assert findings.held_out(facts) == [f'{where}nDCG@10 "rewriter" 0.472']
  facts.before = {'rewrite': {'ndcg@10': 0.443, 'reward': 0.03}}
  assert findings.held_out(facts) == [f'{where}nDCG@10 "rewriter" 0.472 (0.443 before rewrite)']


def test_the_exported_student_is_named_with_the_reason():
  facts = facts_of({'student_sft': [0.5] * 40, 'student': [0.6] * 40})
  assert not findings.best(facts)
  facts.best = {'row': 'student_sft', 'why': 'nDCG@5 0.700 on 24 held-out queries'}
  assert findings.best(facts) == [
    'the folder export/student has "student, labels only": nDCG@5 0.700 on 24 held-out queries'
  ]


def log(training: list[float], held_out: dict[int, float]) -> list[dict]:
  """The rows of a metrics.jsonl."""
  return [
    {'step': step, 'loss': loss} | ({'validation/loss': held_out[step]} if step in held_out else {})
    for step, loss in enumerate(training, 1)
  ]


FALLING, RISING = [1 - i / 50 for i in range(40)], [0.2 + i / 50 for i in range(40)]


@pytest.mark.parametrize(
  ('training', 'values', 'is_said'),
  [
    (FALLING, {10: 0.8, 20: 0.6, 30: 0.7, 40: 0.9}, True),
    (FALLING, {10: 0.8, 20: 0.6, 30: 0.62, 40: 0.61}, False),  # by less than the noise
    (FALLING, {10: 0.8, 20: 0.7, 30: 0.6, 40: 0.5}, False),
    (RISING, {10: 0.8, 20: 0.6, 30: 0.7, 40: 0.9}, False),  # it diverges, which is no memory
    (FALLING, {20: 0.6, 40: 0.9}, False),  # two values are no trend
  ],
)
def test_a_held_out_loss_that_rises_while_the_training_loss_falls_is_a_warning(
  training, values, is_said
):
  facts = facts_of({'student': [0.6] * 40})
  facts.logs = {'distill': log(training, values)}
  said = cautions.memorised(facts)
  assert bool(said) == is_said
  if is_said:
    assert 'from 0.6 at step 20 to 0.9 at step 40' in said[0] and 'distill.epochs' in said[0]


def test_the_chosen_weight_of_hard_labels_is_said_with_those_that_were_tried():
  facts = facts_of({'student': [0.5]})
  facts.tried = {'0': 0.51, '0.5': 0.62, '1': 0.62}
  assert findings.hard_labels(facts) == [
    'distill has hard_label_weight=0.5, the best on held-out training queries (nDCG@5 by weight: '
    '0: 0.510, 0.5: 0.620, 1: 0.620)'
  ]
  facts.tried = {}
  assert findings.hard_labels(facts) == []
