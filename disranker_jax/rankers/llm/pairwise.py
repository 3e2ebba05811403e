"""Pairwise ranking prompting (Qin et al., arXiv 2306.17563): which of two passages is better?

A model prefers one place in the prompt, so every pair is asked in both orders. A document wins if
both answers name it; else the pair is a conflict. The share of conflicts tells, without labels, how
much of the ranking is a matter of places.
"""

import collections
import itertools
from collections.abc import Generator

import numpy as np

from disranker_jax.rankers.llm import heap
from disranker_jax.rankers.llm.asking import Outcome, Steps, by_position, tied_pairs

# Equal points are ordered by the first stage; the steps are far below half a point.
TIE_BREAK = 1e-3


def odds(logits_C: np.ndarray) -> float:
  """The log-odds that the first document of the prompt is the better one."""
  return float(logits_C[0]) - float(logits_C[1])


def allpair(n: int, soft: bool = False) -> Steps:
  """Asks every pair in both orders, all at once; n (n - 1) prompts.

  A win is a point, a conflict half a point for both. With `soft` a document gets the mean
  probability of both orders that it is the better one, which has almost no ties.
  """
  pairs = list(itertools.combinations(range(n), 2))
  asked = [order for i, j in pairs for order in ((i, j), (j, i))]
  answers = (yield asked) if asked else []
  points, counts = np.zeros(n), collections.Counter(compared=len(pairs), conflicts=0)
  for (i, j), first, second in zip(pairs, answers[::2], answers[1::2], strict=True):
    ahead, behind = odds(first), odds(second)
    conflict = not (ahead > 0 > behind or ahead < 0 < behind)
    counts['conflicts'] += conflict
    share = 0.5 if conflict else float(ahead > 0)
    if soft:
      share = 0.5 * (probability(ahead) + probability(-behind))
    points[i] += share
    points[j] += 1 - share
  tied = tied_pairs(points)
  if not soft:
    points -= TIE_BREAK * np.arange(n) / max(n, 1)
  return Outcome(points, counts, tied)


def probability(log_odds: float) -> float:
  """The logistic function, without overflow."""
  return float(np.exp(-np.logaddexp(0.0, -log_odds)))


def better(i: int, j: int, counts: collections.Counter) -> Generator:
  """Whether document i wins over document j in both orders."""
  first, second = yield [(i, j), (j, i)]
  ahead, behind = odds(first), odds(second)
  counts['compared'] += 1
  counts['conflicts'] += not (ahead > 0 > behind or ahead < 0 < behind)
  return ahead > 0 > behind


def heapsort(n: int, top: int) -> Steps:
  """The best `top` documents by a binary heap; the others stay behind in their order.

  A conflict leaves the parent where it is.
  """
  counts = collections.Counter(compared=0, conflicts=0)

  def choose(docs):
    winner = 0
    for place in range(1, len(docs)):
      if (yield from better(docs[place], docs[winner], counts)):
        winner = place
    return winner

  order = yield from heap.best(n, top, 2, choose)
  return by_position(order, counts)


def sliding(n: int, top: int) -> Steps:
  """`top` passes from the bottom, in which a document that wins moves up by one.

  Pass i settles place i. A conflict keeps the first stage's order.
  """
  order, counts = list(range(n)), collections.Counter(compared=0, conflicts=0)
  for settled in range(min(top, n)):
    for place in range(n - 1, settled, -1):
      upper, lower = order[place - 1 : place + 1]
      if (yield from better(lower, upper, counts)):
        order[place - 1 : place + 1] = lower, upper
  return by_position(order, counts)
