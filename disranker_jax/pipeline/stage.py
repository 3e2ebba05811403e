"""What a stage declares about itself, and what it gets when it runs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from disranker_jax.config.settings import Section
from disranker_jax.models.load import TextModel, open_model
from disranker_jax.models.writing import Texts
from disranker_jax.training.panels import Panel

Writing = Sequence[tuple[Texts, float]]  # batches that are alike, and how many


@dataclasses.dataclass(frozen=True)
class Run:
  """What every stage gets: the config, the workdir and the mesh."""

  config: ConfigDict
  workdir: Path
  mesh: Any  # jax.sharding.Mesh; None where nothing is computed

  def folder(self, stage: str) -> Path:
    """Where a stage writes: WORKDIR/<stage>, or WORKDIR/data for prepare."""
    return self.workdir / ('data' if stage == 'prepare' else stage)


@dataclasses.dataclass(frozen=True)
class Role:
  """A model of a system, which a section of the config describes.

  settings  the keys of that section
  stages    config -> the stages that train it, in order. Those that a run lists overlay the
            pretrained parameters; a later run may start from them (`init_from`)
  same      other dotted keys of the config that decide what the model has learned to read or write:
            a run that it starts from must have the same values
  """

  settings: Section
  stages: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
  same: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Use:
  """A model that a stage trains or runs.

  label  what the stage calls it: its role, or a row of the result table
  role   the section of the config that describes it
  open   opens it, without parameters
  rows   rows of the batches that it computes
  kinds  the kinds of records that it reads; by default those of the stage. Of a model that writes
         from documents, the kinds whose documents these are
  pairs  it scores no more pairs than this; 0: all
  times  how often it reads them
  is_done  whether its part of the stage is done already
  tokens  run -> (tokens that it computes, what it does), if it does not score records
  texts   model -> the largest batch of texts that it writes; by default none, or less than training
  writes  (run, model) -> (what it writes: batches as the data have them, and how many of each to
          come; what it does)
  quantize  the 8-bit format in which it multiplies, '' for none
  made_of  the keys whose product is `rows`; by default batch_rows of the stage, or Stage.rows
  """

  label: str
  role: str
  open: Callable[[], TextModel]
  rows: int
  kinds: tuple[str, ...] = ()
  pairs: int = 0
  times: int = 1
  is_done: Callable[[Run], bool] = lambda run: False
  tokens: Callable[[Run], tuple[float, str]] | None = None
  texts: Callable[[TextModel], Texts] | None = None
  writes: Callable[[Run, TextModel], tuple[Writing, str]] | None = None
  quantize: str = ''
  made_of: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stage:
  """A function of the config and of earlier stages' folders that writes one folder.

  name          of the stage, of its folder and of its section of the config
  title         one line for reports
  execute       does or resumes the work; returns results for the manifest
  settings      the keys of its section of the config
  section       the section's name, if it is not the stage's
  check         tests relations between settings; raises UserError
  role          the model that it trains or runs: a role of the system, or ''
  models        the roles whose models it opens; by default `role`
  keys          config -> the dotted keys that its result depends on beside its own section and, of
                a training stage, `validation`; by default the run's seed and all settings of its
                models. They also tell whether its inputs have a role's `model` and `init_from`
  uses          config -> the models that it opens and what it does with them; by default `role`
  check_models  tests relations between opened models: (config, {label: model}); raises UserError
  check_records  tests the prepared records, as soon as there are any: run; raises UserError
  reads_stages  earlier stages whose output it uses, if they are in config.stages
  requires      config -> {what requires them: stages that must be in config.stages}; by default a
                stage with a model requires prepare
  reads_records config -> the kinds of prepared records that it is made from: others make it stale
  any_records   whether it takes whatever prepared records there are, and names none
  addresses     config -> (config key, kind of records, address) of the data that it reads, whose
                files are looked for before the first stage
  outside       (config, workdir) -> {config key: fingerprint} of what it reads outside the workdir
                beside its models; None for an earlier run that does not exist any more
  expected      of a stage that makes records: run -> as many as it can make, for the estimate
  parts         what its folder has that knows what it was made from, such as 'rows'; '' for
                nothing. A repetition because of an earlier stage (--rerun) leaves the folder, and
                the stage keeps those that have not changed
  is_reusable   whether all that is on disk of it knows what it was made from: after an error in its
                input it may go on with other settings; by default that it has `parts`
  take          (run, other runs): links the parts that another run has made in the same way, where
                the whole stage is not the same
  of_its_run    whether its result is of its own run, and never taken from another one
  is_complete   whether what a finished stage wrote is all that the config asks for now; if not, the
                stage continues
  rows          of a stage whose section has no batch_rows: the keys from which the rows of its
                batches follow, such as 'prompts or samples'
  head          config -> the head that its network has
  task          of a training stage: (config, network) -> train.Task
  trainings     config -> how often it trains its model, of which it keeps the best
  texts         of a stage that writes texts: config -> (the writer's settings, the largest batch)
  panels        what reports draw of its training, a chart each; by default one chart of the loss
                and of how held-out queries are ranked
  unit          what the `rows` of its results are, for reports
  kept          what is on disk that it continues from, as text, '' for nothing; by default the last
                saved step
  scores_records  whether it scores all records that it reads
  ignores_init_from  whether `init_from` decides nothing: its model starts from the pretrained one
  optional      whether a config has to list it, as a run usually does without it
  paper_rows    the size of the paper's data for it, which `disranker plan` uses
  """

  name: str
  title: str
  execute: Callable[[Run], dict]
  settings: Section = dataclasses.field(default_factory=dict)
  section: str = ''
  check: Callable[[ConfigDict], None] = lambda config: None
  role: str = ''
  models: tuple[str, ...] = ()
  keys: Callable[[ConfigDict], tuple[str, ...]] | None = None
  uses: Callable[[ConfigDict], tuple[Use, ...]] | None = None
  check_models: Callable[[ConfigDict, Mapping[str, TextModel]], None] = lambda config, models: None
  check_records: Callable[[Run], None] = lambda run: None
  reads_stages: tuple[str, ...] = ()
  requires: Callable[[ConfigDict], Mapping[str, tuple[str, ...]]] | None = None
  reads_records: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
  any_records: bool = False
  addresses: Callable[[ConfigDict], Sequence[tuple[str, str, str]]] = lambda config: ()
  outside: Callable[[ConfigDict, Path], Mapping[str, str | None]] = lambda config, workdir: {}
  expected: Callable[[Run], Sequence] | None = None
  parts: str = ''
  is_reusable: Callable[[Run], bool] | None = None
  take: Callable[[Run, Sequence[Run]], None] = lambda run, donors: None
  of_its_run: bool = False
  is_complete: Callable[[Run], bool] = lambda run: True
  rows: str = 'batch_rows'
  head: Callable[[ConfigDict], str] = lambda config: 'rank'
  task: Callable | None = None
  trainings: Callable[[ConfigDict], int] = lambda config: 1
  texts: Callable[[ConfigDict], tuple[ConfigDict, Texts]] | None = None
  unit: str = 'queries'
  panels: tuple[Panel, ...] = ()
  kept: Callable[[Run], str] | None = None
  scores_records: bool = False
  ignores_init_from: bool = False
  optional: bool = False
  paper_rows: int = 0

  def __post_init__(self):
    models = self.models or ((self.role,) if self.role else ())
    requires = {self.name: ('prepare',)} if models else {}
    # The way to set fields of a frozen dataclass.
    object.__setattr__(self, 'section', self.section or self.name)
    object.__setattr__(self, 'models', models)
    object.__setattr__(self, 'requires', self.requires or (lambda config: requires))
    object.__setattr__(self, 'uses', self.uses or self._own_model)
    object.__setattr__(self, 'kept', self.kept or self._saved_step)
    object.__setattr__(self, 'is_reusable', self.is_reusable or (lambda run: bool(self.parts)))

  def sections(self, config: ConfigDict) -> tuple[str, ...]:
    """The parts of the config that its result depends on, sections and dotted keys."""
    held_out = ('validation',) if self.task else ()
    usual = ('seed', *self.models) if self.models else ()
    return (*(self.keys(config) if self.keys else usual), *held_out, self.section)

  def _own_model(self, config: ConfigDict) -> tuple[Use, ...]:
    if not self.role:
      return ()
    settings, rows = config[self.role], config[self.section].batch_rows
    return (Use(self.role, self.role, lambda: open_model(settings, self.head(config)), rows),)

  def _saved_step(self, run: Run) -> str:
    step = max(saved_steps(run.folder(self.name) / 'checkpoints'), default=0)
    return f'step {step} is saved' if step else ''


def saved_steps(checkpoints: Path) -> list[int]:
  """The saved steps of a training stage; one that is being saved has another name."""
  return [int(folder.name) for folder in checkpoints.glob('*') if folder.name.isdigit()]
