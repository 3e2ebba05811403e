"""The rows of the result table: what the report and the ablations know about each ranking."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
  """A ranking of the test queries.

  needs        the stages that it needs beside data and evaluation, the last one last
  role         '' without a model, else the config section of its model: 'teacher' or 'student'
  is_baseline  the report tests the other rows against it
  is_floor     a lower bound, which is not tested and not drawn
  """

  name: str
  title: str
  needs: tuple[str, ...] = ()
  role: str = ''
  is_baseline: bool = False
  is_floor: bool = False


ROWS = {
  row.name: row
  for row in (
    Row('random', 'random order', is_floor=True),
    Row('bm25', 'BM25', is_baseline=True),
    Row('zero_shot', 'zero-shot LLM', role='teacher'),
    Row('student_sft', 'student, labels only', ('student_sft',), 'student', is_baseline=True),
    Row('teacher', 'teacher', ('cpt', 'sft'), 'teacher'),
    Row(
      'student', 'distilled student', ('cpt', 'sft', 'score', 'student_sft', 'distill'), 'student'
    ),
  )
}


def _of(role: str, is_baseline: bool) -> tuple[str, ...]:
  rows = ROWS.values()
  return tuple(r.name for r in rows if r.role == role and r.is_baseline == is_baseline)


BASELINES = tuple(row.name for row in ROWS.values() if row.is_baseline)
# The rows that tiles and charts compare.
(FIRST_STAGE,) = _of('', is_baseline=True)
STUDENT = _of('student', is_baseline=False)[-1]
TEACHER = _of('teacher', is_baseline=False)[-1]
# The models, the one that the report is about first.
MODELS = tuple(
  sorted((r.name for r in reversed(ROWS.values()) if r.role), key=lambda n: ROWS[n].role)
)
# Models with a stage of their own, students first: their scores are drawn.
TRAINED = tuple(sorted((r.name for r in ROWS.values() if r.needs), key=lambda n: ROWS[n].role))


def title(name: str) -> str:
  """A row's title; a row that is not listed has its name."""
  return ROWS[name].title if name in ROWS else name


def is_floor(name: str) -> bool:
  return name in ROWS and ROWS[name].is_floor
