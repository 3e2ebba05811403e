"""Logits of label tokens: transformers and sentence-transformers agree; packing and precision."""

import dataclasses

import hf_reference as reference
import jax
import jax.numpy as jnp
import llm_models
import numpy as np
import pytest

from disranker_jax.data import named_contracts
from disranker_jax.data.contract_prompts import ContractPrompt
from disranker_jax.data.records import Document
from disranker_jax.models import hf, network
from disranker_jax.models.load import open_tokenizer

KINDS = ('mistral', 'llama', 'qwen2', 'qwen3', 'llama3', 'gemma', 'gemma3', 'smollm3')
LABELS = (7, 3, 60)


def last_logits(model, variables, ids, labels=LABELS, row_len=24):
  """Label logits of sequences, all packed into one row, and each alone in a longer row."""
  batch, starts = reference.packed(ids, row_len)
  index = np.array([[start + len(row) - 1 for start, row in zip(starts, ids, strict=True)]])
  read = jax.jit(lambda v, b, i: model.label_logits(v, model.hidden(v, b), i, labels))
  together = read(variables, batch, index)
  alone = []
  for row in ids:
    one = reference.rows([row], length=row_len + 8)
    alone.append(read(variables, one, np.array([[len(row) - 1]]))[0])
  return np.asarray(together), np.stack(alone)


@pytest.mark.parametrize('kind', KINDS)
def test_match_transformers_packed_and_alone(kind, tmp_path):
  torch = pytest.importorskip('torch')
  theirs = reference.model(kind, 'CausalLM')
  theirs.save_pretrained(tmp_path)
  model = network.from_hf(tmp_path, head='lm')
  variables = hf.load(tmp_path, model, jax.random.key(0))
  ids = reference.sequences((11, 7, 1))
  together, alone = last_logits(model, variables, ids)
  with torch.no_grad():
    expected = [theirs(torch.tensor([row])).logits[0, -1, list(LABELS)].numpy() for row in ids]
  reference.assert_close(together, np.stack(expected))
  np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize('kind, tied', [('mistral', False), ('llama', True)])
def test_are_the_rows_of_all_logits(kind, tied):
  model, variables = reference.network(kind, 6.0, head='lm')
  assert model.config.tied == tied
  batch = reference.rows(reference.sequences((5, 9)))
  hidden = model.hidden(variables, batch)
  every = model.module.apply(variables, hidden[:, 4], method='logits')
  index = np.array([[4, 9 + 4]])
  found = model.label_logits(variables, hidden, index, LABELS)
  np.testing.assert_allclose(found, every[:, list(LABELS)], rtol=1e-5, atol=1e-5)


def test_large_log_odds_do_not_become_equal_in_bfloat16():
  """In bfloat16 the sums would be rounded to steps of 1/16 at 9."""
  model, variables = reference.network('mistral', head='lm')
  model = dataclasses.replace(model, precision='bfloat16')
  width = model.config.width
  hidden = jnp.zeros((1, 2, width), jnp.bfloat16).at[0, :, 0].set(1.0).at[0, 1, 1].set(1 / 256)
  kernel = np.zeros((width, model.config.vocab), np.float32)
  kernel[0, 7], kernel[1, 7] = 9.0, 1.0
  variables = {'params': variables['params'] | {'lm_head': {'kernel': kernel}}}
  logits = np.asarray(model.label_logits(variables, hidden, np.array([[0, 1]]), (7, 3)))
  assert logits.dtype == np.float32
  odds = logits[:, 0] - logits[:, 1]
  assert odds[1] - odds[0] == pytest.approx(1 / 256, rel=1e-3)


@pytest.mark.parametrize('name', ['yes_no', 'bge_gemma', 'qwen3_reranker'])
def test_scores_are_those_of_sentence_transformers(name, tmp_path):
  """Its LogitScore reads one or two labels at the last position of left-padded texts."""
  torch = pytest.importorskip('torch')
  pytest.importorskip('sentence_transformers')
  from sentence_transformers.cross_encoder.modules import LogitScore
  from transformers import AutoModelForCausalLM

  folder = llm_models.write(tmp_path / 'model')
  prompt = ContractPrompt(named_contracts.find(name), open_tokenizer(folder))
  docs = [Document('d', 'list', 'of names'), Document('e', '', 'open files in order')]
  encoded = prompt.encode_many([('names', [doc]) for doc in docs])
  ids = [each.ids.tolist() for each in encoded]
  model = network.from_hf(folder, head='lm')
  variables = hf.load(folder, model, jax.random.key(0))
  row_len = sum(map(len, ids))
  logits, _ = last_logits(model, variables, ids, tuple(prompt.label_ids), row_len)
  ours = logits[:, 0] - logits[:, 1] if len(prompt.label_ids) == 2 else logits[:, 0]

  theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
  longest = max(map(len, ids))
  padded = torch.tensor([[0] * (longest - len(row)) + row for row in ids])
  mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
  with torch.no_grad():
    out = theirs(padded, attention_mask=mask)
    features = LogitScore(*prompt.label_ids)({'causal_logits': out.logits})
  expected = features['scores'][:, 0].numpy()
  assert abs(expected[0] - expected[1]) > 0.01
  np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())
