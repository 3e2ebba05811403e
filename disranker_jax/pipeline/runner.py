"""Which stages there are, in what order, and what is done, unfinished or stale in a workdir."""

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from disranker_jax import config as configs
from disranker_jax.devices import processes, sharding
from disranker_jax.errors import Stopped, UserError
from disranker_jax.models import files
from disranker_jax.pipeline import manifest
from disranker_jax.progress import clock, say
from disranker_jax.stages import cpt as cpt_stage
from disranker_jax.stages import distill, evaluate, export, prepare, score, sft
from disranker_jax.stages import inputs as stage_inputs
from disranker_jax.stages import report as report_stage


@dataclasses.dataclass(frozen=True)
class Stage:
  """A function of the config and earlier stages' folders, that writes one folder."""

  name: str
  run: Callable
  sections: tuple[str, ...]  # parts of the config that its result depends on
  needs: tuple[str, ...]  # earlier stages it reads, as far as the config lists them
  folder: str = ''


STAGES = (
  Stage('prepare', prepare.run, ('data',), (), 'data'),
  Stage('cpt', cpt_stage.run, ('seed', 'teacher', 'cpt'), ('prepare',)),
  Stage('sft', sft.run, ('seed', 'teacher', 'sft'), ('prepare', 'cpt')),
  Stage('score', score.run, ('seed', 'teacher', 'score'), ('prepare', 'cpt', 'sft')),
  Stage('student_sft', sft.run_finetune, ('seed', 'student', 'student_sft'), ('prepare',)),
  Stage('distill', distill.run, ('seed', 'student', 'distill'), ('prepare', 'score', 'student_sft')),
  Stage(
    'evaluate', evaluate.run, ('seed', 'teacher', 'student', 'evaluate'),
    ('prepare', 'cpt', 'sft', 'student_sft', 'distill'),
  ),
  Stage(
    'export', export.run, ('seed', 'teacher', 'student', 'export'),
    ('prepare', 'cpt', 'sft', 'student_sft', 'distill', 'evaluate'),
  ),
  Stage(
    'report', report_stage.run, ('report',),
    ('prepare', 'cpt', 'sft', 'score', 'student_sft', 'distill', 'evaluate', 'export'),
  ),
)  # fmt: skip
assert tuple(s.name for s in STAGES) == configs.STAGES


@dataclasses.dataclass(frozen=True)
class Run:
  """What every stage gets: the config, the workdir and the mesh."""

  config: object
  workdir: Path
  mesh: object

  def folder(self, stage: str) -> Path:
    """Where a stage writes: WORKDIR/<stage>, or WORKDIR/data for prepare."""
    return self.workdir / next(s.folder or s.name for s in STAGES if s.name == stage)


def run(config, workdir: Path, stages=None, rerun=(), reuse=()) -> None:
  """Does the stages that are not done; raises UserError before anything runs if one is stale.

  `stages` picks some of the config's; `rerun` names stages to do again, with all that follow from
  them; `reuse` workdirs of other runs, whose finished stages are taken where they are what this run
  would do. Raises train.Stopped when asked to stop.
  """
  configs.check(config)
  listed = [s for s in STAGES if s.name in config.stages]
  chosen = [s for s in listed if not stages or s.name in stages]
  for name in [*(stages or ()), *rerun]:
    if name not in config.stages:
      raise UserError(f'stage {name!r}: the config lists {", ".join(config.stages)}')
  workdir = workdir.absolute()
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'--workdir {workdir}: is a file')
  the = Run(config, workdir, sharding.make_mesh(config.mesh))
  donors = [donor(the, Path(folder).absolute()) for folder in reuse]
  again = following(listed, rerun)
  for stage in preceding(listed, chosen):
    refuse_stale(the, stage, listed, chosen, again)
  with processes.first_alone('begin', lambda: begin(the, again)) or contextlib.nullcontext():
    run_stages(the, listed, chosen, donors)


def begin(the: Run, again: list[str]):
  """Makes the workdir ours: a lock, for as long as it is held; and forgets what is done again."""
  the.workdir.mkdir(parents=True, exist_ok=True)
  lock = locked(the.workdir)
  for name in again:  # only now: a run that is refused deletes nothing
    shutil.rmtree(the.folder(name), ignore_errors=True)
  configs.save(the.config, the.workdir / 'config.json')
  return lock


def locked(workdir: Path):
  """An open file that holds the workdir's lock; it goes with the process, however that ends."""
  file = (workdir / '.lock').open('a+')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as e:
    raise UserError(f'{workdir}: another process is running in it; wait for it, or stop it') from e
  except OSError:  # a file system without locks, as some mounted buckets are
    pass
  return file


def run_stages(the: Run, listed: list[Stage], chosen: list[Stage], donors: list[Run]) -> None:
  """Does what is not done, then shows what there is."""
  did = []
  for stage in chosen:
    processes.first_alone(f'take {stage.name}', lambda s=stage: take(the, s, listed, donors))
    if run_stage(the, stage, listed, chosen):
      did.append(stage.name)
  if not did:
    say(f'all is done in {the.workdir}: {", ".join(s.name for s in chosen)}')
  if processes.is_first():
    report_stage.show(the)


def donor(the: Run, folder: Path) -> Run:
  """Another run, for what it has done; UserError if the folder is none."""
  if not (folder / 'config.json').is_file():
    raise UserError(f'--reuse {folder}: is not the workdir of a run')
  if folder == the.workdir:
    raise UserError(f'--reuse {folder}: is this run; its finished stages are used anyway')
  return Run(the.config, folder, the.mesh)


