"""A generative retriever before and after it learns to rank, by labels or by a teacher (DGR).

All search the whole collection. Fused rows join the retriever's ranking with BM25's by reciprocal
ranks; the re-ranker config.search.reranker orders the best pages of re-ranked rows. LTRGR learns
from the labels of the pages that the retriever finds, the aligned retriever from a teacher's scores
of the same pages.
"""

ROWS = {
  'BM25': ('bm25', {}),
  'memorised': ('memorised', {}),
  'LTRGR, labels only': ('ltrgr', {}),
  'aligned with the teacher': ('aligned', {}),
  'memorised, with BM25': ('memorised_fused', {}),
  'aligned, with BM25': ('aligned_fused', {}),
  'BM25, re-ranked': ('bm25_reranked', {}),
  'memorised, re-ranked': ('memorised_reranked', {}),
  'aligned, re-ranked': ('aligned_reranked', {}),
}
AGAINST = 'memorised'
