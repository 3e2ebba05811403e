"""Finds the pages of queries: n-grams by beam search, then pages by their n-grams."""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence

import jax

from disranker_jax.config.settings import Key, Section, above, at_least, between, one_of
from disranker_jax.devices import memory, processes
from disranker_jax.generative.beams import SHARDED, Searcher
from disranker_jax.generative.decoding import View
from disranker_jax.generative.evidence import CAPPED, MEAN, MEAN_TOKENS, PAGES, Evidence
from disranker_jax.generative.pages import Pages
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.records import Found, Ngram
from disranker_jax.generative.suffixes import Suffixes
from disranker_jax.models.load import TextModel
from disranker_jax.training import remedies

# How pages are found; the section `retrieve` of the config has these keys.
SETTINGS: Section = {
  'beams': Key(10, at_least(1), 'Hypotheses per query and view.'),
  'unigrams': Key(
    1000, at_least(0),
    "Tokens, the likeliest as the first of an n-gram of the view 'body', that count by themselves.",
  ),
  'smoothing': Key(5.0, above(0), 'Added to the counts of n-grams in the collection.'),
  'exponent': Key(2.0, above(0), 'Of an n-gram\'s weight.'),
  'coverage': Key(
    0.8, between(0, 1),
    'How much less an n-gram counts whose words are in a better one of the same page.',
  ),
  'query_form': Key(
    MEAN, one_of(CAPPED, MEAN),
    "How much a pseudo-query counts: 'mean' is the mean log-probability of its tokens times "
    f"{MEAN_TOKENS}; 'capped' is its log-probability with query_bonus, at most -1, as in MINDER's "
    'code, so that most of them count the same.',
  ),
  'query_bonus': Key(
    14.0, at_least(0), "Added to the log-probability of pseudo-queries; see query_form 'capped'."
  ),
  'most_count': Key(
    1500, at_least(1), 'N-grams that occur more often find no page; they count in those found.'
  ),
  'hits': Key(
    100, between(1, PAGES),
    'Pages per query in the result table; training queries keep depth of them.',
    affects_results=False,  # `rows.searches` tells the rows of the table when it changes
  ),
  'batch_rows': Key(
    16, at_least(1), 'Queries that are searched together.', affects_results=False,
  ),
}  # fmt: skip


@dataclasses.dataclass
class Retriever:
  """Finds pages: `retriever(queries)` gives each query's, best first.

  All processes compute every batch together. Batches are always full, so what a query finds does
  not depend on the other queries.

  Args:
    c: the section with SETTINGS.
    hits: pages of a query, at most evidence.PAGES.
  """

  model: TextModel
  variables: dict
  pages: Pages
  suffixes: Suffixes
  c: object
  mesh: jax.sharding.Mesh
  hits: int
  watchdog_s: float = 0.0
  tokens: int = 0  # that were written in all beams
  seconds: float = 0.0

  def __post_init__(self):
    self.prompts = Prompts(self.model)
    views = [
      View(view, self.pages.anchor(view), self.prompts.length(view), self.c.beams, self.c.unigrams)
      for view in self.model.settings.views
    ]
    self.evidence = Evidence(self.suffixes, self.pages.starts_P, self.c)
    # On a model axis each device holds the pages of its part; of fewer pages it holds all.
    parts, index = self.mesh.shape['model'], self.suffixes
    if 1 < parts <= len(self.pages):
      index = index.split(self.pages.starts_P, parts)
    self.searcher = Searcher(
      self.model.network, self.variables, index, views, self.pages.end, self.mesh,
      self.c.batch_rows, self.prompts.longest,
    )  # fmt: skip

  def __call__(
    self, queries: Sequence[str], units: Iterable[range] | None = None
  ) -> Iterator[tuple[range, int, list[Found]]]:
    """(unit, index of the query, its pages) for the queries of each unit, in order.

    A unit has at most `batch_rows` queries. Raises: Stopped after SIGTERM or Ctrl-C, UserError
    without enough device memory.
    """
    rows = self.c.batch_rows
    if units is None:
      units = (range(i, min(i + rows, len(queries))) for i in range(0, len(queries), rows))
    lower = remedies.as_sentence(
      remedies.in_bf16('retriever', self.model.settings.param_dtype),
      'lower config.retrieve.batch_rows or beams',
      SHARDED,
    )
    with (
      memory.limited('retrieval', self.searcher.needs, lower),
      processes.StopRequest() as request,
      processes.Watchdog('retrieval', self.watchdog_s) as watchdog,
    ):
      for unit in units:
        if processes.any_of(bool(request)):
          raise request.stopped('retrieve: stopped')
        found = self._search([queries[i] for i in unit])
        watchdog.beat()
        for i, pages in zip(unit, found, strict=True):
          yield unit, i, pages

  def _search(self, queries: Sequence[str]) -> list[list[Found]]:
    begin, unigrams = time.monotonic(), [[] for _ in queries]
    ngrams: list[list[Ngram]] = [[] for _ in queries]
    for view in self.model.settings.views:
      found = self.searcher(view, [self.prompts(query, view) for query in queries])
      for i, written in enumerate(found):
        ngrams[i] += written.ngrams
        unigrams[i] += written.unigrams
    self.seconds += time.monotonic() - begin
    # Every beam of a full batch is a row that the model reads.
    steps = sum(map(self.prompts.length, self.model.settings.views))
    self.tokens += steps * self.c.beams * self.c.batch_rows
    return [
      self.evidence(own, singles, self.hits) for own, singles in zip(ngrams, unigrams, strict=True)
    ]
