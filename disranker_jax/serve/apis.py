"""The APIs of rerank clients: how each reads a request, writes scores, and writes an error.

To add an API, write a function `parse(body, model) -> ScoreRequest`, which checks the body with the
helpers below, and add one line per path to `APIS`. Limits, authentication, batching, metrics and
headers are the same for every path (`app.py`), as are the fields that `read` checks.

Formats: Text Embeddings Inference (huggingface.github.io/text-embeddings-inference), Cohere v1 and
v2 and Jina (docs.cohere.com/reference/rerank), vLLM (docs.vllm.ai, scoring).
"""

import dataclasses
import json
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from disranker_jax.errors import UserError
from disranker_jax.evaluation import fusion
from disranker_jax.progress import amount
from disranker_jax.rankers import loaded
from disranker_jax.rankers.loaded import order
from disranker_jax.serve.errors import Refused


class FirstStage(NamedTuple):
  """What a request says of the first stage: scores of its texts, and the model's weight or None.

  `signal` is what the scores are of, as in Fusion.
  """

  scores: dict[int, float]
  weight: float | None
  signal: str


@dataclasses.dataclass
class ScoreRequest:
  """Pairs to score; `answer(scores, tokens)` returns the body of the response."""

  pairs: list[tuple[str, str]]  # (query, text)
  answer: Callable
  truncate: bool = True
  limits: dict[str, int] = dataclasses.field(default_factory=dict)  # LoadedRanker.encode's
  first: FirstStage | None = None


# Checks of a body


def invalid(message: str, status: int = 422) -> Refused:
  return Refused(status, 'Empty' if status == 400 else 'Validation', message)


def get(body: dict, name: str, kind, default=..., at: str = ''):
  """A field of the body, or of the object `at` that it has.

  Raises: Refused if the field has another type, or is missing without default.
  """
  value = body.get(name)
  if value is None:
    if default is ...:
      raise invalid(f'`{at}{name}` is missing')
    return default
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    wanted = {str: 'a string', bool: 'true or false', int: 'an integer', list: 'a list'}.get(kind)
    raise invalid(f'`{at}{name}` must be {wanted or "a string or a list"}')
  return value


def text(value, name: str) -> str:
  """A string without lone surrogates, which JSON can hold and tokenizers reject."""
  if not isinstance(value, str):
    raise invalid(f'`{name}` must be a string')
  return value.encode('utf-8', 'replace').decode()


def texts(body: dict, name: str) -> list[str]:
  """A list of strings, or of objects with a `text`."""
  rows = get(body, name, list)
  if not rows:
    raise invalid(f'`{name}` is empty', 400)
  return [
    text(get(row, 'text', str, at=f'{name}[{i}].'), f'{name}[{i}].text')
    if isinstance(row, dict)
    else text(row, f'{name}[{i}]')
    for i, row in enumerate(rows)
  ]


def query(body: dict) -> str:
  """The field `query`, which must not be blank."""
  value = text(get(body, 'query', str), 'query')
  if not value.strip():
    raise invalid('`query` is empty', 400)
  return value


def count(body: dict, name: str, low: int, unlimited: int = 0) -> int:
  """An optional integer of at least `low`; 0 if it is absent or `unlimited`."""
  value = get(body, name, int, unlimited)
  if value == unlimited:
    return 0
  if value < low:
    raise invalid(f'`{name}` must be at least {low}')
  return value


def raw_scores(body: dict) -> bool:
  """Whether scores are wanted without a sigmoid: TEI's field, or vLLM's under its three names."""
  names = ('use_activation', 'activation', 'softmax')
  activation = all(get(body, name, bool, True) for name in names)
  return get(body, 'raw_scores', bool, not activation)


def first_stage(body: dict, count: int) -> FirstStage | None:
  """The optional fields `first_scores`, `first_ranks` and `fuse` of a request for `count` texts."""
  scores, ranks = (get(body, name, list, None) for name in FIRST)
  try:
    found = loaded.first_stage(count, scores, ranks, body.get(FUSE))
  except UserError as e:
    raise invalid(str(e)) from None
  signal = 'scores' if ranks is None else 'ranks'
  return None if found is None else FirstStage(found, body.get(FUSE), signal)


