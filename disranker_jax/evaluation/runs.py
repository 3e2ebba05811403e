"""Reads and writes TREC runs, qrels and tables of metrics per query, plain or gzip.

A line of a run is `query_id Q0 doc_id rank score tag`, a line of qrels `query_id 0 doc_id grade`.
Ids with spaces, as prepared records may have them, survive in runs that `write_run` wrote.
"""

import contextlib
import csv
import gzip
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from disranker_jax import escaping
from disranker_jax.data import lines
from disranker_jax.data.records import LARGEST_LABEL, NEGATIVE, REPEATED, BadRow, BadRows
from disranker_jax.data.trec_lines import QRELS, RUN, columns, number
from disranker_jax.evaluation import metrics


def read_run(file: Path, bad_rows: BadRows | None = None) -> dict[str, dict[str, float]]:
  """{query_id: {doc_id: score}} of a run; ranks are ignored, as in trec_eval.

  Rows that repeat an earlier one are noted in `bad_rows`. Raises: UserError with FILE:LINE if a row
  is malformed or a document has two scores.
  """
  return _table(
    file, RUN, lambda columns: number(float, 'score', columns[4]), bad_rows or BadRows()
  )


def read_qrels(file: Path, bad_rows: BadRows | None = None) -> dict[str, dict[str, int]]:
  """{query_id: {doc_id: grade}} of qrels; a negative grade is 0 and noted in `bad_rows`.

  Raises: as `read_run`.
  """
  bad_rows = bad_rows or BadRows()

  def grade(columns: list[str]) -> int:
    value = number(int, 'grade', columns[3])
    if abs(value) > LARGEST_LABEL:
      raise BadRow('grade', f'is {value}', f'write at most {LARGEST_LABEL}; 0 to 4 is usual')
    if value < 0:
      bad_rows.note(NEGATIVE)
    return max(value, 0)

  return _table(file, QRELS, grade, bad_rows)


def write_run(
  file: Path, run: metrics.Run | Iterable[tuple[str, Mapping[str, float]]], tag: str
) -> None:
  """Writes a run, the best document of a query first; gzip if the name ends in .gz.

  Equal scores give equal files: a gzip file holds neither its name nor the time.
  """
  with contextlib.ExitStack() as stack:
    out = stack.enter_context(file.open('wb'))
    if file.suffix == '.gz':
      out = stack.enter_context(gzip.GzipFile('', 'wb', fileobj=out, mtime=0))
    for query, scores in run.items() if isinstance(run, Mapping) else run:
      out.write(lines_of(query, scores, tag))


def lines_of(query: str, scores: Mapping[str, float], tag: str) -> bytes:
  """The lines of a query in a run, the best document first."""
  return b''.join(
    f'{query} Q0 {doc} {rank} {scores[doc]:.9g} {tag}\n'.encode()
    for rank, doc in enumerate(metrics.ranked(scores), 1)
  )


def read_per_query(file: Path) -> dict[str, dict[str, dict[str, float]]]:
  """{model: {query_id: {metric: value}}} of the per_query.csv of a run."""
  rows: dict[str, dict[str, dict[str, float]]] = {}
  with file.open(newline='', encoding='utf-8') as f:
    for row in csv.DictReader(f):
      query, model = escaping.of_cell(row.pop('query_id')), row.pop('model')
      rows.setdefault(model, {})[query] = {k: float(v) for k, v in row.items() if v}
  return rows


def _table(
  file: Path, layout: str, value: Callable[[list[str]], Any], bad_rows: BadRows
) -> dict[str, dict[str, Any]]:
  table: dict[str, dict[str, Any]] = {}

  def add(raw: bytes) -> None:
    row = columns(raw, layout)
    query, doc = row[0], row[2]
    docs, new = table.setdefault(query, {}), value(row)
    if doc not in docs:
      docs[doc] = new
    elif docs[doc] == new:
      bad_rows.note(REPEATED)
    else:
      what = f'{doc!r} appears twice for query_id {query!r}'
      raise BadRow('doc_id', what, 'keep one of the rows')

  for line, raw in lines.read(file):
    bad_rows.parse(file, line, raw, add)
  return table
