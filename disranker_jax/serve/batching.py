"""Batches requests into calls of the model: by tokens, similar lengths together.

A request waits in the queue with all of its pairs. When workers run out of calls, requests are
taken from the queue, oldest first, up to a budget of tokens; their pairs are sorted by length and
divided into calls. A large request is taken in slices of the budget, and smaller ones may overtake
it, so that a client with a thousand texts does not make the others wait for all of them.
Everything but the calls themselves runs in the event loop, so nothing here needs a lock.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import heapq
import itertools
import time

import numpy as np

from disranker_jax.data.encoded import Encoded
from disranker_jax.rankers import backends
from disranker_jax.serve.errors import Refused

# A pair costs about as much as its tokens and these.
PAIR_TOKENS = 32
# A request that costs more than half of the budget waits as if it had come later, by a second per
# PATIENCE tokens beyond that. Nothing starves: who comes later still does not overtake it.
PATIENCE = 1000


@dataclasses.dataclass
class Job:
  """One request's pairs; `scores` has their scores in order once `done` is set."""

  pairs: list[Encoded]
  done: asyncio.Future
  started: float = 0.0  # when its first call was given to a worker
  infer_s: float = 0.0  # of the calls that contained one of its pairs

  def __post_init__(self):
    self.left = len(self.pairs)
    self.tokens = sum(map(len, self.pairs))
    self.scores = np.zeros(len(self.pairs), np.float64)
    # The indices of pairs that are in no call yet, the longest last, and their tokens.
    self.todo = sorted(range(len(self.pairs)), key=lambda i: len(self.pairs[i]))
    self.waiting = self.tokens

  def fits(self, room: int) -> bool:
    """Whether all pairs to do may be computed with others that leave `room` tokens."""
    return self.waiting <= room and len(self.todo) * PAIR_TOKENS <= room

  def take(self, room: int) -> list[int]:
    """The longest of the pairs to do, of about `room` tokens; all if they fit."""
    taken, most = [], self.waiting - room
    while self.todo and (not taken or (self.waiting > most and len(taken) * PAIR_TOKENS < room)):
      taken.append(self.todo.pop())
      self.waiting -= len(self.pairs[taken[-1]])
    return taken


Call = list[tuple[Job, int]]  # (job, index of the pair in it)


class Batcher:
  """Runs a backend's calls in threads; requests await `score`."""

  def __init__(self, backend, metrics, max_batch_tokens: int = 16384):
    self._backend, self._metrics = backend, metrics
    self._budget = max_batch_tokens
    self._queue: list[tuple[float, int, Job]] = []  # a heap: (order, number, job)
    self._numbers = itertools.count()
    self._calls: collections.deque[Call] = collections.deque()
    self._wake = asyncio.Event()
    self._pool = concurrent.futures.ThreadPoolExecutor(backend.workers, 'infer')
    self._tasks = [asyncio.create_task(self._work()) for _ in range(backend.workers)]

  async def close(self) -> None:
    """Stops the workers; call it after all requests have been answered."""
    for task in self._tasks:
      task.cancel()
    await asyncio.gather(*self._tasks, return_exceptions=True)
    self._pool.shutdown(wait=True)

  async def score(self, pairs: list[Encoded]) -> Job:
    """The finished job. Cancelling drops what has not been computed.

    Raises: Refused if the model fails.
    """
    job = Job(pairs, asyncio.get_running_loop().create_future())
    if not pairs:
      return job
    self._push(job)
    self._wake.set()
    try:
      await job.done
    finally:
      job.done.cancel()
    return job

  def _push(self, job: Job) -> None:
    cost = job.waiting + PAIR_TOKENS * len(job.todo)
    later = max(0, cost - self._budget // 2) / PATIENCE
    heapq.heappush(self._queue, (time.monotonic() + later, next(self._numbers), job))

  def _plan(self) -> None:
    """Divides the requests at the head of the queue into calls."""
    pairs, room = [], self._budget
    while self._queue and (not pairs or self._queue[0][2].fits(room)):
      _, _, job = heapq.heappop(self._queue)
      if job.done.done():
        continue
      before = job.waiting
      pairs += [(job, i) for i in job.take(room)]
      room -= before - job.waiting
      if job.todo:
        self._push(job)
        break
    lengths = [len(job.pairs[i]) for job, i in pairs]
    self._calls.extend([pairs[n] for n in call] for call in backends.divide(lengths, self._backend))

  async def _next(self) -> Call:
    while True:
      while not self._calls and self._queue:
        self._plan()
      if self._calls:
        call = [pair for pair in self._calls.popleft() if not pair[0].done.done()]
        if call:
          return call
        continue
      self._wake.clear()
      await self._wake.wait()

  async def _work(self) -> None:
    loop = asyncio.get_running_loop()
    while True:
      call = await self._next()
      if self._calls or self._queue:
        self._wake.set()  # the first of several waiting workers has cleared the event
      jobs = {id(job): job for job, _ in call}.values()
      begin = time.perf_counter()
      for job in jobs:
        job.started = job.started or begin
      encoded = [job.pairs[i] for job, i in call]
      try:
        scores, computed = await loop.run_in_executor(self._pool, self._backend.score, encoded)
        scores_P = np.asarray(scores, np.float64).reshape(len(call))
      except Exception as e:  # whatever a runtime raises must not end the worker
        for job in jobs:
          fail(job, f'the model failed: {type(e).__name__}')
        continue
      seconds = time.perf_counter() - begin
      self._metrics.computed(sum(map(len, encoded)), computed)
      for job in jobs:
        job.infer_s += seconds
      for (job, i), score in zip(call, scores_P.tolist(), strict=True):
        job.scores[i] = score
        job.left -= 1
      for job in jobs:
        finish(job)


def finish(job: Job) -> None:
  """Completes a job whose pairs are all computed; a score that is not finite is an error."""
  if job.left or job.done.done():
    return
  if np.isfinite(job.scores).all():
    job.done.set_result(None)
  else:
    fail(job, 'the model gave a score that is not finite')


def fail(job: Job, message: str) -> None:
  """Ends a job with status 500."""
  if not job.done.done():
    job.done.set_exception(Refused(500, 'Backend', message))
