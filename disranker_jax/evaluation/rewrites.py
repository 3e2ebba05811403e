"""What was searched in the place of queries: a file of JSON lines, plain or gzip."""

import contextlib
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from disranker_jax import outputs

SUFFIX = 'rewrites.jsonl'  # of the file of a row of the result table


class Rewrite(NamedTuple):
  """A query, its rewrite ('' if there is none), and the text that is searched for it."""

  query_id: str
  query: str
  rewrite: str
  searched: str


def write(file: Path, rows: Iterable[Rewrite]) -> None:
  """Writes a line for each query; gzip if the name ends in .gz.

  A file that is there, or that a link of this name leads to, is replaced once all lines are
  written. Equal rows give equal files: a gzip file holds neither its name nor the time.
  """
  with contextlib.ExitStack() as stack:
    partial = stack.enter_context(outputs.replacing(file))
    out = stack.enter_context(partial.open('wb'))
    if is_gzip(file):
      out = stack.enter_context(gzip.GzipFile('', 'wb', fileobj=out, mtime=0))
    for row in rows:
      out.write(line(row))


def line(row: Rewrite) -> bytes:
  """The line of a query."""
  return f'{json.dumps(row._asdict())}\n'.encode()


def read(file: Path) -> dict[str, Rewrite]:
  """{query_id: rewrite} of a file that `write` wrote."""
  with gzip.open(file) if is_gzip(file) else file.open('rb') as lines:
    return {row.query_id: row for row in (Rewrite(**json.loads(line)) for line in lines)}


def is_gzip(file: Path) -> bool:
  return file.suffix.lower() == '.gz'
