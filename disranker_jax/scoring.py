"""Scores of query-document pairs: how a model's output becomes one number, and a map over many.

Shapes as in data/batches.py.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from disranker_jax import processes, sharding
from disranker_jax.data.batches import EncodedGroup, Shape, join, pack
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
      scores_P = ranker.score_at(variables, hidden_BTD, batch['index_AX'])
      total_GN += scores_P.reshape(total_GN.shape)
    return total_GN

  return scores


def mean_logprob(ranker, variables, hidden_BTD, batch) -> jax.Array:
  """Mean log-probability of each document's predicted tokens: [G, N], 0 where it has none."""
  shape = batch['mask_GN'].shape
  owner_AP = batch['owner_AP']
  logprobs_AP = ranker.logprobs(variables, hidden_BTD, batch['index_AP'], batch['targets_AP'])
  blocks = owner_AP.shape[0]
  slots = shape[0] * shape[1] // blocks

  def per_document(values_AP):
    kept_AP = jnp.where(owner_AP >= 0, values_AP, 0.0)
    add = functools.partial(jax.ops.segment_sum, num_segments=slots)
    return jax.vmap(add)(kept_AP, jnp.maximum(owner_AP, 0)).reshape(shape)

  return per_document(logprobs_AP) / jnp.maximum(per_document(jnp.ones_like(logprobs_AP)), 1)


def score_shape(scorer: str, rows: int, row_len: int, docs: int = 1) -> Shape:
  """The shape of batches that a way of scoring takes: room for predicted queries if it is asked."""
  predicted = predicted_per_row('query', row_len) if 'likelihood' in scorer else 0
  return Shape(rows, row_len, docs, predicted)


@dataclasses.dataclass
class Scorer:
  """A model with its prompt, ready to score groups in a fixed shape; counts its own time.

  Every process scores groups of its own, in the blocks that its devices hold, and all step
  together until none has any left.
  """

  ranker: object
  variables: object
  prompt: object
  mesh: object
  rows: int
  row_len: int
  scorer: str = 'eos'
  hang_s: float = 0.0

  def __post_init__(self):
    parts = sharding.parts(self.mesh)
    self.blocks = 1 if self.rows % parts else parts
    self.shape = score_shape(self.scorer, self.rows, self.row_len).block(self.blocks)
    self._own = len(sharding.own_blocks(self.mesh, self.blocks))
    self._compiled = None
    self.seconds, self.pairs = 0.0, 0

  def __call__(self, groups: Iterable[Group]) -> Iterator[tuple[Group, np.ndarray]]:
    """Each group with the scores of its documents, in order; every score is finite or it raises."""
    for _, group, scores in self.parts([(None, groups)]):
      yield group, scores

  def parts(self, parts: Iterable[tuple[object, Iterable[Group]]]):
    """(part, group, scores) of the groups of several parts, in order.

    Blocks are packed anew for each part, so that a part's scores are the same to the last bit
    whatever comes before it. Raises Stopped when asked to stop.
    """
    waiting, done = [], []
    blocks = self._blocks(parts, waiting)
    with (
      processes.StopRequest() as asked,
      processes.Watchdog('scoring', self.hang_s) as watchdog,
    ):
      while True:
        drawn, failure = [], None
        try:
          drawn = list(itertools.islice(blocks, self._own))
        except UserError as e:
          if jax.process_count() == 1:
            raise
          failure = e
        said = {'more': bool(drawn), 'stop': bool(asked), 'failed': failure is not None}
        if not drawn and jax.process_count() == 1:
          break
        counts = [count for count, _ in drawn]
        scores, said = self._scores([block for _, block in drawn], said)
        watchdog.beat()
        if said['failed']:
          raise failure or UserError('another process stopped with an error; see its message')
        for count, block in zip(counts, scores, strict=False):
          done += block[:count].tolist()
        yield from self._finished(waiting, done)
        if said['stop']:
          raise asked.stopped('scoring: stopped')
        if not said['more']:
          break
    yield from self._finished(waiting, done)

  def _finished(self, waiting: list, done: list):
    while waiting and len(done) >= len(waiting[0][1].docs):
      part, group = waiting.pop(0)
      count = len(group.docs)
      scores, done[:count] = np.array(done[:count], np.float32), []
      yield part, group, scores

  def _blocks(self, parts, waiting: list) -> Iterator[tuple[int, dict]]:
    """(documents, block); what is in them is put on the list of those that wait for scores."""
    for part, groups in parts:
      yield from pack(self._documents(part, groups, waiting), self.shape)

  def _documents(self, part, groups, waiting: list) -> Iterator[EncodedGroup]:
    """Every document as a group of its own, since a score depends on nothing else."""
    none = np.zeros(1, np.float32)
    for group in groups:
      waiting.append((part, group))
      for doc in self.prompt.encode(group.query, group.docs):
        yield EncodedGroup([doc], none, none, group.query_id)

  def _scores(self, blocks: list[dict], said: dict) -> tuple[list[np.ndarray], dict]:
    """Scores of each block's documents, in order, and what any process said."""
    filling = self.shape.zeros(self._own - len(blocks)) if len(blocks) < self._own else None
    batch = join([*blocks, *([filling] if filling else [])])
    placed = sharding.put_batch(batch, self.mesh, self.blocks)
    flags = sharding.flags(self.mesh, **said)
    if self._compiled is None:  # compiling is not scoring time
      self._compiled = self.lower(self.variables, placed, flags).compile()
    begin = time.monotonic()
    scores_GN, answers = self._compiled(self.variables, placed, flags)
    scores = sharding.own_part(scores_GN, self.mesh, self.blocks)[:, 0]
    self.seconds += time.monotonic() - begin
    mask = batch['mask_GN'][:, 0]
    self.pairs += int(mask.sum())
    if processes.any_of(not np.isfinite(scores[mask]).all()):
      raise UserError('the model gives scores that are not finite; its parameters are broken')
    return np.split(scores, self._own), {k: bool(v) for k, v in answers.items()}

  def lower(self, variables, batch, flags):
    """The step, traced, of arrays or shapes on the mesh."""
    rows = sharding.batch_shardings({'scores_GN': 0}, self.mesh, self.blocks)['scores_GN']
    everywhere = NamedSharding(self.mesh, PartitionSpec())
    scores = score_fn(self.ranker, self.scorer)

    def step(variables, batch, flags):
      return scores(variables, batch), {k: jnp.any(v) for k, v in flags.items()}

    with jax.set_mesh(self.mesh):
      return jax.jit(step, out_shardings=(rows, everywhere)).lower(variables, batch, flags)

  @property
  def ms_per_pair(self) -> float:
    """Milliseconds of model time a pair, at full batches, without tokenising and compiling."""
    return 1000 * self.seconds / max(self.pairs, 1)


def predicted_per_row(predict: str, row_len: int) -> int:
  """Room for predicted tokens in a row: all of it for documents, half for the shorter queries."""
  return row_len if predict == 'document' else row_len // 2
