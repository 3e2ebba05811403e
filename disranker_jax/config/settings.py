"""How settings are declared: each key with its default, the values it allows, and a comment.

A section is a dict of keys and further sections. `build` makes the ConfigDict of one, `check` tests
a config against it, and `explain` prints it. A key cannot be declared without a check.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Union

from ml_collections import ConfigDict

from disranker_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Check:
  """Which values a key allows: a test, and its description for errors and `--explain`.

  The test may raise a UserError to describe more exactly what is wrong with a value.
  """

  allowed: str
  accepts: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Key:
  """One setting. Its type is that of the default; an integer is also a valid float.

  With the default {} the value is a dict that a config fills with names of its own.

  affects_results  False for settings that change how a stage runs but not what it computes; a
                   stage does not become stale when they change
  """

  default: Any
  check: Check
  comment: str
  affects_results: bool = True


Section = Mapping[str, Union[Key, 'Section']]


# Checks


def at_least(low: float) -> Check:
  """A finite number from `low` on."""
  return Check(f'{low:g} or more', lambda x: low <= x < math.inf)


def zero_or_at_least(low: float, usual: float) -> Check:
  """A finite number from `low` on, or 0, which turns something off."""
  allowed = f'0 (off) or at least {low:g}; {usual:g} is usual'
  return Check(allowed, lambda x: x == 0 or low <= x < math.inf)


def above(low: float) -> Check:
  return Check(f'a number above {low:g}', lambda x: low < x < math.inf)


def between(low: float, high: float) -> Check:
  return Check(f'from {low:g} to {high:g}', lambda x: low <= x <= high)


def share(*, below_one: bool = False) -> Check:
  """A part of a whole."""
  if below_one:
    return Check('from 0 to below 1', lambda x: 0 <= x < 1)
  return between(0, 1)


def finite() -> Check:
  return Check('a finite number', math.isfinite)


def one_of(*words: str) -> Check:
  return Check(', '.join(map(repr, words)), lambda x: x in words)


def boolean() -> Check:
  return Check('True or False', lambda x: isinstance(x, bool))


def text(what: str, *, empty: bool = True) -> Check:
  """Any string, on one line."""
  return Check(what, lambda x: '\n' not in x and (empty or x.strip() != ''))


def matches(pattern: str, what: str) -> Check:
  """A string of a fixed form."""
  return Check(what, lambda x: re.fullmatch(pattern, x) is not None)


def regex(*, empty: bool = False) -> Check:
  """A regular expression that compiles."""

  def accepts(value: str) -> bool:
    try:
      re.compile(value)
    except re.error:
      return False
    return (empty or bool(value)) and '\n' not in value

  return Check('a regular expression' + (" or ''" if empty else ''), accepts)


def template() -> Check:
  """A decoder's prompt: the three fields of a pair, each exactly once."""
  from disranker_jax.data.prompts import template_fields

  def accepts(value: str) -> bool:
    return sorted(template_fields(value)) == ['query', 'summary', 'title']

  return Check('a text with {query}, {title} and {summary}, each exactly once', accepts)


def writing_template() -> Check:
  """A prompt whose query comes first; what stands for the title is written."""
  from disranker_jax.data.prompts import template_fields

  def accepts(value: str) -> bool:
    return template_fields(value) in (['query', 'title'], ['query', 'title', 'summary'])

  return Check('a text with {query}, then {title}, then {summary} or nothing', accepts)


def list_of(check: Check, *, like: Any = '', distinct: bool = False) -> Check:
  """A tuple or list whose elements have the type of `like` and pass a check."""

  def accepts(values) -> bool:
    right = all(has_type(value, like) and check.accepts(value) for value in values)
    return right and (not distinct or len(set(values)) == len(values))

  return Check(f'a list of {"different " if distinct else ""}values: {check.allowed}', accepts)


def mapping_of(name: str, check: Check) -> Check:
  """A dict of texts whose names match the pattern `name` and whose values pass a check."""

  def accepts(values) -> bool:
    right = all(isinstance(key, str) and re.fullmatch(name, key) for key in values)
    return right and all(isinstance(v, str) and check.accepts(v) for v in values.values())

  return Check(f'names ({name}) with {check.allowed} each', accepts)


def integers(low: int) -> Check:
  """A list of integers from `low` on."""
  return list_of(Check(f'integers, {low} or more', lambda x: x >= low), like=0)


# Sections


def build(section: Section, **changes) -> ConfigDict:
  """The ConfigDict of a section's defaults, with some changes; not locked."""
  config = ConfigDict()
  for name, entry in section.items():
    config[name] = entry.default if isinstance(entry, Key) else build(entry)
  config.update(changes)
  return config


def with_defaults(section: Section, **defaults) -> Section:
  """A section whose keys have other defaults."""
  changed = {name: dataclasses.replace(section[name], default=v) for name, v in defaults.items()}
  return {**section, **changed}


def flatten(section: Section, prefix: str = '') -> dict[str, Key]:
  """{'sft.epochs': Key, ...} in order."""
  flat: dict[str, Key] = {}
  for name, entry in section.items():
    path = f'{prefix}{name}'
    flat |= {path: entry} if isinstance(entry, Key) else flatten(entry, f'{path}.')
  return flat


def check_value(path: str, key: Key, value: Any) -> None:
  """Raises: UserError if the value has the wrong type or is not allowed."""
  try:
    accepted = has_type(value, key.default) and key.check.accepts(value)
  except UserError as error:
    raise UserError(f'config.{path}: {error}') from None
  if not accepted:
    if isinstance(value, list | tuple) and isinstance(key.default, list | tuple):
      raise UserError(f'config.{path}={list(value)!r}: must be {key.check.allowed}')
    raise UserError(f'config.{path}={value!r}: must be {key.check.allowed}')


def has_type(value: Any, default: Any) -> bool:
  if isinstance(default, bool) or isinstance(value, bool):
    return isinstance(default, bool) and isinstance(value, bool)
  if isinstance(default, float):
    return isinstance(value, int | float)
  if isinstance(default, list | tuple):
    return isinstance(value, list | tuple)
  if isinstance(default, Mapping):
    return isinstance(value, Mapping)
  return isinstance(value, type(default))


def explain(section: Section, values: Mapping[str, Any], only: str = '') -> Iterator[str]:
  """Lines for each key: value, default where it differs, comment and allowed values.

  values  by dotted key
  only    a section's name, or '' for all
  """
  for path, key in flatten(section).items():
    if only and only != path and not path.startswith(f'{only}.'):
      continue
    value = values[path]
    default = list(key.default) if isinstance(key.default, tuple) else key.default
    changed = '' if value == default else f'  (default {default!r})'
    yield f'{path} = {value!r}{changed}'
    yield f'    {key.comment}'
    yield f'    Allowed: {key.check.allowed}.'
