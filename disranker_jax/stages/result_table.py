"""The result table of a system: its rows, the stage that fills them, and what reports show.

Evaluation, export, reports, seeds and ablations read everything that they know about rows here.
`result_rows.py` has the rows of DisRanker.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from disranker_jax.config.settings import Section
from disranker_jax.data import sources
from disranker_jax.data.records import REPEATED, BadRows, Document, Group, listed
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.evaluation import documents, metrics
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline import systems
from disranker_jax.pipeline.stage import Run, Use
from disranker_jax.progress import Progress, part_of
from disranker_jax.rankers import Ranker
from disranker_jax.stages import roles

Ranking = tuple[metrics.Run, dict]  # the run, and facts such as parameters and ms_per_pair


class Lacking(Exception):
  """What the records lack for a row, which is then left out of the table."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the result table.

  title        in tables; the fact 'title' of `rank` overrides it
  rank         (run, row, groups) -> (ranking, facts); raises Lacking. The fact 'remark' is shown
               among the findings, 'note' among the warnings, and 'against' are the rows that it is
               tested against instead of all baselines
  role         whose model ranks: a role of the system, or '' for no model
  open         opens that model, if it is not just the role's
  stages       the stages whose parameters overlay the pretrained ones, in order
  reads_stages  earlier stages whose other output it reads
  reads_records  the kinds of prepared records that it reads beside the test's
  trained_by   the stage that trains the row's model; '' if it is not trained
  needs_training  False where the row ranks even if `trained_by` does not run
  instead      the key that can take the place of `trained_by`: it names an earlier run; '': none
  fuses        the rows whose rankings it may fuse
  used         replaces what `use` returns
  reads        config -> the fingerprint of what it reads itself, beside records and parameters
  improves_on  the rows that it should rank better than; the report warns where it does not
  absent       config -> why there is no such row, and what to do; '': there is one
  same_as      config -> the row that this one would repeat, so that there is none; '': no row
  key          of the config, without which there is no such row; '': none
  ignores      settings of its roles, as 'ROLE.KEY', that decide nothing for it
  is_baseline  the other rows are tested against it
  is_floor     a sanity row (random order): left out of significance tests and charts
  """

  name: str
  title: str
  rank: Callable[[Run, 'Row', Sequence[Group]], Ranking]
  role: str = ''
  open: Callable[[ConfigDict], TextModel] | None = None
  stages: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
  reads_stages: tuple[str, ...] = ()
  reads_records: tuple[str, ...] = ()
  trained_by: str = ''
  needs_training: Callable[[ConfigDict], bool] = lambda config: True
  instead: str = ''
  fuses: tuple[str, ...] = ()
  used: Callable[[ConfigDict], Use] | None = None
  reads: Callable[[ConfigDict], object] = lambda config: None
  improves_on: tuple[str, ...] = ()
  absent: Callable[[ConfigDict], str] = lambda config: ''
  same_as: Callable[[ConfigDict], str] = lambda config: ''
  key: str = ''
  ignores: tuple[str, ...] = ()
  is_baseline: bool = False
  is_floor: bool = False

  def is_available(self, config: ConfigDict) -> bool:
    """Whether the config can fill the row."""
    return not self.lacks(config)

  def lacks(self, config: ConfigDict) -> str:
    """Why the config cannot fill the row, and what to do; '' if it can. The row is the subject."""
    section, _, name = self.key.partition('.')
    if self.key and not config[section][name]:
      return f'needs config.{self.key}; add --config.{self.key}=VALUE'
    if why := self.absent(config):
      return why
    if other := self.same_as(config):
      return f'is the same as the row {other!r} here; name that one'
    trained = self.trained_by in ('', *config.stages)
    if trained or not self.needs_training(config):
      return ''
    instead = f' or set config.{self.instead}' if self.instead else ''
    return f'needs the stage {self.trained_by}, which config.stages lacks; add it{instead}'

  def open_model(self, config: ConfigDict) -> TextModel:
    """The row's model, without parameters."""
    return self.open(config) if self.open else roles.open_role(config, self.role)

  def load(self, run: Run) -> tuple[TextModel, dict, str]:
    """(model, trained variables, way of scoring) of a row that has a model."""
    model, stages = self.open_model(run.config), self.stages(run.config)
    return model, roles.trained(run, self.role, model, stages, trains=''), model.scorer

  def use(self, config: ConfigDict) -> Use:
    """What a stage that scores with the row's model declares; see Stage.uses."""
    if self.used:
      return self.used(config)
    rows = settings_of(config).batch_rows
    return Use(self.name, self.role, lambda: self.open_model(config), rows)

  def needs(self, system: str) -> tuple[str, ...]:
    """The stages of the system that it needs beside data and evaluation, in order."""
    whole = systems.get(system)
    trained_by = [self.trained_by, *(whole.table.rows[name].trained_by for name in self.fuses)]
    before = systems.preceding(whole.stages, [*trained_by, *self.reads_stages])
    return tuple(stage.name for stage in before if stage.name != 'prepare')


