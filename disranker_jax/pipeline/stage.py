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

  name      of the stage, of its folder and of its section of the config
  title     one line for reports
  run       does or resumes the work; returns results for the manifest
  settings  the keys of its section of the config
  section   the section's name, if it is not the stage's
  check     tests relations between settings; raises UserError
  role      the model that it trains or runs: 'teacher', 'student' or ''
  opens     the models that it opens, where these are not just `role`
  after     earlier stages whose folders it reads where the config lists them
  needs     {what needs them: stages that the config must list}
  reads     kinds of prepared records that it reads
  head      which head the network needs
  task      of a training stage: (config, network) -> train.Task
  scores    whether it runs a scorer over all records that it reads
  paper_rows  how many rows the paper's data have for it, for plans
  """

  name: str
  title: str
  run: Callable[[Run], dict]
  settings: Section = dataclasses.field(default_factory=dict)
  section: str = ''
  check: Callable[[ConfigDict], None] = lambda config: None
  role: str = ''
  opens: tuple[str, ...] = ()
  after: tuple[str, ...] = ()
  needs: Callable[[ConfigDict], Mapping[str, tuple[str, ...]]] | None = None
  reads: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
  head: Callable[[ConfigDict], str] = lambda config: 'rank'
  task: Callable | None = None
  scores: bool = False
  paper_rows: int = 0

  def __post_init__(self):
    set_default = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
    if not self.section:
      set_default('section', self.name)
    if self.role and not self.opens:
      set_default('opens', (self.role,))
    if self.needs is None:
      set_default('needs', lambda config: {self.name: ('prepare',)} if self.opens else {})

  @property
  def sections(self) -> tuple[str, ...]:
    """The parts of the config that its result depends on."""
    return (*(('seed', *self.opens) if self.opens else ()), self.section)
