"""Fuses TREC runs into one ranking: `disranker fuse RUN RUN... --out FILE`.

A document's fused score is a weighted sum over the runs, per query:
  ranks   1 / (60 + rank): reciprocal rank fusion (Cormack et al., 2009), for any score scales
  scores  the score, scaled to 0..1 over the query's documents (min-max)

The runs must rank the same documents for the same queries, so that the fused run can be compared
with them: `disranker compare`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from disranker_jax.commands.common import Parser
from disranker_jax.data.records import BadRows, listed
from disranker_jax.errors import UserError
from disranker_jax.evaluation.metrics import Run, ranked
from disranker_jax.evaluation.runs import read_run, write_run
from disranker_jax.progress import say

K = 60  # the paper's constant, and the default of search engines that offer this fusion

Scores = Mapping[str, float]


def by_ranks(scores: Scores) -> dict[str, float]:
  """{doc_id: 1 / (K + rank)}, ranks from 1."""
  return {doc: 1 / (K + rank) for rank, doc in enumerate(ranked(scores), 1)}


def by_scores(scores: Scores) -> dict[str, float]:
  """{doc_id: score} scaled to 0..1; all 0 if all scores are equal."""
  low, high = min(scores.values()), max(scores.values())
  return {doc: (score - low) / ((high - low) or 1) for doc, score in scores.items()}


METHODS: dict[str, Callable[[Scores], dict[str, float]]] = {'ranks': by_ranks, 'scores': by_scores}


def fuse(
  runs: Sequence[Run], weights: Sequence[float] | None = None, method: str = 'ranks'
) -> dict[str, dict[str, float]]:
  """{query_id: {doc_id: fused score}}; `weights` default to 1 for every run."""
  fused: dict[str, dict[str, float]] = {}
  for run, weight in zip(runs, weights or [1.0] * len(runs), strict=True):
    for query, scores in run.items():
      sums = fused.setdefault(query, {})
      for doc, value in METHODS[method](scores).items():
        sums[doc] = sums.get(doc, 0.0) + weight * value
  return fused


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser('fuse', __doc__, 'bm25.run student.run --out fused.run --weights 1,2')
  add = parser.add_argument
  add('runs', nargs='+', type=Path, metavar='RUN', help='two or more TREC runs, plain or gzip')
  add('--out', required=True, type=Path, metavar='FILE', help='the fused run; gzip if FILE.gz')
  add('--method', choices=METHODS, default='ranks', help='what is added up')
  add('--weights', metavar='W,W,...', help='a weight per run, such as 2,1 (default: 1 each)')
  args = parser.parse_args(argv)
  if len(args.runs) < 2:
    raise UserError('nothing to fuse: name two or more runs')
  args.weights = parse_weights(args.weights, len(args.runs))
  return args


def parse_weights(text: str | None, runs: int) -> list[float]:
  if text is None:
    return [1.0] * runs
  try:
    weights = [float(word) for word in text.split(',')]
  except ValueError:
    raise UserError(f'--weights={text}: write numbers with commas, such as 2,1') from None
  if len(weights) != runs:
    raise UserError(f'--weights={text}: has {len(weights)} weights for {runs} runs')
  if not all(0 < weight < float('inf') for weight in weights):
    raise UserError(f'--weights={text}: weights must be above 0')
  return weights


def check_pairs(files: Sequence[Path], runs: Sequence[Run]) -> None:
  """Raises: UserError that names a document which one run has and another lacks."""
  pairs = [{(query, doc) for query, docs in run.items() for doc in docs} for run in runs]
  for file, of_run in zip(files, pairs, strict=True):
    if odd := of_run ^ pairs[0]:
      query, doc = min(odd)
      holder, other = (file, files[0]) if (query, doc) in of_run else (files[0], file)
      raise UserError(f'{other}: lacks document {doc!r} of query {query!r}, which {holder} has')


def main(argv=None) -> None:
  args = parse_args(argv)
  runs = []
  for file in args.runs:
    bad_rows = BadRows()
    runs.append(read_run(file, bad_rows))
    for note in listed(bad_rows.notes):
      say(f'{file}: {note}')
  check_pairs(args.runs, runs)
  fused = fuse(runs, args.weights, args.method)
  try:
    write_run(args.out, fused, 'fused')
  except OSError as error:
    raise UserError(f'--out={args.out}: cannot be written ({error.strerror})') from None
