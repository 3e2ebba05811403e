"""The unfinished work of a command: a hidden folder beside its output, until all is done.

The note says what the work was made from and how much of it is good. It goes first when the folder
is removed, so that a kill leaves no note of work that is gone.
"""

import json
import shutil
from pathlib import Path

from disranker_jax.pipeline import manifest

NOTE = 'note.json'


def folder_of(out: Path) -> Path:
  """The folder of the work on a file."""
  return out.with_name(f'.{out.name}.partial')


def note(folder: Path) -> dict:
  """What was noted of the work; {} if there is nothing that can be read."""
  try:
    found = json.loads((folder / NOTE).read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def write_note(folder: Path, **values) -> None:
  manifest.write_json(folder / NOTE, values)


def remove(folder: Path) -> None:
  """Removes the work, also what a kill left of an earlier removal."""
  (folder / NOTE).unlink(missing_ok=True)
  shutil.rmtree(folder, ignore_errors=True)
