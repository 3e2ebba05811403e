"""Contracts: how an LLM ranker reads a query with documents, and which tokens answer.

A contract is data. The named ones are in data/named_contracts.py, a user's own is a JSON file with
the fields of `Contract`. data/contract_prompts.py turns one into token ids.
"""

import dataclasses
import difflib
import json
import re
import string
from pathlib import Path
from typing import Any

from disranker_jax.errors import UserError

FORMULAS = ('difference', 'raw', 'expectation', 'labels', 'head', 'likelihood')
BOS = ('one', 'each', 'none')
OF_QUERY = ('query', 'instruction', 'count')
OF_DOCUMENT = ('document', 'title', 'summary')
MOST_BYTES = 1 << 20  # of a contract's file
BRACKETED = re.compile(r'\[(\w{1,3})\]')  # what a document's text has like an identifier


@dataclasses.dataclass(frozen=True)
class Contract:
  """A prompt and the labels that are read at its last position.

  name         in messages and results
  pieces       templates that are tokenised apart from each other; one piece is tokenised jointly.
               Fields: {query}, {instruction}; for one document {title}, {summary} or {document},
               which is 'title : summary'; for several {documents} and {count}; `{{` is a brace.
               Only fields are cut to length, so what follows the last one, the suffix, is whole
  item         one document of {documents}; fields {label} and those of a document
  labels       the answers, as text that follows the prompt. Each has to be one token. With
               {documents} the i-th label names the i-th document
  formula      'difference': logit of the first label minus that of the second; 'raw': logit of
               the only label; 'expectation': mean of 0, 1, 2 ... under the softmax of the labels;
               'labels': the logits; 'head': the model's linear head, without labels; 'likelihood':
               mean log-probability of the query's tokens, which end the prompt, without labels
  bos          the start token: 'one' at the start, 'each' before every piece, 'none'
  eos          whether the prompt ends in the end token
  chat         whether the tokenizer's chat template frames the pieces as the user's message
  system       template of the system message, if `chat`; '': none
  answer       how the answer begins, after the chat template or the last piece
  separator    what follows a label in an answer that names several documents
  instruction  the text of {instruction}
  instruction_line  how a text of {instruction} is written; without one the field is empty
  """

  name: str
  pieces: tuple[str, ...]
  item: str = ''
  labels: tuple[str, ...] = ()
  formula: str = 'labels'
  bos: str = 'one'
  eos: bool = False
  chat: bool = False
  system: str = ''
  answer: str = ''
  separator: str = ''
  instruction: str = ''
  instruction_line: str = '{instruction}'

  def __post_init__(self):
    for problem in _problems(self):
      raise UserError(f'contract {self.name!r}: {problem}')

  @property
  def several(self) -> bool:
    """Whether a prompt has several documents."""
    return any('documents' in fields(piece) for piece in self.pieces)

  @property
  def most(self) -> int:
    """The number of documents that a prompt can have."""
    return len(self.labels) if self.several else 1

  @property
  def reads_instruction(self) -> bool:
    """Whether it has a place for an instruction."""
    return any('instruction' in fields(text) for text in (*self.pieces, self.system))

  def identifier(self, number: int) -> str:
    """What names a document in the prompt: its label without blanks."""
    return self.labels[number].strip()

  def clean(self, text: str) -> str:
    """A document's text without what looks like an identifier: '[3]' becomes '(3)'."""
    return BRACKETED.sub(r'(\1)', text) if '[{label}]' in self.item else text

  def to_dict(self) -> dict[str, Any]:
    """The fields, for fingerprints and for JSON."""
    return dataclasses.asdict(self)


def fields(template: str) -> list[str]:
  """The fields of a template in order. Raises: UserError for braces that are not of a field."""
  return [field for _, field in parts(template) if field]


def parts(template: str) -> list[tuple[str, str]]:
  """(text, field or '') in order."""
  try:
    found = list(string.Formatter().parse(template))
  except ValueError as error:
    raise UserError(f'template {template!r}: {error}; write {{{{ or }}}} for a brace') from None
  known = (*OF_QUERY, *OF_DOCUMENT, 'documents', 'label')
  for _, field, form, conversion in found:
    if field is not None and (field not in known or form or conversion):
      raise UserError(
        f'template {template!r}: cannot read {{{field}}}; the fields are '
        f'{", ".join(f"{{{name}}}" for name in known)}; write {{{{ or }}}} for a brace'
      )
  return [(text, field or '') for text, field, _, _ in found]


