"""Turns contracts into token ids: fields are cut to length, and cannot become control tokens."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence

import numpy as np

from disranker_jax.data import tokenising
from disranker_jax.data.contracts import OF_DOCUMENT, Contract, parts
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.records import Document
from disranker_jax.data.tokenising import panics
from disranker_jax.errors import UserError, reason

# Of a long text only the start is tokenised: enough for the tokens that are kept.
CHARS_PER_TOKEN, MORE_CHARS = 32, 1000
# Tokens that a field's text can have more inside a prompt than by itself.
SEAM = 2
# What counts as a token without a tokenizer, and the tokens of a chat template by itself.
TOKEN, CHAT_TOKENS = re.compile(r'\w+|[^\w\s]|\n'), 24
# Around a field's name in the text that a chat template gets; private characters of Unicode.
OPEN, CLOSE = '\ue000', '\ue001'
USER = f'{OPEN}user{CLOSE}'
UNCUT, QUERY = -1, -2  # owners of spans; queries count down, documents are 0, 1, ...

Span = tuple[int, int, int]  # start, stop, owner
Request = tuple[str, Sequence[Document]]  # a query and the documents of one prompt


@dataclasses.dataclass(frozen=True)
class ContractPrompt:
  """A contract with a tokenizer and budgets.

  Args:
    docs: the most documents of a prompt.
    query_tokens, doc_tokens: longer queries and documents lose their ends.

  Raises: UserError for a chat template or an end token that is missing or does not fit.
  """

  contract: Contract
  tokenizer: object
  docs: int = 1
  query_tokens: int = 64
  doc_tokens: int = 256

  def __post_init__(self):
    if self.docs > self.contract.most:
      raise UserError(
        f'contract {self.contract.name!r}: a prompt has at most {self.contract.most} documents, '
        f'not {self.docs}; take a smaller window, or a contract with more labels'
      )
    if self.contract.eos and self.tokenizer.eos_token_id is None:
      raise UserError(
        f'contract {self.contract.name!r}: ends in an end token, which this tokenizer lacks; name '
        'one as eos_token in its tokenizer_config.json, or take another contract'
      )
    _ = self.framed  # so that a missing chat template is an error now

  @functools.cached_property
  def framed(self) -> list[list[tuple[str, str]]]:
    """The parts of every piece, with the chat template and the beginning of the answer."""
    c = self.contract
    pieces = [parts(piece) for piece in c.pieces]
    before, after = _chat(c, self.tokenizer) if c.chat else ([], '')
    pieces[0] = [*before, *pieces[0]]
    pieces[-1] = [*pieces[-1], (after + c.answer, '')]
    return pieces

  @functools.cached_property
  def max_len(self) -> int:
    """The most tokens of a prompt."""
    empty = Document('', '', '')
    [fixed] = self._joined([('', [empty] * self.docs)])
    used = [field for piece in self.framed for _, field in piece]
    return len(fixed[0]) + of_fields(used, self.docs, self.query_tokens, self.doc_tokens)

  @functools.cached_property
  def label_ids(self) -> list[int]:
    """The token of each label that a prompt of `docs` documents can be answered with.

    Raises: UserError that shows the tokens of a label that is not exactly one.
    """
    labels = self.contract.labels[: self.docs] if self.contract.several else self.contract.labels
    return [self._label(label) for label in labels]

  @functools.cached_property
  def separator_ids(self) -> list[int]:
    """The tokens between two labels of an answer."""
    answered = self._tail + self.contract.labels[0]
    [start], [whole], [alone] = (
      literal_ids(self.tokenizer, [text])
      for text in (answered, answered + self.contract.separator, self.contract.separator)
    )
    return whole[len(start) :] if whole[: len(start)] == start else alone

  def encode_many(self, requests: Sequence[Request]) -> list[Encoded]:
    """One prompt for each query with its documents; thread-safe."""
    encoded = []
    for ids, cut, predicted in self._joined(requests):
      array = np.array(ids, np.int32)
      span = (len(array) - predicted, len(array)) if predicted else (0, 0)
      encoded.append(Encoded(array, np.zeros_like(array), len(array) - 1, span, cut))
    return encoded

  def _joined(self, requests: Sequence[Request]) -> list[tuple[list[int], bool, int]]:
    """(ids, whether a text was cut, how many tokens at the end are predicted) of each prompt."""
    rendered = [self._render(query, docs) for query, docs in requests]
    flat = [text for pieces in rendered for text, _ in pieces]
    tokens = iter(tokenised(self.tokenizer, flat))
    return [self._assembled(list(itertools.islice(tokens, len(r))), r) for r in rendered]

  def _render(self, query: str, docs: Sequence[Document]) -> list[tuple[str, list[Span]]]:
    """(text, spans of its fields) of every piece."""
    c, pieces, queries = self.contract, [], itertools.count(QUERY, -1)
    line = c.instruction_line.replace('{instruction}', c.instruction) if c.instruction else ''
    query = query[: _chars(self.query_tokens)]
    for piece in self.framed:
      out = Rendering(self.tokenizer.backend_tokenizer)
      for literal, field in piece:
        out.add(literal)
        if field == 'query':
          out.add(query, next(queries))
        elif field == 'instruction':
          out.add(line, UNCUT)
        elif field == 'count':
          out.add(str(len(docs)))
        elif field == 'documents':
          for i, doc in enumerate(docs):
            self._item(out, i, doc)
        elif field:
          out.add(self._text(docs[0], field), 0)
      pieces.append((out.text, out.spans))
    return pieces

  def _item(self, out: 'Rendering', i: int, doc: Document) -> None:
    for literal, field in parts(self.contract.item):
      out.add(literal)
      if field == 'label':
        out.add(self.contract.identifier(i))
      elif field in OF_DOCUMENT:
        out.add(self._text(doc, field), i)

  def _text(self, doc: Document, field: str) -> str:
    """A document's text for a field; without a title it is the summary alone."""
    titled = ' : '.join(text for text in (doc.title, doc.summary) if text)
    text = titled if field == 'document' else getattr(doc, field)
    return self.contract.clean(text[: _chars(self.doc_tokens)])

  def _assembled(self, tokens: list['Tokens'], rendered) -> tuple[list[int], bool, int]:
    """The ids of a prompt: start and end tokens added, fields cut."""
    owners = [_owners(each, spans) for each, (_, spans) in zip(tokens, rendered, strict=True)]
    all_ids = np.concatenate([each.ids for each in tokens])
    starts = np.cumsum([0, *map(len, owners)])[:-1]
    owner = np.concatenate(owners)
    keep = self._kept(owner, self.query_tokens, self.doc_tokens)
    ends = [self.tokenizer.eos_token_id] if self.contract.eos else []
    bos, rule = self.tokenizer.bos_token_id, self.contract.bos
    ids: list[int] = []
    for start, each in zip(starts, owners, strict=True):
      own = all_ids[start : start + len(each)][keep[start : start + len(each)]].tolist()
      first = not ids if rule == 'one' else rule == 'each'
      if first and bos is not None and own[:1] != [bos]:
        ids.append(bos)
      ids += own
    predicted = int((owner[keep] == QUERY).sum()) if self.contract.formula == 'likelihood' else 0
    return ids + ends, not keep.all(), min(predicted, len(ids) - 1)

  def _kept(self, owner: np.ndarray, query_tokens: int, doc_tokens: int) -> np.ndarray:
    """A mask without the ends of long fields."""
    keep = np.ones(len(owner), bool)
    for field in np.unique(owner[owner != UNCUT]):
      most = query_tokens if field <= QUERY else doc_tokens
      keep[np.flatnonzero(owner == field)[most:]] = False
    return keep

  @functools.cached_property
  def _tail(self) -> str:
    """The text between the last field and the answer."""
    literals: list[str] = []
    for literal, field in reversed(self.framed[-1]):
      if field:
        break
      literals.append(literal)
    return ''.join(reversed(literals))

  def _label(self, label: str) -> int:
    backend, tail = self.tokenizer.backend_tokenizer, self._tail
    with panics():
      row = backend.encode(tail + label, add_special_tokens=False)
    before = row.offsets[-2][1] if len(row.ids) > 1 else 0
    # Offsets can leave out a leading blank, so the token's text is compared too.
    text = backend.decode(row.ids[-1:], skip_special_tokens=False)
    alone = before <= len(tail) <= row.offsets[-1][0] and text in (label, label.lstrip())
    if not alone:
      shown = [backend.id_to_token(i) for i in row.ids[-4:]]
      raise UserError(
        f'contract {self.contract.name!r}: the label {label!r} is not one token of this tokenizer '
        f'after {tail[-20:]!r} (the end is read as {shown}); use other labels in a contract file, '
        'or another model'
      )
    return row.ids[-1]


