"""Listwise: a prompt orders a window of documents, which slides from the bottom to the top.

The order of a window is read from the labels' logits (FIRST, arXiv 2406.15657), from a permutation
that is decoded under constraints, or from a text that the model writes (RankGPT, arXiv 2304.09542).
"""

import collections
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disranker_jax.rankers.llm.asking import Outcome, Steps, by_position, tied_pairs

THOUGHT = '</think>'  # what a model writes before it is not the answer
# (answer, number of documents, counts) -> the places of the documents, best first.
Reader = Callable[[Any, int, collections.Counter], list[int]]


def windows(n: int, size: int, stride: int, passes: int, read: Reader) -> Steps:
  """The order by windows of `size` documents, each `stride` above the one before.

  A perfect model finds the best size - stride documents in one pass.
  """
  order, counts = list(range(n)), collections.Counter()
  for _ in range(passes if n > 1 else 0):
    for start, end in spans(n, size, stride):
      docs = tuple(order[start:end])
      [answer] = yield [docs]
      order[start:end] = [docs[place] for place in read(answer, len(docs), counts)]
  return by_position(order, counts)


def spans(n: int, size: int, stride: int) -> list[tuple[int, int]]:
  """(start, end) of the windows, from the bottom; the last one begins at the top."""
  found, end = [], n
  while not found or found[-1][0] > 0:
    found.append((max(0, end - size), end))
    end -= stride
  return found


def by_logits(answer: np.ndarray, count: int, counts: collections.Counter) -> list[int]:
  """By descending logit of the labels; equal ones keep their order."""
  return np.argsort(-np.asarray(answer)[:count], kind='stable').tolist()


def at_once(n: int, size: int, stride: int, passes: int) -> Steps:
  """One window by the log-probabilities of its labels; `windows` if there are more documents.

  Logits of different windows cannot be compared, so then the scores are positions.
  """
  if n > size or n < 2:
    return (yield from windows(n, size, stride, passes, by_logits))
  [answer] = yield [tuple(range(n))]
  logits_N = np.asarray(answer, np.float64)[:n]
  highest = logits_N.max()
  scores_N = logits_N - highest - np.log(np.exp(logits_N - highest).sum())
  return Outcome(scores_N, tied=tied_pairs(scores_N))


def as_decoded(answer: Sequence[int], count: int, counts: collections.Counter) -> list[int]:
  """A permutation as it is."""
  return list(answer)


def by_text(identifiers: Sequence[str], begun: str) -> Reader:
  """Reads what the model wrote after `begun`, and repairs it.

  Identifiers are read in order. Those out of range and repeated ones are dropped, missing documents
  follow in their old order. `counts` says how many answers had which fault.
  """
  numeric = all(name.isascii() and name.isdigit() for name in identifiers)
  pattern = re.compile(r'[0-9]+' if numeric else r'\[\s*([A-Za-z]{1,3})\s*\]')
  places = {name: place for place, name in enumerate(identifiers)}

  def read(answer: str, count: int, counts: collections.Counter) -> list[int]:
    text = begun + answer
    if '<think>' in text and THOUGHT not in text:
      text = ''
    found = pattern.findall(text.rpartition(THOUGHT)[2])
    known = [places[name] for name in found if places.get(name, count) < count]
    order = list(dict.fromkeys(known))
    missing = [place for place in range(count) if place not in set(order)]
    counts['answers'] += 1
    if len(known) < len(found) or not found:
      counts['wrong_format'] += 1
    elif len(order) < len(known):
      counts['repetition'] += 1
    elif missing:
      counts['missing'] += 1
    return [*order, *missing]

  return read
