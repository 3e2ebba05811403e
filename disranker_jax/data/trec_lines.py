"""The columns of a line of a TREC run, of qrels and of files like them."""

import math
import re
from collections.abc import Callable
from typing import Any

from disranker_jax.data import lines
from disranker_jax.data.records import BadRow
from disranker_jax.progress import amount

RUN = 'query_id Q0 doc_id rank score tag'
QRELS = 'query_id 0 doc_id grade'
WITH_SPACES = re.compile(rb'(.*) (Q0) (.*) (\d+) (\S+) (\S+)')  # a row of a run


def columns(raw: bytes, layout: str) -> list[str]:
  """The columns of a line, as many as the layout has. Raises: BadRow."""
  lines.text(raw)
  # Bytes are split at ASCII white space only: text would also be split at a no-break space.
  parts = raw.split()
  count = len(layout.split())
  if len(parts) > count and layout == RUN and (row := WITH_SPACES.fullmatch(raw)):
    parts = list(row.groups())
  if len(parts) != count:
    raise BadRow('row', f'has {amount(len(parts), "column")}, not {count}', f'write {layout}')
  return [part.decode() for part in parts]


def number(make: Callable[[str], Any], field: str, column: str) -> Any:
  """A column as a finite number; `make` is int or float. Raises: BadRow."""
  try:
    if '_' in column:  # Python reads 1_0 as ten.
      raise ValueError
    value = make(column)
  except ValueError:
    name = 'an integer' if make is int else 'a number'
    raise BadRow(field, f'is {column[:40]!r}, not {name}', f'write {name}') from None
  if make is float and not math.isfinite(value):
    raise BadRow(field, f'is {value}', 'write a finite number')
  return value