def take(the: Run, stage: Stage, listed: list[Stage], donors: list[Run]) -> None:
  """Links a stage that is not begun from the first run that did the same with the same inputs."""
  folder = the.folder(stage.name)
  if manifest.read(folder) is not None or stage.name == 'report':  # it is of its run
    return
  wanted, now = manifest.asked(the.config, stage.sections), inputs(the, stage, listed)
  for other in donors:
    found = other.folder(stage.name)
    before = manifest.read(found)
    if before and before['status'] == 'done' and not manifest.changes(before, wanted, now):
      with files.replacing(folder) as new:
        shutil.copytree(found, new, copy_function=link, dirs_exist_ok=True)
      say(f'{stage.name}: the same as in {other.workdir}, taken from there')
      return


def link(source: str, target: str) -> None:
  """One file under two names where the file system can: what is finished is never written to."""
  try:
    os.link(source, target)
  except OSError:
    shutil.copy2(source, target)


def following(listed: list[Stage], names) -> list[str]:
  """The named stages and, transitively, those that read what they write."""
  again = set(names)
  for stage in listed:
    if again & set(stage.needs):
      again.add(stage.name)
  return [s.name for s in listed if s.name in again] if names else []


def preceding(listed: list[Stage], chosen: list[Stage]) -> list[Stage]:
  """The chosen stages and, transitively, those whose folders they read, in order."""
  wanted = {s.name for s in chosen}
  for stage in reversed(listed):
    if stage.name in wanted:
      wanted |= set(stage.needs)
  return [s for s in listed if s.name in wanted]


def inputs(the: Run, stage: Stage, listed: list[Stage]) -> dict[str, str | None]:
  """Fingerprints of what a stage is made from; None for an earlier stage that is not done yet."""
  found = stage_inputs.outside(the.config, stage.name)
  for need in stage.needs:
    if need in [s.name for s in listed]:
      before = manifest.read(the.folder(need))
      done = before if before is not None and before['status'] == 'done' else None
      if need == 'prepare':
        # Only the records that the stage reads: other test queries change no teacher.
        # (Export and report take what there is, whatever it is.)
        for kind in prepare.kinds(the.config, [stage.name]) or prepare.kinds(the.config):
          found[f'prepare {kind}'] = done and done['results'][kind]['fingerprint']
      else:
        found[need] = done and done['fingerprint']
  return found


def refuse_stale(
  the: Run, stage: Stage, listed: list[Stage], chosen: list[Stage], again: list[str] = ()
) -> None:
  """Raises if the stage was begun from other settings or inputs, or if what it needs is missing.

  Stages in `again` count as not done.
  """
  before = None if stage.name in again else manifest.read(the.folder(stage.name))
  now = {n: None if n in again else f for n, f in inputs(the, stage, listed).items()}
  asked = manifest.asked(the.config, stage.sections)
  if lines := manifest.changes(before, asked, now) if before else []:
    more = f' (and {len(lines) - 3} more)' if len(lines) > 3 else ''
    raise UserError(
      f'{the.folder(stage.name)} is stale: {"; ".join(lines[:3])}{more}. '
      f'Do it again with --rerun={stage.name}, or give another --workdir'
    )
  running = [s.name for s in chosen]
  missing = {n.split()[0]: None for n, f in now.items() if f is None}
  missing = [name for name in missing if name not in running]
  if missing and stage.name in running and (before is None or before['status'] != 'done'):
    raise UserError(
      f'stage {stage.name} needs {", ".join(missing)}, not done in {the.workdir}: '
      f'run with --stages={",".join([*missing, stage.name])}'
    )


def run_stage(the: Run, stage: Stage, listed: list[Stage], chosen: list[Stage]) -> bool:
  """Runs or resumes a stage unless it is done; says which."""
  refuse_stale(the, stage, listed, chosen)
  folder = the.folder(stage.name)
  before = manifest.read(folder)
  if before is not None and before['status'] == 'done':
    say(f'{stage.name}: done before, in {clock(before["wall_s"])}')
    return False
  position = f'{[s.name for s in chosen].index(stage.name) + 1}/{len(chosen)}'
  say(f'{stage.name} ({position}): {"goes on" if before else "begins"}')
  wanted = manifest.asked(the.config, stage.sections)
  record = manifest.Manifest(folder, stage.name, wanted, inputs(the, stage, listed))
  try:
    results = stage.run(the)
  except (Stopped, KeyboardInterrupt):
    record.stopped()
    raise
  except UserError:
    record.stopped()
    if processes.is_first():
      forget_if_empty(folder)
    raise
  record.finished(results)
  processes.barrier(f'{stage.name} is done')
  say(f'{stage.name} ({position}): done in {clock(record.value["wall_s"])}')
  return True


def forget_if_empty(folder: Path) -> None:
  """Removes what a stage wrote before it found bad input, unless there is work in it to go on from.

  What the person mends may well change the stage's inputs; that must not make it stale.
  """
  if any(folder.glob('*/prepared.json')) or any(folder.glob('.*.partial/journal.json')):
    # Each kind of prepared data knows by itself what it was made from.
    (folder / 'manifest.json').unlink(missing_ok=True)
  elif not any((folder / kept).exists() for kept in ('checkpoints', 'shards')):
    shutil.rmtree(folder, ignore_errors=True)
  if {p.name for p in folder.parent.iterdir()} <= {'config.json', '.lock'}:
    shutil.rmtree(folder.parent)
