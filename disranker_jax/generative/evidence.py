"""From the n-grams that a model wrote to the pages that hold them.

An n-gram weighs by how much likelier the model thinks it is than the collection does, so a rare
n-gram that the model is sure of counts most. A page's score is the sum over its n-grams, best
first; they do not overlap, and one whose words the page has already scored by counts less.

Source: SEAL (Bevilacqua et al., 2022, arXiv:2204.10628), section 3, with the defaults of its code;
the bonus of pseudo-queries is MINDER's (Li et al., 2023, arXiv:2305.16675).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from disranker_jax.generative.records import Found, Match, Ngram

# log p is cut off here: the odds of a certain n-gram are infinite, those of an impossible one 0.
LEAST, MOST = -1e4, -1e-4
# How a pseudo-query's log p counts, see `lift`.
CAPPED, MEAN = 'capped', 'mean'
MOST_OF_QUERY = -1.0  # after its bonus
# Tokens that a pseudo-query counts as, by the mean of its own. Chosen on 400 training queries of
# Python's documentation, where 3 to 8 differ little.
MEAN_TOKENS = 4
PAGES = 1500  # that are scored in full


def log_odds(logprob, xp=np):
  """ln(p / (1 - p)) of a log-probability, finite for every value; `xp` is numpy or jax.numpy."""
  logprob = xp.clip(logprob, LEAST, MOST)
  return logprob - xp.log(-xp.expm1(logprob))


def prior(count, size: int, smoothing: float = 5.0) -> np.ndarray:
  """The log-odds of n-grams that occur `count` times in a collection of `size` tokens."""
  count = np.asarray(count, np.float64)
  return log_odds(np.log((count + smoothing) / (size + smoothing)))


def lift(ngram: Ngram, settings) -> tuple[float, float]:
  """(scale, bonus) of an n-gram's log p, for `lifted`: of long ones, pseudo-queries, not (1, 0).

  CAPPED is the released form. Its bonus takes most pseudo-queries to the bound, so they weigh the
  same. MEAN keeps their distances: log p as if the n-gram had MEAN_TOKENS tokens.
  """
  if ngram.view != 'query':
    return 1.0, 0.0
  if settings.query_form == MEAN:
    return MEAN_TOKENS / len(ngram.tokens), 0.0
  return 1.0, settings.query_bonus


def lifted(logprob, scale, bonus, xp=np):
  """log p times the scale, and with a bonus min(log p + bonus, -1)."""
  logprob = logprob * scale
  return xp.where(bonus > 0, xp.minimum(logprob + bonus, MOST_OF_QUERY), logprob)


def weight(logprob, count, size: int, *, smoothing: float = 5.0, exponent: float = 2.0):
  """max(0, log-odds of the model - log-odds of the collection) ** exponent.

  Args:
    logprob: log p(n-gram | query), the sum over its tokens.
    count: how often it occurs.
    size: the tokens of the collection.
    smoothing: is added to count and size.
  """
  gain = log_odds(np.asarray(logprob, np.float64)) - prior(count, size, smoothing)
  return np.maximum(gain, 0.0) ** exponent


@dataclasses.dataclass(frozen=True)
class Occurrences:
  """Where an n-gram occurs in some pages' joined text, in order, and the index of each page."""

  ngram: Ngram
  weight: float
  at_C: np.ndarray
  pages_C: np.ndarray

  def within(self, kept_U: np.ndarray, text: 'Joined', other: 'Joined') -> 'Occurrences':
    """Those in the pages `kept_U`, which are all the pages of `other`."""
    index_U = np.cumsum(kept_U) - 1
    keep_C = kept_U[self.pages_C]
    pages_C = index_U[self.pages_C[keep_C]]
    at_C = self.at_C[keep_C] - text.starts_U[self.pages_C[keep_C]] + other.starts_U[pages_C]
    return dataclasses.replace(self, at_C=at_C, pages_C=pages_C)


