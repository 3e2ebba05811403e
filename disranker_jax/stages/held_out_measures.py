"""What training stages measure on the held-out queries: loss, nDCG, PNR, tau."""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.data.batches import EncodedGroup, Shape
from disranker_jax.data.bundles import Bundle
from disranker_jax.data.records import UNJUDGED, Document, Group
from disranker_jax.evaluation import metrics
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline import manifest
from disranker_jax.rankers.pointwise import score_fn, score_shape
from disranker_jax.stages.held_out import NDCG, PNR, TAU
from disranker_jax.training.validation import LOSS, Forward


class Ranking:
  """The held-out loss of a stage that scores documents, and how it ranks; a Measure.

  Args:
    judged: labelled queries, for nDCG and PNR.
    learned: (query, the teacher's scores of its documents or None), for the loss and tau.
    loss: (scores_GN, {labels_GN, teacher_GN, mask_GN}) -> (sum, weight).
  """

  def __init__(self, run, model: TextModel, rows: int, judged, learned, loss: Callable):
    self._slots: dict[tuple[str, str, str], int] = {}  # every pair is scored once
    self._judged = [(group, self._places(group)) for group in judged]
    self._learned = [(group, self._places(group), teacher_N) for group, teacher_N in learned]
    self._loss = jax.jit(loss)
    network, scorer = model.network, model.scorer
    scores, collections = score_fn(network, scorer), tuple(network.shapes())

    def own(variables, batch):  # others are the teacher's hidden states
      return scores({k: variables[k] for k in collections}, batch)

    shape = score_shape(scorer, rows, model.settings.row_len)
    self._forward = Forward(own, self._documents(model.prompt()), shape, run.mesh)
    self.batches = self._forward.batches
    self.queries = len({group.query for group, *_ in (*self._judged, *self._learned)})
    self.labelled = len(judged)
    graded = [[g.query, sorted(g.grades.items())] for g in judged]
    self.made_of = manifest.digest(graded) if judged else ''
    has_teacher = any(teacher_N is not None for _, teacher_N in learned)
    self.names = (NDCG, PNR) * bool(judged) + (LOSS,) * bool(learned) + (TAU,) * has_teacher

  def _places(self, group: Group) -> np.ndarray:
    pairs = [(group.query, d.title, d.summary) for d in group.docs]
    return np.array([self._slots.setdefault(p, len(self._slots)) for p in pairs], np.int64)

  def _documents(self, prompt) -> Iterator[tuple[Bundle, list[int]]]:
    for (query, title, summary), slot in self._slots.items():
      [encoded] = prompt.encode(query, (Document('', title, summary),))
      yield Bundle.alone(encoded, query), [slot]

  def __call__(self, variables: dict) -> dict[str, float]:
    scores = np.zeros(len(self._slots), np.float32)
    for keys, scores_GN in self._forward(variables):
      for row, slot in keys:
        scores[slot] = scores_GN[row, 0]
    values = ranked(scores, self._judged) if self._judged else {}
    if self._learned:
      total, weight = self._loss(*padded(scores, self._learned))
      values |= {LOSS: float(total) / float(weight) if weight else float('nan')}
      values |= {TAU: agreement(scores, self._learned)} if TAU in self.names else {}
    return values


def ranked(scores: np.ndarray, judged) -> dict[str, float]:
  """nDCG@5 and PNR of the labelled queries."""
  run = {
    str(i): {d.doc_id: float(s) for d, s in zip(group.docs, scores[places], strict=True)}
    for i, (group, places) in enumerate(judged)
  }
  qrels = {str(i): group.grades for i, (group, _) in enumerate(judged)}
  found = metrics.summary(metrics.per_query(run, qrels, names=(PNR, NDCG)))
  return {NDCG: found[NDCG], PNR: found[PNR]}


def agreement(scores: np.ndarray, learned) -> float:
  """Kendall's tau to the teacher, a mean over queries."""
  ours, theirs = {}, {}
  for i, (_, places, teacher_N) in enumerate(learned):
    ours[str(i)] = dict(enumerate(scores[places].tolist()))
    theirs[str(i)] = dict(enumerate(teacher_N.tolist()))
  return metrics.mean_tau(ours, theirs)


def padded(scores: np.ndarray, learned) -> tuple[jnp.ndarray, dict]:
  """(scores_GN, the rest of a batch that a loss on scores needs)."""
  shape = len(learned), max(len(places) for _, places, _ in learned)
  scores_GN, teacher_GN = np.zeros((2, *shape), np.float32)
  labels_GN, mask_GN = np.full(shape, UNJUDGED, np.float32), np.zeros(shape, bool)
  for g, (group, places, teacher_N) in enumerate(learned):
    n = len(places)
    scores_GN[g, :n], mask_GN[g, :n] = scores[places], True
    labels_GN[g, :n] = [d.label for d in group.docs]
    teacher_GN[g, :n] = 0.0 if teacher_N is None else teacher_N
  batch = {'labels_GN': labels_GN, 'teacher_GN': teacher_GN, 'mask_GN': mask_GN}
  return jnp.asarray(scores_GN), {k: jnp.asarray(v) for k, v in batch.items()}


class MeanLoss:
  """The held-out loss of a stage whose loss is a sum over documents; a Measure.

  Args:
    loss: (variables, batch) -> (sum, weight, metrics), as in train.Task.
    documents: groups of one document.
  """

  names = (LOSS,)
  labelled, made_of = 0, ''

  def __init__(self, run, loss: Callable, documents: Sequence[EncodedGroup], shape: Shape):
    pairs = ((Bundle(d.docs, name=d.name), [i]) for i, d in enumerate(documents))
    self._forward = Forward(lambda *arguments: loss(*arguments)[:2], pairs, shape, run.mesh)
    self.batches, self.queries = self._forward.batches, len(documents)

  def __call__(self, variables: dict) -> dict[str, float]:
    sums = np.sum([found for _, found in self._forward(variables)], axis=0, dtype=np.float64)
    return {LOSS: float(sums[0] / sums[1]) if sums[1] else float('nan')}
