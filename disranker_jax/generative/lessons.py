"""What the retriever learns to write: (query, view) -> a title, an n-gram or a pseudo-query.

MINDER, section 2 of its training: queries with their page, and rows of every page, whose input is a
piece of the page or a query that was written from it. These put pages into the model that no
query asks for.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from disranker_jax.generative.pages import Page, Pages
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.spans import Spans


class Lesson(NamedTuple):
  """A page to be written in a view; an empty query or view is drawn each time."""

  query: str
  page: int
  view: str


class Drawn(NamedTuple):
  """A prompt's query and the tokens that follow the prompt."""

  query: str
  view: str
  target: np.ndarray


class Lessons(Sequence[Lesson]):
  """All lessons of a collection, in order.

  Args:
    asked: (query, number of its page).
    rows: {view: how often a query learns it per epoch}.
    page_rows: lessons of each page without a query of its own.
  """

  def __init__(self, pages: int, asked: Sequence[tuple[str, int]], rows: Mapping, page_rows: int):
    self._asked, self._page_rows, self._pages = asked, page_rows, pages
    self._views = [view for view, count in rows.items() for _ in range(count)]

  def __len__(self) -> int:
    return len(self._asked) * len(self._views) + self._pages * self._page_rows

  def __getitem__(self, i: int) -> Lesson:
    if not 0 <= i < len(self):
      raise IndexError(i)
    if i < len(self._asked) * len(self._views):
      number, view = divmod(i, len(self._views))
      return Lesson(*self._asked[number], self._views[view])
    return Lesson('', (i - len(self._asked) * len(self._views)) // self._page_rows, '')


@dataclasses.dataclass(frozen=True)
class Teaching:
  """Draws what a lesson's prompt is and what follows it."""

  pages: Pages
  prompts: Prompts
  spans: Spans

  @classmethod
  def of(cls, pages: Pages, prompts: Prompts) -> 'Teaching':
    length = prompts.length('body')
    return cls(pages, prompts, Spans(prompts.model.tokenizer, pages.vocab, length))

  @property
  def views(self) -> tuple[str, ...]:
    return tuple(self.prompts.model.settings.views)

  def draw(self, lesson: Lesson, rng: np.random.Generator) -> Drawn:
    """What is learned this time; the target is empty if the page has nothing of the view."""
    page = self.pages[lesson.page]
    if not lesson.view:
      return self._of_page(page, rng)
    return Drawn(lesson.query, lesson.view, self.target(lesson.query, page, lesson.view, rng))

  def target(
    self,
    query: str,
    page: Page,
    view: str,
    rng: np.random.Generator,
    apart: int | None = None,
  ) -> np.ndarray:
    """What the model is to write of a page in a view: for the body an n-gram like the query.

    `apart`: see Spans.draw.
    """
    if view == 'body':
      return self.spans.draw(query, page.body, rng, apart)
    written = page.of_view(view)
    return written[rng.integers(len(written))] if written else np.zeros(0, np.int32)

  def targets(
    self, query: str, number: int, rng: np.random.Generator
  ) -> list[tuple[str, np.ndarray]]:
    """(view, tokens) for every view that the page has something of."""
    page = self.pages[number]
    found = [(view, self.target(query, page, view, rng)) for view in self.views]
    return [(view, tokens) for view, tokens in found if len(tokens)]

  def _of_page(self, page: Page, rng: np.random.Generator) -> Drawn:
    """(a piece of the page or a pseudo-query as the query, a view, something else of the page)."""
    decode = self.prompts.model.tokenizer.backend_tokenizer.decode
    views = [view for view in self.views if page.of_view(view)]
    sources = [view for view in ('body', 'query') if page.of_view(view)]
    same = [('query', 'query'), *([] if self.spans.has_two(page.body) else [('body', 'body')])]
    pairs = [pair for pair in itertools.product(sources, views) if pair not in same]
    if not pairs:  # a page of a title alone, or of a short text: it learns what it shows
      view = views[0] if views else self.views[0]
      shown = self.target('', page, view, rng)
      return Drawn(decode(shown[shown != self.pages.end].tolist()).strip(), view, shown)
    source, view = pairs[rng.integers(len(pairs))]
    place = None
    if source == 'body':
      place = self.spans.place(page.body, rng, is_one_of_two=view == 'body')
      piece = self.spans.at(page.body, place)
    else:
      piece = page.queries[rng.integers(len(page.queries))][:-1]
    query = decode(piece.tolist()).strip()
    return Drawn(query, view, self.target(query, page, view, rng, place))
