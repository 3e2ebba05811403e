"""Labelled queries by which rankings are compared: only those that can be ranked wrongly."""

import pathlib
import types

import pytest

from disranker_jax.config import defaults
from disranker_jax.data.records import UNJUDGED, Document, Group
from disranker_jax.errors import UserError
from disranker_jax.stages import held_out, prepare, sft


def of_grades(i: int, *labels: int) -> Group:
  docs = (Document(f'd{n}', 'file', f'text {n}', label=x) for n, x in enumerate(labels))
  return Group(f'q{i}', f'how to open file {i}', tuple(docs))


@pytest.fixture
def run_of(monkeypatch):
  """A run with these judgements."""

  def made(groups, share: float = 0.05):
    config = defaults()
    config.validation.share = share
    monkeypatch.setattr(prepare, 'records', lambda run, kind: groups)
    monkeypatch.setattr(prepare, 'kinds', lambda config, stages=None: ['judgements'])
    return types.SimpleNamespace(config=config, folder=lambda stage: pathlib.Path('none'))

  return made


def split(run):
  return held_out.split(run, 'sft', prepare.records(run, 'judgements'), usable=held_out.graded)


def test_others_are_held_out_and_decide_nothing(run_of, capsys):
  groups = [of_grades(i, 0, 1, 2) for i in range(600)]
  alike = [of_grades(i, 1, 1) for i in range(600, 1200)]
  run = run_of(groups)
  wanted, labelled = split(run), held_out.labelled(run)
  assert len(labelled) >= 10 and 'one grade' not in capsys.readouterr().err
  run = run_of(groups + alike)
  found = split(run)
  assert found.measured == wanted.measured and held_out.labelled(run) == labelled
  lost = len(wanted.learned) + len(alike) - len(found.learned)
  assert lost > 10 and f' ({lost} more have documents of one grade only)' in capsys.readouterr().err


def test_many_of_them_are_still_too_few(run_of):
  run = run_of([of_grades(i, 1, 1) for i in range(600)] + [of_grades(601, 0, 1)], share=0.1)
  assert not held_out.labelled(run)
  run.config.sft.validation.keep_best = True
  with pytest.raises(UserError, match=r'more have documents of one grade only\), and 10 are'):
    sft.check_records(run)


def test_a_document_without_a_judgement_counts_as_not_relevant(run_of):
  assert len(held_out.labelled(run_of([of_grades(i, 1, UNJUDGED) for i in range(600)]))) >= 10
  assert not held_out.labelled(run_of([of_grades(i, 0, UNJUDGED) for i in range(600)]))
