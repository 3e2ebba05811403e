"""Reciprocal rank fusion (Cormack et al. 2009) of TREC runs: first stage and model together.

python experiments/fuse.py runs/x/evaluate/student.run runs/x/evaluate/bm25.run --out both.run

A document's score is the sum over the runs of 1 / (60 + its rank), which needs no common scale. All
runs must have the same queries and documents, so that a fused run stands beside them in
`disranker compare`.
"""

import argparse
from pathlib import Path

from disranker_jax.commands.common import guarded
from disranker_jax.commands.compare import read_run
from disranker_jax.errors import UserError
from disranker_jax.evaluation.metrics import ranked
from disranker_jax.stages.evaluate import write_run

K = 60  # the paper's constant, the default of search engines that offer this fusion


def fuse(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
  """{query_id: {doc_id: score}} of runs that are such; they must hold the same pairs."""
  fused: dict[str, dict[str, float]] = {}
  for run in runs:
    for query, scores in run.items():
      sums = fused.setdefault(query, {})
      for rank, doc in enumerate(ranked(scores), 1):
        sums[doc] = sums.get(doc, 0.0) + 1 / (K + rank)
  return fused


@guarded()
def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='plain or gzip')
  parser.add_argument('--out', required=True, type=Path, metavar='RUN', help='the fused run')
  args = parser.parse_args()
  files = args.runs
  runs = [read_run(file) for file in files]
  pairs = [{(query, doc) for query, docs in run.items() for doc in docs} for run in runs]
  for file, of_run in zip(files, pairs, strict=True):
    if odd := of_run ^ pairs[0]:
      query, doc = min(odd)
      holder, other = (file, files[0]) if (query, doc) in of_run else (files[0], file)
      raise UserError(f'{other}: lacks document {doc!r} of query {query!r}, which {holder} has')
  write_run(args.out, fuse(runs), 'fused')


if __name__ == '__main__':
  main()
