"""The paper's run on your own click logs, labels and unlabeled pairs.

  disranker run --config configs/disranker_mistral_7b.py --workdir /bucket/run \
    --config.data.clicks='jsonl:/bucket/clicks-*.jsonl.gz' \
    --config.data.judgements='jsonl:/bucket/judgements.jsonl.gz' \
    --config.data.candidates='jsonl:/bucket/candidates-*.jsonl.gz' \
    --config.data.test='jsonl:/bucket/test.jsonl.gz'

Teacher Mistral-7B-v0.1 with a dense layer on the final </s>, hinge loss with T = 0.1. Student every
other layer of multilingual BERT, Point-MSE + 0.4 Margin-MSE. 256 tokens. The paper does not give
learning rates, epochs and batch sizes; these are the usual ones.

Hardware: full fine-tuning keeps 12 bytes per parameter in fp32 with Adam, 87 GB for the teacher:
an 8 x 80 GB node (--config.mesh.fsdp=8 --config.mesh.data=1) or a TPU slice. Planned for v5e:8x8
(disranker plan): 4.7 GiB per chip in cpt, 4.4 in sft, 0.9 in score, 0.8 in distill, of 16; about
2,400 chip-hours for the paper's rows at 256 tokens. By plan cpt, the largest stage, also fits
v5e:4x4 and v6e:4x4, and sft fits v5p:2x2x4. launch/README.md is the guide. On an H200 the teacher
scored 319 pairs of 128 tokens per second, measured with random weights: 40.8 H200-hours for the
paper's 46.8M pairs, at an example price of $3 per hour $122 (docs/performance.md). At 256 tokens it
is planned at 107 hours. This config has not been run at that size yet.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults()
  c.mesh.update(data=1, fsdp=-1)
  for kind in ('clicks', 'judgements', 'candidates', 'test'):
    c.data[kind] = f'jsonl:data/{kind}*.jsonl.gz'

  c.teacher.update(model='mistralai/Mistral-7B-v0.1', remat='full', max_len=256, row_len=1024)
  c.student.model = 'google-bert/bert-base-multilingual-cased'
  c.student.update(layers=(0, 2, 4, 6, 8, 10), max_len=256, row_len=512)

  c.cpt.update(batch_rows=256, learning_rate=1e-5, weight_decay=0.1, adam_b2=0.95, epochs=1.0)
  c.sft.update(batch_rows=256, learning_rate=1e-5, epochs=1.0, group_size=8, margin=0.1)
  c.score.update(batch_rows=128)
  c.student_sft.update(batch_rows=256, learning_rate=2e-5, epochs=2.0)
  c.distill.update(batch_rows=256, learning_rate=5e-5, epochs=2.0, beta=0.4)
  c.evaluate.batch_rows = 128
  # The same batches on any slice of 1 to 64 chips; a part holds a query's 8 longest documents.
  for stage in (c.cpt, c.sft, c.student_sft, c.distill):
    stage.data_shards = 64
  return c
