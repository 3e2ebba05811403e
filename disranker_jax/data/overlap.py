"""Counts the test queries and pairs that the training data has too.

Only the test is in memory; the records of training are streamed.
"""

import collections
from collections.abc import Iterable

from disranker_jax.data.holdout import normalized
from disranker_jax.data.records import Click, Group
from disranker_jax.progress import amount, part_of


class Test:
  """The queries of a test and their documents, to be found in other records."""

  def __init__(self, tests: Iterable[Group]):
    self._ids: list[str] = []
    self._by_text: dict[str, list[int]] = collections.defaultdict(list)
    self._by_id: dict[str, int] = {}
    # Hashes: 64 bits per pair instead of its texts.
    self._pairs: set[int] = set()
    for i, group in enumerate(tests):
      self._ids.append(group.query_id)
      self._by_text[normalized(group.query)].append(i)
      self._by_id[group.query_id] = i
      self._pairs.update(hash((i, doc.doc_id)) for doc in group.docs)

  def shared(self, records: Iterable[Click | Group]) -> dict[str, int]:
    """How much of the test is among the records.

    queries      test queries that have the text of a record, or its id and one of its documents
    query_texts  test queries with the text of a record, as holdout.normalized compares it
    query_ids    test queries with the id of a record; 0 for clicks, which have none
    pairs        documents of test queries that a record of the same text or id has too
    records      clicks or queries with the text of a test query
    of_queries   all test queries
    of_pairs     all documents of test queries
    """
    texts, ids, pairs, with_pairs, count = set(), set(), set(), set(), 0
    for record in records:
      same = self._by_text.get(normalized(record.query), ())
      texts.update(same)
      count += bool(same)
      if isinstance(record, Click):
        continue
      known = self._by_id.get(record.query_id)
      if known is not None:
        ids.add(known)
      for i in {*same, *(() if known is None else (known,))}:
        found = self._pairs & {hash((i, doc.doc_id)) for doc in record.docs}
        pairs |= found
        if found:
          with_pairs.add(i)
    return {
      'queries': len(texts | (ids & with_pairs)),
      'query_texts': len(texts),
      'query_ids': len(ids),
      'pairs': len(pairs),
      'records': count,
      'of_queries': len(self._ids),
      'of_pairs': len(self._pairs),
    }


def described(kind: str, counts: dict[str, int]) -> str:
  """The counts as one line; '' if there is nothing in common."""
  c = counts
  if not c['queries'] + c['query_ids']:
    return ''
  here = part_of(c['queries'], c['of_queries'], 'test query', 'test queries', 'is', 'are')
  line = f'{kind}: {here} here too, '
  if kind.startswith('clicks'):
    return line + f'in {amount(c["records"], "click")} of the same text'
  return line + (
    f'{c["query_texts"]:,} by text and {c["query_ids"]:,} by id, with {c["pairs"]:,} of '
    f'{amount(c["of_pairs"], "test pair")}'
  )
