"""The formats that one row of JSON or Parquet may have, and the records of each.

A row of our own format (records.py) is one query with one document. Rows of these formats are one
query with its documents:

  tevatron      query_id, query, positive_passages, negative_passages, each a list of
                {docid, title, text}; `retrieved_passages` are candidates without a label;
                or `passages` with the scores of a teacher
  FlagEmbedding query, pos, neg: lists of text; pos_scores, neg_scores of a teacher
  prepared      query_id, query, docs: lists by field, as `store` writes them

Positives get label 1, negatives 0. A query or passage without an id gets one from its text, so the
same text has the same id in every file.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from disranker_jax.data import field_names, records
from disranker_jax.data.records import UNJUDGED, BadRow, Click, Document
from disranker_jax.progress import amount

Score = tuple[str, str, float]  # query_id, doc_id, score of a teacher

# List of passages -> (label of its passages, field with their scores).
LISTS = {
  'positive_passages': (1, 'positive_scores'),
  'negative_passages': (0, 'negative_scores'),
  'retrieved_passages': (UNJUDGED, 'retrieved_scores'),
  'passages': (UNJUDGED, 'scores'),
  'pos': (1, 'pos_scores'),
  'neg': (0, 'neg_scores'),
}
GROUPS = frozenset(('docs', *LISTS))
# The columns of Parquet that are read.
COLUMNS = (
  'query_id', 'id', 'query', 'doc_id', 'title', 'summary', 'label', 'rank', 'score', 'count',
  'docs',
  *LISTS, *(scores for _, scores in LISTS.values()),
)  # fmt: skip
# The kinds that need a label in every row: a click needs to know which document was good.
NEEDS_LABEL = ('judgements', 'clicks')


def records_of(row: Any, kind: str) -> list[Any]:
  """The records of a row: Clicks, (query_id, query, Document), or Scores for the kind 'scores'.

  Raises: BadRow, also if the row has no record of this kind.
  """
  if not isinstance(row, Mapping) or not is_group(row):
    return [_score(row)] if kind == 'scores' else [records.ROW_PARSERS[kind](row)]
  query_id, query, docs = group(row)
  if kind == 'scores':
    return [(query_id, doc.doc_id, _needed(doc.teacher, row)) for doc in docs]
  if kind in NEEDS_LABEL and any(doc.label == UNJUDGED for doc in docs):
    what = 'has passages without a label'
    raise BadRow('row', what, f'{kind} need positive_passages or pos, and negatives')
  if kind == 'clicks':
    positives = {doc.doc_id: doc for doc in docs if doc.label > 0}.values()
    clicks = [Click(query, doc.title, doc.summary) for doc in positives]
    if not clicks:
      raise BadRow('row', 'has no positive passage', 'add one or remove the row')
    return clicks
  return [(query_id, query, _of_kind(doc, kind)) for doc in docs]


def documents_of(row: Any, note: Callable[[str], None] = lambda what: None) -> list[Document]:
  """The documents of a row, without label, rank and score; `note` as of `records.document`.

  Raises: BadRow.
  """
  row = records.mapping(row)
  if not is_group(row):
    return [records.document(row, note)]
  _, _, docs = group(row)
  return [Document(doc.doc_id, doc.title, doc.summary) for doc in docs]


def is_group(row: Mapping[str, Any]) -> bool:
  # In Parquet every row has every column; a missing value is null.
  return not GROUPS.isdisjoint(row) and any(row.get(name) is not None for name in GROUPS)


def _of_kind(doc: Document, kind: str) -> Document:
  return dataclasses.replace(doc, label=UNJUDGED) if kind == 'candidates' else doc


def _score(row: Any) -> Score:
  row = records.mapping(row)
  query_id, doc_id = records.identifier(row, 'query_id'), records.identifier(row, 'doc_id')
  return query_id, doc_id, _needed(records.score(row), row)


def _needed(score: float, row: Mapping[str, Any]) -> float:
  if math.isnan(score):
    fix = field_names.fix('score', row, "give the teacher's score as a number")
    raise BadRow('score', 'is missing', fix)
  return score


def group(row: Mapping[str, Any]) -> tuple[str, str, list[Document]]:
  query = records.text(row, 'query', blank=False)
  query_id = _query_id(row, query)
  docs = list(_prepared(row['docs']) if row.get('docs') is not None else _passages(row))
  if not docs:
    raise BadRow('row', 'has no passages', 'fill one of the lists or remove the row')
  first: dict[str, Document] = {}
  for doc in docs:  # equal repeats stay: `grouping` drops and counts them
    if other := records.differing(first.setdefault(doc.doc_id, doc), doc):
      what = f'{doc.doc_id!r} appears twice, with a different {other}'
      raise BadRow('docid', what, 'keep one of the two passages')
  return query_id, query, docs


def _query_id(row: Mapping[str, Any], query: str) -> str:
  for name in ('query_id', 'id'):
    if row.get(name) is not None:
      return records.identifier(row, name)
  return _id_of_text('q', query)


def _passages(row: Mapping[str, Any]) -> Iterator[Document]:
  for name, (label, scores_name) in LISTS.items():
    passages = row.get(name)
    if passages is None:
      continue
    if not isinstance(passages, list):
      raise BadRow(name, 'is not a list', 'write a list of passages')
    scores = row.get(scores_name)
    if scores is None:
      scores = [None] * len(passages)
    if not isinstance(scores, list) or len(scores) != len(passages):
      what = (
        'is not a list'
        if not isinstance(scores, list)
        else f'has {amount(len(scores), "entry", "entries")}'
      )
      fix = f'write one score for each of the {len(passages)} in {name}'
      raise BadRow(scores_name, what, fix)
    for passage, score in zip(passages, scores, strict=True):
      yield _passage(name, passage, label, score)


def _passage(name: str, passage: Any, label: int, score: Any) -> Document:
  """Reads a passage: text or an object, with the score given separately or in the object."""
  if isinstance(passage, str):
    passage = {'text': passage}
  if not isinstance(passage, Mapping):
    raise BadRow(name, 'has a passage that is neither text nor an object', 'write {docid, text}')
  title = '' if passage.get('title') is None else records.text(passage, 'title', blank=True)
  summary = records.text(passage, 'text', blank=True)
  if not title.strip() and not summary.strip():
    raise BadRow(name, 'has a passage without text', 'fill it in or remove it')
  doc_id = _id_of_text('d', title, summary)
  if named := [n for n in ('docid', 'passage_id', 'doc_id') if passage.get(n) is not None]:
    doc_id = records.identifier(passage, named[0])
  score = records.score({'score': passage.get('score') if score is None else score})
  return Document(doc_id, title, summary, label, teacher=score)


def _prepared(columns: Any) -> Iterator[Document]:
  """The documents of lists by field, or of a list of objects."""
  if isinstance(columns, list):
    rows = columns
  else:
    columns = records.mapping(columns)
    lists = [column for column in columns.values() if isinstance(column, list)]
    if len(lists) < len(columns) or len({len(column) for column in lists}) > 1:
      raise BadRow('docs', 'has fields that are not lists of equal length', 'prepare it again')
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
  for row in rows:
    row = records.mapping(row)
    doc = records.document(row)
    label = UNJUDGED if row.get('label') in (None, UNJUDGED) else row['label']
    known = {
      'label': label if label == UNJUDGED else records.grade(row, default=0),
      'rank': records.integer(row, 'rank', low=0, default=0),
      'score': _number(row, 'score'),
      'teacher': _number(row, 'teacher'),
      'in_pool': row.get('in_pool') is not False,
    }
    yield dataclasses.replace(doc, **known)


def _number(row: Mapping[str, Any], field: str) -> float:
  """A number, or text that is a number: prepared data stores scores as text to keep all digits."""
  value = row.get(field)
  if isinstance(value, str):
    try:
      value = float(value)
    except ValueError:
      raise BadRow(field, f'is {value[:40]!r}, not a number', 'prepare it again') from None
  if isinstance(value, float) and math.isnan(value):
    return math.nan
  return records.score({'score': value})


def _id_of_text(prefix: str, *texts: str) -> str:
  digest = hashlib.sha256('\0'.join(texts).encode()).hexdigest()
  return f'{prefix}-{digest[:20]}'
