"""A small LLM learns with GRPO to rewrite queries so that BM25 finds more; two cores.

  disranker run --config configs/query_rewriting.py --workdir runs/rewriting
  disranker rewrite --model runs/rewriting/export/rewriter --query 'get the size of a file'

SmolLM2-135M first learns to write the title of the clicked page (cpt). Then it samples 32 rewrites
of each training query, is rewarded for those by which more of the right page is found, and learns
from the differences of eight. What is searched is the query twice and the rewrite once, so a wrong
word costs little. The table searches all 7,000 pages with 437 test queries; for one in three BM25
lacks the right page among its best 20. docs/rewriting.md has the results, and what the run takes.
Rewards: --config.rewrite.reward=embedding, bm25, or embedding+0.5*bm25.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults('query_rewriting')
  # A query of these has one page that is right, which the search finds among all.
  # Another collection: edit the lines marked with "yours".
  c.data.judgements = (  # yours: 'jsonl:data/judgements.jsonl'
    'python_docs:?judged=page&splits=clicks,judgements,candidates'
  )
  c.data.test = 'python_docs:?judged=page'  # yours: 'jsonl:data/test.jsonl'
  c.data.clicks = 'python_docs:'  # yours: 'judgements:', or a click log, 'jsonl:data/clicks.jsonl'
  c.data.documents = 'python_docs:'  # yours: 'jsonl:data/documents.jsonl'

  # Gains are small, so it takes hundreds of held-out queries to tell them from chance.
  c.validation.update(share=0.25, max_queries=1000)

  c.rewriter.update(model='smollm2-135m', lora_rank=16, remat='none')
  # A row holds a prompt with its eight samples.
  c.rewriter.update(max_len=48, max_query_len=24, row_len=112)
  c.cpt.update(trainable='lora', learning_rate=1e-3, batch_rows=17, epochs=4.0, save_every=20)

  c.rewrite.update(trainable='lora', learning_rate=1e-4, max_grad_norm=1.0)
  # Sampling costs less than learning, so a step draws 32 rewrites and learns from 8 of them.
  c.rewrite.update(prompts=8, drawn=32, samples=8, max_new=10, max_steps=100, save_every=20)
  c.rewrite.update(reward='bm25', beta=0.02, stop_kl=10.0, mode='append', repeat=2)
  return c