def of_fields(used: Sequence[str], docs: int, query_tokens: int, doc_tokens: int) -> int:
  """The most tokens that the fields of a prompt have, beside those of its own text."""
  seams = SEAM * (len(used) + 2 * docs)
  return used.count('query') * query_tokens + docs * doc_tokens + seams


@dataclasses.dataclass(frozen=True)
class ExpectedPrompt:
  """The lengths of a contract's prompts for any tokenizer: to plan without one.

  A word, a mark and a line end count as a token each. With 64 tokens per query and 128 per document
  the prompts of the named contracts are within 6 % of what SmolLM2's tokenizer makes of them.
  """

  contract: Contract
  docs: int
  query_tokens: int
  doc_tokens: int

  @property
  def max_len(self) -> int:
    """About the most tokens of a prompt."""
    c = self.contract
    texts = [part for text in (c.system, *c.pieces, c.answer) for part in parts(text)]
    own = [text for text, _ in texts] + [c.instruction]
    own += [text for text, field in parts(c.item) for _ in range(self.docs)]
    fixed = sum(len(TOKEN.findall(text)) for text in own)
    fixed += len(c.labels[: self.docs]) if c.several else 0  # each names its document
    fixed += CHAT_TOKENS if c.chat else 0
    used = [field for _, field in texts]
    return fixed + 1 + of_fields(used, self.docs, self.query_tokens, self.doc_tokens)

  @property
  def label_ids(self) -> list[int]:
    """As many numbers as there are labels."""
    return list(range(len(self.contract.labels[: self.docs if self.contract.several else None])))


