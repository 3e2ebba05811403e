"""Files of queries that are to be rewritten: JSON lines, ids and queries with tabs, or lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from disranker_jax.data import field_names, lines, records
from disranker_jax.data.records import BadRow
from disranker_jax.errors import UserError


class Asked(NamedTuple):
  """A query of a file; its id is the number of its line if it has none."""

  query_id: str
  query: str


def read(file: Path) -> list[Asked]:
  """The queries of a file, in order.

  By its name (before .gz) it has JSON lines with `query` and, if they have ids, `query_id` (.jsonl
  and .json); an id, a tab and the query in each line (.tsv); or a query in each line (.txt, or no
  suffix). Raises: UserError for another name, and with FILE:LINE for a line that has no query and
  for an id that is there twice.
  """
  named = file.with_suffix('') if file.suffix.lower() == '.gz' else file
  if not (of_line := READERS.get(named.suffix.lower())):
    raise UserError(
      f'{file}: is read as .jsonl, .tsv or .txt by its name, which it does not have; rename or '
      'convert it'
    )
  found: dict[str, tuple[int, Asked]] = {}
  for number, line in lines.read(file):
    try:
      asked = of_line(number, line)
      if not asked.query.strip():
        raise BadRow('query', 'is blank', 'write a query or delete the line')
      if asked.query_id in found:
        first = found[asked.query_id][0]
        raise BadRow('query_id', f'{asked.query_id!r} is in line {first} too', 'rename one of them')
    except BadRow as error:
      raise UserError(f'{file}:{number}: {error}') from None
    found[asked.query_id] = number, asked
  return [asked for _, asked in found.values()]


def plain(number: int, line: bytes) -> Asked:
  return Asked(str(number), lines.text(line).strip())


def tab_separated(number: int, line: bytes) -> Asked:
  query_id, tab, query = lines.text(line).partition('\t')
  if not tab or not query_id.strip():
    raise BadRow('row', 'has no id before a tab', 'write ID, a tab and the query')
  return Asked(query_id.strip(), query.strip())


def of_json(number: int, line: bytes) -> Asked:
  row = lines.from_json(line)
  if not isinstance(row, dict):
    raise BadRow('row', 'is no JSON object', 'write {"query_id": ..., "query": ...}')
  fix = 'write {"query_id": ..., "query": ...}'
  query, query_id = row.get('query'), row.get('query_id', str(number))
  if query is None:
    raise BadRow('query', 'is missing', field_names.fix('query', row, fix))
  return Asked(identifier(query_id), text('query', query, fix))


def identifier(value: Any) -> str:
  """An id as text: JSON of other tools has numbers, too."""
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  found = text('query_id', value, 'write it as a text')
  if not found.strip():
    raise BadRow('query_id', 'is blank', 'write an id, or leave the field out')
  return found


def text(field: str, value: Any, fix: str) -> str:
  if not isinstance(value, str):
    raise BadRow(field, 'is not a text', fix)
  records.check_unicode(field, value)
  return value


READERS: dict[str, Callable[[int, bytes], Asked]] = {
  '.jsonl': of_json, '.json': of_json, '.tsv': tab_separated, '.txt': plain, '': plain,
}  # fmt: skip
