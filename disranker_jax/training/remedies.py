"""What takes less memory: the changes of settings that are left, the smallest loss of speed first.

Messages before and in a run and `disranker plan` are made of them, so none advises what is set.
"""

import dataclasses
import math
import re
import shlex
from collections.abc import Iterable, Mapping

from disranker_jax.devices import sharding
from disranker_jax.models import tree
from disranker_jax.training.settings import ADAPTERS

# What a change lessens. COPIES: parameters, moments and average where several devices hold the
# same; BATCH: what there is of each text.
COPIES, PARAMETERS, MOMENTS, AVERAGE = 'copies', 'parameters', 'moments', 'average'
ACTIVATIONS, BATCH = 'activations', 'batch'
# What a device holds whatever the batch is.
HELD = {COPIES, PARAMETERS, MOMENTS, AVERAGE}
RANK = 16  # of adapters that are advised
MORE_DEVICES = 'take more devices with a larger config.mesh.fsdp'


@dataclasses.dataclass(frozen=True)
class Remedy:
  """Settings that are changed together.

  changes  {'SECTION.KEY' of the config, or 'KEY' of a model whose section is not known: value}
  lessens  what then takes less memory, such as MOMENTS
  words    what a sentence says instead of 'set ...'
  """

  changes: Mapping[str, object]
  lessens: str
  words: str = ''


def remedies(
  section: str, role: str, settings: Mapping, model: Mapping, paths: Iterable[str], *,
  trains: bool, mesh,
) -> list[Remedy]:  # fmt: skip
  """What makes the step of a stage smaller and is not so yet, the smallest loss of speed first.

  Args:
    section: of the stage.
    role: the section of its model, '' if it is not known.
    settings, model: the settings in these sections; a key that is missing counts as not set.
    paths: of the model's parameters; of a step that does not train, none are needed.
    trains: whether the step trains the model.
    mesh: of the step.
  """
  found = spread(mesh)
  if model.get('attention') == 'xla':
    found.append(Remedy({_key(role, 'attention'): 'auto'}, ACTIVATIONS))
  if trains:
    found += _of_training(section, role, settings, model, paths, mesh)
  else:
    found += in_bf16(role, model.get('param_dtype'))
    parts = sharding.parts(mesh)  # of a batch that does not divide, each device has all rows
    if rows := settings.get('batch_rows', 0) // (2 * parts) * parts:
      found.append(Remedy({f'{section}.batch_rows': rows}, BATCH))
  return found


def _of_training(section, role, settings, model, paths, mesh) -> list[Remedy]:
  found, adam = [], settings.optimizer == 'adamw'
  accumulated, blocks = settings.gradient_accumulation_steps, settings.data_shards
  rows, prompts = settings.get('batch_rows', 0), settings.get('prompts', 0)

  def add(lessens: str, **changes) -> None:
    found.append(Remedy({f'{section}.{key}': value for key, value in changes.items()}, lessens))

  if model.get('remat') != 'full':
    found.append(Remedy({_key(role, 'remat'): 'full'}, ACTIVATIONS))
  if settings.ema:
    add(AVERAGE, ema=0)
  if adam and settings.adam_mu_dtype == 'float32':
    add(MOMENTS, adam_mu_dtype='bfloat16')
  if n := _fewest(rows, math.lcm(sharding.parts(mesh), blocks)):
    add(BATCH, batch_rows=rows // n, gradient_accumulation_steps=n * accumulated)
  if n := _fewest(prompts, accumulated * blocks):
    add(ACTIVATIONS, gradient_accumulation_steps=n * accumulated)
  if adam:
    add(MOMENTS, optimizer='adafactor')
  return found + adapters(section, role, model, paths, settings.trainable)


def _fewest(count: int, unit: int) -> int:
  """The fewest parts, from 2 on, that are equal and multiples of `unit`; 0 if there are none."""
  return next((n for n in range(2, count // unit + 1) if count % (n * unit) == 0), 0)


def spread(mesh) -> list[Remedy]:
  """Parameters that are split over all devices of the mesh, if they are not."""
  if mesh.shape['fsdp'] * mesh.shape['model'] == mesh.size:
    return []
  return [Remedy({'mesh.fsdp': -1, 'mesh.data': 1}, COPIES)]


def in_bf16(role: str, param_dtype: str | None) -> list[Remedy]:
  """Parameters in bf16 for a step that trains none, if they are not."""
  key = _key(role, 'param_dtype')
  return [] if param_dtype == 'bfloat16' else [Remedy({key: 'bfloat16'}, PARAMETERS)]


def adapters(
  section: str, role: str, model: Mapping, paths: Iterable[str], trainable: str
) -> list[Remedy]:
  """Adapters alone beside frozen bf16 parameters, which take the least, as far as it is not so."""
  paths, changes = list(paths), {}
  if any(is_matrix(path) and re.search(trainable, path) for path in paths):
    if not any(path.startswith('lora/') for path in paths):
      changes[_key(role, 'lora_rank')] = RANK
    changes[f'{section}.trainable'] = ADAPTERS
  if not changes:
    return in_bf16(role, model.get('param_dtype'))
  for remedy in in_bf16(role, model.get('param_dtype')):
    changes |= remedy.changes
  words = f'train only adapters, beside bf16 parameters ({_listed(changes)})'
  return [Remedy(changes, PARAMETERS, words)]


def is_matrix(path: str) -> bool:
  """Whether a parameter is a matrix of the layers or an embedding: almost all of a model."""
  return path.endswith(('/kernel', '/embedding')) and not re.search(ADAPTERS, path)


def param_dtype_of(variables) -> str:
  """The `param_dtype` of variables that are not trained: 'float32' if one of their matrices is."""
  matrices = [x for path, x in tree.flatten(variables).items() if is_matrix(path)]
  return 'float32' if any(x.dtype == 'float32' for x in matrices) else 'bfloat16'


def as_flags(found: Iterable[Remedy]) -> list[str]:
  """For each remedy the arguments of a command line, such as '--config.sft.ema=0'."""
  return [
    ' '.join(f'--config.{key}={_shown(value)}' for key, value in remedy.changes.items())
    for remedy in found
  ]


def as_sentence(found: Iterable[Remedy], batch: str = '', last: str = '') -> str:
  """The end of a message: 'lower config.sft.batch_rows, set config.sft.ema=0, or ...'.

  Args:
    batch: what makes the batch smaller, instead of the remedies that do.
    last: what else helps; by default more devices, if parameters are split over all there are.
  """
  found = list(found)
  others = [r for r in found if r.lessens != BATCH or not batch]
  said = [r.words or f'set {_listed(r.changes, " and ")}' for r in others]
  if not last and all(r.lessens != COPIES for r in found):
    last = MORE_DEVICES
  *all_but_one, one = filter(None, [batch, *said, last])
  return ', '.join([*all_but_one, f'or {one}' if all_but_one else one])


def called(role: str, name: str) -> str:
  """A key of a model in a sentence: 'config.ROLE.NAME', "the model's NAME" without a role."""
  return f'config.{role}.{name}' if role else f"the model's {name}"


def _key(role: str, name: str) -> str:
  return f'{role}.{name}' if role else name


def _listed(changes: Mapping[str, object], between: str = ', ') -> str:
  each = {called(*key.rpartition('.')[::2]): value for key, value in changes.items()}
  return between.join(f'{name}={_shown(value)}' for name, value in each.items())


def _shown(value: object) -> str:
  return shlex.quote(str(value))