class Joined:
  """The text of some pages, one after the other.

  pages_U   their numbers, in order
  starts_U  where each starts in the joined text
  where_J   the position in the collection of each token
  """

  def __init__(self, pages_U: np.ndarray, starts_P: np.ndarray, size: int):
    self.pages_U = pages_U
    first_U = starts_P[pages_U]
    lengths_U = np.append(starts_P, size)[pages_U + 1] - first_U
    ends_U = np.cumsum(lengths_U)
    self.starts_U, self.size = ends_U - lengths_U, int(ends_U[-1]) if len(ends_U) else 0
    self._first_U, self._lengths_U = first_U, lengths_U

  def place(self, positions_C: np.ndarray, pages_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places in the joined text, indices of pages) of positions and their page numbers."""
    index_C = np.searchsorted(self.pages_U, pages_C)
    return positions_C - self._first_U[index_C] + self.starts_U[index_C], index_C

  def tokens(self, text_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, the index of each one's page)."""
    shift_J = np.repeat(self._first_U - self.starts_U, self._lengths_U)
    owner_J = np.repeat(np.arange(len(self.pages_U)), self._lengths_U)
    return text_N[np.arange(self.size) + shift_J], owner_J


class Evidence:
  """Finds and scores pages by n-grams; numpy on the host.

  Args:
    suffixes: the collection's text and its suffixes in order, see suffixes.py.
    starts_P: where each page starts in the text.
    settings: smoothing, exponent, coverage, unigrams, query_form, query_bonus, most_count; see the
      section `retrieve` of the config.
  """

  def __init__(self, suffixes, starts_P: np.ndarray, settings):
    self._suffixes, self._settings = suffixes, settings
    self._text_N, self._starts_P = suffixes.text_N, np.asarray(starts_P, np.int64)
    self._counts_V = np.bincount(self._text_N)

  @property
  def size(self) -> int:
    """The tokens of the collection."""
    return len(self._text_N)

  def __call__(
    self, ngrams: Sequence[Ngram], unigrams: Sequence[tuple[int, float]] = (), hits: int = 100
  ) -> list[Found]:
    """The best pages with at least one of the n-grams, best first, equal ones by number.

    Where no n-gram has a weight, as in a tiny collection or before the model has learned anything,
    the pages are in the order of their best n-gram's log p, which is then their score.

    Args:
      ngrams: what the model wrote, of all views.
      unigrams: (token, log p) of single tokens, which count in places without an n-gram; one that
        is given twice has the better log p.
      hits: pages at most.
    """
    weighed = self.weighed(ngrams)
    most = self._settings.most_count
    text, found = self._locate([pair for pair in weighed if pair[0].count <= most])
    if not found:
      return self._unweighed(ngrams, hits)
    if len(text.pages_U) > PAGES:
      text, found = self._best(text, found)
    tokens_J, owner_J = text.tokens(self._text_N)
    for ngram, w in weighed:
      if ngram.count > most:
        at_C = places(self._anchored(ngram), tokens_J)
        found.append(Occurrences(ngram, w, at_C + self._shift(ngram), owner_J[at_C]))
    found.sort(key=order)
    scoring = Scoring(text, found, self._settings.coverage)
    scores_U = scoring.scores_U + self._of_unigrams(scoring, tokens_J, owner_J, unigrams)
    best = np.lexsort((text.pages_U, -scores_U))[:hits]
    return [
      Found(int(text.pages_U[u]), float(scores_U[u]), matches)
      for u, matches in zip(best.tolist(), scoring.matches(best), strict=True)
    ]

  def _unweighed(self, ngrams: Sequence[Ngram], hits: int) -> list[Found]:
    """The pages of n-grams without a weight, by the best one of each page."""
    best: dict[int, Ngram] = {}
    most = self._settings.most_count
    rare = (n for n in ngrams if 0 < n.count <= most and n.logprob > LEAST)
    for ngram in sorted(rare, key=lambda ngram: (-ngram.logprob, ngram.tokens, ngram.view)):
      positions = self._suffixes.positions(ngram.lo, ngram.hi)
      for page in (np.searchsorted(self._starts_P, positions, side='right') - 1).tolist():
        best.setdefault(page, ngram)
    order = sorted(best, key=lambda page: (-best[page].logprob, page))[:hits]
    return [Found(page, best[page].logprob, (Match(best[page], 0.0, 1.0),)) for page in order]

  def weighed(self, ngrams: Sequence[Ngram]) -> list[tuple[Ngram, float]]:
    """The n-grams with a weight, each once; one that was given twice has the better log p."""
    best: dict[tuple, Ngram] = {}
    for ngram in ngrams:
      key = ngram.view, ngram.tokens
      if ngram.count > 0 and (key not in best or ngram.logprob > best[key].logprob):
        best[key] = ngram
    kept, c = list(best.values()), self._settings
    lifts = np.array([lift(ngram, c) for ngram in kept]).reshape(-1, 2).T
    logprobs = lifted(np.array([ngram.logprob for ngram in kept], np.float64), *lifts)
    counts = [ngram.count for ngram in kept]
    weights = weight(logprobs, counts, self.size, smoothing=c.smoothing, exponent=c.exponent)
    return [(ngram, w) for ngram, w in zip(kept, weights.tolist(), strict=True) if w > 0]

  def _shift(self, ngram: Ngram) -> int:
    """Tokens before the n-gram's own in its rows: the anchor."""
    return 0 if ngram.view == 'body' else 1

  def _anchored(self, ngram: Ngram) -> np.ndarray:
    """The n-gram's tokens, after its anchor if it has one."""
    start = int(self._suffixes.positions(ngram.lo, ngram.lo + 1)[0])
    return self._text_N[start : start + len(ngram.tokens) + self._shift(ngram)]

  def _locate(self, weighed: list[tuple[Ngram, float]]) -> tuple[Joined, list[Occurrences]]:
    """All occurrences of n-grams, in the joined text of all pages that hold one."""
    where = [
      self._suffixes.positions(ngram.lo, ngram.hi) + self._shift(ngram) for ngram, _ in weighed
    ]
    positions = np.concatenate([np.zeros(0, np.int64), *where]).astype(np.int64)
    pages = np.searchsorted(self._starts_P, positions, side='right') - 1
    text = Joined(np.unique(pages), self._starts_P, self.size)
    at, index = text.place(positions, pages)
    cuts = np.cumsum([len(positions_C) for positions_C in where])[:-1]
    parts = zip(weighed, np.split(at, cuts), np.split(index, cuts), strict=True) if where else ()
    return text, [Occurrences(*pair, at_C, pages_C) for pair, at_C, pages_C in parts]

  def _best(self, text: Joined, found: list[Occurrences]) -> tuple[Joined, list[Occurrences]]:
    """The pages with the largest sums of weights, and what they hold."""
    sums_U = np.zeros(len(text.pages_U))
    found = sorted(found, key=order)
    for one, pages_C in zip(found, firsts(found, np.zeros(text.size, bool)), strict=True):
      sums_U[pages_C] += one.weight
    kept_U = np.zeros(len(sums_U), bool)
    kept_U[np.lexsort((text.pages_U, -sums_U))[:PAGES]] = True
    other = Joined(text.pages_U[kept_U], self._starts_P, self.size)
    return other, [one.within(kept_U, text, other) for one in found]

  def _of_unigrams(self, scoring: 'Scoring', tokens_J, owner_J, unigrams) -> np.ndarray:
    """What single tokens add to each page: each once, if a place with it is still free."""
    c, sums_U = self._settings, np.zeros(len(scoring.scores_U))
    once: dict[int, float] = {}
    for token, logprob in unigrams:
      once[token] = max(logprob, once.get(token, -np.inf))
    best = sorted(once.items(), key=lambda pair: (-pair[1], pair[0]))[: c.unigrams]
    if not best:
      return sums_U
    ids, logprobs = np.array([t for t, _ in best]), np.array([p for _, p in best], np.float64)
    counts = self._counts_V[np.minimum(ids, len(self._counts_V) - 1)]
    weights_V = np.zeros(len(self._counts_V))
    known = ids < len(self._counts_V)
    gains = weight(logprobs, counts, self.size, smoothing=c.smoothing, exponent=1.0)
    weights_V[ids[known]] = gains[known]
    counts_J = ~scoring.covered_J & (weights_V[tokens_J] > 0)
    pairs = np.unique(owner_J[counts_J] * len(weights_V) + tokens_J[counts_J])
    pages, tokens = np.divmod(pairs, len(weights_V))
    share = np.where(scoring.has(pages, tokens), 1 - c.coverage, 1.0)
    np.add.at(sums_U, pages, weights_V[tokens] * share)
    return sums_U


