"""What a model reads: a query and a document as token ids, cut to length without losing the ends.

The contract (design): a decoder's input always ends in the real `</s>`, BERT's in `[SEP]`; where
text is too long the summary is cut first, then the title, and never the query's first tokens.
"""

import dataclasses
import re
import string
from collections.abc import Sequence

import numpy as np

from disranker_jax.data.records import Document
from disranker_jax.errors import UserError

# Far more characters than any tokenizer needs for one token of text; bounds work on long documents.
CHARS_PER_TOKEN = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
  """One sequence: ids_T, types_T (BERT's 0/1), the scored position, the span the LM predicts."""

  ids: np.ndarray
  types: np.ndarray
  anchor: int
  predict: tuple[int, int] = (0, 0)
  cut: bool = False  # text was left out; told for pairs only

  def __len__(self) -> int:
    return len(self.ids)


def document_text(doc: Document) -> str:
  """`title : summary`, the document as BERT (and any cross-encoder client) sees it."""
  return f'{doc.title} : {doc.summary}'


@dataclasses.dataclass(frozen=True)
class PairPrompt:
  """BERT: `[CLS] query [SEP] title : summary [SEP]`; the scored position is `[CLS]`."""

  tokenizer: object
  max_len: int
  max_query_len: int

  def encode(self, query: str, docs: Sequence[Document]) -> list[Encoded]:
    return self.encode_texts(query, [document_text(d) for d in docs])

  def encode_texts(self, query: str, texts: Sequence[str], most: int = 0) -> list[Encoded]:
    """Pairs of the query with each text, of which `most` tokens are taken if that is not 0.

    Can be called in several threads at a time.
    """
    t = self.tokenizer
    chars = self.max_len * CHARS_PER_TOKEN
    limit = min(self.max_query_len, self.max_len - 4)
    [query_ids, *rows] = self._ids([query[:chars], *(text[:chars] for text in texts)])
    head = [t.cls_token_id, *query_ids[:limit], t.sep_token_id]
    room = self.max_len - len(head) - 1
    room = min(room, most) if most else room
    encoded = []
    for row, text in zip(rows, texts, strict=True):
      tail = [*row[:room], t.sep_token_id]
      types = np.repeat(np.array([0, 1], np.int32), [len(head), len(tail)])
      shorter = len(row) > room or len(query_ids) > limit or max(len(text), len(query)) > chars
      encoded.append(Encoded(np.array(head + tail, np.int32), types, anchor=0, cut=shorter))
    return encoded

  def lengths(self, query: str, docs: Sequence[Document]) -> list[dict[str, int]]:
    """Tokens of each document's input if nothing were cut: whole, query, title, summary."""
    asked = len(self.tokenizer(query, add_special_tokens=False)['input_ids'])
    template = '{title} : {summary}'
    rows = [{'title': doc.title, 'summary': doc.summary} for doc in docs]
    found = _field_lengths(self.tokenizer, template, rows)
    return [row | {'query': asked, 'input': row['input'] + asked + 3} for row in found]

  def _ids(self, texts: list[str]) -> list[list[int]]:
    # The Rust tokenizer itself: transformers' own call sets its state, and takes twice as long.
    rows = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [row.ids for row in rows]


