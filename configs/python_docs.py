"""The quickstart's pipeline with all the data and longer texts.

  disranker run --config configs/python_docs.py --workdir runs/python_docs

All test queries, 20 documents scored per query, 64 tokens. Expect about an hour on two idle cores
(1 h 18 min on two with other work: cpt 2, sft 3, score 13, student_sft 4, distill 40, evaluate 15)
and minutes on a GPU; it is planned for one TPU chip, v5e:1x1. One seed, 295 queries, nDCG@5 / PNR:
BM25 .623 / 2.51, zero-shot LLM .733 / 3.89, student on labels only .718 / 4.58, teacher
.838 / 5.58, distilled student .764 / 4.76.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults()

  c.teacher.update(model='smollm2-135m', scorer='query_likelihood', remat='full', lora_rank=16)
  c.teacher.update(max_len=64, max_query_len=24, row_len=128)
  c.teacher.template = '{title}: {summary}\n\nSummary: {query}'
  c.teacher.zero_shot_template = c.teacher.template
  c.cpt.update(predict='query', trainable='lora', learning_rate=1e-3, batch_rows=16)
  c.sft.update(trainable='lora', learning_rate=1e-4, batch_rows=16, group_size=4)
  c.score.update(batch_rows=32)

  c.student.update(model='minilm-l6', layers=())
  c.student.update(max_len=64, max_query_len=24, row_len=128)
  c.student_sft.update(learning_rate=1e-4, batch_rows=32, epochs=3.0)
  c.distill.update(learning_rate=1.5e-4, batch_rows=32, epochs=4.0)
  c.distill.update(
    init_from='student_sft', normalize_scores='query', hard_label_weight=0.5, hard_label_margin=0.5
  )
  c.evaluate.update(batch_rows=32, min_relevance=4)
  for stage in (c.cpt, c.sft, c.student_sft, c.distill):
    stage.save_every = 50
  return c
