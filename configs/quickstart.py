"""The whole pipeline on real text and real weights, in minutes on two cores."""

from disranker_jax.config import defaults


def get_config():
  c = defaults()
  c.name = 'quickstart'

  c.teacher.model = 'smollm2-135m'
  c.teacher.remat = 'none'
  c.teacher.max_len = 64
  c.teacher.max_query_len = 24
  c.teacher.row_len = 128
  c.teacher.lora_rank = 16
  c.teacher.scorer = 'likelihood'
  c.teacher.template = '{title}: {summary}\n\nSummary: {query}'
  c.teacher.zero_shot_template = c.teacher.template
  c.cpt.predict = 'query'

  c.student.model = 'minilm-l6'
  c.student.layers = ()
  c.student.max_len = 64
  c.student.max_query_len = 24
  c.student.row_len = 128

  c.cpt.update(learning_rate=1e-3, trainable='lora', batch_rows=16, epochs=1.0)
  c.sft.update(learning_rate=1e-3, trainable='lora', batch_rows=16, epochs=1.0)
  c.score.update(batch_rows=32, group_size=8, shard_queries=100)
  c.finetune.update(learning_rate=5e-5, batch_rows=32, epochs=3.0)
  c.distill.update(learning_rate=5e-5, batch_rows=32, epochs=3.0, standardise=True)
  c.evaluate.batch_rows = 32
  c.evaluate.relevant = 4
  c.data.limit.test = 100
  return c
