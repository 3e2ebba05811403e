"""What a user of the exported folder gets: its ranking quality and the time of a request.

The trained parameters are not what is served: the server's default on a CPU computes in 8 bits.
"""

import time
from pathlib import Path

import numpy as np

import disranker_jax
from disranker_jax.data.records import Group
from disranker_jax.evaluation import metrics

QUERIES = 200  # requests that are timed, one query each
METRIC = 'ndcg@5'


def measure(folder: Path, groups: list[Group], qrels: metrics.Qrels) -> list[dict]:
  """A row for the server's default and one for exact scores, where these differ.

  `groups` have the documents of one request each, one request at a time. Times include tokenising,
  but no network: p50_ms and p95_ms are the median and the 95th percentile over the requests.
  """
  groups = groups[:QUERIES]
  judged = {g.query_id: qrels[g.query_id] for g in groups}
  rows = []
  for fast in (True, False):
    ranker = disranker_jax.load(folder, fast=fast)
    if ranker.backend.name in [row['backend'] for row in rows]:
      continue
    rows.append({'backend': ranker.backend.name, **requested(ranker, groups, judged)})
  return rows


def requested(ranker, groups: list[Group], qrels: metrics.Qrels) -> dict:
  """Scores every group in a request of its own; the first request is repeated, not timed."""
  run, times = {}, []
  for group in (groups[0], *groups):
    begin = time.perf_counter()
    scores = ranker.score([(group.query, doc) for doc in group.docs])
    times.append(1000 * (time.perf_counter() - begin))
    run[group.query_id] = {d.doc_id: float(s) for d, s in zip(group.docs, scores, strict=True)}
  middle, high = np.percentile(times[1:], [50, 95])
  values = metrics.per_query(run, qrels, names=(METRIC,))
  return {
    METRIC: metrics.summary(values)[METRIC],
    'p50_ms': float(middle),
    'p95_ms': float(high),
    'queries': len(groups),
    'documents': float(np.mean([len(g.docs) for g in groups])),
  }
