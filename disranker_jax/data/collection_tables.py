"""The rows of a collection's tables, and which tables a kind of records is read from."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from disranker_jax.data.records import UNJUDGED
from disranker_jax.data.source import DOCUMENTS, SCORES
from disranker_jax.errors import UserError

CHOICES = ('only', 'exclude', 'without')
# The options whose values are words, with these words.
WORDS = {'pool': ('run', 'judged'), 'own': ('exclude',)}
NO_FILES = (*WORDS, 'field')  # options that never name a file
# The tables that a kind of records is read from, beside those of options and the first stage.
TABLES = {
  'clicks': ('clicks',),
  DOCUMENTS: ('docs',),
  SCORES: (),
  'candidates': ('queries', 'docs'),
}
# The options of CHOICES that it reads. Clicks have no pairs to take out.
CHOICES_OF = {'clicks': ('only', 'exclude'), DOCUMENTS: (), SCORES: ()}


class Line(NamedTuple):
  """A row of qrels or of a run, with its place for errors that are found later."""

  file: str
  number: int
  raw: Any
  query_id: str
  doc_id: str
  label: int = UNJUDGED
  rank: int = 0  # 0: the file has no ranks; then it may score a document more than once
  score: float = math.nan


LABEL = Line._fields.index('label')  # the first of the fields that say something about the pair


class Query(NamedTuple):
  """A row of the queries."""

  file: str
  number: int
  raw: Any
  query_id: str
  text: str


def check_words(name: str, options: Mapping[str, str]) -> None:
  """Raises: UserError if an option of a collection is none of its words."""
  for option, words in WORDS.items():
    if (value := options.get(option, words[0])) not in words:
      raise UserError(f'{name}: unknown {option} {value!r}; choose one of {", ".join(words)}')


def tables_of(kind: str, options: Mapping[str, str]) -> tuple[str, ...]:
  """The tables that a kind of records needs, by their names in `TABLES`."""
  tables = TABLES.get(kind, ('queries', 'docs', 'qrels'))
  # A choice names queries by their ids. Clicks have none, and are compared by the texts.
  more = ('queries',) if choices_of(kind, options) else ()
  return tuple(dict.fromkeys([*tables, *more]))


def choices_of(kind: str, options: Mapping[str, str]) -> list[str]:
  """The qrels that the options of CHOICES name and that a kind of records is read with."""
  names = (options.get(name, '').split(',') for name in CHOICES_OF.get(kind, CHOICES))
  return list(filter(None, itertools.chain.from_iterable(names)))


def reads_run(kind: str) -> bool:
  """Whether the first stage is looked at for a kind of records, if there is one."""
  return kind not in ('clicks', DOCUMENTS)
