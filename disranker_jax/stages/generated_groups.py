"""Queries that the model wrote become labelled groups: the first stage finds their candidates."""

import random
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from disranker_jax.data import query_filters
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.query_filters import Filters
from disranker_jax.data.records import Document, Group
from disranker_jax.pipeline import systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import prepare


def are_ranked(config: ConfigDict) -> bool:
  """Whether a listed stage ranks or learns the documents of generated queries."""
  return any(prepare.GENERATED in s.reads_records(config) for s in systems.listed(config))


def are_names(config: ConfigDict) -> bool:
  """Whether the queries are read, and only as names of the documents they were written from."""
  is_read = any('generate' in stage.reads_stages for stage in systems.listed(config))
  return is_read and not are_ranked(config)


def grouped(run: Run, filters: Filters, every: Sequence[Document], found) -> Iterator[Group]:
  """The kept queries with the first stage's documents, if their own is among the best of these.

  The candidates that a query was written from have label 1, the others 0; a query without one of
  these is left out, because nothing can be learned from its labels. Equal queries are kept once, of
  the first document that is found. Where fewer documents share a word with the query, others fill
  the list up.

  Where the queries only name documents, all that a query was written from are among its candidates,
  and it needs no others.
  """
  c, index = run.config.generate, BM25(every)
  name_only = are_names(run.config)
  places = {doc.doc_id: i for i, doc in enumerate(every)}
  kept = [(doc, number, query) for doc, number, query, why in found if not why]
  owners: dict[str, set[int]] = {}
  for doc, _, query in kept:
    owners.setdefault(query_filters.key(query), set()).add(places[doc.doc_id])
  seen = set()
  depth = max(c.depth, c.found_within)
  ranked = index.each((query for _, _, query in kept), depth)
  for (doc, number, query), hits in zip(kept, ranked, strict=True):
    own, same, query_id = places[doc.doc_id], query_filters.key(query), f'{doc.doc_id}#{number}'
    found_places = {i for i, _ in hits[: c.found_within]} if c.found_within else owners[same]
    if own not in found_places:
      filters.leave_out(query_id, query_filters.NOT_FOUND)
      continue
    if same in seen:
      filters.leave_out(query_id, query_filters.DUPLICATE)
      continue
    seen.add(same)
    scored = {i: (r, score) for r, (i, score) in enumerate(hits[: c.depth], 1)}
    chosen = list(dict.fromkeys([*scored, own]))
    if len(chosen) > c.depth:
      others = [i for i in scored if i not in owners[same]]
      chosen.remove((others or list(scored))[-1])
    chosen += fillers(f'{run.config.seed} {doc.doc_id} {number}', len(every), chosen, c.depth)
    if name_only:
      chosen += sorted((owners[same] & found_places).difference(chosen))
    elif owners[same].issuperset(chosen):
      filters.leave_out(query_id, query_filters.NO_OTHER)
      continue
    docs = [
      labelled(every[i], i in owners[same], *scored.get(i, (0, float('nan')))) for i in chosen
    ]
    yield Group(query_id, query, tuple(docs))


def fillers(seed: str, count: int, chosen: Sequence[int], depth: int) -> list[int]:
  """Random other documents, up to `depth` in all; the same ones for the same seed."""
  wanted = min(depth, count) - len(chosen)
  picks = random.Random(seed).sample(range(count), min(count, depth)) if wanted > 0 else []
  return [i for i in picks if i not in chosen][: max(wanted, 0)]


def labelled(doc: Document, is_own: bool, rank: int, score: float) -> Document:
  return Document(doc.doc_id, doc.title, doc.summary, int(is_own), rank, score)


def own_documents(group: Group) -> list[str]:
  """The ids of the documents that a generated query was written from, if its candidates have them.

  The first one, of which the query has its id, always is among them.
  """
  first = group.query_id.rpartition('#')[0]
  return [first, *(doc.doc_id for doc in group.docs if doc.label and doc.doc_id != first)]
