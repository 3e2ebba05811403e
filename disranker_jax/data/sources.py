"""Turns an address in the config into records: which scheme reads what.

A scheme is one function here and one line in SCHEMES.
"""

import pathlib
from collections.abc import Callable, Iterator

from disranker_jax.data import lines, python_docs, records, trec
from disranker_jax.data.records import BadRows, Click, Document, Group
from disranker_jax.errors import UserError

KINDS = ('clicks', 'judgements', 'candidates', 'test')

# What follows the colon, the kind, the depth, and what happens to bad rows.
Scheme = Callable[[str, str, int, BadRows], Iterator[Click | Group]]


def read(
  address: str, kind: str, *, depth: int = 20, bad_rows: BadRows | None = None
) -> Iterator[Click | Group]:
  """The records of a kind at an address such as `python_docs:` or `jsonl:logs/*.jsonl.gz`.

  Clicks come one by one, all else as groups. `depth` is how many documents a query gets from a
  first stage (a run, or the built-in BM25); JSONL rows are the user's own choice and all kept.
  Raises: UserError for an address nobody knows, and while reading for files and rows that are bad.
  """
  if kind not in KINDS:
    raise ValueError(f'no records of kind {kind!r}, only {", ".join(KINDS)}')
  if depth < 1:
    raise UserError(f'depth: is {depth}; give each query at least 1 document')
  scheme, colon, rest = str(address).partition(':')
  if not colon or scheme not in SCHEMES:
    examples = ', '.join(example for _, example in SCHEMES.values())
    raise UserError(f'{address!r}: is no address of {kind}; write one like {examples}')
  make, _ = SCHEMES[scheme]
  return make(rest, kind, depth, BadRows() if bad_rows is None else bad_rows)


def documents(path: str | pathlib.Path) -> list[Document]:
  """The documents of a JSON-lines file of doc_id, title, summary, in its order; each id once."""
  bad_rows, docs = BadRows(), {}

  def parse(line: bytes) -> Document:
    doc = records.document(lines.from_json(line))
    if doc.doc_id in docs:
      raise records.BadRow('doc_id', f'{doc.doc_id!r} is there twice', 'give each its own')
    return doc

  for file in lines.matching(str(path)):
    for number, line in lines.read(file):
      doc = bad_rows.parse(file, number, line, parse)
      docs[doc.doc_id] = doc
  return list(docs.values())


def _python_docs(rest: str, kind: str, depth: int, bad_rows: BadRows) -> Iterator[Click | Group]:
  path, options = _options('python_docs', rest, ('packages',))
  if path:
    raise UserError(f'python_docs:{rest}: takes no path; write python_docs:?packages=numpy,jax')
  packages = tuple(filter(None, options.get('packages', '').split(',')))
  if kind == 'clicks':
    return python_docs.clicks(packages)
  return python_docs.groups(kind, depth, packages)


def _jsonl(rest: str, kind: str, depth: int, bad_rows: BadRows) -> Iterator[Click | Group]:
  # No options: a question mark is part of a glob pattern.
  if not rest:
    raise UserError('jsonl: names no file; write jsonl:PATH, such as jsonl:data/*.jsonl.gz')
  check = records.ROW_PARSERS[kind]
  rows = (
    (path, number, line, lambda line: check(lines.from_json(line)))
    for path in lines.matching(rest)
    for number, line in lines.read(path)
  )
  if kind == 'clicks':
    parsed = (bad_rows.parse(*row) for row in rows)
    return (click for click in parsed if click is not None)
  return _late(lambda: records.grouped(rows, bad_rows))


def _trec(rest: str, kind: str, depth: int, bad_rows: BadRows) -> Iterator[Click | Group]:
  path, options = _options('trec', rest, trec.OPTIONS)
  if not path:
    raise UserError('trec: names no folder; write trec:DIR, such as trec:data/nfcorpus')
  return trec.read(pathlib.Path(path).expanduser(), kind, options, depth, bad_rows)


SCHEMES: dict[str, tuple[Scheme, str]] = {
  'python_docs': (_python_docs, 'python_docs:'),
  'jsonl': (_jsonl, 'jsonl:data/*.jsonl.gz'),
  'trec': (_trec, 'trec:data/nfcorpus?qrels=qrels.txt&pool=run'),
}


def _late(make: Callable[[], list[Group]]) -> Iterator[Group]:
  """Files are read when the first record is asked for, whatever the scheme."""
  yield from make()


def _options(scheme: str, rest: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
  """Splits `PATH?name=value&name=value`."""
  path, _, query = rest.partition('?')
  options: dict[str, str] = {}
  for part in filter(None, query.split('&')):
    name, equals, value = part.partition('=')
    if name not in known or not equals or not value:
      raise UserError(
        f'{scheme}:{rest}: cannot use the option {part!r}; '
        f'write name=value with one of {", ".join(known)}'
      )
    if name in options:
      raise UserError(f'{scheme}:{rest}: has the option {name} twice; keep one')
    options[name] = value
  return path, options
