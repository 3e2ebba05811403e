"""The paper's row LLM2Vec: a bidirectional decoder, masked next-token prediction, then labels.

  disranker run --config configs/llm2vec.py --workdir runs/llm2vec

The teacher of configs/quickstart.py with three changes: every position attends to the whole text;
continued pre-training hides a fifth of the tokens of the clicks and learns to name them; the score
is a linear head on the mean of the text's hidden states, which labels train for 36 steps instead of
12. Data and student are the quickstart's, so the rows of the tables can be compared. For a 7B model
on a pod: --config.teacher.model=... and the sizes of
configs/disranker_mistral_7b.py.

LLM2Vec: BehnamGhader et al. 2024. It trains text encoders; how the DisRanker paper ranks with it is
not written, so pairs are read as the teacher reads them.
"""

import pathlib
import runpy


def get_config():
  c = runpy.run_path(str(pathlib.Path(__file__).with_name('quickstart.py')))['get_config']()
  c.teacher.update(bidirectional=True, pooling='mean', scorer='score_head')
  c.teacher.template = '{query} : {title} : {summary}'
  c.cpt.update(objective='masked', predict='document')
  # The linear head starts at random, so it is trained too, for longer than a likelihood.
  c.sft.update(trainable='lora|score', learning_rate=3e-4, max_steps=36)
  return c