def weight(value) -> float:
  """The model's weight, from 0 to 1."""
  try:
    return fusion.check_weight(value, FUSE)
  except UserError as e:
    raise invalid(str(e)) from None


def shown(scores, raw: bool) -> list[float]:
  """The scores as clients see them: raw, or between 0 and 1 by a sigmoid.

  The sigmoid is computed in float64, so that large scores do not all become 1.
  """
  scores = np.asarray(scores, np.float64)
  return (scores if raw else 0.5 * (1 + np.tanh(0.5 * scores))).tolist()


# Parsers


def tei_rerank(body: dict, model: str) -> ScoreRequest:
  """`texts` for one query, answered best first."""
  docs = texts(body, 'texts')
  first = first_stage(body, len(docs))
  raw = raw_scores(body) or first is not None  # fused scores are between 0 and 1
  echoed = docs if get(body, 'return_text', bool, False) else None

  def answer(scores, tokens):
    values = shown(scores, raw)
    rows = [{'index': i, 'score': values[i]} for i in order(scores)]
    return [row | {'text': echoed[row['index']]} for row in rows] if echoed else rows

  truncate = get(body, 'truncate', bool, True)
  search = query(body)
  return ScoreRequest([(search, doc) for doc in docs], answer, truncate, first=first)


def tei_predict(body: dict, model: str) -> ScoreRequest:
  """`inputs` is a pair [query, text] or a list of pairs; a single pair gets a single answer."""
  rows, raw = get(body, 'inputs', list), raw_scores(body)
  if not rows:
    raise invalid('`inputs` is empty', 400)
  single = all(isinstance(x, str) for x in rows)
  rows = [rows] if single else rows
  if not all(isinstance(row, list) and len(row) == 2 for row in rows):
    raise invalid('`inputs` must be pairs [query, text]')
  pairs = [tuple(text(x, f'inputs[{i}]') for x in row) for i, row in enumerate(rows)]

  def answer(scores, tokens):
    out = [[{'score': score, 'label': 'LABEL_0'}] for score in shown(scores, raw)]
    return out[0] if single else out

  return ScoreRequest(pairs, answer, get(body, 'truncate', bool, True))


def cohere_rerank(body: dict, model: str) -> ScoreRequest:
  """`documents` for one query, best first; serves Cohere's, Jina's and vLLM's clients."""
  docs, top = texts(body, 'documents'), count(body, 'top_n', 1)
  echoed = docs if get(body, 'return_documents', bool, False) else None
  first = first_stage(body, len(docs))
  raw = raw_scores(body) or first is not None
  get(body, 'model', str, '')

  def answer(scores, tokens):
    values = shown(scores, raw)
    rows = [{'index': i, 'relevance_score': values[i]} for i in order(scores)[: top or None]]
    if echoed:
      rows = [row | {'document': {'text': echoed[row['index']]}} for row in rows]
    return {
      'id': f'rerank-{uuid.uuid4().hex}',
      'model': model,
      'results': rows,
      'usage': {'prompt_tokens': tokens, 'total_tokens': tokens},
      'meta': {'api_version': {'version': '2'}, 'billed_units': {'search_units': 1}},
    }

  search, truncate = query(body), get(body, 'truncation', bool, True)
  return ScoreRequest([(search, doc) for doc in docs], answer, truncate, first=first)


