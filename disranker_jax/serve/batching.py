"""Batches requests into calls of the model: by tokens, similar lengths together.

A request waits in the queue with all of its pairs. When workers run out of calls, requests are
taken from the queue, oldest first, up to a budget of tokens; their pairs are sorted by length and
divided into calls. Everything but the calls themselves runs in the event loop, so nothing here
needs a lock.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import time

import numpy as np

from disranker_jax.data.prompts import Encoded
from disranker_jax.rankers import backends
from disranker_jax.serve.errors import Refused


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


Call = list[tuple[Job, int]]  # (job, index of the pair in it)


class Batcher:
  """Runs a backend's calls in threads; requests await `score`."""

  def __init__(self, backend, metrics, max_batch_tokens: int = 16384, max_queue: int = 512):
    self._backend, self._metrics = backend, metrics
    self._budget, self._max_queue = max_batch_tokens, max_queue
    self._queue: collections.deque[Job] = collections.deque()
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

  def waiting(self) -> int:
    """The number of requests in the queue."""
    return len(self._queue)

  async def score(self, pairs: list[Encoded]) -> Job:
    """The finished job. Cancelling drops what has not been computed.

    Raises: Refused if the queue is full or the model fails.
    """
    if len(self._queue) >= self._max_queue:
      raise Refused(429, 'Overloaded', 'too many requests are waiting; try again later')
    job = Job(pairs, asyncio.get_running_loop().create_future())
    if not pairs:
      return job
    self._queue.append(job)
    self._wake.set()
    try:
      await job.done
    finally:
      job.done.cancel()
    return job

  def _plan(self) -> None:
    """Divides the requests at the head of the queue into calls."""
    jobs, tokens = [], 0
    while self._queue and (not jobs or tokens + self._queue[0].tokens <= self._budget):
      job = self._queue.popleft()
      if not job.done.done():
        jobs.append(job)
        tokens += job.tokens
    pairs = [(job, i) for job in jobs for i in range(len(job.pairs))]
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
