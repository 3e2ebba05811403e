"""The result table of DisRanker: every row re-ranks the same documents.

A new row is one entry of `ROWS`, with a function if it ranks in a new way.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from disranker_jax.config.settings import Key, list_of, one_of
from disranker_jax.data import first_stage as first_stages
from disranker_jax.data import sources
from disranker_jax.data.records import Document, Group
from disranker_jax.evaluation import metrics
from disranker_jax.pipeline import manifest, systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.progress import amount, part_of, say
from disranker_jax.rankers.llm.methods import METHODS
from disranker_jax.report import tables
from disranker_jax.stages import earlier, prepare, prompting, roles, teacher
from disranker_jax.stages.result_table import Ranking, Row, Table, model_scores

STEP = 2.5e-7  # of a score; trec_eval keeps float32, which tells scores so far apart
SMALLEST = 1e-30  # step, for scores near 0
PREVIOUS_KEY = 'student.init_from'  # names the earlier run


def random_order(run: Run, row: Row, groups) -> Ranking:
  """Scores drawn from the config's seed."""
  rng = np.random.default_rng(run.config.seed)
  return {g.query_id: {d.doc_id: rng.random() for d in g.docs} for g in groups}, {}


def first_stage(run: Run, row: Row, groups) -> Ranking:
  """The order of the first stage; where the test has no ranks at all, BM25's, computed here.

  The scores are the first stage's, so that fusing with the row's run is fusing with the first
  stage. Where they are unknown or contradict the ranks, every score of the test is -rank.

  Documents that the first stage did not find are not in it. The title says whose order it is.
  """
  every = sum(len(g.docs) for g in groups)
  if any(d.rank for g in groups for d in g.docs):
    facts = {} if sources.open(run.config.data.test).ranked_by_bm25 else {'title': 'first stage'}
    ranking, note = given_scores(groups)
    if note:
      note = f'{note}, so the scores in {row.name}.run are -rank; fuse it by ranks'
    elif facts:  # a run of its own, which others may evaluate too
      note = ties(groups, ranking)
  else:
    facts = {'title': 'BM25 (test documents)'}
    note = (
      'the test documents have no first-stage rank, so BM25 ranks the documents of each query, '
      'computed here over all test documents'
    )
    ranking = bm25(groups)
  notes = [note] if note else []
  if lost := every - sum(map(len, ranking.values())):
    said = part_of(lost, every, 'document', 'documents', 'is', 'are')
    notes.append(f'{said} not found by it and {"ranks" if lost == 1 else "rank"} last')
  return ranking, facts | ({'note': '; '.join(notes)} if notes else {})


def given_scores(groups: Sequence[Group]) -> tuple[metrics.Run, str]:
  """(the first stage's scores, what is wrong with them), in the order of its ranks.

  They are -rank if something is wrong, or if no score is known, which is not wrong.
  """
  found = {g.query_id: sorted((d for d in g.docs if d.rank), key=rank_of) for g in groups}
  docs = [doc for of_query in found.values() for doc in of_query]
  unknown, wrong = sum(math.isnan(doc.score) for doc in docs), ''
  pairs = [pair for of_query in found.values() for pair in itertools.pairwise(of_query)]
  if 0 < unknown < len(docs):
    verb = 'has' if unknown == 1 else 'have'
    wrong = f'{unknown:,} of {amount(len(docs), "document")} that it found {verb} no score'
  elif not unknown and any(a.rank == b.rank or a.score < b.score for a, b in pairs):
    wrong = 'its scores do not have the order of its ranks'
  if unknown or wrong:
    return {q: {d.doc_id: -float(d.rank) for d in of_query} for q, of_query in found.items()}, wrong
  return {query: apart(of_query) for query, of_query in found.items()}, ''


def ties(groups: Sequence[Group], ranking: metrics.Run) -> str:
  """Says in how many queries equal scores have another order than in trec_eval; '' in none.

  Args:
    ranking: that of `given_scores`.
  """
  other = 0
  for group in groups:
    scores = {doc.doc_id: doc.score for doc in group.docs if doc.rank}
    if not any(map(math.isnan, scores.values())):
      other += metrics.ranked(scores) != metrics.ranked(ranking[group.query_id])
  if not other:
    return ''
  said = part_of(other, len(groups), 'query', 'queries', 'has', 'have')
  return (
    f'{said} equal scores, which keep the order of the first stage; trec_eval and disranker '
    'compare order them by document id, so its own run may give other numbers'
  )


def rank_of(doc: Document) -> int:
  return doc.rank


def apart(docs: Sequence[Document]) -> dict[str, float]:
  """{doc_id: score} of documents whose scores do not increase; equal ones decrease by a STEP."""
  found, last = {}, math.inf
  for doc in docs:
    below = last - max(abs(last) * STEP, SMALLEST)
    last = min(doc.score, below) if found else doc.score
    found[doc.doc_id] = last
  return found


def bm25(groups: Sequence[Group]) -> metrics.Run:
  """BM25 within each query's documents; statistics of words are of all groups' documents.

  A document that shares no word with the query is not found.
  """
  documents = {d.doc_id: d for g in groups for d in g.docs}
  index = first_stages.BM25(documents.values())
  places = {doc_id: i for i, doc_id in enumerate(documents)}
  found = index.each((g.query for g in groups), len(documents))
  ranking = {}
  for group, scored in zip(groups, found, strict=True):
    scores = dict(scored)
    of_group = {d.doc_id: scores.get(places[d.doc_id]) for d in group.docs}
    ranking[group.query_id] = {d: score for d, score in of_group.items() if score is not None}
  return ranking


