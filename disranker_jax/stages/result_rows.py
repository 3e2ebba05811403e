"""The rows of the result table: the name of each, its ranking, and the stages that it needs.

A new row is one entry of `ROWS`, with a function if it ranks in a new way. Evaluation, export,
reports and ablations read everything that they know about a row from here.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from disranker_jax.data.records import Group
from disranker_jax.devices import processes
from disranker_jax.evaluation import metrics
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline.stage import Run, Use
from disranker_jax.progress import Progress
from disranker_jax.stages import roles

Ranking = tuple[metrics.Run, dict]  # the run, and facts such as parameters and ms_per_pair


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the result table.

  rank         (run, row, groups) -> (ranking, facts)
  role         whose model ranks: 'teacher', 'student', or '' for no model
  open         opens that model, if it is not just the role's
  stages       the stages whose parameters overlay the pretrained ones, in order
  trained_by   the stage that trains the row's model; '' if it is not trained
  needs_training  False where the row ranks even if `trained_by` does not run
  is_baseline  the other rows are tested against it
  is_floor     a sanity row (random order): left out of significance tests and charts
  """

  name: str
  title: str
  rank: Callable[[Run, 'Row', Sequence[Group]], Ranking]
  role: str = ''
  open: Callable[[ConfigDict], TextModel] | None = None
  stages: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
  trained_by: str = ''
  needs_training: Callable[[ConfigDict], bool] = lambda config: True
  is_baseline: bool = False
  is_floor: bool = False

  def is_available(self, config: ConfigDict) -> bool:
    """Whether the config's stages can fill the row."""
    if not self.trained_by or not self.needs_training(config):
      return True
    return self.trained_by in config.stages

  def open_model(self, config: ConfigDict) -> TextModel:
    """The row's model, without parameters."""
    return self.open(config) if self.open else roles.open_role(config, self.role)

  def use(self, config: ConfigDict) -> Use:
    """What a stage that scores with the row's model declares; see Stage.uses."""
    rows = config.evaluate.batch_rows
    return Use(self.name, self.role, lambda: self.open_model(config), rows)

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


def load(run: Run, name: str) -> tuple[TextModel, dict, str]:
  """(model, trained variables, way of scoring) of a row that has a model."""
  row = ROWS[name]
  model = row.open_model(run.config)
  return model, roles.trained(run, model, row.stages(run.config)), model.scorer


def model_scores(run: Run, row: Row, groups) -> Ranking:
  """A model of the run: the pretrained teacher, or a trained teacher or student."""
  ranker = roles.scorer(run, *load(run, row.name), rows=run.config.evaluate.batch_rows)
  return score_all(row.name, ranker, groups), facts(ranker)


def score_all(name: str, scorer, groups) -> metrics.Run:
  """Every group's scores, in every process; each scores its share of the groups."""
  scores_by_group = [np.zeros(len(g.docs), np.float32) for g in groups]
  own = range(jax.process_index(), len(groups), jax.process_count())
  pairs = sum(len(groups[i].docs) for i in own)
  with Progress(f'evaluate {name}', len(own), 'pairs', 0, pairs, scorer.work) as progress:
    scored = scorer(groups[i] for i in own)
    for done, (i, (_, scores)) in enumerate(zip(own, scored, strict=True), 1):
      scores_by_group[i] = scores
      progress.update(done, len(scores))
  every = processes.add_up(np.concatenate([np.zeros(0, np.float32), *scores_by_group])).tolist()
  values = iter(every)
  return {g.query_id: {d.doc_id: next(values) for d in g.docs} for g in groups}


def facts(scorer) -> dict:
  return {'parameters': scorer.network.count_params(), 'ms_per_pair': scorer.ms_per_pair}


def student_stages(config: ConfigDict) -> tuple[str, ...]:
  start = config.distill.init_from
  return (start, 'distill') if start else ('distill',)


ROWS = {
  row.name: row
  for row in (
    Row('random', 'random order', random_order, is_floor=True),
    Row('bm25', 'BM25', first_stage, is_baseline=True),
    Row('zero_shot', 'zero-shot LLM', model_scores, 'teacher', roles.open_zero_shot),
    Row(
      'student_sft', 'student, labels only', model_scores, 'student',
      stages=lambda config: ('student_sft',), trained_by='student_sft', is_baseline=True,
    ),
    Row(
      'teacher', 'teacher', model_scores, 'teacher', stages=lambda config: ('cpt', 'sft'),
      trained_by='sft',
      needs_training=lambda config: 'query_likelihood' not in config.teacher.scorer,
    ),
    Row(
      'student', 'distilled student', model_scores, 'student', stages=student_stages,
      trained_by='distill',
    ),
  )
}  # fmt: skip
BASELINES = tuple(row.name for row in ROWS.values() if row.is_baseline)
# The rows that the report's tiles and sentences compare, and the order of models in its charts.
FIRST_STAGE, STUDENT, TEACHER = 'bm25', 'student', 'teacher'
MODELS = ('student', 'student_sft', 'teacher', 'zero_shot')
TRAINED = tuple(name for name in MODELS if ROWS[name].trained_by)


def title(name: str) -> str:
  """A row's title; a row that is not listed has its name."""
  return ROWS[name].title if name in ROWS else name


def is_floor(name: str) -> bool:
  return name in ROWS and ROWS[name].is_floor
