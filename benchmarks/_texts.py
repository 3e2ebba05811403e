"""What benches score: the held-out queries of the documentation of Python, with BM25's top."""

import dataclasses

import numpy as np

from disranker_jax.data import python_docs
from disranker_jax.data.prompts import document_text
from disranker_jax.evaluation import metrics


@dataclasses.dataclass(frozen=True)
class Request:
  """A query with its texts; grades by position where there are any."""

  query: str
  texts: tuple[str, ...]
  grades: tuple[int, ...] = ()


def natural(count: int, depth: int = 20) -> list[Request]:
  """Texts as they are."""
  out = []
  for group in python_docs.groups('test', depth):
    texts = tuple(document_text(d) for d in group.docs)
    out.append(Request(group.query, texts, tuple(d.label for d in group.docs)))
    if len(out) == count:
      break
  return out


def full(count: int, depth: int = 20) -> list[Request]:
  """The same with every text longer than any model takes."""
  long = ' '.join(t for r in natural(3) for t in r.texts)
  return [dataclasses.replace(r, texts=tuple(f'{t} {long}' for t in r.texts))
          for r in natural(count, depth)]  # fmt: skip


def ndcg(requests: list[Request], scores: list[np.ndarray], depth: int = 5) -> float:
  """Mean nDCG of the requests' own grades."""
  values = []
  for request, given in zip(requests, scores, strict=True):
    run, grades = (dict(enumerate(map(float, v))) for v in (given, request.grades))
    run, grades = ({str(k): v for k, v in d.items()} for d in (run, grades))
    values.append(metrics.ndcg(run, {k: int(v) for k, v in grades.items()}, depth))
  return float(np.mean(values))


def percentiles(seconds) -> dict[str, float]:
  """p50, p95 and p99 in milliseconds."""
  p50, p95, p99 = np.percentile(np.asarray(seconds) * 1000, (50, 95, 99))
  return {'p50_ms': round(p50, 2), 'p95_ms': round(p95, 2), 'p99_ms': round(p99, 2)}
