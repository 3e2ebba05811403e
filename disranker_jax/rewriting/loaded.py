"""A rewriter as an object: `load('runs/rewriting/export/rewriter')('a query').searched`.

`disranker rewrite` and the server rewrite through this class.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from disranker_jax.config.settings import Key, Section, one_of
from disranker_jax.data.prompts import CHARS_PER_TOKEN
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import hf, recorded
from disranker_jax.models.load import open_model
from disranker_jax.models.settings import SETTINGS as MODEL
from disranker_jax.models.settings import defaults
from disranker_jax.rewriting import engines, prompts, rewriter
from disranker_jax.rewriting.queries import searched
from disranker_jax.rewriting.rewriter import Rewriter, Rewritten

RECORD = 'rewrites'  # the part of disranker_jax in config.json that only a rewriter has
HOW: Section = {
  **rewriter.SETTINGS,
  'engine': Key('bm25', one_of(*engines.ENGINES), 'What searches.'),
}
READS: Section = {
  **{name: MODEL[name] for name in ('max_len', 'max_query_len')}, **prompts.SETTINGS
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LoadedRewriter:
  """Rewrites queries; may be called from several threads.

  engine  the name in engines.ENGINES of the search engine that it is for
  """

  writer: Rewriter
  variables: dict
  engine: str

  @property
  def reads(self) -> int:
    """More characters of a query than these are not needed."""
    return CHARS_PER_TOKEN * self.writer.prompt.longest

  def __call__(self, query: str) -> Rewritten:
    [found] = self.many([query])
    return found

  def many(self, queries: Sequence[str]) -> list[Rewritten]:
    """The rewrites of several queries, in batches of the rows with which it was loaded."""
    return self.writer.rewritten(self.variables, queries)

  def searched(self, query: str, rewrite: str) -> str:
    """What the search engine is given for a query, or for the beginning of one."""
    c = self.writer.c
    return searched(query, rewrite, c.mode, c.repeat)


def load(folder: str | Path, rows: int = 1) -> LoadedRewriter:
  """Loads an exported rewriter on a device of this process. Raises: UserError as `settings_of`.

  Args:
    rows: how many queries it rewrites together; one alone takes as long as so many.
  """
  settings, c = settings_of(folder)
  model = open_model(settings, 'lm')
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
  return LoadedRewriter(Rewriter.of(model, c, mesh, rows), model.pretrained(0, mesh), c.engine)


def settings_of(folder: str | Path) -> tuple[ConfigDict, ConfigDict]:
  """(the settings of the model, how it rewrites: HOW) in a folder; reads no parameters.

  Raises: UserError for a folder that the stage export of a rewriter did not write.
  """
  folder = Path(folder).expanduser()
  found = recorded.read(folder)
  how = found.rewrites
  if not isinstance(how, dict):
    raise UserError(
      f'{folder}: is no exported rewriter (its config.json has no disranker_jax.{RECORD}); name '
      'the folder export/rewriter of a run of query_rewriting'
    )
  where = f'{folder}/config.json: disranker_jax'
  c = ConfigDict(recorded.checked(f'{where}.{RECORD}', HOW, how))
  reads = recorded.checked(where, READS, dataclasses.asdict(found))
  if c.max_new >= reads['max_len']:
    raise UserError(
      f'{where}.{RECORD}.max_new={c.max_new}: must be below max_len={reads["max_len"]}, which '
      'holds the prompt too; export the rewriter again'
    )
  if missing := [file for file in hf.weight_files(folder) if not file.is_file()]:
    raise UserError(f'{missing[0]} is missing; export the rewriter again')
  template = reads.pop('template')
  settings = defaults(model=str(folder.absolute()), row_len=reads['max_len'], **reads)
  settings.template = template
  return settings, c
