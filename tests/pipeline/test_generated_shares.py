"""How many of the generated queries distill learns, and how often."""

import helpers
import numpy as np
import pytest

from disranker_jax.data.records import Document, Group
from disranker_jax.pipeline import runner
from disranker_jax.stages import mixed, prepare


@pytest.mark.parametrize('weight, counts', [(1, (1, 1)), (0, (0, 0)), (2.5, (2, 3)), (0.5, (0, 1))])
def test_generated_queries_are_repeated_by_their_weight(weight, counts, monkeypatch):
  docs = tuple(Document(f'd{i}', 't', 's', label=int(i == 1)) for i in range(3))
  scored = [(Group(f'd1#{i}', 'q', docs), np.array([3.0, i % 2 * 4.0, 1.0])) for i in range(60)]
  monkeypatch.setattr(prepare, 'records', lambda run, kind: range({'generated': 40}.get(kind, 10)))
  for within in (0, 1):
    changes = {'distill__generated_weight': float(weight), 'distill__generated_within': within}
    run = runner.Run(helpers.config(**changes), None, None)
    kinds = ('candidates', 'generated', 'judgements')
    learned, facts = mixed.indices(run, kinds, scored)
    times = [learned.count(i) for i in range(60)]
    assert times[:10] == times[50:] == [1] * 10
    # Of every second one the teacher ranks another document first.
    left = times[10:50] if not within else times[11:50:2]
    assert set(left) == set(counts)
    assert not within or not any(times[10:50:2])
    assert facts['generated']['learned'] == sum(times[10:50])


def test_the_best_of_several_own_documents_counts_for_the_second_round_trip():
  group = Group('d0#0', 'q', tuple(Document(f'd{i}', 't', 's', label=int(i < 2)) for i in range(3)))
  assert mixed.is_found((group, np.array([0.0, 2.0, 1.0])), 1)
  assert not mixed.is_found((group, np.array([0.0, 1.0, 2.0])), 1)


def test_a_limit_takes_some_queries_and_a_larger_one_holds_them(monkeypatch, capsys):
  docs = tuple(Document(f'd{i}', 't', 's', label=int(i == 1)) for i in range(3))
  scored = [(Group(f'd1#{i}', 'q', docs), np.array([3.0, 4.0, 1.0])) for i in range(60)]
  monkeypatch.setattr(prepare, 'records', lambda run, kind: range({'generated': 40}.get(kind, 20)))

  def learned(limit, weight=1.0):
    changes = {'distill__generated_limit': limit, 'distill__generated_weight': weight}
    run = runner.Run(helpers.config(**changes), None, None)
    return mixed.indices(run, ('candidates', 'generated'), scored)[0]

  few, more = (set(learned(n)) - {*range(20)} for n in (7, 23))
  assert len(few) == 7 and len(more) == 23 and few < more
  assert [*learned(7, 2.0)].count(min(few)) == 2
  # A weight chooses among those that the limit leaves.
  half = set(learned(20, 0.5)) - {*range(20)}
  assert 4 <= len(half) <= 16 and half < set(learned(20))
  assert len(learned(0)) == len(learned(40)) == 60 and not capsys.readouterr().err.count('there')
  assert len(learned(41)) == 60
  assert 'generated_limit=41: there are 40 generated queries to take' in capsys.readouterr().err
