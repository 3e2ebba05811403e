"""TongSearch QR's own settings with Qwen2.5-1.5B on your queries; planned, not run.

  disranker run --config configs/tongsearch_qwen_1_5b.py --workdir /bucket/rewriting \
    --config.data.judgements='jsonl:/bucket/judgements-*.jsonl.gz' \
    --config.data.documents='jsonl:/bucket/documents-*.jsonl.gz' \
    --config.data.test='jsonl:/bucket/test.jsonl.gz'

The rewrite takes the place of the query, 500 tokens at most; the reward is the gain in similarity
of bge-base embeddings. All parameters learn, 12 queries of 16 samples per step, 150 steps
(arXiv:2506.11603 and its released code). There is no warm start: the stage cpt is left out.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults('query_rewriting')
  c.mesh.update(data=1, fsdp=-1)
  c.stages = ('prepare', 'rewrite', 'search', 'export', 'report')
  for kind in ('judgements', 'test'):
    c.data[kind] = f'jsonl:data/{kind}*.jsonl.gz'
  c.data.documents = 'jsonl:data/documents*.jsonl.gz'

  c.rewriter.update(model='Qwen/Qwen2.5-1.5B-Instruct', remat='full')
  c.rewriter.update(max_len=1536, max_query_len=900, row_len=1536)
  c.rewriter.template = (
    'Instructions:\n1. Identify the essential problem.\n2. Think step by step to reason and '
    'describe what information could be relevant and helpful to address the questions in detail.\n'
    '3. Draft an answer with as many thoughts as you have.\nQuery: {query}\n\n{title}'
  )
  c.rewrite.update(learning_rate=1e-6, adam_b2=0.99, weight_decay=0.1, max_grad_norm=0.1)
  c.rewrite.update(warmup_ratio=0.1, schedule='cosine', max_steps=150, beta=0.008)
  c.rewrite.update(prompts=12, samples=16, max_new=500, mode='replace', temperature=0.9)
  c.rewrite.update(reward='embedding', embedder='BAAI/bge-base-en-v1.5')
  return c
