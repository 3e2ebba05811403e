"""What the stage `score` has written, read back: queries with the teacher's scores."""

import itertools
import json
from collections.abc import Callable

import numpy as np

from disranker_jax.data.scored_groups import Scored, ScoredGroups
from disranker_jax.rankers.score_statistics import together
from disranker_jax.rankers.shards import Shards
from disranker_jax.stages import score


def open_scored(run) -> ScoredGroups:
  """What the teacher has scored, every kind, for distillation."""
  return ScoredGroups(
    [scored_part(run, kind) for kind in score.reads(run.config)], together(stats(run))
  )


def scored_part(run, kind: str) -> tuple[int, Callable[[int], Scored]]:
  """(count, read) of one kind's scored queries, see ScoredGroups."""
  groups = score.open_chosen(run, kind)
  scores, ends = loaded(score.open_shards(run, kind, len(groups)))
  return len(groups), lambda i: (groups[i], scores[ends[i] : ends[i + 1]])


def loaded(shards: Shards) -> tuple[np.ndarray, np.ndarray]:
  """(all scores in order, [0, where each query's scores end])."""
  scores, sizes = [], []
  for shard in shards.found():
    table = shard.read()
    scores.append(table.column('score').to_numpy())
    queries = itertools.groupby(table.column('query_id').to_pylist())
    sizes += [len(list(rows)) for _, rows in queries]
  return np.concatenate(scores), np.cumsum([0, *sizes])


def stats(run) -> dict[str, dict]:
  """The statistics of each kind's scores."""
  return json.loads((run.folder('score') / 'stats.json').read_text())
