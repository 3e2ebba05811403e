"""Describes a source: counts, labels, lengths, truncation, duplicates, bad rows.

Records are streamed and only counts stay in memory; the search for duplicates goes through files.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from disranker_jax.data import row_formats, tokenising
from disranker_jax.data.prompts import PairPrompt, TextPrompt
from disranker_jax.data.records import KINDS, UNJUDGED, BadRow, Click, Document, Group
from disranker_jax.data.source import DOCUMENTS
from disranker_jax.data.spool import Spool

PERCENTILES = (5, 50, 95, 99, 100)
SAMPLES = 3
UNKNOWN = 0.05  # the share of unknown tokens from which on a model does not fit the language
MULTILINGUAL = "'bert-multilingual' or 'mmbert-base'"
EXAMPLES = 8  # reasons of bad rows to show, the most frequent first


class Histogram:
  """Counts of integers."""

  def __init__(self):
    self.counts: collections.Counter[int] = collections.Counter()

  def add(self, value: int) -> None:
    self.counts[value] += 1

  def percentiles(self) -> dict[str, int]:
    """Per percentage, the smallest value that this share of the numbers does not exceed."""
    total, result = self.counts.total(), {}
    values = sorted(self.counts.items())
    for percent in PERCENTILES if total else ():
      seen = 0
      for value, count in values:
        seen += count
        if seen * 100 >= percent * total:
          result['max' if percent == 100 else f'p{percent}'] = value
          break
    return result


class Lengths:
  """Lengths of texts in tokens, and which fields the model cuts; in words without a prompt.

  With a prompt also `tokens` of queries, titles and summaries, and how many of these are unknown.
  """

  def __init__(self, prompt: PairPrompt | TextPrompt | None):
    self._prompt = prompt
    self.fields = {name: Histogram() for name in ('query', 'title', 'summary', 'input')}
    self.cut: collections.Counter[str] = collections.Counter()
    self.pairs = self.tokens = self.unknown = 0

  def add(self, query: str, docs: Iterable[Document | Click]) -> None:
    docs = list(docs)
    if self._prompt:
      self._count([query, *(text for doc in docs for text in (doc.title, doc.summary))])
    for i, lengths in enumerate(self._lengths(query, docs)):
      for name, histogram in self.fields.items():
        if name != 'query' or i == 0:
          histogram.add(lengths[name])
      self.pairs += 1
      if self._prompt:
        self._cut(lengths)

  def _lengths(self, query: str, docs: list[Document | Click]) -> list[dict[str, int]]:
    if self._prompt:
      return self._prompt.lengths(query, docs)
    words = [{'title': len(d.title.split()), 'summary': len(d.summary.split())} for d in docs]
    query_len = len(query.split())
    return [row | {'query': query_len, 'input': query_len + sum(row.values())} for row in words]

  def _count(self, texts: list[str]) -> None:
    unknown = self._prompt.tokenizer.unk_token_id
    for ids in tokenising.text_ids(self._prompt.tokenizer, texts):
      self.tokens += len(ids)
      self.unknown += ids.count(unknown)

  def _cut(self, lengths: dict[str, int]) -> None:
    """Counts cuts as prompts do them: the end of the query, then the summary, then the title."""
    lost = max(lengths['query'] - self._prompt.max_query_len, 0)
    excess = lengths['input'] - lost - self._prompt.max_len
    if lost:
      self.cut['query'] += 1
    if excess > 0:
      self.cut['summary' if excess <= lengths['summary'] else 'title'] += 1
    if lost or excess > 0:
      self.cut['any'] += 1

  def report(self) -> dict[str, Any]:
    report: dict[str, Any] = {
      'unit': 'tokens' if self._prompt else 'words',
      **{name: histogram.percentiles() for name, histogram in self.fields.items()},
    }
    if self._prompt:
      report['max_len'], report['max_query_len'] = self._prompt.max_len, self._prompt.max_query_len
      names = ('any', 'query', 'title', 'summary')
      report['unknown'] = self.unknown / max(self.tokens, 1)
      report['truncated'] = {name: self.cut[name] / max(self.pairs, 1) for name in names}
    return report


@dataclasses.dataclass
class Repeats:
  """Counts repeated keys, and keys with different values."""

  spool: Spool = dataclasses.field(default_factory=Spool)

  def add(self, key: str, value: str = '') -> None:
    self.spool.add(_hash(key), _hash(value) if value else b'')

  def report(self) -> tuple[int, int]:
    """(keys that were added more than once, keys with more than one value)."""
    repeated = differing = 0
    for _, same in itertools.groupby(self.spool, key=lambda pair: pair[0]):
      values = [value for _, value in same]
      repeated += len(values) > 1
      differing += len(set(values)) > 1
    return repeated, differing


class Survey:
  """Collects statistics of records; `report` returns them."""

  def __init__(self, prompt: PairPrompt | TextPrompt | None = None):
    self._prompt = prompt
    self._lengths = Lengths(prompt)
    self._labels = Histogram()
    self._depth = Histogram()
    self._counts: collections.Counter[str] = collections.Counter()
    self._queries, self._documents, self._texts = Repeats(), Repeats(), Repeats()
    self._samples: list[tuple[str, Document | Click]] = []

  def add(self, record: Click | Group | Document) -> None:
    if isinstance(record, Click):
      self._click(record)
    elif isinstance(record, Document):
      self._document(record)
    else:
      self._group(record)

  def _click(self, click: Click) -> None:
    self._counts['clicks'] += 1
    self._lengths.add(click.query, [click])
    self._queries.add(click.query)
    self._documents.add('\0'.join((click.query, click.title, click.summary)))
    self._sample(click.query, click)

  def _document(self, doc: Document) -> None:
    title, summary = doc.title.strip(), doc.summary.strip()
    self._counts['documents'] += 1
    self._counts['no_title'] += not title
    self._counts['no_text'] += not (title or summary)
    self._lengths.add('', [doc])
    text = f'{doc.title}\0{doc.summary}'
    self._documents.add(doc.doc_id, text)
    self._texts.add(text, doc.doc_id)
    self._sample('', doc)

  def _group(self, group: Group) -> None:
    self._counts['queries'] += 1
    self._counts['pairs'] += len(group.docs)
    self._depth.add(len(group.docs))
    self._lengths.add(group.query, group.docs)
    self._queries.add(group.query, group.query_id)
    by_text: dict[tuple[str, str], set[int]] = {}
    for doc in group.docs:
      self._labels.add(doc.label)
      self._documents.add(doc.doc_id, f'{doc.title}\0{doc.summary}')
      by_text.setdefault((doc.title, doc.summary), set()).add(doc.label)
    self._counts['same_text'] += len(group.docs) - len(by_text)
    self._counts['same_text_other_label'] += sum(len(labels) > 1 for labels in by_text.values())
    grades = {doc.label for doc in group.docs if doc.label != UNJUDGED}
    self._counts['judged'] += bool(grades)
    self._counts['one_grade'] += len(grades) == 1
    self._counts['no_text'] += sum(not (d.title.strip() or d.summary.strip()) for d in group.docs)
    for doc in group.docs[:1]:
      self._sample(group.query, doc)

  def _sample(self, query: str, doc: Document | Click) -> None:
    if len(self._samples) < SAMPLES:
      self._samples.append((query, doc))

  def report(self) -> dict[str, Any]:
    """All statistics as JSON values."""
    counts = self._counts
    queries, documents = self._queries.report(), self._documents.report()
    common: dict[str, Any] = {'lengths': self._lengths.report(), 'samples': list(self._shown())}
    if counts['clicks']:
      duplicates = {'queries_with_several_clicks': queries[0], 'same_click_again': documents[0]}
      return {'clicks': counts['clicks'], 'duplicates': duplicates} | common
    if counts['documents']:
      del common['lengths']['query']
      return {
        'documents': counts['documents'],
        'documents_without_title': counts['no_title'],
        'documents_without_text': counts['no_text'],
        'duplicates': {
          'doc_ids_with_several_texts': documents[1],
          'texts_with_several_doc_ids': self._texts.report()[1],
        },
      } | common
    labels = {str(k): v for k, v in sorted(self._labels.counts.items()) if k != UNJUDGED}
    return {
      'queries': counts['queries'],
      'pairs': counts['pairs'],
      'documents_of_a_query': self._depth.percentiles(),
      'labels': labels,
      'unjudged_pairs': self._labels.counts[UNJUDGED],
      'judged_queries': counts['judged'],
      'queries_with_one_grade': counts['one_grade'],
      'documents_without_text': counts['no_text'],
      'duplicates': {
        'query_texts_with_several_ids': queries[1],
        'doc_ids_with_several_texts': documents[1],
        'texts_repeated_in_a_query': counts['same_text'],
        'of_those_with_different_labels': counts['same_text_other_label'],
      },
    } | common

  def _shown(self) -> Iterator[dict[str, Any]]:
    """Sample rows as the model reads them."""
    for query, doc in self._samples:
      row: dict[str, Any] = {'query': query, 'title': doc.title}
      if self._prompt:
        document = Document('', doc.title, doc.summary)
        encoded = self._prompt.encode(query, [document])[0]
        row['tokens'] = len(encoded)
        row['model_sees'] = self._prompt.tokenizer.decode(encoded.ids)
      else:
        row['summary'] = doc.summary
      yield row


def bad_rows(quarantine: Path) -> list[dict[str, Any]]:
  """The most frequent reasons in a quarantine file, each with its count, first place and row."""
  by_reason: dict[str, dict[str, Any]] = {}
  with quarantine.open() as file:
    for line in file:
      entry = json.loads(line)
      # Without its values, what is wrong is the same for the same mistake. What to do is kept.
      what, semicolon, fix = entry['reason'].rpartition('; ')
      what = re.sub(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"|-?\d+(\.+\d+)*", '...', what)
      row = by_reason.setdefault(what, {'reason': f'{what}{semicolon}{fix}', 'count': 0})
      row['count'] += 1
      row.setdefault('first', f'{entry["file"]}:{entry["line"]}')
      row.setdefault('row', entry['row'])
  return sorted(by_reason.values(), key=lambda row: -row['count'])[:EXAMPLES]


def other_kinds(raw: Any, kind: str) -> list[str]:
  """The kinds of records, other than `kind`, that a row has; the row is as in `bad_rows`."""
  try:
    row = json.loads(raw) if isinstance(raw, str) else raw
  except ValueError:
    return []
  others = [other for other in (*KINDS, DOCUMENTS) if other != kind]
  return [other for other in others if _is_of_kind(row, other)]


def _is_of_kind(row: Any, kind: str) -> bool:
  try:
    documents = kind == DOCUMENTS
    return bool(row_formats.documents_of(row) if documents else row_formats.records_of(row, kind))
  except BadRow:
    return False


def _hash(text: str) -> bytes:
  return hashlib.blake2b(text.encode(), digest_size=12).digest()
