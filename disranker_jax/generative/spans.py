"""Draws the n-gram of a page that a query is to be answered with.

A retriever learns to write n-grams that share words with the query: the start of one is drawn with
the softmax of how similar the words behind it are to those of the query (MINDER, section 2).
"""

import functools

import numpy as np
import regex
from rapidfuzz import fuzz, process
from tokenizers import pre_tokenizers

from disranker_jax.data import first_stage
from disranker_jax.data.words import UNSPACED

WINDOW = 3  # words that are compared
BLANKS = '\u0120', '\u2581'  # how byte-level BPE and SentencePiece write a blank
# A word, or a letter of a script without blanks between words, with its marks.
PART = regex.compile(rf'(?V1)(\s*)([{UNSPACED}]\p{{M}}*|[^\s{UNSPACED}]+)')


@functools.cache
def inside() -> tuple[str, ...]:
  """How tokens begin that are the rest of a character whose first bytes are another token.

  In a vocabulary that does not spell bytes some of these are rare letters.
  """
  in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  rests = range(0x80, 0xC0)
  # The two bytes of each of these characters: the same one, and the rest.
  [(spelled, _)] = in_bytes.pre_tokenize_str(''.join(map(chr, rests)))
  return (*spelled[1::2], *(f'<0x{byte:02X}>' for byte in rests))


@functools.cache
def stop_words() -> frozenset[str]:
  """English words that carry no meaning by themselves; an n-gram does not start with one."""
  return frozenset(first_stage.library().stopwords.STOPWORDS_EN)


def parts(text: str) -> list[str]:
  """The words of a text as `windows` reads them."""
  return [' ' * bool(blanks) + word for blanks, word in PART.findall(text)]


def windows(words: list[str]) -> list[str]:
  """Every WINDOW words in a row; all of them if there are fewer.

  A word begins with its blank; a letter of a script without blanks is a word that has none.
  """
  count = max(1, len(words) - WINDOW + 1)
  return [''.join(words[i : i + WINDOW]).strip().lower() for i in range(count)]


def start_weights(query: list[str], words: list[str]) -> np.ndarray:
  """The probability that an n-gram starts at each word of a text; empty for a text of no words."""
  if not words:
    return np.zeros(0)
  alike = process.cdist(windows(query), windows(words), scorer=fuzz.ratio).sum(0) / 100
  alike = np.pad(alike, (0, len(words) - len(alike)), constant_values=-np.inf)
  barred = [word.strip().lower().strip('.,:;()') in stop_words() for word in words]
  alike = np.where(barred, -np.inf, alike)
  if not np.isfinite(alike).any():
    alike = np.zeros(len(words))
  weights = np.exp(alike - alike.max())
  return weights / weights.sum()


class Spans:
  """Draws n-grams of `length` tokens of pages' bodies.

  One starts with a word. Where no word starts in so many tokens, as in Japanese, which has no
  blanks, or in a long address, it starts with any character.
  """

  def __init__(self, tokenizer, vocab: int, length: int):
    self._decode, self._length = tokenizer.backend_tokenizer.decode_batch, length
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(vocab, len(tokenizer)))))
    self._blank_V, self._inside_V = np.zeros((2, vocab), bool)
    self._blank_V[: len(pieces)] = [(p or '').startswith(BLANKS) for p in pieces]
    self._inside_V[: len(pieces)] = [(p or '').startswith(inside()) for p in pieces]
    self._weights = functools.lru_cache(maxsize=1 << 14)(self._weights)

  def draw(
    self, query: str, body: np.ndarray, rng: np.random.Generator, apart: int | None = None
  ) -> np.ndarray:
    """An n-gram of a body, more likely one that shares words with the query.

    Args:
      apart: where an n-gram of the body starts with which it has no token in common.
    """
    if len(body) <= self._length:
      return body
    starts, weights = self._weights(query, body.tobytes())
    if apart is not None:
      weights = np.where(abs(starts - apart) >= self._length, weights, 0)
      # Only stop words may start the others.
      weights = weights if weights.any() else abs(starts - apart) >= self._length
      weights = weights / weights.sum()
    start = starts[rng.choice(len(starts), p=weights)]
    return body[start : start + self._length]

  def has_two(self, body: np.ndarray) -> bool:
    """Whether a body has two n-grams without a common token."""
    return len(body) > self._length and self._starts(body)[-1] >= self._length

  def place(self, body: np.ndarray, rng: np.random.Generator, is_one_of_two: bool = False) -> int:
    """Where any n-gram of a body starts; `is_one_of_two` of two without a common token."""
    if len(body) <= self._length:
      return 0
    starts = self._starts(body)
    if is_one_of_two:
      starts = starts[np.maximum(starts, starts[-1] - starts) >= self._length]
    return int(rng.choice(starts))

  def at(self, body: np.ndarray, start: int) -> np.ndarray:
    """The n-gram that starts at a place."""
    return body[start : start + self._length]

  def _starts(self, body: np.ndarray) -> np.ndarray:
    """The tokens at which an n-gram may start and for which it has room; the first is one."""
    words = np.union1d([0], np.flatnonzero(self._blank_V[body]))
    sizes = np.diff(words, append=len(body))
    is_long = np.repeat(sizes > self._length, sizes)  # of the word that a token is in
    starts = np.union1d(words, np.flatnonzero(is_long & ~self._inside_V[body]))
    return starts[starts <= len(body) - self._length]

  def _weights(self, query: str, body: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(where n-grams may start, the probability of each)."""
    tokens = np.frombuffer(body, np.int32)
    starts = self._starts(tokens)
    texts = self._decode([piece.tolist() for piece in np.split(tokens, starts[1:])])
    blanks = self._blank_V[tokens[starts]].tolist()
    words = [' ' * blank + text.strip() for blank, text in zip(blanks, texts, strict=True)]
    return starts, start_weights(parts(query), words)