@dataclasses.dataclass(frozen=True)
class Table:
  """The result table of a system.

  stage        the stage that fills it: the name of its folder and of its section of the config
  title        of that stage
  rows         all rows by name, in order
  first_stage  the row of the first stage
  subject      the row that the report is about; its role is the one whose seed `--seeds` varies
  teacher      the row from which the subject learns; '': none
  models       the models in the order of the charts; of those that a run has, the first is shown
               query by query
  reranks      True: every row ranks the documents that the test has. False: every row ranks the
               whole collection, and only the judgements are the same
  columns      the metrics that are shown; names of evaluation.metrics
  kept         the metrics that are kept for every query, with all columns
  main         the column of charts, tiles and sentences
  tested       the columns whose differences are tested
  costs        the facts of rows that are columns too, see report.results
  documents    run -> {doc_id: document} of the collection, for examples in the report; by default
               those of the test alone
  addresses    config -> those of the collection, as Stage.addresses
  more_rows    config -> rows that are no fixed part of the table
  settings     more keys of the stage's section
  check        config -> tests what rows need; raises UserError
  shares       config -> whether the rows read one collection in turn, which then stays in memory
               until the stage has filled the table, see once.shared
  check_records  run -> tests the prepared records, as Stage.check_records does
  command      the subcommand that tries what a run has trained, with --run and --query; '': none
  command_needs  the stages of which one has to be done for it
  """

  stage: str
  title: str
  rows: Mapping[str, Row]
  first_stage: str
  subject: str
  teacher: str = ''
  models: tuple[str, ...] = ()
  reranks: bool = True
  columns: tuple[str, ...] = metrics.COLUMNS
  kept: tuple[str, ...] = metrics.STANDARD
  main: str = 'ndcg@5'
  tested: tuple[str, ...] = ('ndcg@5', 'pnr')
  costs: tuple[str, ...] = ('parameters', 'ms_per_pair')
  documents: Callable[[Run], Mapping[str, Document]] = lambda run: {}
  addresses: Callable[[ConfigDict], Sequence[tuple[str, str, str]]] = lambda config: ()
  more_rows: Callable[[ConfigDict], Sequence[Row]] = lambda config: ()
  settings: Section = dataclasses.field(default_factory=dict)
  check: Callable[[ConfigDict], None] = lambda config: None
  check_records: Callable[[Run], None] = lambda run: None
  shares: Callable[[ConfigDict], bool] = lambda config: False
  command: str = ''
  command_needs: tuple[str, ...] = ()

  @property
  def role(self) -> str:
    """The role of the subject."""
    return self.rows[self.subject].role

  @property
  def baselines(self) -> tuple[str, ...]:
    return tuple(row.name for row in self.rows.values() if row.is_baseline)

  @property
  def trained(self) -> tuple[str, ...]:
    """The models that a stage trains, in the order of the charts."""
    return tuple(name for name in self.models if self.rows[name].trained_by)

  def rows_of(self, config: ConfigDict) -> dict[str, Row]:
    """The rows that a config can fill, by name: those whose stage it lists, and all others."""
    rows = [*(self.rows[name] for name in config[self.stage].models), *self.more_rows(config)]
    rows += given_rows(config)
    return {row.name: row for row in rows if row.is_available(config)}

  def left_out(self, config: ConfigDict) -> dict[str, str]:
    """{row: why, see Row.lacks} of the rows that the config names and cannot fill.

    Empty if it names all rows, which is the default.
    """
    named = config[self.stage].models
    if set(named) == set(self.rows):
      return {}
    return {name: why for name in named if (why := self.rows[name].lacks(config))}

  def roles_of(self, row: Row) -> frozenset[str]:
    """The roles whose models a row ranks with: its own, and those of the rows that it fuses."""
    fused = (self.roles_of(self.rows[name]) for name in row.fuses)
    return frozenset({row.role} - {''}).union(*fused)

  def depends_on_seed(self, row: Row) -> bool:
    """Whether a training with the seed of the subject's role decides the row, itself or fused."""
    if row.trained_by and row.role == self.role:
      return True
    return any(self.depends_on_seed(self.rows[name]) for name in row.fuses)

  def row_title(self, name: str, results: Mapping[str, Mapping] | None = None) -> str:
    """A row's title: the one in its results, else that of its kind, else its name."""
    found = (results or {}).get(name, {}).get('title')
    return found or (self.rows[name].title if name in self.rows else name)

  def is_floor(self, name: str) -> bool:
    return name in self.rows and self.rows[name].is_floor


