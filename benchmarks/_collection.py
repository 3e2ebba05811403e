"""Random collections as index texts: tokens drawn by Zipf's law, in pages with three fields."""

import numpy as np

from disranker_jax.generative.beams import ANCHORS

TITLE_LEN, BODY_LEN, QUERY_LEN = 5, 40, 9  # tokens; about those of Python's documentation
END = 2


def text(documents: int, vocab: int, seed: int = 0) -> np.ndarray:
  """The index text of so many pages: title, body, and one pseudo-query each."""
  rng = np.random.default_rng(seed)
  pages = np.full((documents, TITLE_LEN + BODY_LEN + QUERY_LEN + 5), END, np.int32)
  share = np.cumsum(1 / np.arange(1, vocab - END))
  for page in np.array_split(pages, max(1, documents // 10_000)):
    drawn = np.searchsorted(share, rng.uniform(0, share[-1], page.shape))
    page[:] = END + 1 + np.minimum(drawn, vocab - END - 2)
  body = TITLE_LEN + 2
  query = body + BODY_LEN + 1
  pages[:, [body - 1, query - 1, -1]] = END
  pages[:, 0], pages[:, query] = vocab, vocab + 1
  return pages.reshape(-1)


def symbols(vocab: int) -> int:
  return vocab + ANCHORS
