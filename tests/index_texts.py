"""Small collections as index texts, and what can be written from them, by scanning their pages."""

import dataclasses

import numpy as np

from disranker_jax.generative.suffixes import Suffixes

VOCAB, END = 61, 2
TITLE, QUERY = VOCAB, VOCAB + 1


@dataclasses.dataclass(frozen=True)
class Page:
  """Token ids."""

  title: tuple[int, ...]
  body: tuple[int, ...]
  queries: tuple[tuple[int, ...], ...] = ()


def pages(count, seed=0, letters=5, longest=7) -> list[Page]:
  """Pages of few different tokens, so that n-grams are repeated."""
  rng = np.random.default_rng(seed)

  def words():
    return tuple(rng.integers(3, 3 + letters, rng.integers(1, longest)).tolist())

  return [
    Page(words(), words() + words(), tuple(words() for _ in range(i % 3))) for i in range(count)
  ]


def text(some: list[Page]) -> tuple[np.ndarray, np.ndarray]:
  """(tokens, where each page starts)."""
  tokens, starts = [], []
  for page in some:
    starts.append(len(tokens))
    tokens += [TITLE, *page.title, END, *page.body, END]
    for query in page.queries:
      tokens += [QUERY, *query, END]
  return np.array(tokens, np.int32), np.array(starts, np.int64)


def index(some: list[Page], window=512, depth=16) -> Suffixes:
  return Suffixes.build(text(some)[0], VOCAB + 2, depth, window)


def body_ngrams(some: list[Page], longest: int) -> dict[tuple[int, ...], int]:
  """The count of each n-gram of titles, bodies and pseudo-queries."""
  counts = {}
  for page in some:
    for field in (page.title, page.body, *page.queries):
      for start in range(len(field)):
        for stop in range(start + 1, min(len(field), start + longest) + 1):
          counts[field[start:stop]] = counts.get(field[start:stop], 0) + 1
  return counts


def ended(fields: list[tuple[int, ...]], longest: int) -> dict[tuple[int, ...], int]:
  """The count of each title, or pseudo-query, with the end token, if it is not too long."""
  counts = {}
  for field in fields:
    if len(field) < longest:
      counts[*field, END] = counts.get((*field, END), 0) + 1
  return counts