def vllm_score(body: dict, model: str) -> ScoreRequest:
  """One query for all documents, or one for each; text_1 and text_2 are the older names."""
  new = 'queries' in body or 'documents' in body
  names = ('queries', 'documents') if new else ('text_1', 'text_2')
  sides = []
  for name in names:
    value = get(body, name, (str, list))
    sides.append([text(value, name)] if isinstance(value, str) else texts(body, name))
  if len(sides[0]) not in (1, len(sides[1])):
    raise invalid(f'`{names[0]}` must be one text or as many as `{names[1]}`')
  raw = raw_scores(body)
  get(body, 'model', str, '')

  def answer(scores, tokens):
    values = shown(scores, raw)
    return {
      'id': f'score-{uuid.uuid4().hex}',
      'object': 'list',
      'created': int(time.time()),
      'model': model,
      'data': [{'index': i, 'object': 'score', 'score': v} for i, v in enumerate(values)],
      'usage': {'prompt_tokens': tokens, 'total_tokens': tokens},
    }

  queries, docs = sides
  queries = queries * len(docs) if len(queries) == 1 else queries
  return ScoreRequest(list(zip(queries, docs, strict=True)), answer)


def rerank(body: dict, model: str) -> ScoreRequest:
  """`/rerank` with `documents` is Cohere's request; otherwise it is TEI's, with `texts`."""
  return (cohere_rerank if 'documents' in body else tei_rerank)(body, model)


# Error formats


def tei_error(e: Refused) -> dict:
  return {'error': e.message, 'error_type': e.kind}


def cohere_error(e: Refused) -> dict:
  return {'id': uuid.uuid4().hex, 'message': e.message}


def vllm_error(e: Refused) -> dict:
  return {'error': {'message': e.message, 'type': e.kind, 'param': None, 'code': e.status}}


class Api(NamedTuple):
  """How a path reads its requests and writes its errors."""

  parse: Callable[[dict, str], ScoreRequest]
  error: Callable[[Refused], dict]


APIS = {
  '/rerank': Api(rerank, tei_error),
  '/predict': Api(tei_predict, tei_error),
  '/v1/rerank': Api(cohere_rerank, cohere_error),
  '/v2/rerank': Api(cohere_rerank, cohere_error),
  '/score': Api(vllm_score, vllm_error),
  '/v1/score': Api(vllm_score, vllm_error),
}

# Fields of requests that fuse the model with the first stage.
FIRST, FUSE = ('first_scores', 'first_ranks'), 'fuse'

# Fields that change scores in other servers, with the only value that is supported here besides
# null: the one that changes nothing.
FIXED = {
  'instruction': '',
  'rank_fields': ['text'],
  'max_chunks_per_doc': 1,
  'overlap_tokens': 0,
  'chat_template': '',
  'chat_template_kwargs': {},
  'mm_processor_kwargs': {},
  'add_special_tokens': True,
  'truncation_side': 'right',
  'truncation_direction': 'right',
}


def too_many(count: int, most: int) -> Refused:
  return Refused(413, 'Validation', f'the request has {amount(count, "text")}; the limit is {most}')


def read(path: str, body: dict, model: str, most: int) -> ScoreRequest:
  """The request to one of APIS, with the limits that every API takes.

  Raises: Refused if a field is wrong, would change scores and is not supported, or is a list of
    more than `most` texts.
  """
  # Before any item is looked at. A single pair of `/predict` is a list of two.
  for value in body.values():
    if isinstance(value, list) and len(value) > max(most, 2):
      raise too_many(len(value), most)
  for name, fixed in FIXED.items():
    value = body.get(name)
    if value is not None and (value.lower() if isinstance(value, str) else value) != fixed:
      raise invalid(f'`{name}` is not supported; leave it out, or send {json.dumps(fixed)}')
  if APIS[path].parse in (tei_predict, vllm_score):
    for name in (*FIRST, FUSE):
      if body.get(name) is not None:
        raise invalid(f'`{name}` is not supported here; send it to /rerank')
  request = APIS[path].parse(body, model)
  request.limits = {
    'max_text_tokens': count(body, 'max_tokens_per_doc', 1),
    'max_query_tokens': count(body, 'max_tokens_per_query', 1),
    # Two special tokens after [CLS], and one token each of the query and the text.
    'max_tokens': count(body, 'truncate_prompt_tokens', 5, unlimited=-1),
  }
  return request
