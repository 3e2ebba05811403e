"""The config of a run: a file in configs/ starts from `defaults()` and changes some values.

Every stage declares its own settings (`STAGE.settings`); this module puts together those of the
stages and models of one system (`config.system`), and those of the run itself. The tree is locked,
so a misspelt key is an error wherever it is written: in a config file or as
`--config.sft.epochs=2` on the command line.
`disranker run --config FILE --explain` prints every key with its value, default and comment.
"""

import difflib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from disranker_jax.config import settings
from disranker_jax.config.settings import Key, Section, at_least, boolean, list_of, one_of, text
from disranker_jax.errors import UserError
from disranker_jax.pipeline import systems


def run_settings(system: str) -> Section:
  """The keys that belong to no stage, model or data."""
  from disranker_jax.training.settings import HELD_OUT

  stages = systems.get(system).stages
  names = tuple(stage.name for stage in stages)
  usual = tuple(stage.name for stage in stages if not stage.optional)
  return {
    'name': Key(
      system, text('a name', empty=False),
      "Of the run; the default workdir is runs/NAME. Unless it is set, the config file's name.",
    ),
    'seed': Key(0, at_least(0), 'Of everything random.'),
    'system': Key(
      system, one_of(*systems.every()), 'Which system is trained; it decides the stages.'
    ),
    'stages': Key(usual, list_of(one_of(*names), distinct=True), 'The stages that the run has.'),
    'mesh': {
      axis: Key(size, settings.Check('1 or more, or -1', lambda n: n >= 1 or n == -1), comment)
      for axis, size, comment in (
        ('data', -1, 'Devices on the data axis; -1: those that are left.'),
        ('fsdp', 1, 'Devices over which parameters and batches are sharded.'),
        (
          'model', 1,
          'Devices of tensor parallelism, and those that share the index of generative retrieval.',
        ),
      )
    },
    'validation': HELD_OUT,
    'watchdog_s': Key(
      1800.0, at_least(0),
      'With several processes: seconds without a step after which a process gives up waiting for '
      'the others; 0: never. Compiling the first step counts.',
    ),
    'tensorboard': Key(
      True, boolean(), "Write TensorBoard event files beside each training stage's metrics.jsonl."
    ),
    'wandb_project': Key(
      '', text('a project'), "Weights & Biases project for training logs; '': none. Needs wandb."
    ),
  }  # fmt: skip


def sections(system: str) -> Section:
  """All keys of a system's config, by section. Raises: UserError for an unknown system."""
  found, whole = dict(run_settings(system)), systems.get(system)
  found |= {stage.section: stage.settings for stage in whole.stages if stage.section == 'data'}
  found |= {name: role.settings for name, role in whole.roles.items()}
  found |= {stage.section: stage.settings for stage in whole.stages if stage.settings}
  return found


def sections_of(config: ConfigDict) -> Section:
  """All keys of the system that a config names.

  Raises: UserError for an unknown system, or one whose sections the config does not have.
  """
  system = config.get('system', systems.DEFAULT)
  known, has = sections(system), set(config.keys())
  others = [name for name in systems.every() if has == sections(name).keys() != known.keys()]
  if others:
    raise UserError(
      f'config.system={system!r}: the config has the sections of {others[0]!r}; in its file, start '
      f'from disranker_jax.config.defaults(system={system!r})'
    )
  return known


def defaults(system: str = 'disranker') -> ConfigDict:
  """The settings that a config file of a system starts from.

  They are the system's paper's where it gives them (T, beta, lengths), else the field's usual ones.
  """
  return settings.build(sections(system)).lock()


def check(config: ConfigDict) -> None:
  """Tests every value, and the relations between values that each listed stage declares.

  Raises: UserError naming the key, its value and the allowed values.
  """
  from disranker_jax.training import logs

  check_values(config)
  logs.check_wandb(config.wandb_project)
  systems.check_required(config)
  for stage in systems.listed(config):
    for role in stage.models:
      check_lengths(config, role)
    stage.check(config)


