"""What a stage declares about itself, and what it gets when it runs."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from disranker_jax.config.settings import Section


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
class Stage:
  """A function of the config and of earlier stages' folders that writes one folder.

  name          of the stage, of its folder and of its section of the config
  title         one line for reports
  execute       does or resumes the work; returns results for the manifest
  settings      the keys of its section of the config
  section       the section's name, if it is not the stage's
  check         tests relations between settings; raises UserError
  role          the model that it trains or runs: 'teacher', 'student' or ''
  models        the roles whose models it opens; by default `role`
  reads_stages  earlier stages whose output it uses, if they are in config.stages
  requires      config -> {what requires them: stages that must be in config.stages}; by default a
                stage with a model requires prepare
  reads_records config -> the kinds of prepared records that it reads
  has_parts     whether its folder has parts that know what they were made from: a repetition
                because of an earlier stage (--rerun) leaves the folder, and the stage keeps the
                parts that have not changed
  is_complete   whether what a finished stage wrote is all that the config asks for now; if not, the
                stage continues
  head          config -> the head that its network has
  task          of a training stage: (config, network) -> train.Task
  scores_records  whether it scores all records that it reads
  starts_anew   whether its model starts from the pretrained one, whatever `init_from` says
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
  reads_stages: tuple[str, ...] = ()
  requires: Callable[[ConfigDict], Mapping[str, tuple[str, ...]]] | None = None
  reads_records: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
  has_parts: bool = False
  is_complete: Callable[[Run], bool] = lambda run: True
  head: Callable[[ConfigDict], str] = lambda config: 'rank'
  task: Callable | None = None
  scores_records: bool = False
  starts_anew: bool = False
  paper_rows: int = 0

  def __post_init__(self):
    models = self.models or ((self.role,) if self.role else ())
    requires = {self.name: ('prepare',)} if models else {}
    # The way to set fields of a frozen dataclass.
    object.__setattr__(self, 'section', self.section or self.name)
    object.__setattr__(self, 'models', models)
    object.__setattr__(self, 'requires', self.requires or (lambda config: requires))

  @property
  def sections(self) -> tuple[str, ...]:
    """The parts of the config that its result depends on."""
    return ('seed', *self.models, self.section) if self.models else (self.section,)