def of(config: ConfigDict) -> Table:
  """The table of the config's system."""
  return systems.of(config).table


def settings_of(config: ConfigDict) -> ConfigDict:
  """The section of the stage that fills the table."""
  return config[of(config).stage]


# Ways to rank


def model_scores(run: Run, row: Row, groups) -> Ranking:
  """A model of the run scores the documents: the pretrained one, or a trained one."""
  ranker = roles.scorer(run, *row.load(run), rows=settings_of(run.config).batch_rows)
  return score_all(f'{of(run.config).stage} {row.name}', ranker, groups), facts(ranker)


def score_all(label: str, scorer: Ranker, groups) -> metrics.Run:
  """Every group's scores, in every process; each scores its share of the groups."""
  scores_by_group = [np.zeros(len(g.docs), np.float32) for g in groups]
  own = range(jax.process_index(), len(groups), jax.process_count())
  pairs, so_far = sum(len(g.docs) for g in groups), scorer.work.so_far
  with Progress(label, len(groups), 'pairs', 0, pairs, so_far, own=len(own)) as progress:
    scored = scorer(groups[i] for i in own)
    for done, (i, (_, scores)) in enumerate(zip(own, scored, strict=True), 1):
      scores_by_group[i] = scores
      progress.update(done, len(scores))
  every = processes.add_up(np.concatenate([np.zeros(0, np.float32), *scores_by_group])).tolist()
  values = iter(every)
  return {g.query_id: {d.doc_id: next(values) for d in g.docs} for g in groups}


def facts(scorer: Ranker) -> dict:
  """What a row of the table says of the model that ranked; all processes have to ask."""
  work = scorer.work.of_all()
  return {'parameters': scorer.network.count_params(), 'ms_per_pair': work.ms_per_pair}


def given_rows(config: ConfigDict) -> list[Row]:
  """The rows of config.STAGE.runs."""
  return [
    Row(name, name, given_run, reads=lambda config, a=address: sources.fingerprint(a))
    for name, address in settings_of(config).runs.to_dict().items()
  ]


def given_run(run: Run, row: Row, groups) -> Ranking:
  """A ranking from elsewhere; where the rows re-rank, of the documents that all of them rank.

  A query that it lacks counts as 0.
  """
  table, address = of(run.config), settings_of(run.config).runs[row.name]
  pool = {g.query_id: {d.doc_id for d in g.docs} for g in groups}
  bad_rows = BadRows()
  given = read_given(f'{table.stage}.runs.{row.name}', address, pool, bad_rows)
  ranking = documents.only(given, pool) if table.reranks else given
  of_queries = sum(len(pool[query_id]) for query_id in ranking)
  found, every = (sum(map(len, each.values())) for each in (ranking, given))
  lost, others, missing = of_queries - found, every - found, len(groups) - len(ranking)
  said = []
  if table.reranks and lost:
    of_pool = part_of(lost, of_queries, 'document', 'documents', 'is', 'are')
    said.append(f'{of_pool} not in it and {"ranks" if lost == 1 else "rank"} last')
  if table.reranks and others:
    are = 'is' if others == 1 else 'are'
    among = f'{are} not among those that all rows rank and {are} left out'
    said.append(f'{others:,} of its documents {among}')
  if missing:
    of_tests = part_of(missing, len(groups), 'query', 'queries', 'is', 'are')
    said.append(f'{of_tests} not in it and {"counts" if missing == 1 else "count"} as 0')
  if said and table.reranks:
    said.append('disranker compare --documents common compares only what all runs have')
  said = [*listed(bad_rows.notes), *said]
  return ranking, {'note': f'{address}: {"; ".join(said)}'} if said else {}


def read_given(
  key: str, address: str, queries: Collection[str], bad_rows: BadRows | None = None
) -> metrics.Run:
  """The scores of a run from elsewhere for the test queries.

  Rows that repeat an earlier one are noted in `bad_rows`. Raises: UserError if it has none of the
  queries, or two scores of a document, as `evaluation.runs.read_run`.
  """
  given: dict[str, dict[str, float]] = {}
  bad_rows = bad_rows or BadRows()
  for query_id, doc_id, score in sources.read(address, sources.SCORES, bad_rows=bad_rows):
    if query_id not in queries:
      continue
    docs = given.setdefault(query_id, {})
    if doc_id not in docs:
      docs[doc_id] = score
    elif docs[doc_id] == score:
      bad_rows.note(REPEATED)
    else:
      raise UserError(
        f'config.{key}: {address}: {doc_id!r} appears twice for query_id {query_id!r}, with the '
        f'scores {docs[doc_id]:g} and {score:g}; keep one of the rows'
      )
  if not given:
    raise UserError(
      f'config.{key}: {address} has none of the test queries; name a run of them, '
      f'whose query ids are such as {next(iter(queries))!r}'
    )
  return given
