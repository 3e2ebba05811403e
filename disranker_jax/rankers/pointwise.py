"""Scores of query-document pairs: how a model's output becomes one number, and a map over many.

Shapes as in data/batches.py.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from disranker_jax.data.batches import EncodedGroup, Shape, join
from disranker_jax.data.pool import pack
from disranker_jax.data.records import Group
from disranker_jax.data.tokenising import Encoder
from disranker_jax.devices import processes, sharding
from disranker_jax.errors import UserError


def score_fn(network, scorer: str = 'eos') -> Callable:
  """(variables, batch) -> scores_GN, fp32.

  'eos' is the dense layer on the scored position (DisRanker section 3.2; BERT's pooled `[CLS]`);
  'likelihood' the mean log-probability of the query's tokens given the document before them;
  'eos+likelihood' their sum.
  """

  def scores(variables, batch):
    hidden_BTD = network.hidden(variables, batch)
    total_GN = jnp.zeros(batch['mask_GN'].shape, jnp.float32)
    if 'likelihood' in scorer:
      total_GN += mean_logprob(network, variables, hidden_BTD, batch)
    if 'eos' in scorer:
      scores_P = network.score_at(variables, hidden_BTD, batch['index_AX'])
      total_GN += scores_P.reshape(total_GN.shape)
    return total_GN

  return scores


def mean_logprob(network, variables, hidden_BTD, batch) -> jax.Array:
  """Mean log-probability of each document's predicted tokens: [G, N], 0 where it has none."""
  shape = batch['mask_GN'].shape
  owner_AP = batch['owner_AP']
  real_AP = owner_AP >= 0
  predicted = batch['index_AP'], batch['targets_AP'], real_AP
  logprobs_AP = network.logprobs(variables, hidden_BTD, *predicted)
  slots = shape[0] * shape[1] // owner_AP.shape[0]

  def per_document(values_AP):
    add = functools.partial(jax.ops.segment_sum, num_segments=slots)
    return jax.vmap(add)(values_AP, jnp.maximum(owner_AP, 0)).reshape(shape)

  return per_document(logprobs_AP) / jnp.maximum(per_document(real_AP.astype(jnp.float32)), 1)


def score_shape(scorer: str, rows: int, row_len: int, docs: int = 1) -> Shape:
  """The shape of batches that a way of scoring takes: room for predicted queries if it is asked."""
  predicted = predicted_per_row('query', row_len) if 'likelihood' in scorer else 0
  return Shape(rows, row_len, docs, predicted)


AHEAD = 1024  # documents that are tokenised before they are taken, at least


class Waiting:
  """A group whose documents are with the device, or are to be."""

  def __init__(self, part, group: Group):
    self.part, self.group = part, group
    self.scores = np.zeros(len(group.docs), np.float32)
    self.missing = len(group.docs)

  def put(self, n: int, score: float) -> None:
    self.scores[n] = score
    self.missing -= 1


@dataclasses.dataclass
class Scorer:
  """A model with its prompt, ready to score groups in a fixed shape; counts its own time.

  Every process scores groups of its own, in the blocks that its devices hold, and all step
  together until none has any left.
  """

  network: object
  variables: object
  prompt: object
  mesh: object
  rows: int
  row_len: int
  scorer: str = 'eos'
  watchdog_s: float = 0.0
  workers: int = 0  # processes that tokenise; 0: a thread of this one

  def __post_init__(self):
    parts = sharding.parts(self.mesh)
    self.blocks = 1 if self.rows % parts else parts
    self.shape = score_shape(self.scorer, self.rows, self.row_len).block(self.blocks)
    self._own = len(sharding.own_blocks(self.mesh, self.blocks))
    self.compiled = self._ready = None
    self.seconds = self.idle = 0.0  # the device at work, and waiting for the next batch
    self.pairs = self.tokens = self.places = 0  # of this process's blocks; places may be padding

  def __call__(self, groups: Iterable[Group]) -> Iterator[tuple[Group, np.ndarray]]:
    """Each group with the scores of its documents, in order; every score is finite or it raises."""
    for _, group, scores in self.parts([(None, groups)]):
      yield group, scores

  def parts(self, parts: Iterable[tuple[object, Iterable[Group]]]):
    """(part, group, scores) of the groups of several parts, in order.

    One batch is always with the device while the next is tokenised and packed. Documents of a part
    are placed wherever they fit best, but with none of another part, so that a part's scores are
    the same to the last bit whatever comes before it. Raises Stopped when asked to stop.
    """
    ahead = max(AHEAD, self._own * self.shape.groups)
    with Encoder(self.prompt, self.workers, ahead) as encoder:
      yield from self._scored(encoder, parts)

  def _scored(self, encoder: Encoder, parts):
    waiting = collections.deque()
    self._ready = None
    blocks, several = self._blocks(encoder, parts, waiting), jax.process_count() > 1
    flight, last, stop, failure = None, False, False, None
    with (
      processes.StopRequest() as asked,
      processes.Watchdog('scoring', self.watchdog_s) as watchdog,
      concurrent.futures.ThreadPoolExecutor(1) as waiter,
    ):
      while not last or flight is not None:
        begun = None
        if not last:
          try:
            drawn = list(itertools.islice(blocks, self._own))
          except UserError as e:
            if not several:
              raise
            drawn, failure = [], e
          if drawn or several:  # the others may have some left
            said = {'more': bool(drawn), 'stop': bool(asked), 'failed': failure is not None}
            begun = self._begin(drawn, said, waiter)
          last = begun is None
        if flight is not None:
          said = self._end(*flight)
          watchdog.beat()
          if said['failed']:
            raise failure or UserError('another process stopped with an error; see its message')
          yield from self._finished(waiting)
          # What the processes said of this batch ends them all after the next, which is begun.
          stop |= said['stop']
          last |= said['stop'] or not said['more']
        flight = begun
    if stop:
      raise asked.stopped('scoring: stopped')
    yield from self._finished(waiting)

  def _finished(self, waiting: collections.deque):
    while waiting and not waiting[0].missing:
      first = waiting.popleft()
      yield first.part, first.group, first.scores

  def _blocks(self, encoder: Encoder, parts, waiting) -> Iterator[tuple[list, dict]]:
    """(where its documents' scores go, block); their groups are put on the list of the waiting."""
    keyed = (((i, part), group) for i, (part, groups) in enumerate(parts) for group in groups)
    for _, encoded in itertools.groupby(encoder(keyed), key=lambda row: row[0][0]):
      yield from pack(self._documents(encoded, waiting), self.shape)

  def _documents(self, encoded, waiting: collections.deque):
    """Every document as a group of its own, since a score depends on nothing else."""
    for (_, part), group, docs in encoded:
      waiting.append(Waiting(part, group))
      for n, doc in enumerate(docs):
        yield EncodedGroup.alone(doc, group.query_id), (waiting[-1], n)

  def _begin(self, drawn: list[tuple[list, dict]], said: dict, waiter) -> tuple:
    """Gives the device a batch; what `_end` needs."""
    blocks = [block for _, block in drawn]
    filling = self.shape.zeros(self._own - len(blocks)) if len(blocks) < self._own else None
    batch = join([*blocks, *([filling] if filling else [])])
    placed = sharding.put_batch(batch, self.mesh, self.blocks)
    flags = sharding.flags(self.mesh, **said)
    if self.compiled is None:  # compiling is not scoring time
      self.compiled = self.lower(self.variables, placed, flags).compile()
    self.pairs += int(batch['mask_GN'].sum())
    self.tokens += int((batch['segments_BT'] > 0).sum())
    self.places += batch['segments_BT'].size
    begun = time.monotonic()
    arrays = self.compiled(self.variables, placed, flags)
    return [keys for keys, _ in drawn], begun, waiter.submit(self._fetch, *arrays)

  def _fetch(self, scores_GN, answers) -> tuple[np.ndarray, dict, float]:
    """Waits for the device, in a thread of its own: when it was ready is known to the moment."""
    scores = sharding.own_part(scores_GN, self.mesh, self.blocks)[:, 0]
    return scores, {k: bool(v) for k, v in answers.items()}, time.monotonic()

  def _end(self, placed: list[list[tuple[Waiting, int]]], begun: float, fetched) -> dict:
    """Puts a batch's scores where they belong; returns what any process said."""
    scores, said, ready = fetched.result()
    before = self._ready if self._ready is not None else begun
    self.seconds += ready - max(begun, before)
    self.idle += max(0.0, begun - before)
    self._ready = ready
    if said['broken']:
      raise UserError('the model gives scores that are not finite; its parameters are broken')
    for keys, block in zip(placed, np.split(scores, self._own), strict=False):
      for (group, n), score in zip(keys, block.tolist(), strict=False):
        group.put(n, score)
    return said

  def lower(self, variables, batch, flags):
    """The step, traced, of arrays or shapes on the mesh."""
    rows = sharding.batch_shardings({'scores_GN': 0}, self.mesh, self.blocks)['scores_GN']
    everywhere = NamedSharding(self.mesh, PartitionSpec())
    scores = score_fn(self.network, self.scorer)

    def step(variables, batch, flags):
      scores_GN = scores(variables, batch)
      answers = {k: jnp.any(v) for k, v in flags.items()}
      broken = jnp.any(batch['mask_GN'] & ~jnp.isfinite(scores_GN))
      return scores_GN, answers | {'broken': broken}

    with jax.set_mesh(self.mesh):
      return jax.jit(step, out_shardings=(rows, everywhere)).lower(variables, batch, flags)

  @property
  def ms_per_pair(self) -> float:
    """Milliseconds of model time a pair, at full batches, without tokenising and compiling."""
    return 1000 * self.seconds / max(self.pairs, 1)


def predicted_per_row(predict: str, row_len: int) -> int:
  """Room for predicted tokens in a row: all of it for documents, half for the shorter queries."""
  return row_len if predict == 'document' else row_len // 2
