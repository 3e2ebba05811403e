"""The four request shapes: what a body means, how scores are written, how an error is.

Each parser checks a body and returns an Ask: pairs of texts, and how to answer with their raw
scores. Formats: Text Embeddings Inference (huggingface.github.io/text-embeddings-inference), Cohere
v1 and v2 and Jina (docs.cohere.com/reference/rerank), vLLM (docs.vllm.ai, scoring).
"""

import dataclasses
import time
import uuid
from collections.abc import Callable

import numpy as np

from disranker_jax.serve.errors import Refused


@dataclasses.dataclass
class Ask:
  """Pairs to score; `answer(scores, tokens)` is the body of the response."""

  queries: list[str]  # one, or one for each text
  texts: list[str]
  answer: Callable
  truncate: bool = True
  max_text_tokens: int = 0  # 0: as many as the model takes


# Checks of a body


def invalid(message: str, status: int = 422) -> Refused:
  return Refused(status, 'Empty' if status == 400 else 'Validation', message)


def get(body: dict, name: str, kind, default=...):
  """A field of the body; Refused if it is missing, without a default, or of another type."""
  value = body.get(name)
  if value is None:
    if default is ...:
      raise invalid(f'`{name}` is missing')
    return default
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    said = {str: 'a string', bool: 'true or false', int: 'an integer', list: 'a list'}.get(kind)
    raise invalid(f'`{name}` must be {said or "a string or a list"}')
  return value


def text(value, name: str) -> str:
  """A string that any tokenizer takes: JSON can hold half of a character, UTF-8 cannot."""
  if not isinstance(value, str):
    raise invalid(f'`{name}` must be a string')
  return value.encode('utf-8', 'replace').decode()


def texts(body: dict, name: str) -> list[str]:
  """A list of strings, or of objects with a `text`."""
  given = get(body, name, list)
  if not given:
    raise invalid(f'`{name}` is empty', 400)
  rows = [row.get('text') if isinstance(row, dict) else row for row in given]
  return [text(row, f'{name}[{i}]') for i, row in enumerate(rows)]


def query(body: dict) -> str:
  value = text(get(body, 'query', str), 'query')
  if not value.strip():
    raise invalid('`query` is empty', 400)
  return value


def count(body: dict, name: str, low: int) -> int:
  value = get(body, name, int, 0)
  if value and value < low:
    raise invalid(f'`{name}` must be at least {low}')
  return value


def sigmoid(scores) -> np.ndarray:
  """In float64, so that far scores do not become equal at 1."""
  return 0.5 * (1 + np.tanh(0.5 * np.asarray(scores, np.float64)))


def order(scores) -> list[int]:
  """Best first by raw score; equal ones as they came."""
  return np.argsort(-np.asarray(scores), kind='stable').tolist()


# The shapes


def tei_rerank(body: dict, model: str) -> Ask:
  given, raw = texts(body, 'texts'), get(body, 'raw_scores', bool, False)
  echo = get(body, 'return_text', bool, False)

  def answer(scores, tokens):
    shown = scores if raw else sigmoid(scores)
    rows = [{'index': i, 'score': float(shown[i])} for i in order(scores)]
    return [row | {'text': given[row['index']]} for row in rows] if echo else rows

  truncate = get(body, 'truncate', bool, True)
  direction(body)
  return Ask([query(body)], given, answer, truncate)


def direction(body: dict) -> None:
  if get(body, 'truncation_direction', str, 'Right').lower() != 'right':
    raise invalid("`truncation_direction`: only 'Right' is supported")


def tei_predict(body: dict, model: str) -> Ask:
  """`inputs` is a pair, or a list of pairs; a pair alone is answered alone."""
  given, raw = get(body, 'inputs', list), get(body, 'raw_scores', bool, False)
  if not given:
    raise invalid('`inputs` is empty', 400)
  single = all(isinstance(x, str) for x in given)
  rows = [given] if single else given
  if not all(isinstance(row, list) and len(row) == 2 for row in rows):
    raise invalid('`inputs` must be pairs [query, text]')
  sides = [[text(x, f'inputs[{i}]') for x in row] for i, row in enumerate(rows)]

  def answer(scores, tokens):
    shown = scores if raw else sigmoid(scores)
    out = [[{'score': float(s), 'label': 'LABEL_0'}] for s in shown]
    return out[0] if single else out

  direction(body)
  truncate = get(body, 'truncate', bool, True)
  return Ask([a for a, _ in sides], [b for _, b in sides], answer, truncate)


def cohere_rerank(body: dict, model: str) -> Ask:
  """Cohere's, Jina's and vLLM's rerank differ in what they leave out."""
  given, top = texts(body, 'documents'), count(body, 'top_n', 1)
  echo = get(body, 'return_documents', bool, False)
  activation = get(body, 'use_activation', bool, True)
  raw = get(body, 'raw_scores', bool, not activation)
  get(body, 'model', str, '')

  def answer(scores, tokens):
    shown = scores if raw else sigmoid(scores)
    rows = [{'index': i, 'relevance_score': float(shown[i])} for i in order(scores)[: top or None]]
    if echo:
      rows = [row | {'document': {'text': given[row['index']]}} for row in rows]
    return {
      'id': f'rerank-{uuid.uuid4().hex}',
      'model': model,
      'results': rows,
      'usage': {'prompt_tokens': tokens, 'total_tokens': tokens},
      'meta': {'api_version': {'version': '2'}, 'billed_units': {'search_units': 1}},
    }

  most = count(body, 'max_tokens_per_doc', 1)
  return Ask([query(body)], given, answer, get(body, 'truncation', bool, True), most)


def vllm_score(body: dict, model: str) -> Ask:
  """One query with many documents, or as many of each; text_1 and text_2 are the older names."""
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
    shown = scores if raw else sigmoid(scores)
    return {
      'id': f'score-{uuid.uuid4().hex}',
      'object': 'list',
      'created': int(time.time()),
      'model': model,
      'data': [{'index': i, 'object': 'score', 'score': float(s)} for i, s in enumerate(shown)],
      'usage': {'prompt_tokens': tokens, 'total_tokens': tokens},
    }

  return Ask(*sides, answer)


def rerank(body: dict, model: str) -> Ask:
  """`/rerank` is TEI's if it has `texts`, and the others' if it has `documents`."""
  return (cohere_rerank if 'documents' in body else tei_rerank)(body, model)


# Errors


def tei_error(e: Refused) -> dict:
  return {'error': e.message, 'error_type': e.kind}


def cohere_error(e: Refused) -> dict:
  return {'id': uuid.uuid4().hex, 'message': e.message}


def vllm_error(e: Refused) -> dict:
  return {'error': {'message': e.message, 'type': e.kind, 'param': None, 'code': e.status}}


# {path: (parser, error format)}
SHAPES = {
  '/rerank': (rerank, tei_error),
  '/predict': (tei_predict, tei_error),
  '/v1/rerank': (cohere_rerank, cohere_error),
  '/v2/rerank': (cohere_rerank, cohere_error),
  '/score': (vllm_score, vllm_error),
  '/v1/score': (vllm_score, vllm_error),
}
