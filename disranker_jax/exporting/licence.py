"""Which models an export was made from, and their licences, as the model folders state them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub

from disranker_jax.models import weights

# Fields of a model card that state its licence; `license: other` needs the last two.
FIELDS = ('license', 'license_name', 'license_link')
ID = re.compile(r'(?:[a-z0-9][a-z0-9.+-]*)?')
UNKNOWN = 'unknown'  # the identifier that the hub has for it


@dataclasses.dataclass(frozen=True)
class Origin:
  """A pretrained model: its id on the hub, or its folder's name; what states its licence."""

  name: str
  on_hub: bool
  fields: Mapping[str, Any]  # of FIELDS; empty if no licence is stated

  @property
  def license(self) -> str:
    """The licence for people; '' if the folder states none."""
    return str(self.fields.get('license_name') or self.fields.get('license') or '')


def of(model: str, folder: Path) -> Origin:
  """The origin of the model that the config names `model`, in its folder.

  The licence is that of the folder's README.md, else of the origin.json that `weights` writes, else
  what `weights.KNOWN` records. It is never guessed from a name.
  """
  hub_id = weights.hub_id(model, folder)
  fields = card_fields(folder / 'README.md')
  if not fields and (stated := weights.origin(folder).get('license') or weights.license_of(model)):
    fields = {'license': stated.lower()}
  return Origin(hub_id or folder.name, bool(hub_id), fields)


def card_fields(file: Path) -> dict[str, Any]:
  """The FIELDS of a model card; {} if there is no card or it has no readable metadata."""
  try:
    metadata = huggingface_hub.metadata_load(file) or {}
  except Exception:  # of the YAML library, or a missing or unreadable file
    return {}
  found = {name: metadata[name] for name in FIELDS if metadata.get(name)}
  return found if 'license' in found else {}


RANKS = 'text-ranking'  # the hub's name of what a ranker does
TAGS = {RANKS: ('cross-encoder', 'reranker'), 'text-generation': ()}


def metadata(base: Origin, license: str = '', task: str = RANKS) -> str:
  """The metadata of the exported folder's card, between its lines `---`.

  Args:
    license: config.export.license; without it the licence is that of the base model.
    task: what the model does, a key of TAGS.
  """
  fields = {'license': license} if license else (dict(base.fields) or {'license': UNKNOWN})
  if base.on_hub:
    fields['base_model'] = base.name
  data = huggingface_hub.ModelCardData(
    library_name='transformers', pipeline_tag=task, tags=[*TAGS[task], 'disranker'], **fields,
  )  # fmt: skip
  return f'---\n{data.to_yaml()}\n---\n'


def described(base: Origin, teachers: Sequence[Origin] = (), license: str = '') -> str:
  """The card's section about licences."""
  lines = [f'- base model: {line(base)}']
  for teacher in teachers:
    lines.append(f'- teacher, whose scores or texts this model learned: {line(teacher)}')
  if license:
    lines.append(f'- this model: `{license}`, by the setting `export.license`')
  return '\n'.join(lines) + '\n'


def line(origin: Origin) -> str:
  return f'`{origin.name}`, licence ' + (f'`{origin.license}`' if origin.license else 'not stated')
