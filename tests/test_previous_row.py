"""The row "the earlier run's student", and what it says if that run exported another student."""

import json

import pytest

from disranker_jax.config import defaults
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import result_rows

LABELS_ONLY = "'student, labels only'"


def exporting(folder, stages, exported: dict[str, str], best='', **changes):
  """The workdir of a run that has exported folders, by name."""
  c = defaults()
  c.stages = ('prepare', *stages, 'export')
  c.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
  (folder / 'export').mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(c.to_dict()))
  found = {'row': best, 'why': 'nDCG@5 0.7'} if best else {}
  results = {'folders': {name: f'export/{name}' for name in exported}, 'best': found}
  done = {'status': 'done', 'results': results}
  (folder / 'export' / 'manifest.json').write_text(json.dumps(done))
  return folder


def after(workdir) -> Run:
  c = defaults()
  c.student.init_from = str(workdir)
  c.evaluate.models = ('previous', 'student')
  return Run(c, workdir.parent / 'week2', None)


BOTH = ('student_sft', 'distill')


@pytest.mark.parametrize(
  ('stages', 'exported', 'best', 'said'),
  [
    (BOTH, ('student', 'teacher'), 'student_sft', f'{LABELS_ONLY} ({{}}/export/student)'),
    (BOTH, ('student_sft',), '', f'{LABELS_ONLY} ({{}}/export/student_sft)'),
    (BOTH, ('student',), 'student', ''),
    (BOTH, ('student',), '', ''),
    (BOTH, ('student', 'student_sft'), '', ''),
    (('distill',), ('student',), 'student', ''),
    (BOTH, ('teacher',), '', ''),
    (BOTH, (), '', ''),
  ],
)
def test_another_student_that_was_exported_is_said(
  tmp_path, monkeypatch, capsys, stages, exported, best, said
):
  before = exporting(tmp_path / 'week1', stages, exported, best)
  run, row = after(before), result_rows.ROWS['previous']
  monkeypatch.setattr(result_rows, 'model_scores', lambda *given: ({}, {'parameters': 5}))
  result_rows.check_records(run)
  err, (_, facts) = capsys.readouterr().err, row.rank(run, row, [])
  assert facts['parameters'] == 5
  if not said:
    assert not err and 'note' not in facts
    return
  assert f'exported {said.format(before)}' in facts['note']
  assert 'is its distilled student' in facts['note']
  assert ' '.join(err.split()) == f'evaluate previous: {facts["note"]}'


def test_a_student_of_labels_that_is_handed_on_is_the_exported_one(tmp_path):
  """Without the stage distill, distill.init_from says that student_sft trains the student."""
  start = {'distill__init_from': 'student_sft'}
  before = exporting(tmp_path / 'week1', ('student_sft',), ('student',), 'student_sft', **start)
  assert not result_rows.other_export(after(before).config)


def test_a_run_that_handed_on_what_it_started_from_is_said(tmp_path):
  start = {'student__init_from': 'week0'}
  before = exporting(tmp_path / 'week1', ('student_sft',), ('student',), 'student_sft', **start)
  note = result_rows.other_export(after(before).config)
  assert 'is the student that it started from' in note


def test_a_run_that_is_gone_or_has_not_exported_says_nothing(tmp_path):
  before = exporting(tmp_path / 'week1', BOTH, ('student',), 'student_sft')
  (before / 'export' / 'manifest.json').unlink()
  assert not result_rows.other_export(after(before).config)
  assert not result_rows.other_export(after(tmp_path / 'none').config)
