"""The typed records (clicks, documents, groups), the checks that make them of rows, and bad rows.

A row is a dict as JSONL or Parquet gives it; the rest of the program sees records only. All checks
of a row are here, so every source reports the same mistake in the same words.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from disranker_jax.data import field_names
from disranker_jax.errors import UserError

KINDS = ('clicks', 'judgements', 'candidates', 'test')
UNJUDGED = -1  # the label of a document without a judgement
MAX_INT = 2**31 - 1  # prepared data stores labels, ranks and counts in 32 bits
LARGEST_LABEL = 1000  # 2^y, the gain of nDCG, overflows floating point soon after
ON_BAD_ROW = ('error', 'quarantine')
# What `BadRows.note` counts.
REPEATED = 'repeated rows or documents dropped'
NEGATIVE = 'negative grades read as 0, not relevant'
UNTITLED = 'documents without a "title", which is read as empty'
COUNTED = 'clicks with a "count" above 1, each of which is learned once'


@dataclasses.dataclass(frozen=True, slots=True)
class Click:
  """A query and a result that was clicked: an example of continued pre-training."""

  query: str
  title: str
  summary: str
  count: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
  """One document of a query, with what is known about the pair.

  `rank` is the rank in the first stage (1 = best, 0 = not retrieved or unknown), `score` its score
  there (NaN = unknown). `in_pool=False` marks a judged document that is not re-ranked but counts in
  the ideal ranking of metrics. `teacher` is the score of other teachers (NaN = none).
  """

  doc_id: str
  title: str
  summary: str
  label: int = UNJUDGED
  rank: int = 0
  score: float = math.nan
  in_pool: bool = True
  teacher: float = math.nan


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
  """A query with its documents: judgements, candidates and test sets are all groups."""

  query_id: str
  query: str
  docs: tuple[Document, ...]

  @property
  def grades(self) -> dict[str, int]:
    """{doc_id: label} of the judged documents, as metrics take them."""
    return {doc.doc_id: doc.label for doc in self.docs if doc.label != UNJUDGED}


DOCUMENT_FIELDS = tuple(Document.__dataclass_fields__)


def differing(a: Document, b: Document) -> str:
  """The name of the first field in which two documents differ, '' if they are equal."""
  # As text, because NaN is not equal to itself.
  pairs = (
    ()
    if a is b
    else ((name, repr(getattr(a, name)), repr(getattr(b, name))) for name in DOCUMENT_FIELDS)
  )
  return next((name for name, x, y in pairs if x != y), '')


class BadRow(Exception):
  """A row that cannot be used: which field, what is wrong with it, and what to do."""

  def __init__(self, field: str, what: str, fix: str):
    super().__init__(f'{field}: {what}; {fix}')
    self.field, self.what, self.fix = field, what, fix


class BadRows:
  """Decides what happens to bad rows, and counts all rows.

  `error` raises UserError at the first bad row. `quarantine` writes each to `path` as a JSON line
  {file, line, field, reason, row} and continues; `first` is the first one as `error` says it.
  Always, `rows_in == kept + quarantined`. `notes` counts kept rows whose values were not used
  exactly as they are written, by what was done.
  """

  def __init__(
    self, mode: str = 'error', path: str | pathlib.Path | None = None, *, keep: bool = False
  ):
    if mode not in ON_BAD_ROW:
      raise UserError(f'on_bad_row: unknown mode {mode!r}; choose one of {", ".join(ON_BAD_ROW)}')
    if mode == 'quarantine' and path is None:
      raise UserError('on_bad_row: quarantine needs a file to write bad rows to; give its path')
    self.mode = mode
    self.path = None if path is None else pathlib.Path(path)
    self.rows_in = 0
    self.quarantined = 0
    self.first = ''
    self.notes: collections.Counter[str] = collections.Counter()
    if self.mode == 'quarantine':
      self.path.parent.mkdir(parents=True, exist_ok=True)
      # With the file of an earlier run, the counts and the file would disagree.
      if not keep or not self.path.exists():
        self.path.write_text('')

  @classmethod
  def nowhere(cls) -> 'BadRows':
    """Discards bad rows: for a second pass over rows, when the first pass reports them."""
    return cls('quarantine', os.devnull)

  @property
  def kept(self) -> int:
    """The number of accepted rows so far."""
    return self.rows_in - self.quarantined

  def mark(self) -> dict[str, Any]:
    """The counts and the size of the file, for `rewind` in a later process."""
    size = self.path.stat().st_size if self.mode == 'quarantine' else 0
    counts = {'rows_in': self.rows_in, 'quarantined': self.quarantined}
    return counts | {'bytes': size, 'notes': dict(self.notes)}

  def rewind(self, mark: Mapping[str, Any]) -> None:
    """Discards everything after a mark; needs the file of before (`keep=True`)."""
    self.rows_in, self.quarantined = mark['rows_in'], mark['quarantined']
    self.notes = collections.Counter(mark.get('notes'))
    if self.mode == 'quarantine':
      with self.path.open('r+b') as file:
        file.truncate(mark['bytes'])

  def note(self, what: str, count: int = 1) -> None:
    if count:
      self.notes[what] += count

  def parse(self, file: Any, line: int, raw: Any, make: Callable[[Any], Any]) -> Any:
    """Counts a row and returns `make(raw)`, or None if the row was quarantined.

    Raises: UserError (`FILE:LINE:FIELD: what; what to do`) in mode `error`.
    """
    self.rows_in += 1
    try:
      return make(raw)
    except BadRow as bad:
      self.reject(file, line, raw, bad)
      return None

  def parse_all(self, file: Any, line: int, raw: Any, make: Callable[[Any], list]) -> list:
    """`parse` for a row with several records: each counts as a row."""
    made = self.parse(file, line, raw, make) or []
    self.rows_in += max(len(made) - 1, 0)
    self.note(COUNTED, sum(isinstance(record, Click) and record.count > 1 for record in made))
    return made

  def reject(self, file: Any, line: int, raw: Any, bad: BadRow) -> None:
    """Rejects a row that is already counted, for instance because its document does not exist."""
    self.first = self.first or f'{file}:{line}:{bad}'
    if self.mode == 'error':
      raise UserError(self.first) from None
    self.quarantined += 1
    with self.path.open('a', encoding='utf-8') as out:
      out.write(entry(file, line, raw, bad) + '\n')


def entry(file: Any, line: int, raw: Any, bad: BadRow) -> str:
  """A bad row as a JSON line of the quarantine file."""
  if isinstance(raw, bytes):
    raw = raw.decode('utf-8', 'backslashreplace').rstrip('\r\n')
  value = {'file': str(file), 'line': line, 'field': bad.field, 'reason': str(bad), 'row': raw}
  # ASCII, because a bad row may contain what UTF-8 cannot encode.
  return json.dumps(value, ensure_ascii=True, default=repr)


def has_more(records: Iterator, bad_rows: BadRows) -> bool:
  """Whether there is another record; a bad one, which is not to be taken, is one too.

  `bad_rows` counts nothing of what is read for it.
  """
  mark = bad_rows.mark()
  try:
    return next(records, None) is not None
  except UserError:
    return True
  finally:
    bad_rows.rewind(mark)


def listed(notes: Mapping[str, int]) -> list[str]:
  """`BadRows.notes` as text, such as '1,200 repeated rows or documents dropped'."""
  return [f'{count:,} {what}' for what, count in notes.items()]


def click(row: Any) -> Click:
  """Checks a click row: query, title, summary and an optional count."""
  row = mapping(row)
  query = text(row, 'query', blank=False)
  return Click(query, *_title_summary(row), integer(row, 'count', low=1, default=1))


def document(row: Any, note: Callable[[str], None] = lambda what: None) -> Document:
  """Checks a document row of a collection: doc_id, title, summary.

  Both texts may be empty or null: collections have such documents, and judgements of them. There
  may be no title, if no other field seems to be one.

  Args:
    note: gets what was done with a row that is kept, as `BadRows.note`.
  """
  row = mapping(row)
  doc_id, titled = identifier(row, 'doc_id'), row.get('title') is not None
  if not titled and 'title' not in row and field_names.meant('title', row):
    titled = True  # the error names the other field
  title = text(row, 'title', blank=True) if titled else ''
  no_summary = 'summary' in row and row['summary'] is None
  summary = '' if no_summary else text(row, 'summary', blank=True)
  if not titled:
    note(UNTITLED)
  return Document(doc_id, title, summary)


def judgement(row: Any) -> tuple[str, str, Document]:
  """Checks a judgement row; returns query_id, query and the labelled document."""
  return _row(row, needs_label=True)


def candidate(row: Any) -> tuple[str, str, Document]:
  """Checks a candidate row; returns query_id, query and the document; ignores a label."""
  query_id, query, doc = _row(row, needs_label=False, reads_label=False)
  return query_id, query, doc


def pooled(row: Any) -> tuple[str, str, Document]:
  """Checks a row of a test set: a judgement, or an unjudged document of the pool."""
  return _row(row, needs_label=False)


Row = tuple[str, str, Document]
ROW_PARSERS: Mapping[str, Callable[[Any], Any]] = {
  'clicks': click,
  'judgements': judgement,
  'candidates': candidate,
  'test': pooled,
  'pooled': pooled,
}


def _row(row: Any, *, needs_label: bool, reads_label: bool = True) -> Row:
  row = mapping(row)
  label = UNJUDGED
  if needs_label and row.get('label') is None:
    otherwise = 'give the grade as an integer, 0 = not relevant'
    raise BadRow('label', 'is missing', field_names.fix('label', row, otherwise))
  query_id = identifier(row, 'query_id')
  query = text(row, 'query', blank=False)
  doc_id = identifier(row, 'doc_id')
  title, summary = _title_summary(row)
  if reads_label:
    if 'label' not in row and (name := next(filter(row.get, field_names.CERTAIN_LABELS), '')):
      raise BadRow('label', f'is missing, but there is "{name}"', f'rename "{name}" to "label"')
    label = grade(row, default=UNJUDGED)
  rank = integer(row, 'rank', low=1, default=0)
  return query_id, query, Document(doc_id, title, summary, label, rank, score(row))


def mapping(row: Any) -> Mapping[str, Any]:
  """The row itself, if it has named fields. Raises: BadRow."""
  if not isinstance(row, Mapping):
    fix = 'write one JSON object {...} with named fields per line'
    raise BadRow('row', f'is {_described(row)}', fix)
  return row


def identifier(row: Mapping[str, Any], field: str) -> str:
  """An id: text without white space, because that separates the columns of TREC runs and qrels.

  An integer is an id too: Parquet columns often have this type. The id is then its digits.
  """
  if isinstance(row.get(field), int) and not isinstance(row[field], bool):
    row = {field: str(row[field])}
  value = text(row, field, blank=False)
  if len(value.split()) != 1 or value != value.strip():
    fix = 'replace it, for example by an underscore'
    raise BadRow(field, f'{value!r} contains white space', fix)
  return value


def check_unicode(field: str, value: str) -> None:
  """Raises: BadRow for half a surrogate pair, which JSON can hold and tokenizers reject."""
  if not value.isascii() and value.encode(errors='replace').decode() != value:
    raise BadRow(field, 'has half a surrogate pair', 'write it again as valid Unicode')


def text(row: Mapping[str, Any], field: str, *, blank: bool) -> str:
  """A field that is valid text; blank text only if `blank`. Raises: BadRow."""
  if field not in row:
    otherwise = f'add "{field}" as a string' + (', which may be empty' if blank else '')
    fix = field_names.fix(field, row, otherwise)
    raise BadRow(field, 'is missing', fix)
  value = row[field]
  if not isinstance(value, str):
    raise BadRow(field, f'is {_described(value)}, not a string', 'write it as text')
  check_unicode(field, value)
  if not blank and not value.strip():
    raise BadRow(field, 'is blank', 'fill it in or remove the row')
  return value


def _title_summary(row: Mapping[str, Any]) -> tuple[str, str]:
  title, summary = text(row, 'title', blank=True), text(row, 'summary', blank=True)
  if not title.strip() and not summary.strip():
    raise BadRow('title', 'and summary are both empty', 'fill in one of them or remove the row')
  return title, summary


def grade(row: Mapping[str, Any], *, low: int = 0, default: int) -> int:
  """The field `label`, `default` if it is missing. Raises: BadRow."""
  return integer(row, 'label', low=low, high=LARGEST_LABEL, default=default)


def integer(
  row: Mapping[str, Any], field: str, *, low: int, default: int, high: int = MAX_INT
) -> int:
  """A field that is an integer from `low` to `high`, `default` if it is missing. Raises: BadRow."""
  value = row.get(field)
  if value is None:  # null is how Parquet leaves a field out
    return default
  if isinstance(value, bool) or not isinstance(value, int):
    fix = f'write an integer of {low} or more, without quotes or decimals'
    raise BadRow(field, f'is {_described(value)}, not an integer', fix)
  if not low <= value <= high:
    fix = f'write an integer of {low} or more' if value < low else f'write {high} or less'
    raise BadRow(field, f'is {_short(value)}, outside {low}..{high}', fix)
  return value


def score(row: Mapping[str, Any]) -> float:
  """The field `score` as a finite number, NaN if it is missing. Raises: BadRow."""
  value = row.get('score')
  if value is None:
    return math.nan
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise BadRow('score', f'is {_described(value)}, not a number', 'write a number without quotes')
  try:
    value = float(value)
  except OverflowError:
    value = math.inf
  if not math.isfinite(value):
    raise BadRow('score', f'is {value}', 'write a finite number or leave the field out')
  return value


def _described(value: Any) -> str:
  names = {dict: 'an object', list: 'a list', bool: 'a boolean', type(None): 'null', str: 'text'}
  name = names.get(type(value), f'a {type(value).__name__}')
  return name if value is None else f'{name} ({_short(value)})'


def _short(value: Any) -> str:
  try:
    text = repr(value)
  except (ValueError, RecursionError):  # an integer of thousands of digits has no repr
    return 'too big to show'
  text = text.encode('ascii', 'backslashreplace').decode() if not text.isprintable() else text
  return text if len(text) <= 40 else text[:37] + '...'
