"""Draws the n-gram of a page that a query is to be answered with.

A retriever learns to write n-grams that share words with the query: the start of one is drawn with
the softmax of how similar the words behind it are to those of the query (MINDER, section 2).
"""

import functools

import numpy as np
from rapidfuzz import fuzz, process

from disranker_jax.data import first_stage

WINDOW = 3  # words that are compared


@functools.cache
def stop_words() -> frozenset[str]:
  """English words that carry no meaning by themselves; an n-gram does not start with one."""
  return frozenset(first_stage.library().stopwords.STOPWORDS_EN)


def windows(words: list[str]) -> list[str]:
  """Every WINDOW words in a row; all of them if there are fewer."""
  count = max(1, len(words) - WINDOW + 1)
  return [' '.join(words[i : i + WINDOW]).lower() for i in range(count)]


def start_weights(query: list[str], words: list[str]) -> np.ndarray:
  """The probability that an n-gram starts at each word of a text; empty for a text of no words."""
  if not words:
    return np.zeros(0)
  alike = process.cdist(windows(query), windows(words), scorer=fuzz.ratio).sum(0) / 100
  alike = np.pad(alike, (0, len(words) - len(alike)), constant_values=-np.inf)
  barred = [word.lower().strip('.,:;()') in stop_words() for word in words]
  alike = np.where(barred, -np.inf, alike)
  if not np.isfinite(alike).any():
    alike = np.zeros(len(words))
  weights = np.exp(alike - alike.max())
  return weights / weights.sum()


class Spans:
  """Draws n-grams of `length` tokens of pages' bodies, from the start of a word."""

  def __init__(self, tokenizer, vocab: int, length: int):
    self._decode, self._length = tokenizer.backend_tokenizer.decode_batch, length
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(vocab, len(tokenizer)))))
    # How byte-level BPE and SentencePiece write a blank.
    self._starts_V = np.zeros(vocab, bool)
    self._starts_V[: len(pieces)] = [(p or '')[:1] in ('\u0120', '\u2581') for p in pieces]
    self._weights = functools.lru_cache(maxsize=1 << 14)(self._weights)

  def draw(self, query: str, body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An n-gram of a body, more likely one that shares words with the query."""
    if len(body) <= self._length:
      return body
    starts, weights = self._weights(query, body.tobytes())
    start = starts[rng.choice(len(starts), p=weights)]
    return body[start : start + self._length]

  def piece(self, body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Any n-gram of a body."""
    if len(body) <= self._length:
      return body
    start = rng.choice(self._words(body))
    return body[start : start + self._length]

  def _words(self, body: np.ndarray) -> np.ndarray:
    """The tokens at which words start, with room for an n-gram where there are such."""
    starts = np.union1d([0], np.flatnonzero(self._starts_V[body]))
    room = starts[starts <= len(body) - self._length]
    return room if len(room) else starts

  def _weights(self, query: str, body: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(where words start, the probability of each)."""
    tokens = np.frombuffer(body, np.int32)
    starts = self._words(tokens)
    words = self._decode([piece.tolist() for piece in np.split(tokens, starts[1:])])
    return starts, start_weights(query.split(), [word.strip() for word in words])
