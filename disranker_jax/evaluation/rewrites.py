"""What was searched in the place of queries: a file of JSON lines."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SUFFIX = 'rewrites.jsonl'  # of the file of a row of the result table


class Rewrite(NamedTuple):
  """A query, its rewrite ('' if there is none), and the text that is searched for it."""

  query_id: str
  query: str
  rewrite: str
  searched: str


def write(file: Path, rows: Iterable[Rewrite]) -> None:
  """Writes a line for each query; a file that is there is replaced once all lines are written."""
  partial = file.with_name(f'{file.name}.partial')
  with partial.open('w', encoding='utf-8') as out:
    for row in rows:
      out.write(json.dumps(row._asdict()) + '\n')
  os.replace(partial, file)


def read(file: Path) -> dict[str, Rewrite]:
  """{query_id: rewrite} of a file that `write` wrote."""
  with file.open(encoding='utf-8') as lines:
    return {row.query_id: row for row in (Rewrite(**json.loads(line)) for line in lines)}
