"""Rank-DistiLLM at the size of its paper: MS MARCO labels, then the order that RankZephyr gives.

  disranker run --config configs/rank_distillm_msmarco.py --workdir /bucket/run \
    --config.data.test='ir_datasets:msmarco-passage/trec-dl-2020/judged?run=data/dl20.run.gz'

First InfoNCE: each query's relevant passage against 7 of ColBERTv2's first 200. Then RankNet on the
order of 100 passages for 10,000 queries (--config.distill.loss=adr_mse for the paper's other
choice). Both learn from files, and no LLM runs here. The authors publish the runs (the paper is
arXiv 2405.07920): put them into data/ as TREC runs. ir_datasets fetches the texts.

  data/colbertv2.run.gz    ColBERTv2's first 200 passages for the training queries
  data/rankzephyr.run.gz   RankZephyr's order of 100 passages for 10,000 of them
  data/dl19.run.gz         the first stage that is re-ranked in the test

configs/rank_distillm.py has the same recipe at a laptop's size. This config has not been run.
"""

from disranker_jax.config import defaults

MARCO = 'ir_datasets:msmarco-passage'


def get_config():
  c = defaults()
  c.stages = ('prepare', 'student_sft', 'distill', 'evaluate', 'export', 'report')
  c.data.update(clicks='', depth=100)
  c.data.judgements = f'{MARCO}/train/judged?run=data/colbertv2.run.gz'
  c.data.candidates = f'{MARCO}/train/judged?run=data/rankzephyr.run.gz'
  c.data.teachers = ('trec:data/rankzephyr.run.gz',)
  c.data.test = f'{MARCO}/trec-dl-2019/judged?run=data/dl19.run.gz'
  c.data.negatives.update(count=200, max_rank=200)

  c.student.model = 'google/electra-base-discriminator'
  # 256 tokens of a passage, 32 of a query, 3 special ones; a row holds about 12 pairs.
  c.student.update(max_len=291, max_query_len=32, row_len=1164)

  # 32 queries at a time: about 21 rows with 8 passages each, 260 with 100.
  c.student_sft.update(loss='info_nce', group_size=8, batch_rows=24, max_steps=20_000)
  c.student_sft.update(epochs=2.0, learning_rate=1e-5)
  c.distill.update(init_from='student_sft', loss='ranknet', hard_label_weight=0.0)
  c.distill.update(group_size=100, batch_rows=264, epochs=3.0, learning_rate=1e-5)
  c.evaluate.batch_rows = 64
  return c
