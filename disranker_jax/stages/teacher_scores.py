"""Distillation from other teachers: their scores come with the data, and no stage makes them."""

import math

import numpy as np

from disranker_jax.data.records import Group
from disranker_jax.errors import UserError
from disranker_jax.pipeline import manifest
from disranker_jax.stages import prepare


class TeacherScores:
  """Candidates with other teachers' scores, by index: [i] -> (Group, scores).

  With a hard-label term the judged queries that have scores come after them.
  """

  def __init__(self, run):
    self.facts = manifest.read(run.folder('prepare'))['results']['candidates']['teachers']
    candidates = prepare.records(run, 'candidates')
    self._parts = [(candidates, range(len(candidates)))]
    if run.config.distill.hard_label_weight:
      judged = prepare.records(run, 'judgements')
      kept = [i for i in range(len(judged)) if scored(judged[i])[0].docs]
      if not kept:
        raise UserError(
          'config.distill.hard_label_weight: no judged query has scores of config.data.teachers; '
          'score the judged pairs too, or set it to 0'
        )
      self._parts.append((judged, kept))

  def __len__(self) -> int:
    return sum(len(kept) for _, kept in self._parts)

  def __getitem__(self, i: int) -> tuple[Group, np.ndarray]:
    for groups, kept in self._parts:
      if i < len(kept):
        return scored(groups[kept[i]])
      i -= len(kept)
    raise IndexError(i)


def scored(group: Group) -> tuple[Group, np.ndarray]:
  """The query with the documents that have a teacher's score, and the scores."""
  docs = tuple(doc for doc in group.docs if not math.isnan(doc.teacher))
  scores = np.array([doc.teacher for doc in docs], np.float32)
  return Group(group.query_id, group.query, docs), scores