def check_values(config: ConfigDict) -> None:
  """Tests every value by itself.

  Raises: UserError naming the key, its value and the allowed values.
  """
  flat, known = flatten(config), settings.flatten(sections_of(config))
  if extra := [path for path in flat if path not in known]:
    raise UserError(f'config.{extra[0]}: {no_such_key(extra[0], known)}')
  if missing := [path for path in known if path not in flat]:
    start = f'disranker_jax.config.defaults(system={config.get("system", systems.DEFAULT)!r})'
    raise UserError(f'config.{missing[0]}: is missing; start from {start}')
  for path, key in known.items():
    settings.check_value(path, key, flat[path])


def check_lengths(config: ConfigDict, role: str) -> None:
  """Raises: UserError if a model's rows cannot hold its longest text."""
  model = config[role]
  if model.row_len < model.max_len:
    raise UserError(
      f'config.{role}.row_len={model.row_len}: must be at least config.{role}.max_len='
      f'{model.max_len}'
    )


def no_such_key(path: str, known) -> str:
  """Why a key is unknown, with the nearest key."""
  near = difflib.get_close_matches(path, known, 1)
  return 'there is no such key' + (f'; did you mean {near[0]!r}?' if near else '')


def explain(config: ConfigDict, section: str = '') -> str:
  """Every key with value, default and comment; `section` limits it to one, such as 'distill'.

  Raises: UserError for a section that does not exist.
  """
  known = sections_of(config)
  lines = list(settings.explain(known, flatten(config), section))
  if not lines:
    raise UserError(f'--explain {section}: there is no such section; choose of {", ".join(known)}')
  return '\n'.join(lines)


def trec_folder(folder: str, source: str) -> str:
  """'trec:FOLDER', for a config file whose collection is not part of the repository.

  Raises: UserError that names the source if the folder does not exist.
  """
  if not Path(folder).is_dir():
    raise UserError(
      f'{folder}: does not exist; fetch {source} and write queries.tsv, docs.jsonl, qrels.txt and '
      'bm25.run there (docs/data.md describes them)'
    )
  return f'trec:{folder}'


def cluster(config: ConfigDict) -> str:
  """The regular expression by which intervals and tests draw queries together; '' for none."""
  return config.report.cluster or config.data.holdout_by


def split_lists(config: ConfigDict) -> None:
  """Splits lists of words: `--config.stages=prepare,cpt` arrives as one word with a comma."""
  for path, key in settings.flatten(sections_of(config)).items():
    if isinstance(key.default, tuple) and path != 'data.teachers':  # addresses may have commas
      *names, last = path.split('.')
      section = config
      for name in names:
        section = section[name]
      if all(isinstance(value, str) for value in section[last]):
        section[last] = tuple(part for word in section[last] for part in word.split(','))


@functools.cache
def mappings() -> frozenset[str]:
  """The dotted keys whose value is a dict of names, in any system."""
  every = [settings.flatten(sections(system)) for system in systems.every()]
  return frozenset(k for known in every for k, key in known.items() if key.default == {})


def flatten(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
  """{'sft.epochs': 1.0, ...}: the tree by dotted keys, in order; tuples become lists.

  The value of a key that is a dict of names (`mappings`) stays a dict.
  """
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict) and prefix + key in mappings():
      flat[prefix + key] = value.to_dict()
    elif isinstance(value, ConfigDict):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple | list) else value
  return flat


def save(config: ConfigDict, file: Path) -> None:
  """Writes the config with every default filled in, as JSON."""
  file.write_text(json.dumps(json.loads(config.to_json_best_effort()), indent=2) + '\n')


def differing(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
  """`key: was x, is now y` for every dotted key in which two flat configs differ."""
  shown = lambda flat, key: repr(flat[key]) if key in flat else 'not set'  # noqa: E731
  for key in sorted(a.keys() | b.keys()):
    if a.get(key) != b.get(key):
      yield f'{key}: was {shown(a, key)}, is now {shown(b, key)}'
