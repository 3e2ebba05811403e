"""A generative retriever over the documentation of Python, taught by a ranker; two cores.

  disranker run --config configs/dgr.py --workdir runs/dgr
  disranker search --run runs/dgr --query 'split a path into its parts' --ngrams

SmolLM2-135M writes a pseudo-query for each of the 7,000 pages, then learns to answer queries with
titles, n-grams and pseudo-queries of their pages. A beam search writes only what occurs in the
pages. The LLM's likelihood of the query given a page is the teacher whose order it learns at last.
docs/generative.md has the results. The whole config has not been timed on free cores.
With a student of the quickstart, found pages are re-ranked too:

  disranker run --config configs/dgr.py --workdir runs/dgr \
    --config.search.reranker=runs/quickstart/export/student
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults('dgr')
  # Another collection: edit the lines marked with "yours".
  # A query of these has one page that is right, which the search finds among all.
  c.data.judgements = 'python_docs:?judged=page'  # yours: 'jsonl:data/judgements.jsonl'
  c.data.test = 'python_docs:?judged=page'  # yours: 'jsonl:data/test.jsonl'
  c.data.documents = 'python_docs:'  # yours: 'jsonl:data/documents.jsonl'
  c.data.clicks = 'python_docs:'  # yours, on these documents: 'jsonl:data/clicks.jsonl'

  # The LLM that writes the pseudo-queries, and whose likelihood of a query is the teacher's score.
  c.teacher.update(model='smollm2-135m', scorer='query_likelihood', lora_rank=16, remat='none')
  c.teacher.update(max_len=48, max_query_len=20, row_len=96)
  c.teacher.template = '{title}: {summary}\n\nSummary: {query}'
  c.teacher.zero_shot_template = c.teacher.template  # as in the quickstart, whose cpt can be reused
  c.cpt.update(predict='query', trainable='lora', learning_rate=1e-3, batch_rows=20)
  c.generate.template = c.teacher.template
  c.generate.update(shots=0, max_len=64, max_new=13, ends='length', temperature=0.0)
  c.generate.update(batch_rows=128, depth=2, found_within=0)
  c.score.update(batch_rows=40)

  c.retriever.update(model='smollm2-135m', lora_rank=32, remat='none')
  c.retriever.update(max_len=48, max_query_len=24, row_len=96)
  c.memorise.update(trainable='lora', learning_rate=1e-3, batch_rows=24, epochs=1.0)
  c.retrieve.update(queries=400, batch_rows=16, beams=10)
  c.ltrgr.update(trainable='lora', learning_rate=1e-4, batch_rows=24, epochs=1.0)
  c.align.update(trainable='lora', learning_rate=1e-3, batch_rows=24, epochs=1.0)
  for stage in (c.cpt, c.memorise, c.ltrgr, c.align):
    stage.save_every = 20
  return c
