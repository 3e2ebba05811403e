"""The paper's row RankLLaMA: a linear head on the final </s>, trained by a softmax over documents.

  disranker run --config configs/rankllama.py --workdir runs/rankllama

The input is `query: {query} document: {title} {summary}</s>`, the loss is InfoNCE: one relevant
document among those of its query. There is no continued pre-training. Data and student are those of
configs/quickstart.py, so the rows of the tables can be compared; the head starts at random, so it
is trained for 60 steps instead of 12. For a 7B model: --config.teacher.model=... and the sizes of
configs/disranker_mistral_7b.py. Trained weights need no run: disranker llm-rank --method
rankllama_v1.

RankLLaMA: Ma et al. 2023, arXiv:2310.08319. It has 15 hard negatives per query, and LoRA of a
learning rate of 1e-4; here a query has the documents of the quickstart.
"""

import pathlib
import runpy


def get_config():
  c = runpy.run_path(str(pathlib.Path(__file__).with_name('quickstart.py')))['get_config']()
  c.stages = tuple(stage for stage in c.stages if stage != 'cpt')
  c.teacher.update(scorer='score_head', template='query: {query} document: {title} {summary}')
  c.sft.update(loss='info_nce', trainable='lora|score', max_steps=60)
  return c
