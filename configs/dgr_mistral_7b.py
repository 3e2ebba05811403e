"""DGR with Mistral-7B on your own collection; planned, not run.

  disranker run --config configs/dgr_mistral_7b.py --workdir /bucket/dgr \
    --config.data.documents='jsonl:/bucket/documents-*.jsonl.gz' \
    --config.data.clicks='jsonl:/bucket/clicks-*.jsonl.gz' \
    --config.data.judgements='jsonl:/bucket/judgements.jsonl.gz' \
    --config.data.test='jsonl:/bucket/test.jsonl.gz'

The LLM writes pseudo-queries and teaches, the retriever is the same model with its own adapters.
`disranker plan --config configs/dgr_mistral_7b.py --stage align --topology v5e:4x4` prints memory
and time of one stage; `retrieve` and `search` are not planned. Titles have up to 15 tokens, as in
MINDER, n-grams 13, for its ten words, and pseudo-queries 15, where MINDER's have 30.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults('dgr')
  c.mesh.update(data=1, fsdp=-1)
  c.data.documents = 'jsonl:data/documents*.jsonl.gz'
  for kind in ('clicks', 'judgements', 'test'):
    c.data[kind] = f'jsonl:data/{kind}*.jsonl.gz'

  c.teacher.update(model='mistralai/Mistral-7B-v0.1', scorer='query_likelihood', remat='full')
  c.teacher.update(param_dtype='bfloat16', lora_rank=16, max_len=256, row_len=1024)
  c.teacher.template = '{title}: {summary}\n\nSummary: {query}'
  c.cpt.update(predict='query', trainable='lora', learning_rate=1e-4, batch_rows=64)
  c.generate.template = c.teacher.template
  c.generate.update(shots=0, ends='length', found_within=0, depth=2, batch_rows=64)
  c.generate.update(samples=8, max_new=14)  # with its end token a pseudo-query has 15
  c.score.update(batch_rows=128)

  c.retriever.update(model='mistralai/Mistral-7B-v0.1', remat='full', param_dtype='bfloat16')
  c.retriever.update(lora_rank=64, max_len=128, row_len=512, length=13, title_length=15)
  c.memorise.update(trainable='lora', learning_rate=1e-4, batch_rows=128, body_rows=8)
  c.memorise.update(title_rows=3, query_rows=8)
  c.retrieve.update(beams=15, depth=100, batch_rows=16)
  c.export.dtype = 'bfloat16'
  for stage in (c.ltrgr, c.align):
    stage.update(trainable='lora', learning_rate=1e-5, batch_rows=64, epochs=3.0)
  for stage in (c.cpt, c.memorise, c.ltrgr, c.align):
    stage.data_shards = 16
  return c