def order(one: Occurrences) -> tuple:
  """Better n-grams come first, whatever the order in which they were given."""
  return -one.weight, one.ngram.tokens, one.ngram.view


def places(tokens: np.ndarray, tokens_J: np.ndarray) -> np.ndarray:
  """Where `tokens` occur in a text."""
  at = np.flatnonzero(tokens_J[: len(tokens_J) - len(tokens) + 1] == tokens[0])
  for offset, token in enumerate(tokens[1:], 1):
    at = at[tokens_J[at + offset] == token]
  return at


def firsts(found: Iterable[Occurrences], covered_J: np.ndarray) -> Iterator[np.ndarray]:
  """For each n-gram, in order, the indices of the pages in which it has a free place.

  Its free places are then taken (`covered_J`); those of the n-gram that overlap count once.
  """
  for one in found:
    length = len(one.ngram.tokens)
    span_L = np.arange(length)
    free_C = ~covered_J[one.at_C[:, None] + span_L].any(1)
    at, pages = one.at_C[free_C], one.pages_C[free_C]
    if length > 1 and (np.diff(at) < length).any():
      apart = disjoint(at, length)
      at, pages = at[apart], pages[apart]
    covered_J[at[:, None] + span_L] = True
    yield pages[np.append(True, np.diff(pages) > 0)] if len(pages) else pages


