"""Scores and token ids that others published, on machines that have the models.

Sources: FlagEmbedding's README (bge-reranker-base), llama.cpp's tests (bge-reranker-v2-m3), the
model cards of the cross-encoders, sglang's pull request 16403 (Qwen3-Reranker).
"""

import numpy as np
import pytest

import disranker_jax
from disranker_jax import config as configs
from disranker_jax.data.records import Document, Group
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import weights
from disranker_jax.models.load import open_model
from disranker_jax.rankers.pointwise import PointwiseRanker

BERLIN = 'How many people live in Berlin?'
BERLINS = (
  'Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square '
  'kilometers.',
  'Berlin is well known for its museums.',
)
PANDA = (
  'The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a '
  'bear species endemic to China.'
)


def found(name: str):
  try:
    return weights.find(name)
  except UserError as error:
    pytest.skip(str(error))


@pytest.mark.parametrize(
  'name, query, scored',
  [
    ('ms-marco-minilm-l6', BERLIN, dict(zip(BERLINS, (8.607138, -4.320078), strict=True))),
    (
      'cross-encoder/ms-marco-MiniLM-L2-v2', BERLIN,
      dict(zip(BERLINS, (8.510401, -4.860082), strict=True)),
    ),
    ('bge-reranker-base', 'what is panda?', {'hi': -8.15439, PANDA: 6.18211}),
    (
      'bge-reranker-v2-m3', 'A red apple',
      {'A llama in the garden': -8.7266, 'I want some fruit': -0.10467},
    ),
  ],
)  # fmt: skip
def test_an_encoders_raw_scores(name, query, scored):
  ranker = disranker_jax.load(found(name))
  ours = ranker.score([(query, text) for text in scored])
  # Some were computed in half precision or with other kernels.
  np.testing.assert_allclose(ours, list(scored.values()), atol=0.02)


def test_the_token_ids_of_a_pair():
  ranker = disranker_jax.load(found('bge-reranker-v2-m3'))
  [pair] = ranker.encode([('A red apple', 'I want some fruit')])
  assert pair.ids.tolist() == [0, 62, 4842, 108787, 2, 2, 62, 67140, 23, 70, 80583, 2]


CHAT = (
  '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and '
  'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
  '<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that '
  'answer the query.\n<Query>: {query}\n<Document>: {title}{summary}<|im_end|>\n'
  '<|im_start|>assistant\n<think>\n\n</think>\n\n'
)


def test_an_llm_that_is_a_sequence_classifier():
  name = 'qwen3-reranker-0.6b'
  found(name)
  settings = configs.defaults().teacher
  settings.update(model=name, ready=True, input='prompt', template=CHAT, precision='float32')
  settings.update(max_len=256, max_query_len=64, row_len=256)
  model = open_model(settings)
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1})
  ranker = PointwiseRanker(
    model.network, model.pretrained(0, mesh), model.prompt(), mesh, 1, settings.row_len
  )
  texts = ('法国的首都是巴黎。', '德国的首都是柏林。', '香蕉是黄色的水果。')
  docs = tuple(Document(str(i), '', text) for i, text in enumerate(texts))
  [(_, scores)] = ranker([Group('q', '法国首都是哪里\uff1f', docs)])
  published = np.array([0.7981868, 2.034270e-4, 4.637872e-6])
  # Published in bfloat16, which rounds the logits by several hundredths.
  np.testing.assert_allclose(scores, np.log(published / (1 - published)), atol=0.4)
