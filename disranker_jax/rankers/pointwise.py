"""The pointwise ranker: a model scores one query-document pair at a time.

Shapes as in data/batches.py.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from disranker_jax.data.batches import Shape, join
from disranker_jax.data.bundles import Bundle
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.pool import bundled, pack
from disranker_jax.data.records import Group
from disranker_jax.data.tokenising import Encoder
from disranker_jax.devices import memory, processes, sharding
from disranker_jax.errors import UserError
from disranker_jax.rankers.work import Work
from disranker_jax.training import remedies


def score_fn(network, scorer: str = 'score_head') -> Callable:
  """(variables, batch) -> scores_GN, fp32.

  Args:
    scorer: 'score_head', the dense layer on the scored position (DisRanker section 3.2; BERT's
      pooled `[CLS]`); 'query_likelihood', the mean log-probability of the query's tokens after the
      document; 'score_head+query_likelihood', their sum.
  """

  def scores(variables, batch):
    return score_hidden(network, scorer, variables, network.hidden(variables, batch), batch)

  return scores


def score_hidden(network, scorer: str, variables, hidden_BTD, batch) -> jax.Array:
  """Scores [G, N] fp32 from a batch's hidden states; `scorer` as in `score_fn`."""
  total_GN = jnp.zeros(batch['mask_GN'].shape, jnp.float32)
  if 'query_likelihood' in scorer:
    total_GN += mean_logprob(network, variables, hidden_BTD, batch)
  if 'score_head' in scorer:
    scores_P = network.score_at(variables, hidden_BTD, batch)
    total_GN += scores_P.reshape(total_GN.shape)
  return total_GN


def mean_logprob(network, variables, hidden_BTD, batch) -> jax.Array:
  """Mean log-probability of each document's predicted tokens: [G, N]; 0 if it has none."""
  sums_GN, counts_GN = sum_logprobs(network, variables, hidden_BTD, batch)
  return sums_GN / jnp.maximum(counts_GN, 1)


def sum_logprobs(network, variables, hidden_BTD, batch) -> tuple[jax.Array, jax.Array]:
  """(sum of the log-probabilities, number) of each document's predicted tokens: [G, N] fp32."""
  shape = batch['mask_GN'].shape
  owner_AP = batch['owner_AP']
  real_AP = owner_AP >= 0
  predicted = batch['index_AP'], batch['targets_AP'], real_AP
  logprobs_AP = network.logprobs(variables, hidden_BTD, *predicted)
  slots = shape[0] * shape[1] // owner_AP.shape[0]

  def per_document(values_AP):
    add = functools.partial(jax.ops.segment_sum, num_segments=slots)
    return jax.vmap(add)(values_AP, jnp.maximum(owner_AP, 0)).reshape(shape)

  return per_document(logprobs_AP), per_document(real_AP.astype(jnp.float32))


def score_shape(scorer: str, rows: int, row_len: int, docs: int = 1) -> Shape:
  """The batch shape for a way of scoring; a likelihood needs room for predicted tokens."""
  predicted = predicted_per_row('query', row_len) if 'query_likelihood' in scorer else 0
  return Shape(rows, row_len, docs, predicted)


AHEAD = 1024  # documents that are tokenised in advance, at least
FLAGS = 'more', 'stop', 'failed'  # of each process, with every batch; see Steps


class Waiting:
  """A group some of whose documents have no score yet."""

  def __init__(self, part, group: Group):
    self.part, self.group = part, group
    self.scores = np.zeros(len(group.docs), np.float32)
    self.missing = len(group.docs)

  def put(self, n: int, score: float) -> None:
    self.scores[n] = score
    self.missing -= 1


