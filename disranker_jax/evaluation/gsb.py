"""Delta-GSB: for how many queries is the new ranking better than the base one, side by side?

    delta-GSB = (good - bad) / (good + same + bad)        (paper, appendix A.2)

Verdicts are {query_id: [1 good | 0 same | -1 bad, ...]} on the new ranking: one per query if they
come from judgements, one per person if people gave them. A file of human verdicts has `query_id`
and `verdict` (good, same or bad) as CSV columns or JSON fields; other fields are ignored.
"""

import csv
import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from disranker_jax.data import lines
from disranker_jax.data.records import BadRow, BadRows
from disranker_jax.errors import UserError
from disranker_jax.evaluation import significance

Verdicts = Mapping[str, Sequence[int]]
Numbered = Iterable[tuple[int, bytes]]  # lines with their numbers

WORDS = {'good': 1, 'same': 0, 'bad': -1, 'g': 1, 's': 0, 'b': -1}
ROUNDING = 1e-12


class Counts(NamedTuple):
  good: int
  same: int
  bad: int

  @property
  def delta(self) -> float:
    """From -1 to 1; nan without verdicts."""
    return (self.good - self.bad) / sum(self) if sum(self) else float('nan')


def verdict(difference: float, same: float) -> int:
  """1 good, 0 same (at most `same` apart) or -1 bad."""
  if abs(difference) <= same + ROUNDING:
    return 0
  return 1 if difference > 0 else -1


def count(verdicts: Verdicts) -> Counts:
  every = [v for of_query in verdicts.values() for v in of_query]
  return Counts(every.count(1), every.count(0), every.count(-1))


def sums(verdicts: Verdicts) -> np.ndarray:
  """Sums_Q2 of delta-GSB: (good - bad, verdicts) by query."""
  return np.array([(sum(v), len(v)) for v in verdicts.values()], np.float64).reshape(-1, 2)


def analyse(
  verdicts: Verdicts,
  samples: int = significance.SAMPLES,
  seed: int = 0,
  level: float = significance.LEVEL,
  clusters_Q: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
  """good, same, bad, delta, low, high (bootstrap over queries) and p (randomisation).

  The verdicts of a query are drawn together, since people who see the same two lists tend to agree;
  so are those of one cluster; by default every query is one. With one verdict per query, p is that
  of the two-sided sign test.
  """
  counts = count(verdicts)
  if not sum(counts):
    raise UserError('delta-GSB: there are no verdicts; give at least one')
  of_Q = list(verdicts) if clusters_Q is None else clusters_Q
  sums_C12 = significance.clustered(sums(verdicts)[:, None], of_Q)
  low, high = significance.interval(significance.bootstrap(sums_C12, samples, seed)[:, 0], level)
  # Swapping the sides of a query reverses its verdicts.
  reversed_C12 = sums_C12 * [-1, 1]
  p = significance.randomisation_p(sums_C12, reversed_C12, samples, seed)
  return {
    **counts._asdict(),
    'queries': len(verdicts),
    'clusters': len(set(of_Q)),
    'delta': counts.delta,
    'low': low,
    'high': high,
    'p': float(p[0]),
  }


def read(file: Path) -> dict[str, list[int]]:
  """Verdicts of a JSONL, CSV or TSV file, plain or gzip. Raises: UserError with FILE:LINE."""
  bad_rows, verdicts = BadRows(), {}
  numbered = lines.read(file)
  first = next(numbered)
  rows = _json_rows if first[1].lstrip().startswith(b'{') else _csv_rows
  for number, row in rows(file, itertools.chain([first], numbered), bad_rows):
    query, value = bad_rows.parse(file, number, row, _verdict)
    verdicts.setdefault(query, []).append(value)
  if not verdicts:
    raise UserError(f'{file}: has a header and no verdicts; add rows')
  return verdicts


def _verdict(row: Any) -> tuple[str, int]:
  if not isinstance(row, dict):
    raise BadRow('row', 'is not an object', 'write {"query_id": ..., "verdict": ...}')
  query, word = (row.get(field) for field in ('query_id', 'verdict'))
  if not isinstance(query, str) or not query.strip():
    raise BadRow('query_id', 'is missing or not text', 'fill it in')
  if not isinstance(word, str) or word.strip().lower() not in WORDS:
    what = f'is {word!r}' if word else 'is missing'
    raise BadRow('verdict', what, 'write good, same or bad for the new ranking')
  return query.strip(), WORDS[word.strip().lower()]


def _json_rows(file: Path, numbered: Numbered, bad_rows: BadRows) -> Iterator[tuple[int, Any]]:
  for number, raw in numbered:
    yield number, bad_rows.parse(file, number, raw, lines.from_json)


def _csv_rows(file: Path, numbered: Numbered, bad_rows: BadRows) -> Iterator[tuple[int, Any]]:
  """Rows by header; the delimiter (comma, semicolon, tab) is the header's most frequent one."""
  at = 0

  def texts() -> Iterator[str]:
    nonlocal at
    for number, raw in numbered:
      at = number
      yield bad_rows.parse(file, number, raw, lines.text) + '\n'

  rows = texts()
  header = next(rows)
  reader = csv.DictReader(
    itertools.chain([header], rows), delimiter=max(',;\t', key=header.count), strict=True
  )
  missing = [name for name in ('query_id', 'verdict') if name not in (reader.fieldnames or [])]
  if missing:
    raise UserError(f'{file}:{at}: has no column {missing[0]}; name the columns query_id, verdict')
  try:
    for row in reader:
      yield at, row
  except csv.Error as error:
    raise UserError(f'{file}:{at}: is not CSV ({error}); check the quotes') from None
