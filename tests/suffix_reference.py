"""A collection's suffixes by plain sorting: what tests compare with, or use as a stand-in."""

import numpy as np


class PlainSuffixes:
  """The interface of generative/suffixes.py, for small texts."""

  def __init__(self, text, symbols: int):
    self.text_N, self.symbols = np.array(text, np.int32), symbols
    self._suffixes = sorted((tuple(text[i:]), i) for i in range(len(text)))

  def interval(self, tokens) -> tuple[int, int]:
    tokens = tuple(tokens)
    rows = [r for r, (s, _) in enumerate(self._suffixes) if s[: len(tokens)] == tokens]
    lo = sum(s < tokens for s, _ in self._suffixes)
    return (lo, lo + len(rows))

  def positions(self, lo: int, hi: int) -> np.ndarray:
    return np.sort(np.array([at for _, at in self._suffixes[lo:hi]], np.int64))
