"""Texts that begin with the same tokens share these in a packed row.

The prompts of one query begin with the same instruction, chat frame and query. A bundle has these
tokens once, as a segment that the rest of each text attends to (`parents_BT` in data/batches.py).
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from disranker_jax.data.encoded import Encoded

# Texts of a query stay apart unless bundles save this share of their tokens, because bundles fill
# rows a little worse. docs/performance.md has the measurement.
LEAST_SAVED = 0.05


@dataclasses.dataclass(frozen=True)
class Bundle:
  """Texts that stay together in a row; their first `shared` tokens are there once."""

  docs: Sequence[Encoded]
  shared: int = 0
  name: str = ''  # for messages

  @classmethod
  def alone(cls, doc: Encoded, name: str = '') -> 'Bundle':
    """A text that shares nothing."""
    return cls((doc,), 0, name)

  def __len__(self) -> int:
    """Tokens of a row that it takes."""
    return sum(map(len, self.docs)) - (len(self.docs) - 1) * self.shared

  @property
  def predicted(self) -> int:
    """The number of tokens that a language model predicts."""
    return sum(doc.predictions for doc in self.docs)


@dataclasses.dataclass(frozen=True)
class Limits:
  """The most that a bundle may have."""

  tokens: int
  docs: int
  predicted: int = 0  # 0: without limit


def bundles(
  docs: Sequence[Encoded], limits: Limits, name: str = ''
) -> list[tuple[Bundle, list[int]]]:
  """The texts of a query as the bundles with the fewest tokens, each with its texts' numbers.

  Every text is a bundle by itself if sharing saves less than LEAST_SAVED.
  """
  order = sorted(range(len(docs)), key=lambda i: docs[i].ids.tobytes())
  sorted_docs = [docs[i] for i in order]
  cuts = _cuts(sorted_docs, limits)
  found = []
  for start, stop in itertools.pairwise(cuts):
    own = sorted_docs[start:stop]
    shared = _shared(own[0], own[-1]) if len(own) > 1 else 0
    found.append((Bundle(tuple(own), shared, name), order[start:stop]))
  plain = sum(map(len, docs))
  if sum(len(bundle) for bundle, _ in found) > (1 - LEAST_SAVED) * plain:
    return [(Bundle.alone(doc, name), [i]) for i, doc in enumerate(docs)]
  return found


def _shared(first: Encoded, last: Encoded) -> int:
  """The number of tokens that two texts, and so all between them in order, begin with.

  The last token of a text is always its own.
  """
  most = min(len(first), len(last)) - 1
  differ = np.flatnonzero(first.ids[:most] != last.ids[:most])
  return int(differ[0]) if len(differ) else most


def _cuts(docs: Sequence[Encoded], limits: Limits) -> list[int]:
  """Where the texts, in order, are cut into bundles so that these have the fewest tokens.

  The least number of tokens of the first texts is computed from that of fewer texts.
  """
  lengths = [len(doc) for doc in docs]
  predicted = [doc.predictions for doc in docs]
  same = [0, *(_shared(a, b) for a, b in itertools.pairwise(docs))]
  least, before = [0], [0]
  for stop in range(1, len(docs) + 1):
    start = stop - 1
    best, cut = least[start] + lengths[start], start
    total, asked, shared = lengths[start], predicted[start], lengths[start] - 1
    while start and stop - start < limits.docs:
      shared = min(shared, same[start], lengths[start - 1] - 1)
      start -= 1
      total, asked = total + lengths[start], asked + predicted[start]
      tokens = total - (stop - start - 1) * shared
      if not shared or tokens > limits.tokens or (limits.predicted and asked > limits.predicted):
        break
      if least[start] + tokens < best:
        best, cut = least[start] + tokens, start
    least.append(best)
    before.append(cut)
  cuts = [len(docs)]
  while cuts[-1]:
    cuts.append(before[cuts[-1]])
  return cuts[::-1]
