"""Requests become calls of the model: by tokens, similar lengths together, a request's pairs too.

A request waits in line with all of its pairs. When workers have nothing left to do, requests are
taken from the line, oldest first, up to a budget of tokens; their pairs are sorted by length and
cut into parts of about `part_tokens`, a multiple of the workers so that all end together. All
but the model's own calls happens in the event loop, so nothing here needs a lock.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import math
import time

import numpy as np

from disranker_jax.data.prompts import Encoded
from disranker_jax.serve.errors import Refused


@dataclasses.dataclass
class Job:
  """One request's pairs; `done` gets their scores, in order."""

  pairs: list[Encoded]
  done: asyncio.Future
  begin: float = 0.0
  started: float = 0.0  # when its first part was given to a worker
  infer_s: float = 0.0  # of the parts that it had a pair in
  left: int = 0

  def __post_init__(self):
    self.begin, self.left = time.perf_counter(), len(self.pairs)
    self.tokens = sum(map(len, self.pairs))
    self.scores = np.zeros(len(self.pairs), np.float64)


class Batcher:
  """Runs a backend's calls in its threads; `score` is what requests await."""

  def __init__(self, backend, metrics, max_batch_tokens: int = 16384, max_queue: int = 512):
    self._backend, self._metrics = backend, metrics
    self._budget, self._max_queue = max_batch_tokens, max_queue
    self._line: collections.deque[Job] = collections.deque()
    self._parts: collections.deque[list[tuple[Job, int]]] = collections.deque()
    self._wake = asyncio.Event()
    self._pool = concurrent.futures.ThreadPoolExecutor(backend.workers, 'infer')
    self._tasks = [asyncio.create_task(self._work()) for _ in range(backend.workers)]

  async def close(self) -> None:
    """Stops the workers; requests should have been answered before."""
    for task in self._tasks:
      task.cancel()
    await asyncio.gather(*self._tasks, return_exceptions=True)
    self._pool.shutdown(wait=True)

  def waiting(self) -> int:
    """How many requests are in line."""
    return len(self._line)

  async def score(self, pairs: list[Encoded]) -> Job:
    """The finished job; Refused if the line is full or the model fails. Cancel it to leave."""
    if len(self._line) >= self._max_queue:
      raise Refused(429, 'Overloaded', 'too many requests are waiting; try again later')
    job = Job(pairs, asyncio.get_running_loop().create_future())
    if not pairs:
      return job
    self._line.append(job)
    self._wake.set()
    try:
      await job.done
    finally:
      job.done.cancel()  # of a client that has gone, what is not computed yet is dropped
    return job

  def _plan(self) -> None:
    """Turns the requests at the head of the line into parts."""
    chosen, tokens = [], 0
    while self._line and (not chosen or tokens + self._line[0].tokens <= self._budget):
      job = self._line.popleft()
      if not job.done.done():
        chosen.append(job)
        tokens += job.tokens
    self._parts.extend(divide(chosen, self._backend))

  async def _next(self) -> list[tuple[Job, int]]:
    while True:
      while not self._parts and self._line:
        self._plan()
      if self._parts:
        part = [p for p in self._parts.popleft() if not p[0].done.done()]
        if part:
          return part
        continue
      self._wake.clear()
      await self._wake.wait()

  async def _work(self) -> None:
    loop = asyncio.get_running_loop()
    while True:
      part = await self._next()
      if self._parts or self._line:
        self._wake.set()  # of several workers that wait, the first to look clears the event
      jobs = {id(job): job for job, _ in part}.values()
      begin = time.perf_counter()
      for job in jobs:
        job.started = job.started or begin
      encoded = [job.pairs[i] for job, i in part]
      try:
        scores, computed = await loop.run_in_executor(self._pool, self._backend.score, encoded)
        scores_P = np.asarray(scores, np.float64).reshape(len(part))
      except Exception as e:  # whatever a runtime raises must not end the worker
        for job in jobs:
          fail(job, f'the model failed: {type(e).__name__}')
        continue
      took = time.perf_counter() - begin
      self._metrics.computed(sum(map(len, encoded)), computed)
      for job in jobs:
        job.infer_s += took
      for (job, i), score in zip(part, scores_P.tolist(), strict=True):
        job.scores[i] = score
        job.left -= 1
      for job in jobs:
        finish(job)


def divide(jobs: list[Job], backend) -> list[list[tuple[Job, int]]]:
  """The jobs' pairs, longest first, in parts of about equal tokens, none empty.

  There are as many parts as the workers can begin together, or a multiple of that.
  """
  chosen = [(job, i) for job in jobs for i in range(len(job.pairs))]
  if not chosen:
    return []
  chosen.sort(key=lambda p: -len(p[0].pairs[p[1]]))
  tokens = sum(job.tokens for job in jobs)
  count = math.ceil(tokens / backend.part_tokens / backend.workers) * backend.workers
  count = min(count, len(chosen))
  parts, held, room = [], [], tokens / count
  for n, (job, i) in enumerate(chosen):
    held.append((job, i))
    room -= len(job.pairs[i])
    left = len(chosen) - n - 1
    if len(parts) < count - 1 and (room <= 0 or left == count - 1 - len(parts)):
      parts.append(held)
      tokens -= sum(len(j.pairs[k]) for j, k in held)
      held, room = [], tokens / (count - len(parts))
  return [*parts, held] if held else parts


def finish(job: Job) -> None:
  """Answers a job whose pairs are all computed; a score that is not a number is an error."""
  if job.left or job.done.done():
    return
  if np.isfinite(job.scores).all():
    job.done.set_result(None)
  else:
    fail(job, 'the model gave a score that is not finite')


def fail(job: Job, why: str) -> None:
  if not job.done.done():
    job.done.set_exception(Refused(500, 'Backend', why))
