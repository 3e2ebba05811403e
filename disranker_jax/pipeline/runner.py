"""Runs the stages of a config in a workdir: what is done is skipped, what is stale is refused."""

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax import config as configs
from disranker_jax.data import once
from disranker_jax.devices import processes, sharding
from disranker_jax.errors import Stopped, UserError
from disranker_jax.locks import locked
from disranker_jax.models import files
from disranker_jax.pipeline import inputs as outside
from disranker_jax.pipeline import manifest, opening, reading, reruns, systems, unfinished
from disranker_jax.pipeline.estimate import Estimate, expected
from disranker_jax.pipeline.opening import Opened
from disranker_jax.pipeline.stage import Run, Stage
from disranker_jax.progress import clock, say
from disranker_jax.stages import earlier, prepare
from disranker_jax.stages import report as report_stage


def run(
  config: ConfigDict,
  workdir: Path,
  stages: Sequence[str] | None = None,
  rerun: Sequence[str] = (),
  reuse: Sequence[str | Path] = (),
  estimate: bool = False,
  warn: bool = True,
  ends: bool = True,
) -> None:
  """Runs the stages that are not done; nothing runs if one of them is stale.

  stages  some of the config's stages; None for all
  rerun   stages to run again, with all that follow from them; until they are done, the same ones
          continue
  reuse   workdirs of other runs; a stage that they finished from the same settings and inputs is
          taken from there
  estimate  whether to say before the first stage what time and memory they will take
  warn    whether to say what the models do not read of the texts
  ends    whether the command is over then; if not, its caller ends `rerun` (`reruns.finish`)

  Raises: UserError before the first step for everything that can be checked, Stopped after SIGTERM
  or Ctrl-C.
  """
  configs.check(config)
  for name in [*(stages or ()), *rerun]:
    if name not in config.stages:
      raise UserError(f'stage {name!r}: the config lists {", ".join(config.stages)}')
  workdir = workdir.absolute()
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'--workdir {workdir}: is a file')
  pipeline = Pipeline(
    Run(config, workdir, sharding.make_mesh(config.mesh)), stages or (), rerun, warn
  )
  donors = [donor(pipeline.run, Path(folder).absolute()) for folder in reuse]
  pipeline.check()
  todo = pipeline.to_open(donors)
  outside.check(config, todo)
  opened = opening.everything(pipeline.run, todo, [n for n in rerun if n in pipeline.again])
  lock = processes.first_alone('begin', pipeline.open_workdir)
  with lock or contextlib.nullcontext():
    estimated = estimates(pipeline.run, opened) if estimate else None
    try:
      pipeline.run_stages(donors, opened, estimated)
    except UserError as error:
      if processes.is_first():
        reruns.give_up(pipeline.run, str(error))
      raise
    if ends and processes.is_first():
      reruns.finish(pipeline.run)


def estimates(run: Run, opened: Sequence[Opened]) -> Estimate | None:
  """The estimate for the models to come, in the first process."""
  return Estimate(run, opened) if opened and processes.is_first() else None


def donor(run: Run, folder: Path) -> Run:
  """Another run whose finished stages may be taken. Raises: UserError if the folder is none."""
  if not (folder / 'config.json').is_file():
    raise UserError(f'--reuse {folder}: is not the workdir of a run')
  if folder == run.workdir:
    raise UserError(f'--reuse {folder}: is this run; its finished stages are used anyway')
  return dataclasses.replace(run, workdir=folder)


def done_by(stage: Stage, donors: Sequence[Run]) -> list[tuple[Run, dict]]:
  """The other runs that have finished a stage, with its manifests."""
  read = ((other, manifest.read(other.folder(stage.name))) for other in donors)
  return [(other, before) for other, before in read if before and before['status'] == 'done']


