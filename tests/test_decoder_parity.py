"""Decoders against transformers on long packed rows: outputs, gradients, and generated text."""

import hf_reference as reference
import jax
import numpy as np
import pytest
import transformers

from disranker_jax.models import hf, network, tensors, tree
from disranker_jax.models.generate import generate

KINDS = ('mistral', 'llama', 'local_global', 'qwen3', 'llama3', 'gemma', 'gemma3')
KINDS += ('smollm3', 'ministral', 'ministral3', 'phi3')
LENGTHS = 301, 37  # longer than each window by far


def _theirs(kind, head, folder, **options):
  pytest.importorskip('torch')
  theirs = reference.model(kind, head, **options)
  theirs.save_pretrained(folder)
  heads = {'CausalLM': 'lm', 'SequenceClassification': 'rank'}
  model = network.from_hf(folder, head=heads[head])
  return theirs, model, hf.load(folder, model, jax.random.key(0))


def _packed():
  ids = reference.sequences(LENGTHS)
  batch, starts = reference.packed(ids, 384)
  last = np.array(starts) + np.array(LENGTHS) - 1
  return ids, batch | {'index_AX': last[None], 'mask_GN': np.ones((1, 2), bool)}


@pytest.mark.parametrize('kind', KINDS)
def test_segments_of_a_packed_row_are_what_transformers_computes_for_each_alone(kind, tmp_path):
  torch = pytest.importorskip('torch')
  theirs, model, variables = _theirs(kind, 'CausalLM', tmp_path)
  ids, batch = _packed()
  with torch.no_grad():
    each = [torch.tensor([row]) for row in ids]
    hidden = np.concatenate([theirs.model(row).last_hidden_state[0].numpy() for row in each])
    logits = np.concatenate([theirs(row).logits[0].numpy() for row in each])
  ours = jax.jit(model.hidden)(variables, batch)[0, : len(hidden)]
  reference.assert_close(ours, hidden)
  reference.assert_close(model.module.apply(variables, ours, method='logits'), logits)


@pytest.mark.parametrize('kind', KINDS)
def test_scores_and_gradients_of_a_rank_loss_match_transformers(kind, tmp_path):
  torch = pytest.importorskip('torch')
  theirs, model, variables = _theirs(kind, 'SequenceClassification', tmp_path)
  ids, batch = _packed()
  scores = torch.cat([theirs(torch.tensor([row])).logits[:, 0] for row in ids])
  torch.nn.functional.softplus(scores[1] - scores[0]).backward()  # RankNet's loss of one pair

  def loss(variables):
    scores = model.scores(variables, batch)[0]
    return jax.nn.softplus(scores[1] - scores[0]), scores

  slopes, ours = jax.jit(jax.grad(loss, has_aux=True))(variables)
  reference.assert_close(ours, scores.detach().numpy())
  slopes = tree.flatten(slopes['params'])
  grads = {name: value.grad.numpy() for name, value in theirs.named_parameters()}
  wanted = tree.flatten(tensors.stack(model, grads))
  assert slopes.keys() == wanted.keys()
  for path, slope in slopes.items():
    # A key's bias changes no attention, so its gradient is rounding.
    scale = 1e-3 * np.abs(wanted[path]).max() + 1e-6
    np.testing.assert_allclose(slope, wanted[path], atol=scale, err_msg=path)


@pytest.mark.parametrize(
  'attention, kind',
  [
    ('eager', 'mistral'),
    *(('sdpa', kind) for kind in ('llama', 'mistral', 'local_global', 'smollm3')),
  ],
)
def test_transformers_computes_a_bidirectional_folder_alike(attention, kind, tmp_path):
  """Ours in transformers and back, with windows that are shorter than the texts."""
  torch = pytest.importorskip('torch')
  reference.model(kind, 'SequenceClassification').save_pretrained(tmp_path / 'causal')
  net = network.from_hf(tmp_path / 'causal', bidirectional=True)
  variables = hf.load(tmp_path / 'causal', net, jax.random.key(0))
  hf.save(tmp_path / 'out', net, variables)
  theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path / 'out', attn_implementation=attention
  ).eval()
  ids = reference.sequences((19, 30))
  with torch.no_grad():
    each = [torch.tensor([row]) for row in ids]
    states = np.concatenate([theirs.model(row).last_hidden_state[0].numpy() for row in each])
    scores = np.concatenate([theirs(row).logits[:, 0].numpy() for row in each])
  batch, starts = reference.packed(ids, 50)
  reference.assert_close(net.hidden(variables, batch)[0, :49], states)
  last = np.array(starts) + np.array([18, 29])
  batch |= {'index_AX': last[None], 'mask_GN': np.ones((1, 2), bool)}
  reference.assert_close(net.scores(variables, batch)[0], scores)
  assert network.from_hf(tmp_path / 'out').config == net.config


@pytest.mark.parametrize('kind', ['gemma3', 'smollm3'])
def test_greedy_text_is_that_of_transformers(kind, tmp_path):
  theirs, model, variables = _theirs(kind, 'CausalLM', tmp_path, seed=2)
  import torch

  prompts = reference.sequences((70, 5))  # longer and shorter than the window
  ours = generate(model, variables, prompts, max_new=12, eos_id=-1)
  for prompt, got in zip(prompts, ours, strict=True):
    out = theirs.generate(
      torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    assert got == out[0, len(prompt) :].tolist()
  assert len({token for row in ours for token in row}) > 4
