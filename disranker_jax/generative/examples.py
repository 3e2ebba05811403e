"""What a retriever learns to rank from: queries with the pages that it found for them.

The n-grams of a page are those of the retriever that found it. They stay the same while another one
is trained; their log-probabilities are computed again, with gradients.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disranker_jax.data.batches import EncodedGroup
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.records import UNJUDGED, Group
from disranker_jax.errors import UserError
from disranker_jax.generative import evidence
from disranker_jax.generative.ngrams import VALUES
from disranker_jax.generative.records import VIEWS, Match, Ngram
from disranker_jax.progress import amount

NO_NGRAM = (0.0,) * (len(VALUES) - 1)  # of a document that is none: all VALUES but the page


@dataclasses.dataclass(frozen=True, slots=True)
class ExamplePage:
  """A page of an example.

  target   the teacher's score; NaN: it has none
  label    its grade, UNJUDGED without a judgement
  matches  the n-grams that found it, best first; () if none did
  """

  doc_id: str
  target: float = math.nan
  label: int = UNJUDGED
  matches: tuple[Match, ...] = ()

  @property
  def is_relevant(self) -> bool:
    return self.label > 0

  @property
  def has_score(self) -> bool:
    """Whether its n-grams give it a score that training can raise: a weight of 0 stays 0."""
    return base_score(self, len(self.matches)) > 0


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """A query with its pages, in the order in which the retriever ranks them; others come last."""

  query: str
  pages: tuple[ExamplePage, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
  """What one step learns from a query.

  pages    (place in the loss, from 0; page; target)
  written  texts that the retriever shall write for it, as (view, tokens), at most one of each view
  """

  query: str
  pages: tuple[tuple[int, ExamplePage, float], ...]
  written: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclasses.dataclass(frozen=True)
class Material:
  """The examples of a run, and what is needed to encode them.

  examples  any number, by index
  size      tokens of the collection's index
  prompt    (query, view) -> the token ids of the prompt
  written   (query, page, rng) -> [(view, tokens)]: what the retriever shall write for a relevant
            page, tokens as of an n-gram, at most one text of each view
  groups    the labelled query of each example
  example   (group, what a retriever found for it) -> its example
  """

  examples: Sequence[Example]
  size: int
  prompt: Callable[[str, str], Sequence[int]]
  written: Callable[[str, ExamplePage, np.random.Generator], Sequence[tuple[str, Sequence[int]]]]
  groups: Sequence[Group] = ()
  example: Callable[[Group, Any], Example] | None = None


def picked(
  pages: Sequence[ExamplePage], rng: np.random.Generator, size: Callable | None = None
) -> ExamplePage:
  """A page at random, or the largest one by `size`."""
  return max(pages, key=size) if size else pages[rng.integers(len(pages))]


def shuffled(
  pages: Sequence[ExamplePage], rng: np.random.Generator, size: Callable | None = None
) -> list[ExamplePage]:
  """The pages in random order, or the largest ones by `size` first."""
  if size:
    return sorted(pages, key=size, reverse=True)
  return [pages[i] for i in rng.permutation(len(pages))]


def base_score(page: ExamplePage, ngrams: int) -> float:
  """What the retriever that found a page gives its best n-grams."""
  return sum(match.weight * match.coverage for match in page.matches[:ngrams])


def mean_best(examples: Sequence[Example], ngrams: int) -> float:
  """The mean over queries of the best page's score: the unit of scores in training.

  Raises: UserError if no page has any n-gram.
  """
  best = [max((base_score(p, ngrams) for p in e.pages), default=0.0) for e in examples]
  mean = float(np.mean(best)) if best else 0.0
  if not mean > 0:
    raise UserError(
      f'none of the {amount(len(best), "query", "queries")} found a page by an n-gram, so there is '
      'nothing to rank; look at the results of the stages memorise and retrieve'
    )
  return mean


class Encoder:
  """Encodes what was drawn of an example: each n-gram, and each text to write, is a document.

  Args:
    material: its prompts and the size of its index.
    settings: smoothing, query_form and query_bonus, see the section `retrieve` of the config.
    ngrams: of a page, at most.
  """

  def __init__(self, material: Material, settings, ngrams: int):
    self._material, self._settings, self._ngrams = material, settings, ngrams

  def __call__(self, drawn: Drawn) -> EncodedGroup:
    prompts = {view: self._material.prompt(drawn.query, view) for view in VIEWS}
    docs, rows = [], []

    def add(view: str, tokens: Sequence[int], *row: float) -> None:
      docs.append(document(prompts[view], tokens))
      rows.append(row)

    for place, page, target in drawn.pages:
      of_page = page.label, target, place + 1
      for match in page.matches[: self._ngrams]:
        ngram = match.ngram
        known = self._prior(ngram), match.coverage, *evidence.lift(ngram, self._settings)
        add(ngram.view, ngram.tokens, *of_page, *known)
      if not page.matches:  # a document without n-gram says that the page is there; its score is 0
        add(VIEWS[0], (), *of_page, *NO_NGRAM)
    for view, tokens in drawn.written:
      add(view, tokens, UNJUDGED, 0.0, 0, *NO_NGRAM)
    labels, targets, *values = np.array(rows, np.float32).reshape(-1, 2 + len(VALUES)).T
    return EncodedGroup(docs, labels, targets, drawn.query, dict(zip(VALUES, values, strict=True)))

  def _prior(self, ngram: Ngram) -> float:
    return float(evidence.prior(ngram.count, self._material.size, self._settings.smoothing))


def document(prompt: Sequence[int], tokens: Sequence[int]) -> Encoded:
  """The prompt and the tokens that are predicted after it; without these, its first token."""
  ids = np.array([*prompt, *tokens] if len(tokens) else prompt[:1], np.int32)
  predict = (len(prompt), len(ids)) if len(tokens) else (0, 0)
  return Encoded(ids, np.zeros_like(ids), len(ids) - 1, predict)
