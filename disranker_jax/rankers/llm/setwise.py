"""Setwise prompting (Zhuang et al., arXiv 2310.09497): which of a few passages is the best?

The answer is the label with the largest logit, so no answer can be malformed.
"""

import collections
from collections.abc import Generator

import numpy as np

from disranker_jax.rankers.llm import heap
from disranker_jax.rankers.llm.asking import Steps, by_position


def choose(docs: list[int]) -> Generator:
  """The place of the best document; of equal ones, the first."""
  [logits_C] = yield [tuple(docs)]
  return int(np.argmax(logits_C[: len(docs)]))


def heapsort(n: int, top: int, children: int) -> Steps:
  """The best `top` documents by a heap with `children` per node, which one prompt compares."""
  order = yield from heap.best(n, top, children, choose)
  return by_position(order, collections.Counter())


def bubblesort(n: int, top: int, children: int) -> Steps:
  """`top` passes of windows from the bottom; the best of each window moves to its front.

  Windows of children + 1 documents overlap by one. No window is skipped, not even one that has not
  changed since the last pass: its best document may now stand elsewhere in it.
  """
  order = list(range(n))
  for settled in range(min(top, n)):
    end = n
    while end - settled > 1:
      start = max(settled, end - children - 1)
      place = start + (yield from choose(order[start:end]))
      order.insert(start, order.pop(place))
      end = start + 1
  return by_position(order, collections.Counter())
