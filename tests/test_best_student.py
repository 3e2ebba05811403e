"""Which student is exported as the best one, and which weight of hard labels is the best."""

import pathlib
import types

import pytest

from disranker_jax.config import defaults
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import best_student, export, hard_label_trials, prepare
from disranker_jax.stages.ranker_export import EXPORTS

# The best student


def values(ndcg: float, made_of: str = 'abc') -> dict:
  return {'ndcg@5': ndcg, 'labelled': 24, 'queries': 40, 'made_of': made_of}


def choose(monkeypatch, stages=('student_sft', 'distill'), **found):
  monkeypatch.setattr(best_student, 'validated', lambda run, stage: found.get(stage, {}))
  c = defaults()
  c.stages = stages
  return best_student.choose(types.SimpleNamespace(config=c))


def test_the_student_with_the_better_held_out_rankings_is_the_best(monkeypatch):
  choice = choose(monkeypatch, student_sft=values(0.7), distill=values(0.65))
  assert choice.row == 'student_sft'
  assert choice.why == 'nDCG@5 0.700 on 24 held-out queries (distilled student 0.650)'
  assert choose(monkeypatch, student_sft=values(0.6), distill=values(0.65)).row == 'student'
  assert choose(monkeypatch, student_sft=values(0.6), distill=values(0.6)).row == 'student'


@pytest.mark.parametrize(
  'found',
  [
    {},
    {'student_sft': values(0.7)},
    {'student_sft': values(0.7), 'distill': values(0.6, 'others')},
    {'student_sft': values(0.7, ''), 'distill': values(0.6, '')},
  ],
)
def test_without_values_of_the_same_queries_it_is_the_distilled_one(monkeypatch, found):
  choice = choose(monkeypatch, **found)
  assert choice.row == 'student' and 'too few labelled queries' in choice.why


def test_the_only_student_is_the_best(monkeypatch):
  assert choose(monkeypatch, stages=('student_sft',)).row == 'student_sft'


def test_best_and_student_are_one_folder():
  c = defaults()
  c.export.models = ('best', 'student')
  with pytest.raises(UserError, match='both written to export/student'):
    export.check(EXPORTS, c)
  assert [EXPORTS.folder_of(n) for n in ('best', 'student_sft')] == ['student', 'student_sft']


def test_an_export_without_a_student_to_choose_names_the_stage_that_it_needs():
  c = defaults()
  c.stages = ('prepare', 'export')
  assert export.requires(EXPORTS, c) == {'export of the best student': ('distill',)}
  c.stages = ('prepare', 'student_sft', 'export')
  assert export.requires(EXPORTS, c) == {}
  assert [use.label for use in export.uses(EXPORTS, c)] == ['student_sft']


# The weight of hard labels


def with_weights(weights=(0.0, 0.5, 2.0), folder=pathlib.Path('none')):
  run = Run(defaults(), folder, None)
  run.config.distill.hard_label_weights = weights
  return run


def test_each_weight_is_a_training_of_its_own():
  runs = hard_label_trials.runs(with_weights())
  assert list(runs) == [0.0, 0.5, 2.0]
  for weight, (one, folder) in runs.items():
    assert one.config.distill.hard_label_weight == weight
    assert not one.config.distill.hard_label_weights
    assert folder == pathlib.Path('none/distill/trials') / f'{weight:g}'
  plain = with_weights(())
  plain.config.distill.hard_label_weight = 0.5
  assert hard_label_trials.runs(plain) == {0.5: (plain, pathlib.Path('none/distill'))}


def test_the_weight_with_the_best_rankings_is_taken_not_that_with_the_lowest_loss(tmp_path, capsys):
  run, results = with_weights(folder=tmp_path), {}
  for weight, ndcg, loss in ((0.0, 0.6, 0.1), (0.5, 0.7, 0.5), (2.0, 0.7, 0.9)):
    trial = tmp_path / 'distill' / 'trials' / f'{weight:g}'
    (trial / 'checkpoints' / '4').mkdir(parents=True)
    (trial / 'checkpoints' / '4' / 'params').write_text(f'{weight:g}')
    (trial / 'metrics.jsonl').write_text(f'of {weight:g}')
    results[weight] = {'steps': 4, 'validation': values(ndcg) | {'loss': loss}}
  assert 'to step 4' in hard_label_trials.kept(run)
  for _ in range(2):  # also after a stop just before the manifest is written
    found = hard_label_trials.best(run, results)
    assert found['hard_label_weight'] == 0.5 and found['tried'] == {'0': 0.6, '0.5': 0.7, '2': 0.7}
    assert found['validation'] == results[0.5]['validation']
    assert (tmp_path / 'distill/checkpoints/4/params').read_text() == '0.5'
    assert (tmp_path / 'distill/metrics.jsonl').read_text() == 'of 0.5'
  assert 'hard_label_weight=0.5 is the best' in capsys.readouterr().err
  assert hard_label_trials.kept(run) == 'step 4 is saved'


def test_weights_without_anything_to_choose_by_are_an_error():
  config = with_weights().config
  hard_label_trials.check(config)
  config.stages, config.score.judgements = ('prepare', 'distill'), False
  with pytest.raises(UserError, match='list a stage that reads judgements'):
    hard_label_trials.check(config)


def test_weights_with_too_few_labelled_queries_are_an_error_of_the_records(monkeypatch):
  groups = [Group(f'q{i}', f'query {i}', (Document('d', 'a title', ''),)) for i in range(60)]
  monkeypatch.setattr(prepare, 'records', lambda run, kind: groups)
  with pytest.raises(UserError, match=r'hard_label_weights.*fewer than 10 labelled.*share=0.05'):
    hard_label_trials.check_records(with_weights())
