"""What --rerun has begun in a workdir, so that the same command continues it after a stop.

A note in the workdir has the words of --rerun and the stages to do. Until these are done, the same
words delete only what is stale. Then they start over. A launcher repeats its command after
failures, and a host may fail after the last stage: it names its call in DISRANKER_CALL, and a call
with the same name goes on in any case.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from disranker_jax.pipeline import manifest, systems
from disranker_jax.pipeline.stage import Run, Stage
from disranker_jax.progress import say

FILE = '.rerun.json'
CALL = 'DISRANKER_CALL'


def read(workdir: Path) -> dict:
  """The note; {} for none, and for a file that is not one."""
  try:
    found = json.loads((workdir / FILE).read_text())
  except (OSError, ValueError):
    return {}
  lists = isinstance(found, dict) and [found.get(name) for name in ('rerun', 'stages')]
  return found if lists and all(isinstance(each, list) for each in lists) else {}


def is_begun(workdir: Path, rerun: Sequence[str]) -> bool:
  """Whether a command with the same --rerun has deleted the stages, and this one goes on."""
  note, call = read(workdir), os.environ.get(CALL, '')
  if not rerun or note.get('rerun') != sorted(rerun):
    return False
  return not note.get('finished') or (call != '' and note.get('call') == call)


def to_delete(
  workdir: Path,
  listed: Sequence[Stage],
  rerun: Sequence[str],
  is_stale: Callable[[Stage], bool],
) -> list[str]:
  """The stages that --rerun deletes: all that follow, or those of them that are stale."""
  names = systems.following(listed, rerun)
  if not is_begun(workdir, rerun):
    return names
  stale = [stage.name for stage in listed if stage.name in names and is_stale(stage)]
  return systems.following(listed, stale)


def begin(run: Run, rerun: Sequence[str], stages: Sequence[str]) -> None:
  """Writes the note, once the stages to do are deleted, and says what is not deleted again.

  In this order a kill between the two costs nothing: nothing is noted that is still to delete.
  """
  if not rerun:
    return
  file = run.workdir / FILE
  if kept := [name for name in stages if manifest.read(run.folder(name))]:
    say(
      f'--rerun: continues what it began in {run.workdir}, {", ".join(kept)}; delete {file} to '
      'begin from the start'
    )
  note = {'rerun': sorted(rerun), 'stages': list(stages), 'call': os.environ.get(CALL, '')}
  manifest.write_json(file, note | {'finished': False})


def give_up(run: Run, why: str) -> None:
  """Forgets the note if an error asks for its words: what is broken has to start over."""
  if any(f'--rerun={name}' in why for name in read(run.workdir).get('rerun', ())):
    (run.workdir / FILE).unlink(missing_ok=True)


def finish(run: Run) -> None:
  """Notes that the same words start over, if the noted stages of the config are done."""
  note = read(run.workdir)
  names = [name for name in run.config.stages if name in note.get('stages', ())]
  if note and all(manifest.is_done(run.folder(name)) for name in names):
    manifest.write_json(run.workdir / FILE, note | {'finished': True})