def disjoint(at: np.ndarray, length: int) -> list[int]:
  """The indices of places that do not overlap, taken from the front."""
  kept, end = [], -1
  for i, start in enumerate(at.tolist()):
    if start >= end:
      kept.append(i)
      end = start + length
  return kept


class Scoring:
  """The scores of pages by n-grams that do not overlap, best first.

  An n-gram adds its weight times 1 - coverage + coverage * (the share of its distinct tokens that
  no better n-gram of the page has).

  Args:
    found: best first.
  """

  def __init__(self, text: Joined, found: list[Occurrences], coverage: float):
    self._found, self._rows = found, []
    self.covered_J = np.zeros(text.size, bool)
    self.scores_U = np.zeros(len(text.pages_U))
    types = [np.unique(one.ngram.tokens) for one in found]
    self._types_Y = np.unique(np.concatenate(types))
    self._seen_UY = np.zeros((len(text.pages_U), len(self._types_Y)), bool)
    for i, pages_C in enumerate(firsts(found, self.covered_J)):
      if not len(pages_C):
        continue
      own = np.ix_(pages_C, np.searchsorted(self._types_Y, types[i]))
      new_C = (~self._seen_UY[own]).mean(1)
      self._seen_UY[own] = True
      share_C = 1 - coverage + coverage * new_C
      self.scores_U[pages_C] += found[i].weight * share_C
      self._rows.append((i, pages_C, share_C))

  def has(self, pages: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Whether a page has scored by an n-gram with a token, for pairs of them."""
    column = np.minimum(np.searchsorted(self._types_Y, tokens), len(self._types_Y) - 1)
    return (self._types_Y[column] == tokens) & self._seen_UY[pages, column]

  def matches(self, chosen: np.ndarray) -> list[tuple[Match, ...]]:
    """The matches of some pages, best first."""
    slot_U = np.full(len(self.scores_U), -1)
    slot_U[chosen] = np.arange(len(chosen))
    matches: list[list[Match]] = [[] for _ in chosen]
    for i, pages_C, share_C in self._rows:
      one, slots_C = self._found[i], slot_U[pages_C]
      for slot, share in zip(slots_C.tolist(), share_C.tolist(), strict=True):
        if slot >= 0:
          matches[slot].append(Match(one.ngram, one.weight, share))
    return list(map(tuple, matches))