@dataclasses.dataclass
class PointwiseRanker:
  """A model with its prompt that scores groups in batches of a fixed shape; a `Ranker`.

  Each process scores groups of its own, in the blocks that its devices hold. All processes step
  together until none has groups left.
  """

  network: object
  variables: object
  prompt: object
  mesh: object
  rows: int
  row_len: int
  scorer: str = 'score_head'
  watchdog_s: float = 0.0
  workers: int = 0  # processes that tokenise; 0: a thread of this one
  longest: int = 0  # tokens of a text, at most; 0: those of a row
  least_unit: ClassVar[int] = 1  # queries that are scored together, at least

  def __post_init__(self):
    self.blocks = sharding.even_parts(self.mesh, self.rows)
    shape = score_shape(self.scorer, self.rows, self.row_len).block(self.blocks)
    shares = self.network.shares(self.longest or self.row_len)
    self.shape = dataclasses.replace(shape, shares=shares)
    self._own = len(sharding.own_blocks(self.mesh, self.blocks))
    self.compiled = None
    self.work = Work()  # of this process's blocks

  def __call__(self, groups: Iterable[Group]) -> Iterator[tuple[Group, np.ndarray]]:
    """See Ranker. Raises: UserError if a score is not finite."""
    for _, group, scores in self.parts([(None, groups)]):
      yield group, scores

  def parts(
    self, parts: Iterable[tuple[object, Iterable[Group]]]
  ) -> Iterator[tuple[object, Group, np.ndarray]]:
    """(part, group, scores_N) for the groups of several parts, in order.

    The next batch is tokenised and packed while the device computes. Documents are packed wherever
    they fit best, but never with those of another part, so that a part's scores do not depend, to
    the last bit, on the parts before it.

    Raises: Stopped after SIGTERM or Ctrl-C, UserError without enough device memory.
    """
    ahead = max(AHEAD, self._own * self.shape.groups)
    waiting = collections.deque()
    dtype = remedies.param_dtype_of(self.variables)
    lower = remedies.as_sentence(
      [*remedies.in_bf16('', dtype), *remedies.spread(self.mesh)],
      f"lower the stage's batch_rows (now {self.rows}) or the model's row_len (now {self.row_len})",
    )
    with (
      memory.limited('scoring', self._memory, lower),
      Encoder(self.prompt, self.workers, ahead) as encoder,
      processes.StopRequest() as request,
      processes.Watchdog('scoring', self.watchdog_s) as watchdog,
      concurrent.futures.ThreadPoolExecutor(1) as waiter,
    ):
      self.work.begin()
      steps = Steps(self, self._blocks(encoder, parts, waiting), request, waiter)
      current = steps.begin()
      while current is not None:
        following = steps.begin()  # made while the device computes the current one
        steps.end(current)
        watchdog.beat()
        yield from _finished(waiting)
        current = following
    if steps.stopped:
      raise request.stopped('scoring: stopped')
    yield from _finished(waiting)  # groups without documents at the end

  def _blocks(self, encoder: Encoder, parts, waiting) -> Iterator[tuple[list, dict]]:
    """(where the scores of its documents go, block); appends their groups to `waiting`."""
    keyed = (((i, part), group) for i, (part, groups) in enumerate(parts) for group in groups)
    for _, encoded in itertools.groupby(encoder(keyed), key=lambda row: row[0][0]):
      yield from pack(self._documents(encoded, waiting), self.shape)

  def _documents(self, encoded, waiting: collections.deque):
    for (_, part), group, docs in encoded:
      waiting.append(Waiting(part, group))
      for bundle, numbers in self.bundles(group, docs):
        yield bundle, [(waiting[-1], n) for n in numbers]

  def bundles(
    self, group: Group, docs: list[Encoded] | None = None
  ) -> list[tuple[Bundle, list[int]]]:
    """What is packed of a query, with the documents' numbers; `docs` are their tokens if known."""
    docs = self.prompt.encode(group.query, group.docs) if docs is None else docs
    return bundled(docs, self.shape, group.query_id)

  def _memory(self) -> dict[str, int]:
    """Expected bytes per device, as for memory.limited."""
    held = {'parameters': memory.per_device(self.variables)}
    if self.compiled is None:
      return held
    peak = memory.peak(self.compiled.memory_analysis())
    return held | {'activations': max(0, peak - held['parameters'])}

  def _begin(self, drawn: list[tuple[list, dict]], values: dict[str, bool], waiter) -> tuple:
    """Gives the device a batch and this process's flags; returns the argument of `_end`."""
    blocks = [block for _, block in drawn]
    filling = self.shape.zeros(self._own - len(blocks)) if len(blocks) < self._own else None
    batch = join([*blocks, *([filling] if filling else [])])
    placed = sharding.put_batch(batch, self.mesh, self.blocks)
    flags = sharding.flags(self.mesh, **values)
    if self.compiled is None:  # compiling is not scoring time
      self.compiled = self.lower(self.variables, placed, flags).compile()
    tokens, places = int((batch['segments_BT'] > 0).sum()), batch['segments_BT'].size
    begun = time.monotonic()
    arrays = self.compiled(self.variables, placed, flags)
    fetched = waiter.submit(self._fetch, *arrays)
    return [keys for keys, _ in drawn], begun, tokens, places, fetched

  def _fetch(self, scores_GN, flags) -> tuple[np.ndarray, dict, float]:
    """Waits for the device, in a thread, so that the time when it was ready is exact."""
    scores = sharding.own_part(scores_GN, self.mesh, self.blocks)[:, 0]
    return scores, {k: bool(v) for k, v in flags.items()}, time.monotonic()

  def _end(self, batch: tuple) -> dict[str, bool]:
    """Puts a batch's scores where they belong; returns the flags, ORed over all processes."""
    placed, begun, tokens, places, fetched = batch
    scores, flags, ready = fetched.result()
    self.work.add(begun, ready, tokens, places, scored=sum(map(len, placed)))
    if flags['broken']:
      raise UserError('the model gives scores that are not finite; its parameters are broken')
    for keys, block in zip(placed, np.split(scores, self._own), strict=False):
      for (group, n), score in zip(keys, block.tolist(), strict=False):
        group.put(n, score)
    return flags

  def trace(self, variables, batch):
    """The scores alone, traced, of arrays or shapes on the mesh."""
    with jax.set_mesh(self.mesh):
      return jax.jit(score_fn(self.network, self.scorer)).trace(variables, batch)

  def lower(self, variables, batch, flags=None):
    """The step, lowered, of arrays or shapes on the mesh; `flags` are by default shapes."""
    if flags is None:
      spread = NamedSharding(self.mesh, PartitionSpec(sharding.AXES))
      flags = dict.fromkeys(FLAGS, jax.ShapeDtypeStruct((self.mesh.size,), bool, sharding=spread))
    rows = sharding.batch_shardings({'scores_GN': 0}, self.mesh, self.blocks)['scores_GN']
    everywhere = NamedSharding(self.mesh, PartitionSpec())
    scores = score_fn(self.network, self.scorer)

    def step(variables, batch, flags):
      scores_GN = scores(variables, batch)
      any_of = {k: jnp.any(v) for k, v in flags.items()}
      broken = jnp.any(batch['mask_GN'] & ~jnp.isfinite(scores_GN))
      return scores_GN, any_of | {'broken': broken}

    with jax.set_mesh(self.mesh):
      return jax.jit(step, out_shardings=(rows, everywhere)).lower(variables, batch, flags)

  def tokens_of(self, group: Group) -> int:
    """Tokens that scoring a query takes."""
    return sum(len(bundle) for bundle, _ in self.bundles(group))

  @property
  def positions(self) -> int:
    """Tokens that a batch of this process holds, padding included."""
    return self._own * self.shape.rows * self.row_len


