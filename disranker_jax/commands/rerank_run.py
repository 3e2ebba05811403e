"""Re-ranks a whole TREC run with an exported model, for `disranker rerank --run`.

Queries are scored in parts of a few thousand pairs. A finished part is on disk before the next one
begins, so the same command continues where it was stopped, and memory does not grow with the run.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disranker_jax import locks, outputs
from disranker_jax.commands import unfinished
from disranker_jax.data import contents, sources
from disranker_jax.data.joined_run import JoinedRun, Listed
from disranker_jax.errors import UserError
from disranker_jax.evaluation import fusion, runs
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.pipeline import inputs, manifest
from disranker_jax.progress import Progress, amount, say
from disranker_jax.rankers import exported, loaded

VERSION = 2  # of the unfinished work


class Job(NamedTuple):
  """What to re-rank, and how; see `disranker rerank --help`."""

  model: Path
  run: Path
  source: str
  out: Path
  depth: int
  missing: str
  backend: str
  fast: bool
  fusion: Fusion | None = None

  def digest(self) -> str:
    """Identifies the job: the contents of its inputs, and all settings that change the result."""
    model = manifest.files(inputs.model_files(self.model, onnx=True))
    value = [model, contents.digest(self.run), sources.fingerprint(self.source), VERSION]
    value += [self.depth, self.missing, self.backend, self.fast]
    value += [self.fusion.weight, self.fusion.signal] if self.fusion else []
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def rerank(job: Job) -> None:
  """Writes the re-ranked run. Raises: UserError, Stopped, KeyboardInterrupt."""
  out = check(job)
  with locks.beside(out):
    _rerank(job, out)


def _rerank(job: Job, out: Path) -> None:
  work = Work(job, out)
  with work.kept():
    joined = JoinedRun(job.run, job.source, job.depth, work.scratch)
    report(job, joined)
    work.score(joined, exported.open_ranker(job.model, job.backend, fast=job.fast))
  work.finish()
  say(
    f'{job.out}: {amount(joined.queries, "query", "queries")}, {amount(joined.pairs, "pair")} '
    're-ranked'
  )


def check(job: Job) -> Path:
  """The file to write. Raises: UserError for what can be seen before anything is read."""
  loaded.check(job.model)
  if not job.run.is_file():
    what = 'is not a file; name a run' if job.run.exists() else 'does not exist; check the path'
    raise UserError(f'--run {job.run}: {what}')
  out = outputs.target(job.out, {'the first stage itself': job.run})
  sources.open(job.source)
  return out


def report(job: Job, joined: JoinedRun) -> None:
  """Says what is not re-ranked. Raises: UserError if it is missing and `--missing` is 'error'."""
  lacks = []
  if joined.no_query.count:
    lacks.append(
      f'{amount(joined.no_query.count, "query", "queries")} (first: {joined.no_query.first})'
    )
  if joined.no_text.count:
    lacks.append(
      f'{amount(joined.no_text.count, "document")} of queries (first: {joined.no_text.first})'
    )
  if lacks:
    what = f'{job.source}: has no text for {" and ".join(lacks)}'
    one = not joined.no_query.count and joined.no_text.count == 1
    they, them, stay, order = 'they', 'them', 'stay', 'their'
    if one:
      they, them, stay, order = 'it', 'it', 'stays', 'its'
    if job.missing == 'error':
      raise UserError(
        f'{what}; add {them}, or use --missing last, which leaves {them} behind in {order} '
        'old order'
      )
    say(f'{what}: {they} {stay} behind in {order} old order')
  if joined.blank:
    have = amount(joined.blank, 'document of a query has', 'documents of queries have')
    say(f'{job.source}: {have} {"an empty text" if joined.blank == 1 else "empty texts"}')
  if joined.other_queries:
    say(f'{job.run}: lacks {amount(joined.other_queries, "query", "queries")} of {job.source}')


class Work(unfinished.Lines):
  """The finished queries of a job."""

  def __init__(self, job: Job, out: Path):
    super().__init__('rerank', out, job.digest(), job.out.suffix == '.gz')
    self.scratch = self.folder / 'scratch'
    shutil.rmtree(self.scratch, ignore_errors=True)
    self._tag = '_'.join(job.model.resolve().name.split()) or 'rerank'
    self._fusion = job.fusion

  def score(self, joined: JoinedRun, ranker: exported.PartRanker) -> None:
    """Scores the queries that are not done, part by part."""
    parts: dict[int, list[Listed]] = {}

    def waiting() -> Iterator[tuple[int, list]]:
      for i, part in enumerate(divided(joined, self.queries, ranker.part_pairs)):
        parts[i] = part
        yield i, [listed.group for listed in part]

    scored: list[np.ndarray] = []
    with Progress('rerank', joined.queries, 'pairs', self.queries) as progress:
      for i, _, scores in ranker.parts(waiting()):
        scored.append(scores)
        progress.update(self.queries + len(scored), len(scores))
        if len(scored) == len(parts[i]):
          self.add(list(map(self._lines_of, parts.pop(i), scored)))
          scored = []

  def _lines_of(self, listed: Listed, scores: np.ndarray) -> bytes:
    ranking = full_ranking(listed, scores, self._fusion)
    return runs.lines_of(listed.group.query_id, ranking, self._tag)

  def leave(self) -> None:
    shutil.rmtree(self.scratch, ignore_errors=True)
    super().leave()


def divided(joined: JoinedRun, done: int, pairs: int) -> Iterator[list[Listed]]:
  """Parts of about `pairs` pairs, without the queries of the parts that are done.

  A part ends where it would end without the interruption, so its scores are the same.
  """
  part, size = [], 0
  for i, listed in enumerate(joined, 1):
    part.append(listed)
    size += len(listed.group.docs)
    if size >= pairs or i == joined.queries:
      if i > done:  # other devices may have made parts of another size: some of this one is done
        yield part[-(i - done) :]
      part, size = [], 0


def full_ranking(listed: Listed, scores: np.ndarray, how: Fusion | None = None) -> dict[str, float]:
  """{doc_id: score} with the documents that were not scored below all others, in their order.

  With `how` the scores are fused with those of the run, or with its ranks.
  """
  docs = listed.group.docs
  ranking = {doc.doc_id: score for doc, score in zip(docs, scores.tolist(), strict=True)}
  if how is not None:
    ranks = fusion.of_ranks({doc.doc_id: doc.rank for doc in docs})
    first = ranks if how.signal == 'ranks' else {doc.doc_id: doc.score for doc in docs}
    ranking = fusion.convex(ranking, first, how.weight)
  floor = min(ranking.values(), default=0.0)
  return ranking | {doc: floor - i for i, doc in enumerate(listed.behind, 1)}
