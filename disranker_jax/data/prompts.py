"""What a model reads: a query and a document as token ids, cut to length without losing the ends.

The contract (design): a decoder's input always ends in the real `</s>`, BERT's in `[SEP]`; where
text is too long the summary is cut first, then the title, and never the query's first tokens.
"""

import dataclasses
import functools
import itertools
import re
import string
from collections.abc import Sequence

import numpy as np

from disranker_jax.data.records import Document
from disranker_jax.errors import UserError

# Far more characters than any tokenizer needs for one token of text; bounds work on long documents.
CHARS_PER_TOKEN = 16
FIELDS = ('query', 'title', 'summary')


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

  def encode_many(self, groups: Sequence[tuple[str, Sequence[Document]]]) -> list[list[Encoded]]:
    """Several queries, each with its documents, as `encode` gives them: one call of the tokenizer.

    Can be called in several threads at a time.
    """
    return self._encode([(query, [document_text(d) for d in docs]) for query, docs in groups], 0)

  def encode_texts(self, query: str, texts: Sequence[str], most: int = 0) -> list[Encoded]:
    """Pairs of the query with each text, of which `most` tokens are taken if that is not 0.

    Can be called in several threads at a time.
    """
    return self._encode([(query, texts)], most)[0]

  def _encode(self, groups: list[tuple[str, Sequence[str]]], most: int) -> list[list[Encoded]]:
    chars = self.max_len * CHARS_PER_TOKEN
    texts = [text[:chars] for query, texts in groups for text in (query, *texts)]
    rows = iter(self._ids(texts))
    return [
      [self._pair(query, asked, text, next(rows), most) for text in texts]
      for query, texts in groups
      for asked in (next(rows),)
    ]

  def _pair(self, query: str, query_ids, text: str, text_ids, most: int) -> Encoded:
    t = self.tokenizer
    limit = min(self.max_query_len, self.max_len - 4)
    head = [t.cls_token_id, *query_ids[:limit], t.sep_token_id]
    room = self.max_len - len(head) - 1
    room = min(room, most) if most else room
    ids = np.array([*head, *text_ids[:room], t.sep_token_id], np.int32)
    types = np.ones(len(ids), np.int32)
    types[: len(head)] = 0
    shorter = len(text_ids) > room or len(query_ids) > limit
    shorter |= max(len(text), len(query)) > self.max_len * CHARS_PER_TOKEN
    return Encoded(ids, types, anchor=0, cut=shorter)

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
    if sorted(template_fields(self.template)) != ['query', 'summary', 'title']:
      raise UserError(
        f'teacher template {self.template!r}: must have {{query}}, {{title}} and {{summary}} once'
      )
    if self.tokenizer.eos_token_id is None:
      raise UserError('teacher tokenizer: has no end-of-sequence token to score at')

  def encode(self, query: str, docs: Sequence[Document]) -> list[Encoded]:
    return self.encode_many([(query, docs)])[0]

  def encode_many(self, groups: Sequence[tuple[str, Sequence[Document]]]) -> list[list[Encoded]]:
    """Several queries, each with its documents, as `encode` gives them: one call of the tokenizer.

    Can be called in several threads at a time.
    """
    cut = self.max_len * CHARS_PER_TOKEN
    texts, spans = [], []
    for query, docs in groups:
      for doc in docs:
        fields = {'query': query[:cut], 'title': doc.title[:cut], 'summary': doc.summary[:cut]}
        text, span = render(self.template, fields)
        texts.append(text)
        spans.append(span)
    # The Rust tokenizer itself: transformers' own call sets its state, and takes twice as long.
    rows = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    encoded = iter(self._assemble(rows, spans)) if rows else iter(())
    return [list(itertools.islice(encoded, len(docs))) for _, docs in groups]

  def lengths(self, query: str, docs: Sequence[Document]) -> list[dict[str, int]]:
    """Tokens of each document's input if nothing were cut: whole, query, title, summary."""
    rows = [{'query': query, 'title': doc.title, 'summary': doc.summary} for doc in docs]
    special = 1 + (self.tokenizer.bos_token_id is not None)
    found = _field_lengths(self.tokenizer, self.template, rows)
    return [row | {'input': row['input'] + special} for row in found]

  def _assemble(self, rows, spans: list[dict[str, tuple[int, int]]]) -> list[Encoded]:
    """Cut to length, with both ends: all texts' tokens lie in one array, since most are short."""
    bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
    lengths = np.array([len(row) for row in rows])
    ids = np.fromiter(itertools.chain.from_iterable(row.ids for row in rows), np.int32)
    last = np.fromiter((stop for row in rows for _, stop in row.offsets), np.int64) - 1
    owner = np.repeat(np.arange(len(rows)), lengths)
    bounds = np.array([[span[f] for f in FIELDS] for span in spans])[owner]
    inside = (last[:, None] >= bounds[..., 0]) & (last[:, None] < bounds[..., 1])
    field = dict(zip(FIELDS, inside.T, strict=True))
    keep = self._kept(field, lengths, owner, room=self.max_len - len(bos) - 1)
    target = field['query'] if self.predict == 'query' else field['title'] | field['summary']
    return self._ended(ids[keep], target[keep], owner[keep], len(rows), bos)

  def _kept(self, field, lengths, owner, room: int) -> np.ndarray:
    """Which tokens stay: the query's first, and of every field as many as there is room for."""
    asked, _ = _ranks(field['query'], lengths, owner)
    keep = ~(field['query'] & (asked >= self.max_query_len))
    for name in ('summary', 'title', 'query'):
      excess = np.maximum(_ranks(keep, lengths, owner)[1] - room, 0)
      if not excess.any():
        break
      mine = field[name] & keep
      rank, count = _ranks(mine, lengths, owner)
      keep &= ~mine | (rank < (count - excess)[owner])
    return keep

  def _ended(self, ids, target, owner, count: int, bos: list[int]) -> list[Encoded]:
    """The sequences with their ends, of kept tokens and whether they are to be predicted."""
    lengths = np.bincount(owner, minlength=count)
    stops = np.cumsum(lengths + len(bos) + 1)
    starts = stops - lengths - len(bos) - 1
    where = np.arange(len(ids)) + owner * (len(bos) + 1) + len(bos)
    whole = np.full(stops[-1], self.tokenizer.eos_token_id, np.int32)
    whole[where] = ids
    if bos:
      whole[starts] = bos
    at = where - starts[owner]
    known = target & (at > 0)  # without a start token, nothing stands before the first
    per_text = np.bincount(owner[known], minlength=count)
    at = at[known]
    ends = np.cumsum(per_text)
    types = np.zeros(max(stops - starts), np.int32)
    encoded = []
    for start, stop, n, end in np.stack([starts, stops, per_text, ends], 1).tolist():
      span = (int(at[end - n]), int(at[end - 1]) + 1) if n else (0, 0)
      if n and self.predict == 'document' and span[1] == stop - start - 1:
        span = (span[0], stop - start)  # a document's end is part of what is learnt
      anchor = stop - start - 1
      encoded.append(Encoded(whole[start:stop], types[: stop - start], anchor, predict=span))
    return encoded


def _ranks(mask, lengths, owner) -> tuple[np.ndarray, np.ndarray]:
  """How many tokens of its own text are marked before each token; and of each text in all."""
  marked = np.concatenate([[0], np.cumsum(mask)])
  stops = np.cumsum(lengths)
  before = marked[stops - lengths]
  return marked[:-1] - before[owner], marked[stops] - before


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


def template_fields(template: str) -> list[str]:
  """The fields of a template in order. Raises: ValueError for unbalanced braces."""
  return [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]


def render(template: str, fields: dict[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
  """The filled template and the character span of each field in it."""
  text, spans = '', {}
  for part in _parts(template):
    name = part[1:-1] if part.startswith('{') else None
    value = fields[name] if name else part
    if name:
      spans[name] = (len(text), len(text) + len(value))
    text += value
  return text, spans


@functools.cache
def _parts(template: str) -> list[str]:
  return re.split(r'(\{\w+\})', template)
