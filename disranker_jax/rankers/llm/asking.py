"""What algorithms and the devices that answer them say to each other.

An algorithm numbers the n documents of a query 0 to n - 1, best first in the first stage's order.
"""

import collections
import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

Docs = tuple[int, ...]  # the documents of one prompt, in its order


@dataclasses.dataclass
class Outcome:
  """The result of an algorithm for one query.

  scores  float64 [n], larger is better
  counts  what happened, such as 'compared', 'conflicts', or malformed answers by kind
  tied    pairs of documents that the method itself gives equal scores
  """

  scores: np.ndarray
  counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  tied: int = 0


# It yields prompts that may run together, gets the answer of each, and returns the outcome. An
# answer is float [C], the logits of the labels; a permutation of the prompt's documents; or a text.
Steps = Generator[list[Docs], Sequence[Any], Outcome]


def by_position(order: Sequence[int], counts: collections.Counter) -> Outcome:
  """The outcome of an order, best first: scores are n - position.

  Not 1 / position, whose differences would say that the first documents are far apart.
  """
  scores = np.zeros(len(order))
  scores[list(order)] = np.arange(len(order), 0, -1)
  return Outcome(scores, counts)


def tied_pairs(scores: np.ndarray) -> int:
  """The number of pairs with equal scores."""
  _, sizes = np.unique(scores, return_counts=True)
  return int((sizes * (sizes - 1) // 2).sum())


def drive(steps: Steps, answer) -> Outcome:
  """Runs an algorithm by itself; `answer(docs)` answers one prompt."""
  try:
    asked = next(steps)
    while True:
      asked = steps.send([answer(docs) for docs in asked])
  except StopIteration as end:
    return end.value
