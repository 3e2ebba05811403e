"""The search engines that rewrites are for, by the names that settings have."""

from collections.abc import Callable, Sequence

from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document
from disranker_jax.rewriting.query_bm25 import QueryBM25

# (documents) -> an index with top(queries, k), as BM25 has it.
ENGINES: dict[str, Callable[[Sequence[Document]], BM25 | QueryBM25]] = {
  'bm25': BM25,
  'query_bm25': QueryBM25,
}
WHAT = (
  "'bm25', or 'query_bm25', which weighs the words of the query too and reads words as Lucene "
  'does, as in BRIGHT.'
)