@dataclasses.dataclass(frozen=True)
class TextPrompt:
  """A decoder: `<s> TEMPLATE </s>`; the scored position is the final `</s>`.

  `template` orders the fields, as in '{query} : {title} : {summary}'. `predict` names what a
  language model has to predict: 'query', or 'document' for title and summary; its span is in
  `Encoded.predict`, as positions of the tokens themselves.
  """

  tokenizer: object
  max_len: int
  max_query_len: int
  template: str
  predict: str = 'document'

  def __post_init__(self):
    fields = sorted(f for _, f, _, _ in string.Formatter().parse(self.template) if f is not None)
    if fields != ['query', 'summary', 'title']:
      raise UserError(
        f'teacher template {self.template!r}: must have {{query}}, {{title}} and {{summary}} once'
      )
    if self.tokenizer.eos_token_id is None:
      raise UserError('teacher tokenizer: has no end-of-sequence token to score at')

  def encode(self, query: str, docs: Sequence[Document]) -> list[Encoded]:
    cut = self.max_len * CHARS_PER_TOKEN
    query = query[:cut]
    spans, texts = [], []
    for doc in docs:
      fields = {'query': query, 'title': doc.title[:cut], 'summary': doc.summary[:cut]}
      text, span = render(self.template, fields)
      texts.append(text)
      spans.append(span)
    if not texts:
      return []
    out = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    rows = zip(out['input_ids'], out['offset_mapping'], spans, strict=True)
    return [self._assemble(np.array(i, np.int32), np.array(o), s) for i, o, s in rows]

  def lengths(self, query: str, docs: Sequence[Document]) -> list[dict[str, int]]:
    """Tokens of each document's input if nothing were cut: whole, query, title, summary."""
    rows = [{'query': query, 'title': doc.title, 'summary': doc.summary} for doc in docs]
    special = 1 + (self.tokenizer.bos_token_id is not None)
    found = _field_lengths(self.tokenizer, self.template, rows)
    return [row | {'input': row['input'] + special} for row in found]

  def _assemble(self, ids, offsets, spans) -> Encoded:
    t = self.tokenizer
    field = _in_fields(offsets, spans)
    keep = np.ones(len(ids), bool)
    keep[np.flatnonzero(field['query'])[self.max_query_len :]] = False
    bos = [t.bos_token_id] if t.bos_token_id is not None else []
    room = self.max_len - len(bos) - 1
    for name in ('summary', 'title', 'query'):
      excess = int(keep.sum()) - room
      if excess > 0:
        mine = np.flatnonzero(field[name] & keep)
        keep[mine[max(len(mine) - excess, 0) :]] = False
    target = field['query'] if self.predict == 'query' else field['title'] | field['summary']
    at = np.flatnonzero(target[keep]) + len(bos)
    at = at[at > 0]  # without a start token, nothing stands before the first to predict it from
    span = (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0)
    ids = np.concatenate([bos, ids[keep], [t.eos_token_id]]).astype(np.int32)
    if self.predict == 'document' and span[1] == len(ids) - 1:
      span = (span[0], len(ids))  # a document's end is part of what is learnt
    return Encoded(ids, np.zeros_like(ids), anchor=len(ids) - 1, predict=span)


def _field_lengths(tokenizer, template: str, rows: list[dict[str, str]]) -> list[dict[str, int]]:
  """Tokens of each filled template: of every field, and of the `input` without special tokens."""
  if not rows:
    return []
  texts, spans = zip(*(render(template, row) for row in rows), strict=True)
  out = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
  found = []
  for ids, offsets, span in zip(out['input_ids'], out['offset_mapping'], spans, strict=True):
    fields = _in_fields(np.array(offsets), span)
    found.append({name: int(inside.sum()) for name, inside in fields.items()})
    found[-1]['input'] = len(ids)
  return found


def _in_fields(offsets: np.ndarray, spans: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
  """Which tokens are each field's, by their characters (start, stop) and the fields' own.

  A token belongs to the field its last character lies in: a leading space goes with its word.
  """
  last = offsets.reshape(-1, 2)[:, 1] - 1
  return {name: (last >= start) & (last < stop) for name, (start, stop) in spans.items()}


def render(template: str, fields: dict[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
  """The filled template and the character span of each field in it."""
  text, spans = '', {}
  for part in re.split(r'(\{\w+\})', template):
    name = part[1:-1] if part.startswith('{') else None
    value = fields[name] if name else part
    if name:
      spans[name] = (len(text), len(text) + len(value))
    text += value
  return text, spans
