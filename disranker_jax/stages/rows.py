"""The rows of the result table: what each is called, how its ranking is made, what it needs.

A new row is one function and one entry of `ROWS`. Evaluation, reports, tables and ablations read
everything that they know about a row from here.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from disranker_jax.data.records import Group
from disranker_jax.devices import processes
from disranker_jax.evaluation import metrics
from disranker_jax.pipeline.stage import Run
from disranker_jax.progress import Progress
from disranker_jax.stages import roles

Ranking = tuple[metrics.Run, dict]  # the run, and facts such as parameters and ms_per_pair


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the result table.

  rank         (run, row, groups) -> (ranking, facts)
  role         whose model ranks: 'teacher', 'student', or '' for no model
  trained_by   the stage without which there is no such model
  needs_training  whether the row needs that stage; else it ranks with or without it
  is_baseline  whether the other rows are tested against it
  is_floor     whether it is no contender, so that no test says whether a model is better
  """

  name: str
  title: str
  rank: Callable[[Run, 'Row', Sequence[Group]], Ranking]
  role: str = ''
  trained_by: str = ''
  needs_training: Callable[[ConfigDict], bool] = lambda config: True
  is_baseline: bool = False
  is_floor: bool = False

  def is_available(self, config: ConfigDict) -> bool:
    """Whether the config's stages can fill the row."""
    if not self.trained_by or not self.needs_training(config):
      return True
    return self.trained_by in config.stages

  @property
  def needs(self) -> tuple[str, ...]:
    """The stages that it needs beside data and evaluation, in order."""
    from disranker_jax.pipeline import systems  # which imports the stages

    before = systems.preceding(systems.SYSTEMS['disranker'], [self.trained_by])
    return tuple(stage.name for stage in before if stage.name != 'prepare')


def random_order(run: Run, row: Row, groups) -> Ranking:
  """Scores drawn from the config's seed."""
  rng = np.random.default_rng(run.config.seed)
  return {g.query_id: {d.doc_id: rng.random() for d in g.docs} for g in groups}, {}


def first_stage(run: Run, row: Row, groups) -> Ranking:
  """The order in which the documents came; those that it does not have go last."""
  return {
    g.query_id: {d.doc_id: -float(d.rank or len(g.docs) + 1) for d in g.docs} for g in groups
  }, {}


def model_scores(run: Run, row: Row, groups) -> Ranking:
  """A model of the run: the pretrained teacher, or a trained teacher or student."""
  ranker = roles.scorer(run, *roles.load(run, row.name), rows=run.config.evaluate.batch_rows)
  return score_all(row.name, ranker, groups), facts(ranker)


def score_all(name: str, scorer, groups) -> metrics.Run:
  """Every group's scores, in every process; each scores its share of the groups."""
  scores_by_group = [np.zeros(len(g.docs), np.float32) for g in groups]
  own = range(jax.process_index(), len(groups), jax.process_count())
  with Progress(f'evaluate {name}', len(own), 'pairs') as progress:
    scored = scorer(groups[i] for i in own)
    for done, (i, (_, scores)) in enumerate(zip(own, scored, strict=True), 1):
      scores_by_group[i] = scores
      progress.update(done, len(scores))
  every = processes.add_up(np.concatenate([np.zeros(0, np.float32), *scores_by_group])).tolist()
  values = iter(every)
  return {g.query_id: {d.doc_id: next(values) for d in g.docs} for g in groups}


def facts(scorer) -> dict:
  return {'parameters': scorer.network.count_params(), 'ms_per_pair': scorer.ms_per_pair}


ROWS = {
  row.name: row
  for row in (
    Row('random', 'random order', random_order, is_floor=True),
    Row('bm25', 'BM25', first_stage, is_baseline=True),
    Row('zero_shot', 'zero-shot LLM', model_scores, 'teacher'),
    Row(
      'student_sft', 'student, labels only', model_scores, 'student', 'student_sft',
      is_baseline=True,
    ),
    Row(
      'teacher', 'teacher', model_scores, 'teacher', 'sft',
      needs_training=lambda config: 'query_likelihood' not in config.teacher.scorer,
    ),
    Row('student', 'distilled student', model_scores, 'student', 'distill'),
  )
}  # fmt: skip


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
TRAINED = tuple(sorted((r.name for r in ROWS.values() if r.trained_by), key=lambda n: ROWS[n].role))


def title(name: str) -> str:
  """A row's title; a row that is not listed has its name."""
  return ROWS[name].title if name in ROWS else name


def is_floor(name: str) -> bool:
  return name in ROWS and ROWS[name].is_floor
