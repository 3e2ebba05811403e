"""What benches score: held-out queries of Python's documentation with BM25's top documents."""

import dataclasses

import numpy as np

from disranker_jax.data import python_docs
from disranker_jax.data.prompts import document_text
from disranker_jax.evaluation import metrics


@dataclasses.dataclass(frozen=True)
class Request:
  """A query with its texts, and their grades by position if known."""

  query: str
  texts: tuple[str, ...]
  grades: tuple[int, ...] = ()


def natural(count: int, depth: int = 20) -> list[Request]:
  """Requests with the texts unchanged."""
  out = []
  for group in python_docs.groups('test', depth):
    texts = tuple(document_text(d) for d in group.docs)
    out.append(Request(group.query, texts, tuple(d.label for d in group.docs)))
    if len(out) == count:
      break
  return out


def full(count: int, depth: int = 20) -> list[Request]:
  """Requests in which every text is longer than any model reads."""
  long = ' '.join(t for r in natural(3) for t in r.texts)
  return [dataclasses.replace(r, texts=tuple(f'{t} {long}' for t in r.texts))
          for r in natural(count, depth)]  # fmt: skip


def made(count: int, depth: int = 20) -> list[Request]:
  """Requests of made-up words, longer than any model reads, for students with random weights."""
  long = ' '.join(f'word{i % 97} list of names' for i in range(600))
  texts = tuple(f'text{n} {long}' for n in range(depth))
  return [Request(f'query {i} about names', texts, (1, *[0] * (depth - 1))) for i in range(count)]


def ndcg(requests: list[Request], scores: list[np.ndarray], depth: int = 5) -> float:
  """Mean nDCG by the requests' own grades."""
  values = []
  for request, scores_N in zip(requests, scores, strict=True):
    run = {str(i): float(score) for i, score in enumerate(scores_N)}
    grades = {str(i): int(grade) for i, grade in enumerate(request.grades)}
    values.append(metrics.ndcg(run, grades, depth))
  return float(np.mean(values))


def percentiles(seconds) -> dict[str, float]:
  """p50, p95 and p99 in milliseconds."""
  p50, p95, p99 = np.percentile(np.asarray(seconds) * 1000, (50, 95, 99))
  return {'p50_ms': round(p50, 2), 'p95_ms': round(p95, 2), 'p99_ms': round(p99, 2)}
