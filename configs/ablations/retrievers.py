"""A generative retriever before and after it learns to rank, by labels or by a teacher (DGR).

All search the whole collection. Fused rows join the retriever's ranking with BM25's by reciprocal
ranks. LTRGR learns from the labels of the pages that the retriever finds, the aligned retriever
from a teacher's scores of the same pages.
"""

ROWS = {
  'BM25': ('bm25', {}),
  'memorised': ('memorised', {}),
  'LTRGR, labels only': ('ltrgr', {}),
  'aligned with the teacher': ('aligned', {}),
  'memorised, with BM25': ('memorised_fused', {}),
  'aligned, with BM25': ('aligned_fused', {}),
}
AGAINST = 'memorised'
