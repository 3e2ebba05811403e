"""Opens data addresses such as `jsonl:logs/*.jsonl.gz`: SCHEME, colon, path or name.

A scheme is a subclass of `Source` in a file of its own and one name in SCHEMES.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from disranker_jax.data import records
from disranker_jax.data.bright import Bright
from disranker_jax.data.irds import IrDatasets
from disranker_jax.data.python_docs import PythonDocs
from disranker_jax.data.records import KINDS, BadRows, Click, Document, Group
from disranker_jax.data.row_files import AnyFiles, Jsonl, Parquet
from disranker_jax.data.row_formats import Score
from disranker_jax.data.source import POOLED, SCORES, Source, Want
from disranker_jax.data.tfds_rows import Tfds
from disranker_jax.data.trec import Trec
from disranker_jax.errors import UserError
from disranker_jax.progress import part_of, say

ALL_KINDS = (*KINDS, SCORES, POOLED)
SCHEMES: dict[str, type[Source]] = {
  source.scheme: source for source in (PythonDocs, Jsonl, Parquet, Trec, IrDatasets, Bright, Tfds)
}
EXAMPLES = ', '.join(source.example for source in SCHEMES.values())


def is_address(text: str) -> bool:
  """Whether a text has a scheme, so that `open` takes it."""
  scheme, colon, _ = text.partition(':')
  return bool(colon) and scheme in SCHEMES


def open(address: str, kind: str = 'records') -> Source:
  """The source of an address. Raises: UserError with an example of each scheme."""
  address = str(address)
  if not is_address(address):
    raise UserError(f'{address!r}: is not an address of {kind}; write one like {EXAMPLES}')
  return SCHEMES[address.partition(':')[0]](address)


def read(
  address: str,
  kind: str,
  *,
  depth: int = 0,
  bad_rows: BadRows | None = None,
  scratch: Path | None = None,
  keep: Callable[[Group], bool] | None = None,
  limit: int = 0,
) -> Iterator[Click | Group | Score]:
  """The records of a kind at an address.

  Clicks and teachers' scores come one by one, all other kinds as groups. `depth` is how many
  documents a query gets from its first stage: a run, BM25, or the field `rank` of rows. 0: the
  source's `default_depth`. `scratch` is a folder for large temporary files. `keep` tells which
  queries of rows are cut to `depth` and counted in `bad_rows`, as no others are wanted. `limit` is
  how many records the caller looks at, 0: all. Rows are read up to the first one of another query,
  so that documents of these queries may be missing, and not after so many bad ones.

  Raises: UserError for an unknown address; also while reading, for bad files and rows.
  """
  if kind not in ALL_KINDS:
    raise ValueError(f'no records of kind {kind!r}, only {", ".join(ALL_KINDS)}')
  if depth < 0:
    raise UserError(f'depth: is {depth}; write 0 (the default of the source) or more')
  source = open(address, kind)
  bad_rows = BadRows() if bad_rows is None else bad_rows
  return source.read(Want(kind, depth or source.default_depth, bad_rows, scratch, keep, limit))


def fingerprint(address: str) -> list:
  """A value that changes when the source at an address does, see `Source.fingerprint`."""
  return open(address).fingerprint()


def documents(address: str | Path) -> list[Document]:
  """The documents at an address, or in the files of a path, in order; ids are unique.

  Rows need doc_id and summary, and may have a title; other fields are ignored. Raises: UserError
  that counts the bad rows, also if a document has two texts.
  """
  address, bad_rows = str(address), BadRows.nowhere()
  source = open(address) if is_address(address) else AnyFiles(address)
  found: dict[str, Document] = {}
  repeated = 0
  for file, number, doc in source.documents(bad_rows):
    if records.differing(found.setdefault(doc.doc_id, doc), doc):
      fix = 'give each document its own id'
      bad = records.BadRow('doc_id', f'{doc.doc_id!r} appears twice, with another text', fix)
      bad_rows.reject(file, number, {}, bad)
    repeated += found[doc.doc_id] is not doc
  if bad_rows.quarantined:
    are = part_of(bad_rows.quarantined, bad_rows.rows_in, 'row', 'rows', 'is', 'are')
    raise UserError(
      f'{bad_rows.first}; {are} bad, and documents are not set aside: look at them with disranker '
      'describe --kind documents'
    )
  bad_rows.note(records.REPEATED, repeated)
  if bad_rows.notes:
    say(f'{address}: {", ".join(records.listed(bad_rows.notes))}')
  return list(found.values())
