"""What a retriever found, on disk: the pages of each query with the n-grams that found them."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from disranker_jax.data.records import UNJUDGED, Group
from disranker_jax.generative.examples import Example, ExamplePage, Material
from disranker_jax.generative.lessons import Teaching
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.records import Found, Match, Ngram
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline import manifest
from disranker_jax.rankers.shards import Format, Shards

MATCH = pa.struct([
  ('view', pa.string()), ('tokens', pa.list_(pa.int32())), ('logprob', pa.float32()),
  ('lo', pa.int64()), ('hi', pa.int64()), ('weight', pa.float32()), ('coverage', pa.float32()),
])  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Retrieved:
  """The pages of a query, best first, of which only the best matches are kept."""

  query_id: str
  pages: tuple[tuple[str, Found], ...]  # with their document ids


def rows(item: tuple) -> Iterable[tuple]:
  """The rows of (query_id, ((doc_id, Found), ...)); a query without pages has one row."""
  query_id, pages = item
  for doc_id, found in pages:
    yield query_id, doc_id, found.page, found.score, [plain(match) for match in found.matches]
  if not pages:
    yield query_id, '', -1, 0.0, []


def plain(match: Match) -> dict:
  ngram = match.ngram
  return {
    'view': ngram.view, 'tokens': list(ngram.tokens), 'logprob': ngram.logprob, 'lo': ngram.lo,
    'hi': ngram.hi, 'weight': match.weight, 'coverage': match.coverage,
  }  # fmt: skip


def of_plain(row: dict) -> Match:
  ngram = Ngram(row['view'], tuple(row['tokens']), row['logprob'], row['lo'], row['hi'])
  return Match(ngram, row['weight'], row['coverage'])


FORMAT = Format(
  pa.schema([
    ('query_id', pa.string()), ('doc_id', pa.string()), ('page', pa.int64()),
    ('score', pa.float32()), ('matches', pa.list_(MATCH)),
  ]),
  rows, 'queries', 'pages', 'retrieve',
)  # fmt: skip


def read(shards: Shards) -> Iterator[Retrieved]:
  """The queries of all shards, in order; each shard is checked against its note."""
  for _, table in shards.whole():
    last, pages = None, []
    for query_id, doc_id, page, score, matches in zip(
      *(table.column(name).to_pylist() for name in FORMAT.schema.names), strict=True
    ):
      if last is not None and query_id != last:
        yield Retrieved(last, tuple(pages))
        pages = []
      last = query_id
      if page >= 0:
        pages.append((doc_id, Found(page, score, tuple(map(of_plain, matches)))))
    if last is not None:
      yield Retrieved(last, tuple(pages))


def material(run, model: TextModel) -> Material:
  """What the stages align and ltrgr learn from: found pages, labels and the teacher's scores.

  A relevant page of the collection that was not found is an example's last one, without n-grams.
  """
  from disranker_jax.generative.stages import index, retrieve  # which import this module
  from disranker_jax.stages.scored_records import open_scored

  pages, _ = index.load(run)
  groups = retrieve.queries(run)
  # The stage ltrgr needs no scores, so it can run before them.
  is_scored = manifest.is_done(run.folder('score'))
  scored = open_scored(run) if 'score' in run.config.stages and is_scored else ()
  targets = {
    group.query_id: {d.doc_id: float(s) for d, s in zip(group.docs, scores, strict=True)}
    for group, scores in (scored[i] for i in range(len(scored)))
  }

  def example_of(group: Group, one: Retrieved) -> Example:
    return example(group, one, targets.get(group.query_id, {}), pages.numbers)

  found = list(map(example_of, groups, retrieve.read(run, groups)))
  teaching = Teaching.of(pages, Prompts(model))

  def written(query: str, page: ExamplePage, rng: np.random.Generator):
    return teaching.targets(query, pages.numbers[page.doc_id], rng)

  return Material(found, len(pages.text_N), teaching.prompts, written, groups, example_of)


def example(
  group: Group, one: Retrieved, targets: Mapping[str, float], ids: Collection[str]
) -> Example:
  """A query with its pages as they are learned from; `ids` are those of the collection."""
  grades = group.grades
  known = [
    ExamplePage(doc_id, targets.get(doc_id, math.nan), grades.get(doc_id, UNJUDGED), page.matches)
    for doc_id, page in one.pages
  ]
  lost = grades.keys() - {page.doc_id for page in known}
  known += [
    ExamplePage(doc_id, label=grades[doc_id])
    for doc_id in sorted(lost)
    if grades[doc_id] > 0 and doc_id in ids
  ]
  return Example(group.query, tuple(known))