@dataclasses.dataclass(frozen=True)
class State:
  """Where a stage stands in a workdir.

  before   its manifest, None if it has not started
  is_done  whether it has finished and has all that the config asks for
  wanted   the settings that its result depends on
  inputs   fingerprints of what it is made from; None for an earlier stage that is not done
  missing  earlier stages that it reads or requires and that are not done
  changes  what has changed since it was started, as text
  """

  before: dict | None
  is_done: bool
  wanted: dict
  inputs: dict[str, str | None]
  missing: list[str]
  changes: list[str]


class Pipeline:
  """A run with the stages that its config lists, those chosen for now, and those to run again."""

  def __init__(
    self, run: Run, stages: Sequence[str] = (), rerun: Sequence[str] = (), warn: bool = True
  ):
    self.run, self.warn = run, warn
    self.listed = systems.listed(run.config)
    self.chosen = [stage for stage in self.listed if not stages or stage.name in stages]
    self.rerun = tuple(rerun)
    self.again = reruns.to_delete(
      run.workdir, self.listed, rerun, lambda stage: bool(self.state(stage).changes)
    )

  def check(self) -> None:
    """Raises: UserError if a chosen stage, or one that it reads, is stale or missing."""
    for stage in systems.preceding(self.listed, [s.name for s in self.chosen]):
      self.refuse_stale(stage, self.state(stage, self.again))

  def to_open(self, donors: Sequence[Run]) -> list[Stage]:
    """The chosen stages that are not done here and that no donor has done in the same way.

    Says why a stage of a donor with the same settings is not taken: the config does not show it.
    """
    found: list[Stage] = []
    for stage in self.chosen:
      state = self.state(stage, self.again)
      others = [] if state.before or stage.of_its_run else done_by(stage, donors)
      changed = [outside.changes(before, state.wanted, state.inputs) for _, before in others]
      # An earlier stage that runs again has another fingerprint. Its records may be the same ones.
      again = {s.name for s in found if s.name != 'prepare'} & {*stage.reads_stages}
      if state.is_done or (not again and not all(changed)):
        continue
      found.append(stage)
      for other, before in others:
        if why := outside.changed_files(before, state.wanted, state.inputs):
          place = other.folder(stage.name)
          say(f'{stage.name}: {place} has the same settings and is not taken: {"; ".join(why)}')
    return found

  def look_at_records(self, opened: Sequence[Opened], estimate: Estimate | None) -> None:
    """Says, once there are records, the time of the stages to come and what models do not read.

    Raises: UserError where the records teach one of the stages nothing.
    """
    prepared = self.run.folder('prepare')
    if 'prepare' not in self.run.config.stages or 'results' not in (manifest.read(prepared) or {}):
      return
    with once.shared():  # a collection is read once for all stages, and no stage runs beside it
      for stage in self.chosen:
        if not self.state(stage).is_done:
          stage.check_records(self.run)
      if opened and processes.is_first():
        records = expected(self.run)
        if estimate:
          estimate.say_time(records)
        if self.warn:
          reading.say_losses(self.run, opened, records)

  def open_workdir(self):
    """Locks the workdir, removes stages that run again, and saves the config; the lock's file."""
    self.run.workdir.mkdir(parents=True, exist_ok=True)
    lock = locked(self.run.workdir)
    if done := self.repeated(self.again, self.rerun, 'deletes'):
      say(f'--rerun in {self.run.workdir}: {done}')
    for name in self.again:  # only now: a run that is refused deletes nothing
      self.remove(name)
    names = systems.following(self.listed, self.rerun)
    reruns.begin(self.run, self.rerun, [s.name for s in self.chosen if s.name in names])
    configs.save(self.run.config, self.run.workdir / 'config.json')
    return lock

  def remove(self, name: str) -> None:
    """Removes a stage's folder, or just its manifest if the stage can tell which parts are good."""
    folder = self.run.folder(name)
    if systems.find(self.run.config, name).parts and name not in self.rerun:
      (folder / manifest.FILE).unlink(missing_ok=True)
    else:
      shutil.rmtree(folder, ignore_errors=True)

  def repeated(self, again: Sequence[str], named: Sequence[str], deletes: str) -> str:
    """What becomes of stages that run again, as text; '' if none of them has begun.

    Args:
      again: the stages.
      named: those of them that keep no parts, see `remove`.
      deletes: the verb for those that are deleted.
    """
    begun = [s for s in self.listed if s.name in again and manifest.read(self.run.folder(s.name))]
    kept = {s.name: s.parts for s in begun if s.parts and s.name not in named}
    deleted = ', '.join(stage.name for stage in begun if stage.name not in kept)
    parts = ' and '.join(f'the {parts} of {name}' for name, parts in kept.items())
    said = [f'{deletes} {deleted}' if deleted else '', f'{parts} stay' if kept else '']
    return '; '.join(filter(None, said))

  def run_stages(
    self,
    donors: Sequence[Run],
    opened: Sequence[Opened] = (),
    estimate: Estimate | None = None,
  ) -> None:
    """Runs what is not done, then shows the results."""
    ran = looked = False
    if estimate:
      estimate.say_memory()
    for stage in self.chosen:
      if stage.name != 'prepare' and not looked:
        self.look_at_records(opened, estimate)
        looked = True
      processes.first_alone(f'take {stage.name}', lambda s=stage: self.take(s, donors))
      ran |= self.run_stage(stage)
    if not ran:
      say(f'all is done in {self.run.workdir}: {", ".join(s.name for s in self.chosen)}')
    if processes.is_first():
      report_stage.show(self.run)

  def state(self, stage: Stage, again: Sequence[str] = ()) -> State:
    """Where the stage stands; stages in `again` count as not done."""
    folder = self.run.folder(stage.name)
    before = None if stage.name in again else manifest.read(folder)
    wanted = manifest.settings_of(self.run.config, stage.sections(self.run.config))
    current = {n: None if n in again else v for n, v in self.inputs(stage).items()}
    if before:
      current = outside.as_before(before['inputs'], current)
    changes = manifest.changes(before, wanted, current) if before else []
    done = before is not None and before['status'] == 'done' and stage.is_complete(self.run)
    missing = self.missing(stage, current, again)
    return State(before, done, wanted, current, missing, changes)

  def missing(
    self, stage: Stage, inputs: Mapping[str, str | None], again: Sequence[str]
  ) -> list[str]:
    """See `State.missing`."""
    required = itertools.chain.from_iterable(stage.requires(self.run.config).values())
    lacking = [n for n in required if n in again or not manifest.is_done(self.run.folder(n))]
    lacking += [name.split()[0] for name, value in inputs.items() if not value]
    return list(dict.fromkeys(lacking))

  def inputs(self, stage: Stage) -> dict[str, str | None]:
    """Fingerprints of what a stage is made from; None for an earlier stage that is not done."""
    found: dict[str, str | None] = dict(outside.outside(self.run.config, stage, self.run.workdir))
    config = self.run.config
    for name in [s.name for s in self.listed if s.name in stage.reads_stages]:
      before = manifest.read(self.run.folder(name))
      done = before if before is not None and before['status'] == 'done' else None
      if name == 'prepare':
        # Only the records that the stage reads: other test queries do not change the teacher.
        read = None if stage.any_records else [stage.name]
        records = done['results'] if done else {}
        for kind in prepare.kinds(config, read):
          # None for a kind that nothing read when the stage was done.
          found[f'prepare {kind}'] = records.get(kind, {}).get('fingerprint')
      else:
        found[name] = done and done['fingerprint']
    return found

  def refuse_stale(self, stage: Stage, state: State) -> None:
    """Raises: UserError if the stage was started from other settings or inputs, or lacks some."""
    if state.changes:
      more = f' (and {len(state.changes) - 3} more)' if len(state.changes) > 3 else ''
      raise UserError(
        f'{self.run.folder(stage.name)} is stale: {"; ".join(state.changes[:3])}{more}. '
        f'Do it again with --rerun={stage.name}{self.also(stage)}, or keep it: give another '
        f'--workdir, and --reuse={self.run.workdir} to take the stages that have not changed'
      )
    running = [s.name for s in self.chosen]
    missing = [name for name in state.missing if name not in running]
    if missing and stage.name in running and not state.is_done:
      if gone := [name for name in missing if outside.is_outside(name)]:
        raise UserError(earlier.gone(self.run.config, gone[0]))
      raise UserError(
        f'stage {stage.name} needs {", ".join(missing)}, not done in {self.run.workdir}: '
        f'run with --stages={",".join([*missing, stage.name])}'
      )

  def also(self, stage: Stage) -> str:
    """What a repetition of a stage means for the stages that follow from it, as text."""
    names = [name for name in systems.following(self.listed, [stage.name]) if name != stage.name]
    repeated = self.repeated(names, [], 'also deletes and repeats')
    return f' ({repeated})' if repeated else ''

  def take(self, stage: Stage, donors: Sequence[Run]) -> None:
    """Links a stage that has not started from the first run that did the same."""
    folder = self.run.folder(stage.name)
    if manifest.read(folder) is not None or stage.of_its_run:
      return
    state = self.state(stage)
    for other, before in done_by(stage, donors):
      if outside.changes(before, state.wanted, state.inputs):
        continue
      source = other.folder(stage.name)
      refuse_links(source)
      with files.replacing(folder) as new:
        # A stage with parts may add some to what it finds, and the other run keeps its own.
        files.link_tree(source, new, copied=bool(stage.parts))
      say(f'{stage.name}: the same as in {other.workdir}, taken from there')
      if unknown := outside.of_unknown_version(before['inputs'], state.inputs):
        say(
          f'warning: {stage.name}: which version of {", ".join(unknown)} it was made with is known '
          f'of one of the two runs only; --rerun={stage.name} without --reuse makes it again'
        )
      return
    stage.take(self.run, donors)

  def run_stage(self, stage: Stage) -> bool:
    """Runs or resumes a stage; False if it was done before."""
    state, folder = self.state(stage), self.run.folder(stage.name)
    self.refuse_stale(stage, state)
    if state.is_done:
      say(f'{stage.name}: done before, in {clock(state.before["wall_s"])}')
      return False
    position = f'{[s.name for s in self.chosen].index(stage.name) + 1}/{len(self.chosen)}'
    say(f'{stage.name} ({position}): {"continues" if state.before else "starts"}')
    record = manifest.Manifest(folder, stage.name, state.wanted, state.inputs)
    processes.asked()  # what was asked before counts no more
    try:
      with record:
        results = stage.execute(self.run)
    except (Stopped, KeyboardInterrupt) as e:
      record.stopped()
      if isinstance(e, Stopped):  # in every process
        processes.barrier(f'{stage.name} is stopped')
      raise Stopped(unfinished.said(stage, self.run), getattr(e, 'interrupted', True)) from None
    except UserError:
      record.stopped()
      if processes.is_first():
        unfinished.remove_if_empty(self.run, stage)
      raise
    record.finished(results)
    processes.barrier(f'{stage.name} is done')
    say(f'{stage.name} ({position}): done in {clock(record.value["wall_s"])}')
    number = processes.asked()
    if processes.any_of(number != 0):
      left = 'the same command continues with the next stage'
      raise Stopped(f'stopped; {stage.name} is done; {left}', number == signal.SIGINT)
    return True


def refuse_links(folder: Path) -> None:
  """Raises: UserError if a folder of another run is or has a link: it may lead anywhere."""
  inside = (Path(where, n) for where, *names in os.walk(folder) for n in itertools.chain(*names))
  for path in itertools.chain([folder], inside):
    if path.is_symlink():
      raise UserError(f'--reuse: {path} is a link; put a copy of what it points to in its place')
