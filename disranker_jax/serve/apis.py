"""The APIs of rerank clients: how each reads a request, writes scores, and writes an error.

To add an API, write a function `parse(body, model) -> ScoreRequest`, which checks the body with the
helpers below, and add one line per path to `APIS`. Limits, authentication, batching, metrics and
headers are the same for every path (`app.py`).

Formats: Text Embeddings Inference (huggingface.github.io/text-embeddings-inference), Cohere v1 and
v2 and Jina (docs.cohere.com/reference/rerank), vLLM (docs.vllm.ai, scoring).
"""

import dataclasses
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from disranker_jax.rankers.loaded import order
from disranker_jax.serve.errors import Refused


@dataclasses.dataclass
class ScoreRequest:
  """Pairs to score; `answer(scores, tokens)` returns the body of the response."""

  pairs: list[tuple[str, str]]  # (query, text)
  answer: Callable
  truncate: bool = True
  max_text_tokens: int = 0  # 0: no limit of the request's own


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


def count(body: dict, name: str, low: int) -> int:
  """An optional integer of at least `low`; 0 if it is absent."""
  value = get(body, name, int, 0)
  if value and value < low:
    raise invalid(f'`{name}` must be at least {low}')
  return value


def shown(scores, raw: bool) -> list[float]:
  """The scores as clients see them: raw, or between 0 and 1 by a sigmoid.

  The sigmoid is computed in float64, so that large scores do not all become 1.
  """
  scores = np.asarray(scores, np.float64)
  return (scores if raw else 0.5 * (1 + np.tanh(0.5 * scores))).tolist()


# Parsers


def tei_rerank(body: dict, model: str) -> ScoreRequest:
  """`texts` for one query, answered best first."""
  docs, raw = texts(body, 'texts'), get(body, 'raw_scores', bool, False)
  echo = get(body, 'return_text', bool, False)

  def answer(scores, tokens):
    values = shown(scores, raw)
    rows = [{'index': i, 'score': values[i]} for i in order(scores)]
    return [row | {'text': docs[row['index']]} for row in rows] if echo else rows

  truncate = get(body, 'truncate', bool, True)
  check_direction(body)
  search = query(body)
  return ScoreRequest([(search, doc) for doc in docs], answer, truncate)


def check_direction(body: dict) -> None:
  if get(body, 'truncation_direction', str, 'Right').lower() != 'right':
    raise invalid("`truncation_direction`: only 'Right' is supported")


def tei_predict(body: dict, model: str) -> ScoreRequest:
  """`inputs` is a pair [query, text] or a list of pairs; a single pair gets a single answer."""
  rows, raw = get(body, 'inputs', list), get(body, 'raw_scores', bool, False)
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

  check_direction(body)
  return ScoreRequest(pairs, answer, get(body, 'truncate', bool, True))


def cohere_rerank(body: dict, model: str) -> ScoreRequest:
  """`documents` for one query, best first; serves Cohere's, Jina's and vLLM's clients."""
  docs, top = texts(body, 'documents'), count(body, 'top_n', 1)
  echo = get(body, 'return_documents', bool, False)
  activation = get(body, 'use_activation', bool, True)
  raw = get(body, 'raw_scores', bool, not activation)
  get(body, 'model', str, '')

  def answer(scores, tokens):
    values = shown(scores, raw)
    rows = [{'index': i, 'relevance_score': values[i]} for i in order(scores)[: top or None]]
    if echo:
      rows = [row | {'document': {'text': docs[row['index']]}} for row in rows]
    return {
      'id': f'rerank-{uuid.uuid4().hex}',
      'model': model,
      'results': rows,
      'usage': {'prompt_tokens': tokens, 'total_tokens': tokens},
      'meta': {'api_version': {'version': '2'}, 'billed_units': {'search_units': 1}},
    }

  most, search = count(body, 'max_tokens_per_doc', 1), query(body)
  truncate = get(body, 'truncation', bool, True)
  return ScoreRequest([(search, doc) for doc in docs], answer, truncate, most)


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
  raw = not get(body, 'use_activation', bool, True)
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
