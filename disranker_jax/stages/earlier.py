"""Earlier runs that a run builds on: parameters that its models start from, scores that it learns.

What a model starts from is linked into the run (`start/ROLE/`), so the earlier run may be deleted
afterwards, and a chain of weekly runs needs only its last one.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from disranker_jax import config as configs
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.models import files
from disranker_jax.pipeline import manifest, systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.training import checkpoint

# Settings that decide which parameters a model has, and what its adapters are multiplied by.
SAME = ('model', 'layers', 'lora_rank', 'lora_alpha', 'bidirectional', 'pooling')
NOTE = 'start.json'
DATA = 'data of earlier runs'  # an input of the stages that read them


def opened(key: str, folder: str) -> Run:
  """An earlier run, by its workdir and the config key that names it. Raises: UserError."""
  path = Path(folder).expanduser().absolute()
  if not (path / 'config.json').is_file():
    raise UserError(f'config.{key}={folder!r}: is not the workdir of a run (it has no config.json)')
  return Run(ConfigDict(json.loads((path / 'config.json').read_text())), path, None)


def exists(folder: str) -> bool:
  return Path(folder).expanduser().exists()


def named(config) -> Iterator[tuple[str, str]]:
  """(config key, workdir) of each earlier run that a config names."""
  for role in systems.of(config).roles:
    if config.get(role, {}).get('init_from'):
      yield f'{role}.init_from', config[role].init_from
  for folder in config.get('distill', {}).get('earlier_runs', ()):
    yield 'distill.earlier_runs', folder


def lineage(config) -> list[tuple[Run, bool]]:
  """Every earlier run whose data the models or scores have seen, if it still exists.

  With whether the config itself names it.
  """
  found: dict[Path, tuple[Run, bool]] = {}
  todo = [(key, folder, True) for key, folder in named(config)]
  while todo:
    key, folder, is_named = todo.pop(0)
    if exists(folder) and (run := opened(key, folder)).workdir not in found:
      found[run.workdir] = run, is_named
      todo += [(*other, False) for other in named(run.config)]
  return list(found.values())


def lost(config) -> list[str]:
  """The workdirs of `lineage` that do not exist any more."""
  every = [config, *(run.config for run, _ in lineage(config))]
  folders = (folder for one in every for _, folder in named(one))
  return list(dict.fromkeys(folder for folder in folders if not exists(folder)))


def data_fingerprint(config, workdir: Path, stage: str, made_by: Sequence[str]) -> str:
  """Changes with the data of the named runs; '' if there are none.

  What it was before stays valid when such a run is deleted.

  Args:
    stage: the one that reads the data, of the run in `workdir`.
    made_by: the stages of the named runs that make them, as far as these runs have them.
  """
  made: dict[Path, list[str | None]] = {}
  for key, folder in named(config):
    if not exists(folder):
      before = manifest.read(Run(config, workdir, None).folder(stage)) or {}
      return before.get('inputs', {}).get(DATA, 'gone')
    run = opened(key, folder)
    done = [manifest.read(run.folder(name)) or {} for name in made_by]
    made[run.workdir] = [one.get('fingerprint') for one in done]
  return manifest.digest([one for of_run in made.values() for one in of_run]) if made else ''


def label(run: Run) -> str:
  """The workdir of a run for messages, relative to the current folder if it is inside."""
  path = run.workdir
  return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# Parameters


def folder_of(workdir: Path, role: str) -> Path:
  """Where the parameters that a model starts from are linked."""
  return workdir / 'start' / role


def fingerprint(config, workdir: Path, role: str) -> str | None:
  """Changes with what the model starts from; None if neither the run nor the links exist.

  Raises: UserError for a run that trained no such model, or one of other settings.
  """
  wanted = config[role].init_from
  if exists(wanted):
    return _fingerprint(config, opened(f'{role}.init_from', wanted), role)
  note = _note(workdir, role)
  return note['fingerprint'] if note and note['from'] == wanted else None


def _note(workdir: Path, role: str) -> dict | None:
  file = folder_of(workdir, role) / NOTE
  return json.loads(file.read_text()) if file.exists() else None


def _fingerprint(config, donor: Run, role: str) -> str:
  key = f'config.{role}.init_from={config[role].init_from!r}'
  theirs = dict(donor.config.get(role, {}))
  for name in SAME:
    ours = list(config[role][name]) if name == 'layers' else config[role][name]
    if name not in theirs or ours != (list(theirs[name]) if name == 'layers' else theirs[name]):
      was = theirs.get(name)
      raise UserError(
        f'{key}: has another model: its config.{role}.{name} is {was!r}, here it is {ours!r}'
      )
  for path, was, ours in differing(config, donor.config, systems.of(config).roles[role].same):
    raise UserError(f'{key}: has learned with config.{path}={was!r}; here it is {ours!r}')
  stages, made = systems.trained_stages(donor.config, role), []
  if theirs.get('init_from'):
    note = _note(donor.workdir, role)  # missing if --reuse took all of its stages
    made.append(note['fingerprint'] if note else fingerprint(donor.config, donor.workdir, role))
    if made[0] is None:
      raise UserError(f'{key}: started from {theirs["init_from"]}, which does not exist any more')
  elif not stages:
    raise UserError(f'{key}: trained no {role}; its stages are {", ".join(donor.config.stages)}')
  for stage in stages:
    before = manifest.read(donor.folder(stage))
    if before is None or before['status'] != 'done':
      raise UserError(f'{key}: its stage {stage} is not done; finish that run first')
    made.append(before['fingerprint'])
  return manifest.digest(made)


def differing(config, theirs, paths: Iterable[str]) -> Iterator[tuple[str, Any, Any]]:
  """(dotted key, the value of another run's config, ours) of each of some keys that differ."""
  ours, other = configs.flatten(config), configs.flatten(theirs)
  for path in paths:
    if other.get(path) != ours[path]:
      yield path, other.get(path), ours[path]


def checkpoints(run: Run, role: str) -> list[Path]:
  """Folders of checkpoints with all that a run's model learned, oldest first."""
  first = []
  if before := run.config[role].get('init_from'):
    first = linked(run, role) or checkpoints(opened(f'{role}.init_from', before), role)
  return first + [run.folder(s) / 'checkpoints' for s in systems.trained_stages(run.config, role)]


def linked(run: Run, role: str) -> list[Path]:
  return sorted(p for p in folder_of(run.workdir, role).glob('*') if p.is_dir())


def start(run: Run, role: str) -> list[Path]:
  """Folders of checkpoints that the run's model starts from, oldest first; links them if needed.

  Raises: UserError if the earlier run does not exist any more.
  """
  if not run.config[role].init_from:
    return []
  processes.first_alone(f'start of the {role}', lambda: _link(run, role))
  return linked(run, role)


def _link(run: Run, role: str) -> None:
  wanted, now = run.config[role].init_from, fingerprint(run.config, run.workdir, role)
  if now is None:
    raise UserError(gone(run.config, f'{role}.init_from'))
  note = {'from': wanted, 'fingerprint': now}
  if _note(run.workdir, role) == note:
    return
  donor = opened(f'{role}.init_from', wanted)
  with files.replacing(folder_of(run.workdir, role)) as new:
    for i, folder in enumerate(needed(checkpoints(donor, role))):
      # Without the optimizer's state, which is larger than the parameters.
      files.link_tree(folder, new / f'{i:02d}', without=checkpoint.TRAIN)
    manifest.write_json(new / NOTE, note)


def needed(folders: list[Path]) -> list[Path]:
  """The folders without those whose every parameter a later one has too."""
  kept: list[Path] = []
  later: set[str] = set()
  for folder in reversed(folders):
    names = checkpoint.names(folder)
    if not names <= later:
      kept.insert(0, folder)
    later |= names
  return kept


def gone(config, key: str) -> str:
  """The message for an earlier run that was deleted before it was used."""
  folders = ', '.join(folder for name, folder in named(config) if name == key)
  return f'config.{key}={folders}: does not exist; name the workdir of a finished run'


# Scores


def scores_fingerprint(config) -> str | None:
  """Changes with the scores of distill.earlier_runs; None if one of them does not exist any more.

  Raises: UserError for a run that has not finished its scores.
  """
  made = []
  for folder in config.distill.earlier_runs:
    if not exists(folder):
      return None
    run = opened('distill.earlier_runs', folder)
    stage = 'prepare' if run.config.data.teachers else 'score'
    for name in dict.fromkeys(('prepare', stage)):
      before = manifest.read(run.folder(name))
      if before is None or before['status'] != 'done':
        raise UserError(
          f'config.distill.earlier_runs: {folder}: has no scores, because its stage {name} is not '
          'done'
        )
      made.append(before['fingerprint'])
  return manifest.digest(made)