def fused(run: Run, row: Row, groups) -> Ranking:
  """The best student fused with the first stage."""
  from disranker_jax.stages import fused_rows  # which imports this module

  return fused_rows.rank(run, row, groups)


def previous(run: Run, row: Row, groups) -> Ranking:
  """The student that this run's starts from; a note says if the earlier run exported another."""
  ranking, found = model_scores(run, row, groups)
  note = other_export(run.config)
  return ranking, found | ({'note': note} if note else {})


def other_export(config: ConfigDict) -> str:
  """Which students the earlier run exported, if it did not export the one that it hands on.

  '' also if it exported none, or does not exist any more.
  """
  folder = config.student.init_from
  if not folder or not earlier.exists(folder):
    return ''
  before = earlier.opened(PREVIOUS_KEY, folder)
  done = (manifest.read(before.folder('export')) or {}).get('results', {})
  best = done.get('best', {}).get('row', STUDENT)
  # The folder of the best student has the same name whichever it is.
  exported = {best if name == STUDENT else name: of for name, of in done.get('folders', {}).items()}
  students = [name for name in exported if name in ROWS and ROWS[name].role == 'student']
  last = systems.trained_stages(before.config, 'student')[-1:]
  if not students or any(ROWS[name].trained_by in last for name in students):
    return ''
  said = tables.joined([f'{ROWS[name].title!r} ({folder}/{exported[name]})' for name in students])
  own = f'its {ROWS[STUDENT].title}' if last else 'the student that it started from'
  return (
    f"{folder} exported {said}, but this row, from which this run's student starts, is {own}; "
    'docs/retrain.md says how to compare with what was exported'
  )


def listed_students(config: ConfigDict) -> tuple[str, ...]:
  """The listed stages that train a student of the run."""
  return tuple(stage for stage in ('student_sft', 'distill') if stage in config.stages)


def without_student(config: ConfigDict) -> str:
  """Why there is no student of the run to fuse, as Row.absent."""
  if listed_students(config):
    return ''
  return 'needs the stage student_sft or distill, which config.stages lacks; add one'


ROWS = {
  row.name: row
  for row in (
    Row('random', 'random order', random_order, is_floor=True),
    Row('bm25', 'BM25', first_stage, is_baseline=True),  # the first stage, whatever it is
    Row('zero_shot', 'zero-shot LLM', model_scores, 'teacher', roles.open_zero_shot),
    Row(
      'student_sft', 'student, labels only', model_scores, 'student',
      open=functools.partial(roles.open_pretrained, role='student'),
      stages=lambda config: ('student_sft',), trained_by='student_sft', is_baseline=True,
      improves_on=('bm25',),
    ),
    Row(
      'teacher', 'teacher', model_scores, 'teacher', stages=roles.teacher_stages,
      trained_by='sft', improves_on=('bm25', 'zero_shot', 'student_sft'),
      needs_training=lambda config: not (
        config.teacher.ready
        or config.teacher.init_from
        or 'query_likelihood' in config.teacher.scorer
      ),
    ),
    Row(
      'previous', "the earlier run's student", previous, 'student', is_baseline=True,
      key=PREVIOUS_KEY,
    ),
    Row(
      'student', 'distilled student', model_scores, 'student', stages=roles.student_stages,
      trained_by='distill', improves_on=('bm25', 'student_sft', 'previous'),
    ),
    Row(
      'fused', 'student + first stage', fused, stages=listed_students,
      absent=without_student, fuses=('student_sft', 'student'),
    ),
    Row(
      'fused_ranks', 'student + first stage, by ranks', fused, stages=listed_students,
      absent=without_student, fuses=('student_sft', 'student'),
    ),
  )
}  # fmt: skip
# The fusions of the best student with the first stage.
FIRST_STAGE, STUDENT, FUSED, FUSED_RANKS = 'bm25', 'student', 'fused', 'fused_ranks'


def check(config: ConfigDict) -> None:
  """Raises: UserError for rows whose settings do not fit together."""
  prompting.check_rows(config)
  if 'zero_shot' in config.evaluate.models:
    why = 'the zero_shot row of config.evaluate.models scores the query after the document'
    template = config.teacher.zero_shot_template
    teacher.check_template('teacher.zero_shot_template', template, why)


def check_records(run: Run) -> None:
  """Prints lines about rows that are not what their titles may suggest.

  The first stage is BM25, computed here, if the test has no first-stage ranks. The earlier run may
  have exported another student than that of its row.
  """
  rows = TABLE.rows_of(run.config)
  if 'previous' in rows and (note := other_export(run.config)):
    say(f'evaluate previous: {note}')
  if FIRST_STAGE not in rows:
    return
  if not any(doc.rank for group in prepare.records(run, 'test') for doc in group.docs):
    say('evaluate: the test has no first-stage ranks, so its first row will be BM25, computed here')


TABLE = Table(
  'evaluate', 'every model ranks the held-out queries', ROWS, first_stage=FIRST_STAGE,
  subject=STUDENT, teacher='teacher', models=('student', 'student_sft', 'teacher', 'zero_shot'),
  more_rows=prompting.rows, check=check, check_records=check_records,
  settings={
    'rankers': Key(
      (), list_of(one_of(*METHODS), distinct=True),
      "More rows: the pretrained teacher ranks by prompts, such as ('yes_no', 'prp_allpair', "
      "'listwise'); docs/llm_rankers.md has the methods.", affects_results=False,
    ),
    'prompts': prompting.PROMPTS,
  },
)  # fmt: skip
