"""Refuses runs without an order: nothing tells which documents of a query are the best ones."""

import itertools
from collections.abc import Iterator

from disranker_jax.data.collection_tables import Line
from disranker_jax.errors import UserError

ROWS = 10_000  # that are looked at; in a run with scores they differ long before


def ordered(run: Iterator[Line]) -> Iterator[Line]:
  """The lines of a run, of which the first ROWS are read by the call.

  Raises: UserError if these have no ranks and one score, and a query has several documents.
  ir_datasets gives the score 0 to pairs without one, such as the candidates of MS MARCO.
  """
  first = list(itertools.islice(run, ROWS))
  pairs = {(line.query_id, line.doc_id) for line in first}
  several = len(pairs) > len({query_id for query_id, _ in pairs})
  if several and len({line.score for line in first}) == 1 and not any(line.rank for line in first):
    raise UserError(
      f'{first[0].file}: has no order, so nothing tells which documents of a query are the best: '
      f'all its lines have the score {first[0].score:g}, and none has a rank; name a run with '
      'scores or ranks, ?run=FILE, or let BM25 rank the whole collection, ?run=bm25'
    )
  return itertools.chain(first, run)
