"""TongSearch QR's own settings with Qwen2.5-1.5B on your queries; planned, not run.

  disranker run --config configs/tongsearch_qwen_1_5b.py --workdir /bucket/rewriting \
    --config.data.judgements='jsonl:/bucket/judgements-*.jsonl.gz' \
    --config.data.documents='jsonl:/bucket/documents-*.jsonl.gz' \
    --config.data.test='jsonl:/bucket/test.jsonl.gz'

The rewrite takes the place of the query, 500 tokens at most; the reward is the gain in similarity
of bge-base embeddings. All parameters learn, 12 queries of 16 samples per step, 150 steps
(arXiv:2506.11603 and its released code). There is no warm start: the stage cpt is left out. The
template is Qwen2.5's chat format with an empty system text, as the released code has it; another
model needs its own. Planned for v5e:2x4, eight chips of 16 GiB (docs/rewriting.md).

What differs from the paper and its code:
- A prompt has at most 1,036 tokens, of which 900 are the query's; there 8,000.
- The learning rate falls to 0; there to a tenth of its peak.
- A query stands after 'Query: ' in training as in use; the released training data may have
  'Question: '.
- Temperature .9 and the 50 likeliest tokens are the defaults of TRL when the models were made; the
  code does not set them. The loss is the mean over all tokens of a step; that of TRL was, then,
  over those of each micro-batch.
- Rewrites of the table are greedy; there one is drawn (temperature .7, top_p .8, top_k 20,
  repetition penalty 1.05).
- A failed rewrite is one without a letter or digit; there an empty one.
- The layout below is for eight TPU chips; there three GPUs learn and a fourth samples.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults('query_rewriting')
  # Four blocks of three queries; eight cannot share twelve. On other devices than eight set
  # mesh.model=1, and data_shards to 1 or to a multiple of mesh.fsdp that divides the queries.
  c.mesh.update(data=1, fsdp=-1, model=2)
  c.rewrite.data_shards = 4
  c.stages = ('prepare', 'rewrite', 'search', 'export', 'report')
  for kind in ('judgements', 'test'):
    c.data[kind] = f'jsonl:data/{kind}*.jsonl.gz'
  c.data.documents = 'jsonl:data/documents*.jsonl.gz'

  c.rewriter.update(model='Qwen/Qwen2.5-1.5B-Instruct', remat='full')
  c.rewriter.update(max_len=1536, max_query_len=900, row_len=1536)
  c.rewriter.template = (
    '<|im_start|>system\n<|im_end|>\n<|im_start|>user\n'
    'Instructions:\n1. Identify the essential problem.\n2. Think step by step to reason and '
    'describe what information could be relevant and helpful to address the questions in detail.\n'
    '3. Draft an answer with as many thoughts as you have.\nQuery: {query}\n\n'
    '<|im_end|>\n<|im_start|>assistant\n{title}'
  )
  c.rewrite.update(learning_rate=1e-6, adam_b2=0.99, weight_decay=0.1, max_grad_norm=0.1)
  c.rewrite.update(warmup_ratio=0.1, schedule='cosine', max_steps=150, beta=0.008)
  c.rewrite.update(prompts=12, samples=16, max_new=500, mode='replace')
  c.rewrite.update(temperature=0.9, top_k=50)
  c.rewrite.update(reward='embedding', embedder='BAAI/bge-base-en-v1.5')
  # The row `best` draws samples of so many queries at a time: 8 x 16 rows of 1,536 tokens.
  c.search.batch_rows = 8
  return c