class Rendering:
  """A text under construction, and the spans of its fields; its literals have control tokens."""

  def __init__(self, backend):
    self._backend, self.text, self.spans = backend, '', []

  def add(self, text: str, owner: int | None = None) -> None:
    """Appends a literal, or the text of a field."""
    if owner is None:
      text = tokenising.marked(self._backend, text)
    else:
      self.spans.append((len(self.text), len(self.text) + len(text), owner))
    self.text += text


@dataclasses.dataclass(frozen=True)
class Tokens:
  """The tokens of a text: their ids, and the character at which each ends."""

  ids: np.ndarray
  last: np.ndarray


def tokenised(tokenizer, texts: Sequence[str]) -> list[Tokens]:
  """The tokens of texts; only names that `tokenising.marked` gives are control tokens."""
  reader = tokenising.plain(tokenizer.backend_tokenizer).backend
  with panics():
    rows = reader.encode_batch(list(texts), add_special_tokens=False)
  return [
    Tokens(np.array(row.ids, np.int64), np.array([end - 1 for _, end in row.offsets], np.int64))
    for row in rows
  ]


def literal_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
  """The token ids of texts that are written by us: control tokens in them are control tokens."""
  with panics():
    rows = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
  return [row.ids for row in rows]


def _owners(tokens: Tokens, spans: list[Span]) -> np.ndarray:
  """Per token the owner of its last character; UNCUT if it is a literal's."""
  owner = np.full(len(tokens.ids), UNCUT)
  for start, stop, who in spans:
    owner[(tokens.last >= start) & (tokens.last < stop)] = who
  return owner


def _chars(tokens: int) -> int:
  return tokens * CHARS_PER_TOKEN + MORE_CHARS


def _chat(c: Contract, tokenizer) -> tuple[list[tuple[str, str]], str]:
  """What the tokenizer's chat template writes before and after the user's message."""
  if not tokenizer.chat_template:
    raise UserError(
      f'contract {c.name!r}: wants a chat template, which this tokenizer lacks; use a chat model, '
      'or a contract without chat'
    )
  system = ''.join(text + (f'{OPEN}{f}{CLOSE}' if f else '') for text, f in parts(c.system))
  messages = [{'role': 'system', 'content': system}] if system else []
  messages.append({'role': 'user', 'content': USER})
  try:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  except Exception as error:  # templates raise what they like
    raise UserError(f'contract {c.name!r}: the chat template fails: {reason(error)}') from error
  before, found, after = text.partition(USER)
  if not found or USER in after:
    raise UserError(
      f"contract {c.name!r}: the chat template does not write the user's message once"
    )
  return _marked(before), after


def _marked(text: str) -> list[tuple[str, str]]:
  """(text, field or '') of a text with marked fields."""
  found = []
  while OPEN in text:
    literal, _, rest = text.partition(OPEN)
    field, _, text = rest.partition(CLOSE)
    found.append((literal, field))
  return [*found, (text, '')]
