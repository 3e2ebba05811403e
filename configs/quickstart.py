"""The whole pipeline on real text and real weights, in minutes on two cores.

  disranker run --config configs/quickstart.py --workdir runs/quickstart

Teacher SmolLM2-135M, student all-MiniLM-L6-v2, data the documentation of Python. Expect 11 to 18
minutes on two cores with AVX-512 bf16, up to 40 with other AVX-512, about an hour with AVX2 alone;
nDCG@5 of about .63 for BM25, .81 for the teacher, .70 for the distilled student, .74 for it with
BM25. Python versions differ a little, because their documentation does.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults()
  c.data.limit.update(candidates=600, test=100)

  # A small LLM ranks best by the likelihood of the query given the page. Continued pre-training in
  # that direction is the warm start for the labels.
  c.teacher.update(model='smollm2-135m', scorer='query_likelihood', lora_rank=16, remat='none')
  c.teacher.update(max_len=48, max_query_len=20, row_len=96)
  c.teacher.template = '{title}: {summary}\n\nSummary: {query}'
  c.teacher.zero_shot_template = c.teacher.template
  c.cpt.update(predict='query', trainable='lora', learning_rate=1e-3, batch_rows=20)
  c.sft.update(trainable='lora', learning_rate=1e-4, batch_rows=20, group_size=4, max_steps=12)
  c.score.update(batch_rows=40, group_size=6)

  c.student.update(model='minilm-l6', layers=())
  c.student.update(max_len=48, max_query_len=20, row_len=96)
  c.student_sft.update(learning_rate=1e-4, batch_rows=40, group_size=6, epochs=3.0)
  c.distill.update(learning_rate=1.5e-4, batch_rows=40, group_size=6, epochs=2.5)
  c.distill.update(
    init_from='student_sft', normalize_scores='query', hard_label_weight=0.5, hard_label_margin=0.5
  )
  c.evaluate.update(batch_rows=40, min_relevance=4)
  for stage in (c.cpt, c.sft, c.student_sft, c.distill):
    stage.save_every = 20
  return c