def _problems(c: Contract):
  """What is wrong with a contract, in words."""
  used = [field for piece in c.pieces for field in fields(piece)]
  within = fields(c.item)
  documents = [f for f in (within if c.several else used) if f in OF_DOCUMENT]
  if c.formula not in FORMULAS:
    yield f'formula {c.formula!r}: must be one of {", ".join(FORMULAS)}'
  if c.bos not in BOS:
    yield f'bos {c.bos!r}: must be one of {", ".join(BOS)}'
  if 'query' not in used + fields(c.system):
    yield 'pieces: no piece has {query}; add it'
  if c.several and any(f in OF_DOCUMENT for f in used):
    yield 'pieces: {documents} and a document by itself; keep one of them'
  if used.count('documents') > 1:
    yield 'pieces: {documents} appears twice; keep one'
  if not documents:
    yield 'no document: add {document} to ' + ('item' if c.several else 'pieces')
  if len(set(documents)) < len(documents) or ('document' in documents and len(documents) > 1):
    yield 'a text of the document appears twice; keep one'
  if c.several and 'label' not in within:
    yield 'item: has no {label} to name the document; add it'
  if c.system and not c.chat:
    yield 'system: a system message needs chat true'
  if set(fields(c.system)) - {'query', 'instruction'}:
    yield 'system: can only have {query} and {instruction}'
  if c.several and (len(c.labels) < 2 or c.formula != 'labels'):
    yield "{documents} needs formula 'labels' and a label for each document, two or more"
  if len(set(c.labels)) < len(c.labels):
    yield 'labels: two are equal; write different ones'
  least = {'difference': 2, 'raw': 1, 'head': 0, 'likelihood': 0}
  if not c.several and c.formula in least and len(c.labels) != least[c.formula]:
    yield f'labels: formula {c.formula!r} needs {least[c.formula]}, not {len(c.labels)}'
  if not c.several and c.formula == 'labels':
    others = ', '.join(map(repr, (f for f in FORMULAS if f != 'labels')))
    yield f"formula 'labels' is for {{documents}}; use one of {others}"
  last = parts(c.pieces[-1] + c.answer)[-1] if c.pieces else ('', '')
  if c.formula == 'likelihood' and (last[1] != 'query' or used.count('query') > 1 or c.chat):
    yield "formula 'likelihood': the prompt has to end in {query}, its only place, without chat"
  if c.formula == 'expectation' and len(c.labels) < 2:
    yield "labels: formula 'expectation' needs two or more"


def read(file: Path) -> Contract:
  """The contract of a JSON file. Raises: UserError with the file and field that is wrong."""
  try:
    if file.stat().st_size > MOST_BYTES:
      raise UserError(f'{file}: is larger than {MOST_BYTES:,} bytes; name a contract')
    raw = json.loads(file.read_text(encoding='utf-8'))
  except OSError as error:
    raise UserError(f'{file}: cannot be read ({error.strerror}); check the path') from None
  except ValueError as error:
    raise UserError(f'{file}: is not JSON ({error}); write an object of fields') from None
  if not isinstance(raw, dict):
    raise UserError(f'{file}: is not an object; write one with pieces, labels and formula')
  return of_dict(raw, str(file), file.stem)


def of_dict(raw: dict, where: str, name: str) -> Contract:
  """A contract from the fields of a JSON object. Raises: UserError that names `where`."""
  known = {field.name: field for field in dataclasses.fields(Contract)}
  values: dict[str, Any] = {'name': name}
  for key, value in raw.items():
    if key not in known:
      near = difflib.get_close_matches(key, known, 1)
      hint = f'; did you mean {near[0]!r}?' if near else f'; the fields are {", ".join(known)}'
      raise UserError(f'{where}: {key!r}: there is no such field{hint}')
    values[key] = _typed(value, key, where)
  if 'pieces' not in values:
    raise UserError(f'{where}: has no pieces; write a list of templates')
  try:
    return Contract(**values)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None


def _typed(value: Any, key: str, where: str) -> Any:
  if key in ('pieces', 'labels'):
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
      raise UserError(f'{where}: {key!r}: must be a list of texts')
    return tuple(value)
  kind, what = (bool, 'true or false') if key in ('eos', 'chat') else (str, 'a text')
  if not isinstance(value, kind):
    raise UserError(f'{where}: {key!r}: must be {what}')
  return value
