"""What a query rewriter learns from each reward of GRPO.

All searches are of the whole collection. The rewriters start from the same warm start (cpt), which
has learned from clicks alone. Re-ranked rows need --config.search.reranker=STUDENT.
"""

EMBEDDING = {'rewrite.reward': 'embedding'}
RANKING = {'rewrite.reward': 'bm25'}
BOTH = {'rewrite.reward': 'embedding+3*bm25'}

ROWS = {
  'original query': ('original', {}),
  'RM3': ('rm3', {}),
  'nearest training query': ('nearest', {}),
  'model as given': ('pretrained', {}),
  'before GRPO': ('cpt', {}),
  'GRPO, BM25': ('rewrite', RANKING),
  'GRPO, embedding': ('rewrite', EMBEDDING),
  'GRPO, both': ('rewrite', BOTH),
  # Chosen by the judgements, so no system: what choosing among eight rewrites could win.
  'best of its samples': ('best', RANKING),
  'original query, re-ranked': ('original_reranked', {}),
  'RM3, re-ranked': ('rm3_reranked', {}),
  'nearest training query, re-ranked': ('nearest_reranked', {}),
  'before GRPO, re-ranked': ('cpt_reranked', {}),
  'GRPO, BM25, re-ranked': ('rewrite_reranked', RANKING),
  'GRPO, embedding, re-ranked': ('rewrite_reranked', EMBEDDING),
  'GRPO, both, re-ranked': ('rewrite_reranked', BOTH),
}
AGAINST = 'before GRPO'
