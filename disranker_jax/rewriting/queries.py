"""Queries with the documents that answer them, and how a rewrite becomes what is searched."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from disranker_jax.config.settings import Key, at_least
from disranker_jax.data import sources
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.progress import amount, part_of, say
from disranker_jax.stages import collection_rows, documents, prepare

MODES = ('append', 'replace')
MIN_RELEVANCE = Key(
  1, at_least(1), 'The lowest label of a document that a rewritten query is to find.',
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
  """A query with its judged documents.

  positives  the documents that it should find, at least one in training
  excluded   ids of documents that are taken out of its ranking, as in BRIGHT
  """

  query_id: str
  text: str
  positives: tuple[Document, ...]
  excluded: frozenset[str] = frozenset()

  @property
  def relevant(self) -> dict[str, int]:
    """{doc_id: label, at least 1} of the positives: the judgements that a search is measured by.

    Where only the pool of a first stage has lower labels, as in python_docs, metrics of all labels
    would favour that first stage.
    """
    return {doc.doc_id: max(doc.label, 1) for doc in self.positives}

  @property
  def key(self) -> tuple[str, str]:
    """What a cache knows the query by."""
    return self.query_id, self.text


def of_group(group: Group, min_relevance: int = 1, excluded: Iterable[str] = ()) -> Query:
  """The query of a judged group; its positives have a label of `min_relevance` or better."""
  positives = tuple(doc for doc in group.docs if doc.label >= min_relevance)
  return Query(group.query_id, group.query, positives, frozenset(excluded))


def training(run) -> list[Query]:
  """The prepared judgements as queries to learn from.

  Queries without a positive document are left out, and a line says how many. Raises: UserError if
  none is left.
  """
  found = _queries(run, 'judgements')
  kept = [query for query in found if query.positives]
  least = run.config.rewrite.min_relevance
  if not kept:
    raise UserError(
      f'config.data.judgements={run.config.data.judgements!r}: none of its '
      f'{amount(len(found), "query", "queries")} has a document with a label of {least} or better; '
      'lower config.rewrite.min_relevance'
    )
  if without := len(found) - len(kept):
    said = part_of(without, len(found), 'query', 'queries', 'is', 'are')
    say(f'rewrite: {said} left out: no document has a label of {least} or better')
  return kept


def test(run) -> list[Query]:
  """The prepared test queries, all of them: one without a positive document counts as 0."""
  return _queries(run, 'test')


def _queries(run, kind: str) -> list[Query]:
  least = run.config.rewrite.min_relevance
  excluded = sources.open(prepare.address(run.config, kind)).excluded()
  return [
    of_group(group, least, excluded.get(group.query_id, ())) for group in prepare.records(run, kind)
  ]


def address(config) -> str:
  """Where the documents that are searched are: those of the test, if no other address is given."""
  return next((where for _, _, where in addresses(config)), '')


def addresses(config) -> list[tuple[str, str, str]]:
  """The address of the documents, see Stage.addresses."""
  return documents.first_of(config, 'documents', 'test', 'judgements')


def collection(config) -> list[Document]:
  """All documents that are searched, without labels; see `documents.every`.

  Raises: UserError if there are none.
  """
  docs = documents.every(address(config))
  if not docs:
    raise UserError(f'{address(config)}: has no documents to search')
  return docs


def check_collection(queries: Iterable[Query], known: Collection[str], where: str) -> None:
  """Says how many positive documents of training queries are not in the collection.

  Args:
    known: the ids of the documents that are searched.
    where: their address.

  Raises: UserError if none is: the ids are then those of another collection.
  """
  wanted = [{doc.doc_id for doc in query.positives} for query in queries]
  collection_rows.check_known(set().union(*wanted), known, 'judgements', where)
  if without := sum(ids.isdisjoint(known) for ids in wanted):
    said = part_of(without, len(wanted), 'query', 'queries', 'has', 'have')
    say(f'rewrite: {said} no document that can be found')


def found(
  top: Callable[[Sequence, int], list[list[tuple[int, float]]]],
  ids: Sequence[str],
  queries: Sequence[Query],
  searches: Sequence,
  depth: int,
) -> list[dict[str, float]]:
  """{doc_id: score} of the best `depth` documents, best first, that each query's search finds.

  Its excluded documents are taken out before the ranking is cut.

  Args:
    top: of an index, such as BM25.top for texts and BM25.top_weighted for weights of words.
    ids: of the indexed documents, in order.
    searches: of each query, what `top` reads, see `searched`.
  """
  most = depth + max((len(query.excluded) for query in queries), default=0)
  rankings = []
  for query, best in zip(queries, top(searches, most), strict=True):
    kept = ((ids[i], score) for i, score in best if ids[i] not in query.excluded)
    rankings.append(dict(itertools.islice(kept, depth)))
  return rankings


def searched(query: str, rewrite: str, mode: str = 'append', repeat: int = 2) -> str:
  """What the search engine is given for a query and its rewrite.

  Args:
    mode: 'append' is the query, `repeat` times, then the rewrite: each repetition gives the query's
      words that weight against the rewrite's. 'replace' is the rewrite alone, as in the paper.

  A rewrite without a word leaves the query as it is.
  """
  if mode not in MODES:
    raise ValueError(f'mode {mode!r}: is none of {", ".join(MODES)}')
  if not has_words(rewrite):
    return query
  return rewrite if mode == 'replace' else ' '.join([*[query] * repeat, rewrite])


def has_words(text: Any) -> bool:
  """Whether a text has a letter or digit."""
  return any(map(str.isalnum, text))
