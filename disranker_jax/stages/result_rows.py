"""The rows of the result table: the name of each, its ranking, and the stages that it needs.

A new row is one entry of `ROWS`, with a function if it ranks in a new way. Evaluation, export,
reports and ablations read everything that they know about a row from here.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from disranker_jax.data import first_stage as first_stages
from disranker_jax.data import sources
from disranker_jax.data.records import Group
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.evaluation import documents, metrics
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline.stage import Run, Use
from disranker_jax.progress import Progress
from disranker_jax.stages import roles

Ranking = tuple[metrics.Run, dict]  # the run, and facts such as parameters and ms_per_pair


class Lacking(Exception):
  """What the records lack for a row, which is then left out of the table."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the result table.

  title        in tables; the fact 'title' of `rank` overrides it
  rank         (run, row, groups) -> (ranking, facts); the fact 'note' is shown under the table, and
               'against' are the rows that it is tested against instead of all baselines; raises
               Lacking
  role         whose model ranks: 'teacher', 'student', or '' for no model
  open         opens that model, if it is not just the role's
  stages       the stages whose parameters overlay the pretrained ones, in order
  trained_by   the stage that trains the row's model; '' if it is not trained
  needs_training  False where the row ranks even if `trained_by` does not run
  fuses        the rows whose rankings it may fuse
  used         replaces what `use` returns
  reads        config -> the fingerprint of what it reads itself, beside records and parameters
  improves_on  the rows that it should rank better than; the report warns where it does not
  exists       False where a config has no such row
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
  fuses: tuple[str, ...] = ()
  used: Callable[[ConfigDict], Use] | None = None
  reads: Callable[[ConfigDict], object] = lambda config: None
  improves_on: tuple[str, ...] = ()
  exists: Callable[[ConfigDict], bool] = lambda config: True
  is_baseline: bool = False
  is_floor: bool = False

  def is_available(self, config: ConfigDict) -> bool:
    """Whether the config can fill the row."""
    if not self.exists(config):
      return False
    if not self.trained_by or not self.needs_training(config):
      return True
    return self.trained_by in config.stages

  def open_model(self, config: ConfigDict) -> TextModel:
    """The row's model, without parameters."""
    return self.open(config) if self.open else roles.open_role(config, self.role)

  def use(self, config: ConfigDict) -> Use:
    """What a stage that scores with the row's model declares; see Stage.uses."""
    if self.used:
      return self.used(config)
    rows = config.evaluate.batch_rows
    return Use(self.name, self.role, lambda: self.open_model(config), rows)

  @property
  def needs(self) -> tuple[str, ...]:
    """The stages that it needs beside data and evaluation, in order."""
    from disranker_jax.pipeline import systems  # which imports the stages

    trained_by = [self.trained_by, *(ROWS[name].trained_by for name in self.fuses)]
    before = systems.preceding(systems.SYSTEMS['disranker'], trained_by)
    return tuple(stage.name for stage in before if stage.name != 'prepare')


def random_order(run: Run, row: Row, groups) -> Ranking:
  """Scores drawn from the config's seed."""
  rng = np.random.default_rng(run.config.seed)
  return {g.query_id: {d.doc_id: rng.random() for d in g.docs} for g in groups}, {}


def first_stage(run: Run, row: Row, groups) -> Ranking:
  """The order of the first stage; where the test has no ranks at all, BM25's, computed here.

  Documents that the first stage did not find are not in it. The title says whose order it is.
  """
  every = sum(len(g.docs) for g in groups)
  if any(d.rank for g in groups for d in g.docs):
    facts = {} if is_bm25(run.config.data.test) else {'title': 'first stage'}
    note = ''
    ranking = {g.query_id: {d.doc_id: -float(d.rank) for d in g.docs if d.rank} for g in groups}
  else:
    facts = {'title': 'BM25 (test documents)'}
    note = (
      'the test documents have no first-stage rank, so BM25 ranks the documents of each query, '
      'computed here over all test documents'
    )
    ranking = bm25(groups)
  found = sum(map(len, ranking.values()))
  lost = f'{every - found:,} of {every:,} documents are not found by it and rank last'
  notes = [note] if note else []
  notes += [lost] if found < every else []
  return ranking, facts | ({'note': '; '.join(notes)} if notes else {})


def is_bm25(address: str) -> bool:
  """Whether the ranks of an address's test records are BM25's."""
  scheme, _, rest = address.partition(':')
  options = rest.partition('?')[2].split('&')
  return scheme == 'python_docs' or 'run=bm25' in options


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


def given_rows(config: ConfigDict) -> list[Row]:
  """The rows of config.evaluate.runs."""
  runs = config.evaluate.runs.to_dict()
  return [
    Row(name, name, given_run, reads=lambda config, a=address: sources.fingerprint(a))
    for name, address in runs.items()
  ]


