"""A trained rewriter on a task of BRIGHT: the original query, RM3 and the rewrites, by nDCG@10.

  disranker run --config configs/bright.py --workdir runs/bright-biology \
    --config.rewriter.init_from=runs/rewriting

`data/BRIGHT` is a copy of the dataset xlangai/BRIGHT, and `task` one of its twelve; excluded
documents are taken out of every ranking. The search engine is BRIGHT's own BM25, which weighs the
words of the query too (--config.search.engine=bm25 is the plain one). No training.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults('query_rewriting')
  c.stages = ('prepare', 'search', 'report')
  c.data.test = c.data.documents = 'bright:data/BRIGHT?task=biology'
  c.rewriter.update(model='Qwen/Qwen2.5-1.5B-Instruct', max_len=1536, max_query_len=900)
  c.rewriter.row_len = 1536
  c.rewrite.update(max_new=500, mode='replace')
  c.search.update(engine='query_bm25', depth=1000, models=('original', 'rm3', 'rewrite'))
  return c
