"""Today's models in the paper's run: Qwen3-4B teaches ModernBERT-base, 512 tokens a pair.

  disranker run --config configs/qwen3_modernbert.py --workdir /bucket/run \
    --config.data.clicks='jsonl:/bucket/clicks-*.jsonl.gz' \
    --config.data.judgements='jsonl:/bucket/judgements.jsonl.gz' \
    --config.data.candidates='jsonl:/bucket/candidates-*.jsonl.gz' \
    --config.data.test='jsonl:/bucket/test.jsonl.gz'

The stages and losses are the paper's (configs/disranker_mistral_7b.py). The teacher has 4.0 billion
parameters; the student is all of ModernBERT-base, 22 layers and 150 million parameters. A smaller
student takes groups of three layers, so that global and local attention alternate as before:
--config.student.layers="(0,1,2,9,10,11,18,19,20)".

Hardware: planned for v5e:8x8 (disranker plan): 4.3 GiB per chip in cpt, 2.7 in sft, .4 in score,
1.4 in distill, of 16; about 2,800 chip-hours for the paper's numbers of rows at 512 tokens, 2,300
of them for cpt and 430 for score. This config has not been run at that size.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults()
  c.mesh.update(data=1, fsdp=-1)
  for kind in ('clicks', 'judgements', 'candidates', 'test'):
    c.data[kind] = f'jsonl:data/{kind}*.jsonl.gz'

  c.teacher.update(model='Qwen/Qwen3-4B', remat='full', max_len=512, row_len=1024)
  c.student.model = 'answerdotai/ModernBERT-base'
  c.student.update(layers=(), remat='dots', scan_layers=True, max_len=512, row_len=1024)

  c.cpt.update(batch_rows=256, learning_rate=1e-5, weight_decay=0.1, adam_b2=0.95, epochs=1.0)
  c.sft.update(batch_rows=256, learning_rate=1e-5, epochs=1.0, group_size=8, margin=0.1)
  c.score.update(batch_rows=128)
  c.student_sft.update(batch_rows=256, learning_rate=3e-5, epochs=2.0)
  c.distill.update(batch_rows=256, learning_rate=8e-5, epochs=2.0, beta=0.4)
  c.evaluate.batch_rows = 128
  # The same batches on any slice of 1 to 64 chips; a part holds a query's 8 longest documents.
  for stage in (c.cpt, c.sft, c.student_sft, c.distill):
    stage.data_shards = 64
  return c
