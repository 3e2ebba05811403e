"""Query rewriting: a decoder that writes what a search engine looks for, taught by GRPO.

Sources: TongSearch QR (arXiv:2506.11603) and GRPO (arXiv:2402.03300); formulas as in TRL.

  queries      queries with their positive documents; how a rewrite becomes what is searched
  rewards      how good a rewrite is: by embeddings, by BM25, by rules
  embedder     an encoder that gives texts vectors, for the reward by embeddings
  objective    rewards -> advantages; the clipped surrogate, KL, sums over tokens
  baselines    rewrites without a trained model, which a rewriter has to beat
  engines      the search engines by name
  held         the collection and its index, for all rows of the table
  query_files  files of queries that `disranker rewrite` rewrites
  query_bm25   BM25 on both sides, as BRIGHT's figures are computed (data/bright.py reads BRIGHT)
"""
