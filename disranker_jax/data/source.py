"""The protocol of a data source: everything that the other code needs to know of an address.

Other code never asks which scheme an address has; it asks the source. `sources.py` lists them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from disranker_jax.data import contents, lines
from disranker_jax.data.records import BadRows, Click, Document, Group
from disranker_jax.data.row_formats import Score
from disranker_jax.errors import UserError

# Kinds that are read beside records.KINDS. SCORES are other teachers' scores of pairs, without
# texts. POOLED are judgements together with the documents of the first stage, to draw negatives
# from. DOCUMENTS are documents alone, see `Source.documents`.
SCORES, POOLED, DOCUMENTS = 'scores', 'pooled', 'documents'
DEPTH = 20  # documents that a query gets from a run or from BM25, if the caller names no number


@dataclasses.dataclass(frozen=True)
class Want:
  """What the caller wants from a source; see `sources.read`."""

  kind: str
  depth: int
  bad_rows: BadRows
  scratch: Path | None = None  # a folder for data that does not fit into memory
  keep: Callable[[Group], bool] | None = None
  limit: int = 0


class Text(NamedTuple):
  """The text of a document; `query_id` is '' if it is the same for all queries."""

  query_id: str
  doc_id: str
  title: str
  summary: str

  @classmethod
  def of(cls, doc: Document, query_id: str = '') -> 'Text':
    return cls(query_id, doc.doc_id, doc.title, doc.summary)


class Source:
  """What an address SCHEME:REST names. Subclasses set what differs from these defaults.

  Every source streams its records, and sorts and joins through files, so memory does not grow with
  the data. To open one reads nothing: a wrong option or a missing file is an error (UserError) of
  the methods that need it.

    scheme          the word before the colon
    example         an address
    default_depth   the documents that a query gets if the caller names no number; 0: all of them
    built_in        what its data are, if they come with the program; '': they are the user's
    ranked_by_bm25  whether the ranks of its records are BM25's, as far as the address tells
  """

  scheme: ClassVar[str]
  example: ClassVar[str]
  default_depth: ClassVar[int] = DEPTH
  built_in: ClassVar[str] = ''
  ranked_by_bm25 = False

  def __init__(self, address: str):
    self.address = address
    self.rest = address.partition(':')[2]

  def read(self, want: Want) -> Iterator[Click | Group | Score]:
    """The records of a kind, see `sources.read`."""
    raise NotImplementedError

  def documents(self, bad_rows: BadRows) -> Iterator[tuple[Any, int, Document]]:
    """(file, number, document) of every document, without label, rank and score."""
    raise NotImplementedError

  def texts(self, scratch: Path) -> Iterator[tuple[str, str] | Text]:
    """(query_id, query) of every query and the Text of every document, in any order.

    A collection has one text per document. In rows of files a document may have another text for
    each query, such as a snippet.
    """
    raise NotImplementedError

  def fingerprint(self) -> list:
    """A value that changes when the source does: names and contents of its files.

    Raises: UserError for a pipe, whose data cannot be compared with that of an earlier call.
    """
    raise NotImplementedError

  def check(self, kind: str) -> None:
    """Looks for the files that a kind of records, or DOCUMENTS, needs; reads none of them.

    Raises: UserError, as reading says it, if one is missing or empty.
    """

  def prepared(self, kind: str) -> Path | None:
    """The folder of prepared data of this kind that an address stands for, all of it; or None."""
    return None

  def excluded(self) -> dict[str, frozenset[str]]:
    """{query_id: ids of the documents that are taken out of its ranking}, of queries with any."""
    return {}

  def topics(self) -> dict[str, str]:
    """{doc_id: the words that it shares with similar documents}; {}: those of its title."""
    return {}

  def options(self, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Splits `PATH?name=value&name=value`. Raises: UserError for other names than the known."""
    path, _, query = self.rest.partition('?')
    options: dict[str, str] = {}
    for part in filter(None, query.split('&')):
      name, equals, value = part.partition('=')
      if name not in known or not equals or not value:
        raise UserError(
          f'{self.address}: cannot use the option {part!r}; '
          f'write name=value with one of {", ".join(known)}'
        )
      if name in options:
        raise UserError(f'{self.address}: has the option {name} twice; keep one')
      options[name] = value
    return path, options

  def no_scores(self) -> UserError:
    """The error of a source without SCORES."""
    return UserError(f"{self.address}: has no teacher's scores; give another address")

  def of_files(self, files: Iterable[Path]) -> list:
    """The fingerprint of an address that is read from files; folders and missing ones add none."""
    files = list(files)
    if pipes := [file for file in files if lines.is_pipe(file)]:
      what = 'is a pipe, so a later call cannot see whether its data changed'
      raise UserError(f'{pipes[0]}: {what}; write it to a file')
    found = [[str(file), contents.digest(file)] for file in files if file.is_file()]
    return [self.address, *found]
