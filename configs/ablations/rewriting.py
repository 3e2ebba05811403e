"""What a query rewriter learns from each reward of GRPO.

All searches are of the whole collection. The rewriters start from the same model: from the warm
start (cpt), which has learned from clicks alone, where the config has one. Re-ranked rows need
--config.search.reranker=STUDENT.
"""

EMBEDDING = {'rewrite.reward': 'embedding'}
RANKING = {'rewrite.reward': 'bm25'}
BOTH = {'rewrite.reward': 'embedding+3*bm25'}
AGAINST = 'before GRPO'


def get_rows(config):
  stages = [name for name in ('prepare', 'cpt', 'search') if name in config.stages]
  is_warm = 'cpt' in stages or config.rewriter.init_from
  if config.rewriter.init_from:  # without GRPO this is the rewriter that the run begins with
    before, begins = 'rewrite', {'stages': tuple(stages)}
  else:
    before, begins = 'cpt' if 'cpt' in stages else 'pretrained', {}
  return {
    'original query': ('original', {}),
    'RM3': ('rm3', {}),
    'nearest training query': ('nearest', {}),
    # Without a warm start this is the row before GRPO.
    **({'model as given': ('pretrained', {})} if is_warm else {}),
    'before GRPO': (before, begins),
    'GRPO, BM25': ('rewrite', RANKING),
    'GRPO, embedding': ('rewrite', EMBEDDING),
    'GRPO, both': ('rewrite', BOTH),
    # Chosen by the judgements, so no system: what choosing among eight rewrites could win.
    'best of its samples': ('best', RANKING),
    'original query, re-ranked': ('original_reranked', {}),
    'RM3, re-ranked': ('rm3_reranked', {}),
    'nearest training query, re-ranked': ('nearest_reranked', {}),
    'before GRPO, re-ranked': (f'{before}_reranked', begins),
    'GRPO, BM25, re-ranked': ('rewrite_reranked', RANKING),
    'GRPO, embedding, re-ranked': ('rewrite_reranked', EMBEDDING),
    'GRPO, both, re-ranked': ('rewrite_reranked', BOTH),
  }
