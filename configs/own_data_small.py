"""Your data with the quickstart's small models: two cores, no accelerator; edit the four addresses.

  disranker run --config configs/own_data_small.py --workdir runs/small

It says what it will take before it trains. Both models learn from all judged queries, so their time
grows with these. To make it shorter, lower `c.data.limit`, or set `c.cpt.max_steps` or
`c.sft.max_steps`. The evaluation reads all test pairs; `c.data.depth` cuts them by first-stage
rank. docs/data.md has the fields of the rows, docs/choose.md says how much data is enough.
"""

import pathlib
import runpy


def get_config():
  quickstart = pathlib.Path(__file__).with_name('quickstart.py')
  c = runpy.run_path(str(quickstart))['get_config']()
  c.data.clicks = 'jsonl:data/clicks*.jsonl.gz'
  c.data.judgements = 'jsonl:data/judgements.jsonl'
  c.data.candidates = 'jsonl:data/candidates*.jsonl.gz'
  c.data.test = 'jsonl:data/test.jsonl'
  c.data.limit.update(candidates=600, test=0)
  # Titles and summaries of web pages and products are longer than those of the quickstart.
  for side in (c.teacher, c.student):
    side.update(max_len=96, max_query_len=24, row_len=192)
  for stage in (c.cpt, c.sft, c.score, c.student_sft, c.distill, c.evaluate):
    stage.batch_rows //= 2
  c.sft.max_steps = 0
  c.evaluate.min_relevance = 1
  return c
