"""Prompts: encode a query and a document as the token ids that a model reads, cut to length.

The input of a decoder always ends in `</s>`, that of BERT in `[SEP]`. If the text is too long, the
summary is cut first, then the title. The first tokens of the query are never cut. `[SEP]` or `</s>`
inside a query or a document is text; only a template can name special tokens.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

from disranker_jax.data import tokenising, wordpiece
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.records import Document
from disranker_jax.errors import UserError

# Only the start of a long text is tokenised, and more of it if that gives too few tokens: blanks
# and zero-width characters can give none at all.
CHARS_PER_TOKEN = 8
GROWTH = 8
# The last tokens of an incomplete text can differ from those of the whole text. WordPiece splits no
# word of more than 100 characters, and BPE's merges do not reach that far.
UNSURE_TOKENS = 100
# What follows a field in a template can merge with the field's last characters.
TAIL_CHARS = 100
FIELDS = ('query', 'title', 'summary')
PART = re.compile(
  r'(?P<brace>\{\{|\}\})|\{(?P<field>\w+)\}|(?P<text>[^{}]+)|(?P<other>\{[^{}]*\}?|\})'
)  # of a template


def document_text(doc: Document) -> str:
  """`title : summary`, the document as BERT and other cross-encoders read it."""
  return f'{doc.title} : {doc.summary}'


@dataclasses.dataclass(frozen=True)
class PairPrompt:
  """BERT: `[CLS] query [SEP] title : summary [SEP]`; `scored` is 'first', `[CLS]`, or 'last'.

  Where special tokens stand, and which types tokens have, is the tokenizer's own matter: RoBERTa
  reads `<s> query </s></s> title : summary </s>`.
  """

  tokenizer: object
  max_len: int
  max_query_len: int
  scored: str = 'first'
  typed: bool = True  # False: every token has type 0, whatever the tokenizer says

  def __post_init__(self):
    self.frame  # noqa: B018 (raises an error here rather than at the first text)

  @functools.cached_property
  def frame(self) -> tuple[list[int], list[int], list[int], tuple[int, int]]:
    """Special tokens before the query, before and after the text; types of query and text."""
    pair = tokenising.plain(self.tokenizer.backend_tokenizer).backend.encode('a', 'b')
    of = pair.sequence_ids
    if 0 not in of or 1 not in of or (self.scored == 'first' and of[0] is not None):
      raise UserError(
        'the tokenizer does not begin a pair of texts with a special token, where the score is '
        'read; its tokenizer.json needs a post_processor, such as [CLS] $A [SEP] $B [SEP]'
      )
    first, second = of.index(0), of.index(1)
    middle, last = first + of.count(0), second + of.count(1)
    types = pair.type_ids[first], pair.type_ids[second]
    return pair.ids[:first], pair.ids[middle:second], pair.ids[last:], types

  def encode(self, query: str, docs: Sequence[Document]) -> list[Encoded]:
    return self.encode_texts(query, [document_text(d) for d in docs])

  def encode_many(self, groups: Sequence[tuple[str, Sequence[Document]]]) -> list[list[Encoded]]:
    """`encode` of several queries in one call of the tokenizer; thread-safe."""
    return self._encode([(query, [document_text(d) for d in docs]) for query, docs in groups], 0)

  def encode_texts(
    self, query: str, texts: Sequence[str | Document], most: int = 0
  ) -> list[Encoded]:
    """Pairs of the query with each text, cut to `most` tokens if that is not 0; thread-safe."""
    texts = [text if isinstance(text, str) else document_text(text) for text in texts]
    return self._encode([(query, texts)], most)[0]

  def _encode(self, groups: list[tuple[str, Sequence[str]]], most: int) -> list[list[Encoded]]:
    texts = [text for query, texts in groups for text in (query, *texts)]
    if wordpiece.reads(self.tokenizer):
      rows = iter(
        wordpiece.first_ids(self.tokenizer, texts, self.max_len, self.max_len * CHARS_PER_TOKEN)
      )
    else:
      rows = iter(_until_enough(self._ids, texts, self.max_len))
    return [
      [self._pair(query_ids, next(rows), most) for _ in texts]
      for _, texts in groups
      for query_ids in (next(rows),)
    ]

  def _pair(self, query_ids, text_ids, most: int) -> Encoded:
    before, between, after, (query_type, text_type) = self.frame
    special = len(before) + len(between) + len(after)
    limit = min(self.max_query_len, self.max_len - special - 1)
    head = [*before, *query_ids[:limit], *between]
    room = self.max_len - len(head) - len(after)
    room = min(room, most) if most else room
    ids = np.array([*head, *text_ids[:room], *after], np.int32)
    types = np.full(len(ids), text_type, np.int32)
    types[: len(head)] = query_type
    types *= self.typed
    anchor = 0 if self.scored == 'first' else len(ids) - 1
    cut = {'cut': len(text_ids) > room, 'cut_query': len(query_ids) > limit}
    return Encoded(ids, types, anchor, **cut)

  def lengths(self, query: str, docs: Sequence[Document]) -> list[dict[str, int]]:
    """Numbers of tokens before cutting, per document: input, query, title, summary."""
    query_len = len(tokenising.text_ids(self.tokenizer, [query])[0])
    rows = [{'title': doc.title, 'summary': doc.summary} for doc in docs]
    lengths = _field_lengths(self.tokenizer, '{title} : {summary}', rows)
    special = sum(map(len, self.frame[:3]))
    return [
      row | {'query': query_len, 'input': row['input'] + query_len + special} for row in lengths
    ]

  def _ids(self, texts: list[str], chars: int) -> list[tuple[list[int], bool]]:
    """As `_until_enough` needs it: token ids of the first `chars` characters."""
    rows = tokenising.text_ids(self.tokenizer, [text[:chars] for text in texts])
    need = self.max_len + UNSURE_TOKENS
    return [
      (ids, len(text) <= chars or len(ids) >= need) for text, ids in zip(texts, rows, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class TextPrompt:
  """Decoder: `<s> TEMPLATE </s>`; the scored position is the final `</s>`.

  What stands for `<s>` and `</s>` is the tokenizer's own matter: see `ends`.

  `template` orders the fields, as in '{query} : {title} : {summary}'; `{{` and `}}` are braces in
  the text. A template without `{title}` or `{summary}` does not read that field. `predict` is what
  a language model predicts: 'query', or 'document' for title and summary. `Encoded.predict` is the
  span of these tokens.
  """

  tokenizer: object
  max_len: int
  max_query_len: int
  template: str
  predict: str = 'document'
  with_end: bool = True  # False: the scored position is the template's last token

  def __post_init__(self):
    fields = template_fields(self.template)
    once = len(set(fields)) == len(fields) > 1
    if not once or 'query' not in fields or not set(fields) <= set(FIELDS):
      raise UserError(
        f'template {self.template!r}: must have {{query}} and {{title}} or {{summary}}, each once'
      )
    start, end = self.ends
    literals = dict.fromkeys(FIELDS, '')
    fixed = len(start + end) + len(_filled(self.tokenizer, self.template, [literals])[0][0])
    if fixed > self.max_len:
      raise UserError(f'max_len={self.max_len}: the template alone has {fixed} tokens; raise it')

  @functools.cached_property
  def ends(self) -> tuple[list[int], list[int]]:
    """The special tokens at the start and at the end; the last token is the scored position.

    They are those that the tokenizer's post-processor puts around a text. Where it puts none, the
    start is the token that the tokenizer calls `bos_token`, if any, and the end its `eos_token`.
    """
    text = tokenising.plain(self.tokenizer.backend_tokenizer).backend.encode('a')
    inside = [i for i, sequence in enumerate(text.sequence_ids) if sequence == 0]
    start, end = ([], []) if not inside else (text.ids[: inside[0]], text.ids[inside[-1] + 1 :])
    bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
    if not start and not end and bos is not None:
      start = [bos]
    if not self.with_end:
      return start, []
    if not end and eos is None:
      raise UserError(
        'the tokenizer has no end-of-sequence token to score at; name one as eos_token in its '
        'tokenizer_config.json'
      )
    return start, end or [eos]

  def encode(self, query: str, docs: Sequence[Document]) -> list[Encoded]:
    return self.encode_many([(query, docs)])[0]

  def encode_texts(self, query: str, texts: Sequence[str | Document]) -> list[Encoded]:
    """As `encode`; a string is the summary of a document without a title."""
    docs = [Document('', '', text) if isinstance(text, str) else text for text in texts]
    return self.encode(query, docs)

  def encode_many(self, groups: Sequence[tuple[str, Sequence[Document]]]) -> list[list[Encoded]]:
    """`encode` of several queries in one call of the tokenizer; thread-safe."""
    fields = [self._fields(query, doc) for query, docs in groups for doc in docs]
    rows = _until_enough(self._tokens, fields, self.max_len)
    encoded = iter(self._assemble(*zip(*rows, strict=True))) if rows else iter(())
    return [list(itertools.islice(encoded, len(docs))) for _, docs in groups]

  def _fields(self, query: str, doc: Document) -> dict[str, str]:
    """The texts of the fields that the template has."""
    texts = {'query': query, 'title': doc.title, 'summary': doc.summary}
    return {name: texts[name] for name in template_fields(self.template)}

  def _tokens(self, rows: list[dict[str, str]], chars: int) -> list[tuple[tuple, bool]]:
    """As `_until_enough` needs it: (tokens, spans of the fields) of each filled template.

    A field of more characters loses its middle: its first tokens stay, and what follows its end.
    """
    shortened = [{k: _ends(v, chars) for k, v in row.items()} for row in rows]
    tokens, spans = _filled(self.tokenizer, self.template, shortened)

    def enough(row, each, span) -> bool:
      shortened = [span[k][0] for k, v in row.items() if len(v) > span[k][1] - span[k][0]]
      return all(
        sum(start < end <= start + chars for _, end in each.offsets) >= need for start in shortened
      )

    need = self.max_len + UNSURE_TOKENS
    return [
      ((each, span), enough(row, each, span))
      for row, each, span in zip(rows, tokens, spans, strict=True)
    ]

  def lengths(self, query: str, docs: Sequence[Document]) -> list[dict[str, int]]:
    """Numbers of tokens before cutting, per document: input, query, title, summary."""
    rows = [self._fields(query, doc) for doc in docs]
    special = sum(map(len, self.ends))
    lengths = _field_lengths(self.tokenizer, self.template, rows)
    none = dict.fromkeys(FIELDS, 0)  # a field that the template lacks
    return [none | row | {'input': row['input'] + special} for row in lengths]

  def _assemble(self, rows, spans: Sequence[dict[str, tuple[int, int]]]) -> list[Encoded]:
    """Cuts the texts and adds both ends; one array for all texts, because most are short."""
    lengths = np.array([len(row) for row in rows])
    ids = np.fromiter(itertools.chain.from_iterable(row.ids for row in rows), np.int32)
    last = np.fromiter((stop for row in rows for _, stop in row.offsets), np.int64) - 1
    owner = np.repeat(np.arange(len(rows)), lengths)
    bounds = np.array([[span.get(f, (0, 0)) for f in FIELDS] for span in spans])[owner]
    inside = (last[:, None] >= bounds[..., 0]) & (last[:, None] < bounds[..., 1])
    field = dict(zip(FIELDS, inside.T, strict=True))
    keep = self._kept(field, lengths, owner, room=self.max_len - sum(map(len, self.ends)))
    target = field['query'] if self.predict == 'query' else field['title'] | field['summary']
    return self._ended(ids[keep], target[keep], owner[keep], len(rows))

  def _kept(self, field, lengths, owner, room: int) -> np.ndarray:
    """A mask of the tokens to keep: cuts the query, then the fields until all fit into `room`."""
    rank, _ = _ranks(field['query'], lengths, owner)
    keep = ~(field['query'] & (rank >= self.max_query_len))
    for name in ('summary', 'title', 'query'):
      excess = np.maximum(_ranks(keep, lengths, owner)[1] - room, 0)
      if not excess.any():
        break
      mine = field[name] & keep
      rank, count = _ranks(mine, lengths, owner)
      keep &= ~mine | (rank < (count - excess)[owner])
    return keep

  def _ended(self, ids, target, owner, count: int) -> list[Encoded]:
    """Adds both ends to the kept tokens; `target` marks the tokens to predict."""
    lengths = np.bincount(owner, minlength=count)
    before, after = self.ends
    special = len(before) + len(after)
    stops = np.cumsum(lengths + special)
    starts = stops - lengths - special
    where = np.arange(len(ids)) + owner * special + len(before)
    whole = np.empty(stops[-1], np.int32)
    whole[where] = ids
    whole[starts[:, None] + np.arange(len(before))] = before
    whole[stops[:, None] + np.arange(-len(after), 0)] = after
    at = where - starts[owner]
    known = target & (at > 0)  # without a start token, nothing predicts the first token
    per_text = np.bincount(owner[known], minlength=count)
    at = at[known]
    ends = np.cumsum(per_text)
    types = np.zeros(max(stops - starts), np.int32)
    encoded = []
    for start, stop, n, end in np.stack([starts, stops, per_text, ends], 1).tolist():
      span = (int(at[end - n]), int(at[end - 1]) + 1) if n else (0, 0)
      if n and after and self.predict == 'document' and span[1] == stop - start - len(after):
        span = (span[0], span[1] + 1)  # the end of a document is predicted too
      anchor = stop - start - 1
      encoded.append(Encoded(whole[start:stop], types[: stop - start], anchor, predict=span))
    return encoded


def _until_enough(tokenise: Callable, texts: list, max_len: int) -> list:
  """What `tokenise` returns for each text, given enough of its characters.

  `tokenise(texts, chars)` reads at most about `chars` characters per text. It returns per text the
  result and whether this has the text's own first `max_len` tokens, or all of them.
  """
  results, todo = [None] * len(texts), range(len(texts))
  chars = (max_len + UNSURE_TOKENS) * CHARS_PER_TOKEN
  while todo:
    tokenised = tokenise([texts[i] for i in todo], chars)
    for i, (result, _) in zip(todo, tokenised, strict=True):
      results[i] = result
    todo = [i for i, (_, enough) in zip(todo, tokenised, strict=True) if not enough]
    chars *= GROWTH
  return results


def _ends(text: str, chars: int) -> str:
  """A text of more than about `chars` characters without its middle."""
  return text if len(text) <= chars + TAIL_CHARS else text[:chars] + text[-TAIL_CHARS:]


def _ranks(mask, lengths, owner) -> tuple[np.ndarray, np.ndarray]:
  """Per token, the number of marked tokens before it in its text; per text, the total number."""
  marked = np.concatenate([[0], np.cumsum(mask)])
  stops = np.cumsum(lengths)
  before = marked[stops - lengths]
  return marked[:-1] - before[owner], marked[stops] - before


def _field_lengths(tokenizer, template: str, rows: list[dict[str, str]]) -> list[dict[str, int]]:
  """Numbers of tokens per filled template: of each field, and `input` without special tokens."""
  if not rows:
    return []
  lengths = []
  for row, span in zip(*_filled(tokenizer, template, rows), strict=True):
    fields = _in_fields(np.array(row.offsets), span)
    lengths.append({name: int(inside.sum()) for name, inside in fields.items()})
    lengths[-1]['input'] = len(row)
  return lengths


def _filled(tokenizer, template: str, rows: list[dict[str, str]]) -> tuple[list, Sequence[dict]]:
  """The tokens of each filled template, and the spans of its fields among their offsets.

  The template's control tokens are those of the tokenizer, those in the fields are text.
  """
  template = tokenising.marked(tokenizer.backend_tokenizer, template)
  texts, spans = zip(*(render(template, row) for row in rows), strict=True)
  reader = tokenising.plain(tokenizer.backend_tokenizer).backend
  with tokenising.panics():
    return reader.encode_batch(list(texts), add_special_tokens=False), spans


def _in_fields(offsets: np.ndarray, spans: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
  """A mask of the tokens of each field, from the character spans of tokens and fields.

  A token belongs to the field of its last character, because a leading space belongs to its word.
  """
  last = offsets.reshape(-1, 2)[:, 1] - 1
  return {name: (last >= start) & (last < stop) for name, (start, stop) in spans.items()}


def template_fields(template: str) -> list[str]:
  """The fields of a template in order. Raises: UserError for braces that are not of a field."""
  return [field for _, field in _parts(template) if field]


def render(template: str, fields: dict[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
  """The filled template and the character span of each field in it."""
  text, spans = '', {}
  for literal, name in _parts(template):
    value = fields[name] if name else literal
    if name:
      spans[name] = (len(text), len(text) + len(value))
    text += value
  return text, spans


@functools.cache
def _parts(template: str) -> list[tuple[str, str]]:
  """(text, '') and ('', field) in order; as in str.format, `{{` and `}}` are braces in the text."""
  parts = []
  for match in PART.finditer(template):
    if match['other']:
      raise UserError(
        f'template {template!r}: cannot read {match["other"]!r} at character {match.start() + 1}; '
        'write {query}, {title} and {summary}, and {{ or }} for a brace in the text'
      )
    brace, field, text = match.group('brace', 'field', 'text')
    parts.append((brace[0] if brace else text or '', field or ''))
  return parts
