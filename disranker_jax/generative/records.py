"""What a generative retriever writes, and the pages that it finds by it."""

import dataclasses

# Each is a way to write a page: its title, an n-gram of its title or text, or a query that a model
# wrote from it (a pseudo-query).
VIEWS = ('title', 'body', 'query')


@dataclasses.dataclass(frozen=True, slots=True)
class Ngram:
  """Tokens that the model wrote and that occur in the collection.

  view      of VIEWS
  tokens    without an anchor; those of a title or a pseudo-query end with the end token
  logprob   sum over the tokens of log p(token | prompt, tokens before it), in the whole vocabulary
  lo, hi    its rows in the order of suffixes; hi - lo is how often it occurs
  """

  view: str
  tokens: tuple[int, ...]
  logprob: float
  lo: int
  hi: int

  @property
  def count(self) -> int:
    return self.hi - self.lo


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
  """An n-gram in a page: its weight times its coverage is what it adds to the page's score.

  coverage  1 if none of its tokens is in a better match of the page, less otherwise
  """

  ngram: Ngram
  weight: float
  coverage: float


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
  """A page that was found, by number, with its matches, best first."""

  page: int
  score: float
  matches: tuple[Match, ...]
