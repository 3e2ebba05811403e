"""What a model folder's config.json says, and what the stage `export` has recorded in it.

The record is the part `disranker_jax`. Models from elsewhere have none.
"""

import dataclasses
from pathlib import Path
from typing import Any

from disranker_jax.config.settings import Check, Key, Section, has_type, one_of, text
from disranker_jax.data import contents
from disranker_jax.errors import UserError
from disranker_jax.models.settings import SETTINGS as MODEL

KEY = 'disranker_jax'
RANKING = 'ranking'  # what a folder is for that does not say it
INPUTS = ('template', 'prompt', 'pair')  # see config.teacher.input
SECTION: Section = {
  'task': Key(RANKING, text('a task'), 'What the folder is for.'),
  'scorer': Key(
    'score_head', one_of('score_head', 'query_likelihood'), 'How it scores: a key of load.HEADS.'
  ),
  'template': Key('', Check('a text', lambda x: True), "A decoder's input."),
  'input': Key('template', one_of(*INPUTS), 'What a decoder with a score head reads.'),
  'max_len': MODEL['max_len'],
  'max_query_len': MODEL['max_query_len'],
}


@dataclasses.dataclass(frozen=True)
class Recorded:
  """The record of a folder; the fields have the names that they have in config.json.

  task           what it is for
  scorer         how it scores, a key of load.HEADS
  template       a decoder's input; None: there is none on record
  input          what a decoder with a score head reads, as config.teacher.input
  max_len        tokens of a pair in training; 0: not on record
  max_query_len  those of a query; 0: not on record
  fusion         how scores are fused with the first stage, for Fusion.from_dict
  rewrites       how a rewriter rewrites, for rewriting/loaded.py
  """

  task: str = RANKING
  scorer: str = 'score_head'
  template: str | None = None
  input: str = 'template'
  max_len: int = 0
  max_query_len: int = 0
  fusion: Any = None
  rewrites: Any = None


def read(folder: str | Path) -> Recorded:
  """The record of a folder. Raises: UserError naming a value that `export` does not write."""
  return of(config(folder), f'{folder}/config.json')


def of(config: dict, where: str) -> Recorded:
  """The record in a config.json, which errors call `where`. Raises: as `read`."""
  found = config.get(KEY, {})
  if not isinstance(found, dict):
    raise UserError(f'{where}: {KEY} is {found!r:.100}, not an object')
  names = [field.name for field in dataclasses.fields(Recorded) if field.name in found]
  checked(f'{where}: {KEY}', {name: SECTION[name] for name in names if name in SECTION}, found)
  return Recorded(**{name: found[name] for name in names})


def checked(where: str, section: Section, values: dict[str, Any]) -> dict[str, Any]:
  """The values of a section's keys. Raises: UserError that names one which is not allowed."""
  for name, key in section.items():
    value = values.get(name)
    try:
      accepted = has_type(value, key.default) and key.check.accepts(value)
    except UserError as error:
      raise UserError(f'{where}.{name}: {error}') from None
    if not accepted:
      raise UserError(f'{where}.{name}={value!r:.200}: must be {key.check.allowed}')
  return {name: values[name] for name in section}


def config(folder: str | Path) -> dict:
  """config.json as it was written. Raises: UserError if it is not a JSON object."""
  file = Path(folder) / 'config.json'
  return contents.read_json(file, dict, 'a Hugging Face model folder is needed')
