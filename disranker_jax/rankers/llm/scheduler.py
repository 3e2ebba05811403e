"""Runs the algorithms of many queries on shared batches of prompts.

While the device computes a batch, the host prepares the next one from whatever the other queries
wait for. So an algorithm whose prompts follow one another costs no idle device, as long as enough
queries are in progress.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from disranker_jax.data.encoded import Encoded
from disranker_jax.data.records import Group
from disranker_jax.rankers.llm.asking import Docs, Outcome, Steps

LIVE = 256  # queries in progress, at most


class Answering(Protocol):
  """Answers prompts in batches of a fixed shape."""

  def add(self, prompts: Sequence[Encoded], docs: Sequence[int], keys: Sequence[Any]) -> None:
    """Takes prompts that a query asks at once, each with its number of documents."""

  def __len__(self) -> int:
    """The number of prompts that wait."""

  @property
  def full(self) -> bool:
    """Whether enough prompts wait for a well-filled batch."""

  def begin(self) -> Any:
    """Gives the device a batch of the prompts that wait."""

  def end(self, batch: Any) -> list[tuple[Any, Any]]:
    """Waits for a batch; (key, answer) of its prompts."""


class Query:
  """A query in progress."""

  def __init__(self, group: Group, steps: Steps):
    self.group, self._steps = group, steps
    self.outcome: Outcome | None = None
    self.counts: collections.Counter[str] = collections.Counter(prompts=0, tokens=0, cut=0)
    self._asked: list[Docs] = []
    self._known: dict[Docs, Any] = {}  # answers: sorts ask the same prompt again
    self._missing: set[Docs] = set()
    self._advance(lambda: next(self._steps))

  def needed(self) -> list[Docs]:
    """The prompts that the algorithm waits for, each once; they count as asked now."""
    found = [docs for docs in dict.fromkeys(self._asked) if docs not in self._known]
    self._missing = set(found)
    return found

  def put(self, docs: Docs, answer: Any) -> bool:
    """Takes an answer; whether the algorithm has gone on since all are there."""
    self._known[docs] = answer
    self._missing.discard(docs)
    if self._missing:
      return False
    self.resume()
    return True

  def resume(self) -> None:
    """Goes on with answers that are all known."""
    self._advance(lambda: self._steps.send([self._known[docs] for docs in self._asked]))

  def _advance(self, step: Callable[[], list[Docs]]) -> None:
    try:
      self._asked = step()
    except StopIteration as end:
      self.outcome = end.value
      self._asked = []
      self.counts.update(self.outcome.counts)


@dataclasses.dataclass
class Scheduler:
  """Answers the prompts of queries in shared batches.

  Args:
    start: a group -> its algorithm.
    encode: (group, prompts as document numbers) -> their tokens.
    live: queries in progress, at most.
    stopped: whether to end early, without the queries in progress.
  """

  answering: Answering
  start: Callable[[Group], Steps]
  encode: Callable[[Group, list[Docs]], list[Encoded]]
  live: int = LIVE
  stopped: Callable[[], bool] = lambda: False

  def __call__(self, groups: Iterable[Group]) -> Iterator[Query]:
    """The finished queries, in order."""
    source, waiting, flying = iter(groups), collections.deque(), None
    more = True
    while not self.stopped():
      running = sum(query.outcome is None for query in waiting)
      while more and running < self.live and not self.answering.full:
        if (group := next(source, None)) is None:
          more = False
          break
        waiting.append(Query(group, self.start(group)))
        self._ask(waiting[-1])
        running += waiting[-1].outcome is None
      ready = len(self.answering) and (self.answering.full or flying is None)
      following = self.answering.begin() if ready else None
      if flying is not None:
        self._answer(flying)
      flying = following
      while waiting and waiting[0].outcome is not None:
        yield waiting.popleft()
      if not (more or waiting or flying is not None):
        return

  def _ask(self, query: Query) -> None:
    """Adds the prompts that a query waits for; goes on by itself where all answers are known."""
    while query.outcome is None:
      if needed := query.needed():
        prompts = self.encode(query.group, needed)
        for encoded in prompts:
          query.counts.update(prompts=1, tokens=len(encoded), cut=encoded.cut)
        keys = [(query, docs) for docs in needed]
        self.answering.add(prompts, [len(docs) for docs in needed], keys)
        return
      query.resume()

  def _answer(self, batch: Any) -> None:
    for (query, docs), answer in self.answering.end(batch):
      if query.put(docs, answer):
        self._ask(query)
