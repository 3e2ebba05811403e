"""An ablation file: the rows of a table, which of them a config can have, and what each changes."""

import argparse
import dataclasses
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax import config as configs
from disranker_jax.errors import UserError, reason
from disranker_jax.models import weights
from disranker_jax.progress import say
from disranker_jax.rankers.llm.methods import METHODS
from disranker_jax.stages import prepare, prompting, result_table


@dataclass(frozen=True)
class Row:
  """A row of the table: one model of runs with some changed settings.

  needs  a key of the base config without which there is no such row; '': none
  """

  name: str
  model: str
  changes: Mapping[str, object]
  needs: str = ''

  @property
  def alike(self) -> str:
    """The same for rows with equal settings."""
    return repr(sorted(self.changes.items()))


@dataclass(frozen=True)
class Ablation:
  """An ablation file."""

  title: str
  text: str
  rows: tuple[Row, ...]
  against: str  # the row that the others are compared with
  table: result_table.Table  # which has the models
  names: tuple[str, ...] = ()  # of all rows of the file

  @property
  def metrics(self) -> list[str]:
    """The columns: the main one first, PNR last, whose scale is another."""
    return sorted(self.table.columns, key=lambda m: (m != self.table.main, m == 'pnr'))


def load(file: Path, base: ConfigDict, wanted: Sequence[str] = ()) -> Ablation:
  """Reads an ablation file for a base config.

  Of its rows all, or those wanted and the one they are compared with.
  """
  if not file.is_file():
    raise UserError(f'{file}: no such file; there are some in configs/ablations')
  try:
    content = runpy.run_path(str(file))
  except Exception as e:  # the file may raise anything
    raise UserError(f'{file}: cannot be run: {type(e).__name__}: {reason(e, 300)}') from e
  try:
    found = content['get_rows'](base) if 'get_rows' in content else content.get('ROWS', {})
  except UserError as e:
    raise UserError(f'{file}: {e}') from None
  except Exception as e:
    raise UserError(
      f'{file}: has no rows for a config of system {base.system!r}: {type(e).__name__}: '
      f'{reason(e, 300)}'
    ) from e
  if not found or not isinstance(found, Mapping) or not content.get('__doc__'):
    raise UserError(f'{file}: needs a docstring and ROWS = {{name: (model, {{key: value}})}}')
  rows = tuple(row_of(file, base, name, row) for name, row in found.items())
  table = result_table.of(base)
  models = (*table.rows, *base[table.stage].runs, *METHODS)
  for row in rows:
    if row.model not in models:
      raise UserError(f'{file}: {row.name}: model {row.model!r}: there are {", ".join(models)}')
  against = content.get('AGAINST', rows[0].name)
  names = wanted or [row.name for row in rows]
  for name in (against, *names):
    if name not in [row.name for row in rows]:
      raise UserError(f'{file}: no row {name!r}; there are {", ".join(r.name for r in rows)}')
  title, _, text = content['__doc__'].strip().partition('\n')
  kept = tuple(row for row in rows if row.name in (*names, against))
  every = tuple(row.name for row in rows)
  return Ablation(title.rstrip('.'), text.strip(), kept, against, table, every)


def row_of(file: Path, base: ConfigDict, name: str, row: object) -> Row:
  """A row as a file writes it, (model, changes) or (model, changes, needs). Raises: UserError."""
  if not isinstance(row, tuple) or len(row) not in (2, 3) or not isinstance(row[1], Mapping):
    raise UserError(
      f'{file}: {name}: must be (model, {{key: value}}), or (model, {{key: value}}, key) where the '
      f'row needs the key; it is {row!r}'
    )
  found = Row(name, *row)
  if found.needs and found.needs not in configs.flatten(base):
    raise UserError(f'{file}: {name}: needs config.{found.needs}: there is no such key')
  return found


def settings(
  args: argparse.Namespace, rows: Sequence[Row], seed: int, fold: int
) -> dict[str, object]:
  """What the run of some rows changes in the base config. Raises: UserError for unknown keys."""
  table = result_table.of(args.base)
  names = dict.fromkeys(row.model for row in rows)
  models = tuple(name for name in names if name in table.rows)
  rankers = tuple(name for name in names if name in METHODS)
  changes = dict(rows[0].changes) | {f'{table.stage}.models': models, 'data.fold': fold}
  if rankers or args.base[table.stage].get('rankers'):
    changes[f'{table.stage}.rankers'] = rankers  # they cost much, and an ablation reads its own
  if any(is_seeded(table, name) for name in models):
    changes[f'{table.role}.seed'] = seed
  needs = (stage for name in models for stage in table.rows[name].needs(args.base.system))
  needed = {'prepare', *needs, table.stage}
  changes.setdefault('stages', tuple(s for s in args.base.stages if s in needed))
  if args.base.data.candidates == prepare.GENERATED_ADDRESS and 'generate' not in changes['stages']:
    changes.setdefault('data.candidates', '')  # no stage of the row reads any
  known = configs.flatten(args.base)
  for key in changes:
    if key not in known:
      raise UserError(f'{args.file}: {rows[0].name}: config.{key}: there is no such key')
  return changes


def is_seeded(table: result_table.Table, model: str) -> bool:
  """Whether the model depends on the seed of the table's subject."""
  # The others are methods that rank by prompts, and runs from elsewhere.
  return model in table.rows and table.depends_on_seed(table.rows[model])


def available(ablation: Ablation, args: argparse.Namespace) -> Ablation:
  """The ablation without the rows that the config cannot have; says which, and why.

  Raises: UserError for such a row that --row names, or that the others are compared with.
  """
  kept = []
  for row in ablation.rows:
    why = lacking(args, row)
    if why and row.name in (*args.row, ablation.against):
      raise UserError(f'{args.file}: {row.name}: {why}')
    if why:
      say(f'ablate: {row.name}: left out: {why}')
    else:
      kept.append(row)
  return dataclasses.replace(ablation, rows=tuple(kept))


def lacking(args: argparse.Namespace, row: Row) -> str:
  """Why the base config with a row's changes cannot have the row; '' if it can."""
  if row.needs and not configs.flatten(args.base)[row.needs]:
    return f'needs config.{row.needs}; add --config.{row.needs}=VALUE'
  config = args.base.copy_and_resolve_references()
  with config.ignore_type():  # the check says which value has a wrong one
    config.update_from_flattened_dict(settings(args, [row], 0, 0))
  found = result_table.of(config).rows.get(row.model)
  if found and (why := found.lacks(config)):
    return why
  try:
    configs.check(config)
    for kind in prepare.kinds(config):
      prepare.address(config, kind)
    if not args.dry_run:
      check_answers(config)
  except UserError as error:
    return str(error)
  return ''


def check_answers(config: ConfigDict) -> None:
  """Raises: UserError if the teacher's model cannot answer the prompts of a row's methods.

  A model that cannot be fetched is the run's to tell.
  """
  asked = [('evaluate', name) for name in config.get('evaluate', {}).get('rankers', ())]
  if 'score' in config.stages and config.score.get('method'):
    asked.append(('score', config.score.method))
  if not asked:
    return
  try:
    weights.find(config.teacher.model)
  except UserError:
    return
  for section, name in asked:
    prompting.check_model(config, prompting.plan(config, section, name))
