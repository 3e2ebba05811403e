"""Scores of query-document pairs: how a model's output becomes one number, and a map over many.

Shapes as in data/batches.py.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax import sharding
from disranker_jax.data.batches import EncodedGroup, Shape, pack
from disranker_jax.data.records import Group
from disranker_jax.errors import UserError


def score_fn(ranker, scorer: str = 'eos') -> Callable:
  """(variables, batch) -> scores_GN, fp32.

  'eos' is the dense layer on the scored position (DisRanker section 3.2; BERT's pooled `[CLS]`);
  'likelihood' the mean log-probability of the query's tokens given the document before them;
  'eos+likelihood' their sum.
  """

  def scores(variables, batch):
    hidden_BTD = ranker.hidden(variables, batch)
    total_GN = jnp.zeros(batch['mask_GN'].shape, jnp.float32)
    if 'likelihood' in scorer:
      total_GN += mean_logprob(ranker, variables, hidden_BTD, batch)
    if 'eos' in scorer:
      total_GN += ranker.score_at(variables, hidden_BTD, batch['index_GN'])
    return total_GN

  return scores


def mean_logprob(ranker, variables, hidden_BTD, batch) -> jax.Array:
  """Mean log-probability of each document's predicted tokens: [G, N], 0 where it has none."""
  shape = batch['mask_GN'].shape
  logprobs_P = ranker.logprobs(variables, hidden_BTD, batch['index_P'], batch['targets_P'])
  owner_P = batch['owner_P']
  real_P = owner_P >= 0
  slots = shape[0] * shape[1]
  at_P = jnp.where(real_P, owner_P, 0)
  sums = jax.ops.segment_sum(jnp.where(real_P, logprobs_P, 0.0), at_P, slots)
  counts = jax.ops.segment_sum(real_P.astype(jnp.float32), at_P, slots)
  return (sums / jnp.maximum(counts, 1)).reshape(shape)


@dataclasses.dataclass
class Scorer:
  """A model with its prompt, ready to score groups in a fixed shape; counts its own time."""

  ranker: object
  variables: object
  prompt: object
  mesh: object
  rows: int
  row_len: int
  scorer: str = 'eos'

  def __post_init__(self):
    predicted = predicted_per_row(self.prompt, self.row_len) if 'likelihood' in self.scorer else 0
    self.shape = Shape(self.rows, self.row_len, 1, predicted)
    self._fn = jax.jit(score_fn(self.ranker, self.scorer))
    self._compiled = None
    self.seconds, self.pairs = 0.0, 0

  def __call__(self, groups: Iterable[Group]) -> Iterator[tuple[Group, np.ndarray]]:
    """Each group with the scores of its documents, in order; every score is finite or it raises."""
    waiting = []
    done: list[float] = []
    for count, batch in pack(self._documents(groups, waiting), self.shape):
      done += self._scores(batch)[:count].tolist()
      while waiting and len(done) >= len(waiting[0].docs):
        group = waiting.pop(0)
        yield group, np.array([done.pop(0) for _ in group.docs], np.float32)
    for group in waiting:  # only groups without documents can be left
      yield group, np.zeros(0, np.float32)

  def _documents(self, groups, waiting) -> Iterator[EncodedGroup]:
    """Every document as a group of its own, since a score depends on nothing else."""
    none = np.zeros(1, np.float32)
    for group in groups:
      waiting.append(group)
      for doc in self.prompt.encode(group.query, group.docs):
        yield EncodedGroup([doc], none, none, group.query_id)

  def _scores(self, batch) -> np.ndarray:
    placed = sharding.put_batch(batch, self.mesh)
    if self._compiled is None:  # compiling is not scoring time
      self._compiled = self._fn.lower(self.variables, placed).compile()
    begin = time.monotonic()
    scores = np.asarray(self._compiled(self.variables, placed))[:, 0]
    self.seconds += time.monotonic() - begin
    mask = batch['mask_GN'][:, 0]
    self.pairs += int(mask.sum())
    if not np.isfinite(scores[mask]).all():
      raise UserError('the model gives scores that are not finite; its parameters are broken')
    return scores

  @property
  def ms_per_pair(self) -> float:
    """Milliseconds of model time a pair, at full batches, without tokenising and compiling."""
    return 1000 * self.seconds / max(self.pairs, 1)


def predicted_per_row(prompt, row_len: int) -> int:
  """Room for predicted tokens in a row: all of it for documents, half for the shorter queries."""
  return row_len if prompt.predict == 'document' else row_len // 2