class Steps:
  """The batches of one pass over groups: begins and ends them until no process has any left.

  Every batch carries this process's flags: whether it has documents (`more`), was asked to stop
  (`stop`), or met bad input (`failed`). Processes learn each other's flags when the batch ends; by
  then the next one has begun, and it is the last.
  """

  def __init__(self, ranker: PointwiseRanker, blocks: Iterator, request, waiter):
    self._ranker, self._blocks, self._request, self._waiter = ranker, blocks, request, waiter
    self._several = jax.process_count() > 1
    self._failure: UserError | None = None
    self._last = False  # no batch begins any more
    self.stopped = False

  def begin(self) -> tuple | None:
    """Gives the device the next batch; None if there is none."""
    drawn = [] if self._last else self._draw()
    if self._last or not (drawn or self._several):  # other processes may have documents left
      self._last = True
      return None
    failed = self._failure is not None
    flags = dict(zip(FLAGS, (bool(drawn), bool(self._request), failed), strict=True))
    return self._ranker._begin(drawn, flags, self._waiter)

  def _draw(self) -> list[tuple[list, dict]]:
    """Blocks for this process's devices; on several processes bad input ends all of them later."""
    try:
      return list(itertools.islice(self._blocks, self._ranker._own))
    except UserError as e:
      if not self._several:
        raise
      self._failure = e
      return []

  def end(self, batch: tuple) -> None:
    """Waits for a batch. Raises: UserError if any process met bad input."""
    flags = self._ranker._end(batch)
    if flags['failed']:
      raise self._failure or UserError('another process stopped with an error; see its message')
    self.stopped |= flags['stop']
    self._last |= flags['stop'] or not flags['more']


def _finished(waiting: collections.deque) -> Iterator[tuple[object, Group, np.ndarray]]:
  """Takes the groups from the front whose documents all have scores."""
  while waiting and not waiting[0].missing:
    first = waiting.popleft()
    yield first.part, first.group, first.scores


def predicted_per_row(predict: str, row_len: int) -> int:
  """Room for predicted tokens in a row: all of it for documents, half for the shorter queries."""
  return row_len if predict == 'document' else row_len // 2
