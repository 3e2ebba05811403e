"""The examples of docs/python.md run as they are written, on a small student."""

import re
from pathlib import Path

import numpy as np
import pytest

import disranker_jax

PAGE = (Path(__file__).parent.parent / 'docs' / 'python.md').read_text()
QUERY, TEXTS = 'a list of names', ['dir : names', 'len : items', 'zip']


def example(heading: str, model) -> dict:
  """The variables of the example under a heading, with `model` as the exported folder."""
  code = PAGE.split(f'# {heading}\n', 1)[1].split('```python\n', 1)[1].split('```', 1)[0]
  code, count = re.subn(r"'runs/[^']*'", repr(str(model)), code)
  assert count == 1
  variables = {'__name__': __name__}
  exec(code, variables)
  return variables


@pytest.fixture(scope='module')
def scores(model):
  return disranker_jax.load(model).score([(QUERY, text) for text in TEXTS])


def test_the_first_example_runs(model):
  assert isinstance(example('Rank from Python', model)['ranker'], disranker_jax.LoadedRanker)


def test_pyterrier_adds_scores_and_ranks(model, scores):
  pytest.importorskip('pyterrier', reason='needs the extra `integrations`')
  import pandas as pd

  rerank = example('PyTerrier', model)['rerank']
  rows = [('1', QUERY, f'd{i}', text) for i, text in enumerate(TEXTS)]
  columns = ['qid', 'query', 'docno', 'text']
  out = rerank(pd.DataFrame([*rows, ('2', 'q', 'x', 'y')], columns=columns))
  first = out[out.qid == '1'].sort_values('docno')
  np.testing.assert_allclose(first.score, scores, rtol=0, atol=1e-5)
  assert first['rank'].tolist() == np.argsort(np.argsort(-scores)).tolist()
  assert out[out.qid == '2']['rank'].tolist() == [0]


def test_langchain_keeps_the_best_documents(model, scores):
  pytest.importorskip('langchain_core', reason='needs the extra `integrations`')
  from langchain_core.documents import Document

  reranker = example('LangChain', model)['reranker']
  docs = [Document(page_content=text, metadata={'n': i}) for i, text in enumerate(TEXTS)]
  best = reranker.compress_documents(docs, QUERY)
  assert [d.metadata['n'] for d in best] == np.argsort(-scores)[:2].tolist()
  values = [d.metadata['relevance_score'] for d in best]
  np.testing.assert_allclose(values, np.sort(scores)[:0:-1], rtol=0, atol=1e-5)
  assert docs[0].metadata == {'n': 0}