def given_run(run: Run, row: Row, groups) -> Ranking:
  """A ranking from elsewhere, of the documents that all rows rank.

  A query that it lacks counts as 0.
  """
  address = run.config.evaluate.runs[row.name]
  pool = {g.query_id: {d.doc_id for d in g.docs} for g in groups}
  given = read_given(row.name, address, pool)
  ranking = documents.only(given, pool)
  of_queries = sum(len(pool[query_id]) for query_id in ranking)
  found, every = (sum(map(len, each.values())) for each in (ranking, given))
  counts = (
    (of_queries - found, f'of {of_queries:,} documents are not in it and rank last'),
    (every - found, 'of its documents are not among those that all rows rank and are left out'),
    (len(groups) - len(ranking), f'of {len(groups):,} queries are not in it and count as 0'),
  )
  note = '; '.join(f'{count:,} {what}' for count, what in counts if count)
  if not note:
    return ranking, {}
  only = 'disranker compare --documents common compares only what all runs have'
  return ranking, {'note': f'{address}: {note}; {only}'}


def read_given(name: str, address: str, queries: Collection[str]) -> metrics.Run:
  """The scores of a run from elsewhere for the test queries. Raises: UserError if it has none."""
  given: dict[str, dict[str, float]] = {}
  for query_id, doc_id, score in sources.read(address, sources.SCORES):
    if query_id in queries:
      given.setdefault(query_id, {})[doc_id] = score
  if not given:
    raise UserError(
      f'config.evaluate.runs.{name}: {address} has none of the test queries; name a run of them, '
      f'whose query ids are such as {next(iter(queries))!r}'
    )
  return given


def load(run: Run, name: str) -> tuple[TextModel, dict, str]:
  """(model, trained variables, way of scoring) of a row that has a model."""
  row = ROWS[name]
  model = row.open_model(run.config)
  return model, roles.trained(run, row.role, model, row.stages(run.config)), model.scorer


def model_scores(run: Run, row: Row, groups) -> Ranking:
  """A model of the run: the pretrained teacher, or a trained teacher or student."""
  ranker = roles.scorer(run, *load(run, row.name), rows=run.config.evaluate.batch_rows)
  return score_all(f'evaluate {row.name}', ranker, groups), facts(ranker)


def score_all(label: str, scorer, groups) -> metrics.Run:
  """Every group's scores, in every process; each scores its share of the groups."""
  scores_by_group = [np.zeros(len(g.docs), np.float32) for g in groups]
  own = range(jax.process_index(), len(groups), jax.process_count())
  pairs = sum(len(groups[i].docs) for i in own)
  with Progress(label, len(own), 'pairs', 0, pairs, scorer.work) as progress:
    scored = scorer(groups[i] for i in own)
    for done, (i, (_, scores)) in enumerate(zip(own, scored, strict=True), 1):
      scores_by_group[i] = scores
      progress.update(done, len(scores))
  every = processes.add_up(np.concatenate([np.zeros(0, np.float32), *scores_by_group])).tolist()
  values = iter(every)
  return {g.query_id: {d.doc_id: next(values) for d in g.docs} for g in groups}


def facts(scorer) -> dict:
  return {'parameters': scorer.network.count_params(), 'ms_per_pair': scorer.ms_per_pair}


def fused(run: Run, row: Row, groups) -> Ranking:
  """The best student fused with the first stage."""
  from disranker_jax.stages import fused_rows  # which imports this module

  return fused_rows.rank(run, row, groups)


def listed_students(config: ConfigDict) -> tuple[str, ...]:
  """The listed stages that train a student of the run."""
  return tuple(stage for stage in ('student_sft', 'distill') if stage in config.stages)


def student_stages(config: ConfigDict) -> tuple[str, ...]:
  start = config.distill.init_from
  return (start, 'distill') if start else ('distill',)


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
      'teacher', 'teacher', model_scores, 'teacher', stages=lambda config: ('cpt', 'sft'),
      trained_by='sft', improves_on=('bm25', 'zero_shot', 'student_sft'),
      needs_training=lambda config: not (
        config.teacher.ready
        or config.teacher.init_from
        or 'query_likelihood' in config.teacher.scorer
      ),
    ),
    Row(
      'previous', "the earlier run's student", model_scores, 'student', is_baseline=True,
      exists=lambda config: bool(config.student.init_from),
    ),
    Row(
      'student', 'distilled student', model_scores, 'student', stages=student_stages,
      trained_by='distill', improves_on=('bm25', 'student_sft', 'previous'),
    ),
    Row(
      'fused', 'student + first stage', fused, stages=listed_students,
      exists=lambda config: bool(listed_students(config)), fuses=('student_sft', 'student'),
    ),
    Row(
      'fused_ranks', 'student + first stage, by ranks', fused, stages=listed_students,
      exists=lambda config: bool(listed_students(config)), fuses=('student_sft', 'student'),
    ),
  )
}  # fmt: skip
BASELINES = tuple(row.name for row in ROWS.values() if row.is_baseline)
# The rows that the report's tiles and sentences compare, and the order of models in its charts.
FIRST_STAGE, STUDENT, TEACHER = 'bm25', 'student', 'teacher'
FUSED, FUSED_RANKS = 'fused', 'fused_ranks'
MODELS = ('student', 'student_sft', 'teacher', 'zero_shot')
TRAINED = tuple(name for name in MODELS if ROWS[name].trained_by)


def title(name: str, results: Mapping[str, Mapping] | None = None) -> str:
  """A row's title: the one in its results, else that of its kind, else its name."""
  found = (results or {}).get(name, {}).get('title')
  return found or (ROWS[name].title if name in ROWS else name)


def is_floor(name: str) -> bool:
  return name in ROWS and ROWS[name].is_floor
