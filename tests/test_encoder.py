"""The encoder against transformers, packed rows, and configs it must refuse."""

import dataclasses

import hf_reference as reference
import jax
import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.models import families, hf, network, weights


def _types(ids):
  return [[0] * (len(x) // 2) + [1] * (len(x) - len(x) // 2) for x in ids]


@pytest.mark.parametrize('act', ['gelu', 'gelu_new', 'relu'])
def test_hidden_states_and_scores_match_transformers(act, tmp_path):
  torch = pytest.importorskip('torch')
  theirs = reference.model('bert', 'SequenceClassification', hidden_act=act)
  theirs.save_pretrained(tmp_path)
  model = network.from_hf(tmp_path)
  variables = hf.load(tmp_path, model, jax.random.key(0))
  ids = reference.sequences((12, 7, 2))
  batch = reference.rows(ids, types=_types(ids))
  real = batch['segments_BT'] > 0
  with torch.no_grad():
    inputs = reference.torch_inputs(batch, types=True)
    hidden = theirs.bert(**inputs).last_hidden_state.numpy()[real]
    scores = theirs(**inputs).logits.numpy()[:, 0]
  reference.assert_close(jax.jit(model.hidden)(variables, batch)[real], hidden)
  batch |= {'index_AX': np.arange(3)[None] * 12, 'mask_GN': np.ones((1, 3), bool)}
  reference.assert_close(jax.jit(model.scores)(variables, batch)[0], scores)


@pytest.mark.parametrize('scan', [True, False])
def test_states_of_all_layers_match_transformers(scan, tmp_path):
  torch = pytest.importorskip('torch')
  theirs = reference.model('bert', 'SequenceClassification')
  theirs.save_pretrained(tmp_path)
  model = dataclasses.replace(network.from_hf(tmp_path, scan=scan), states=True)
  variables = hf.load(tmp_path, model, jax.random.key(0))
  ids = reference.sequences((12, 7))
  batch = reference.rows(ids, types=_types(ids))
  real = batch['segments_BT'] > 0
  with torch.no_grad():
    inputs = reference.torch_inputs(batch, types=True)
    states = theirs.bert(**inputs, output_hidden_states=True).hidden_states
  ours_LBTD = jax.jit(model.hidden)(variables, batch)
  assert len(ours_LBTD) == len(states) == 1 + model.config.layers
  for ours, wanted in zip(ours_LBTD, states, strict=True):
    reference.assert_close(ours[real], wanted.numpy()[real])


def test_packed_rows_equal_separate_rows_in_both_directions():
  model, variables = reference.network('bert', 6.0)
  ids = reference.sequences((9, 3, 6))
  packed, starts = reference.packed(ids, 20)
  forward = jax.jit(model.hidden)
  together = forward(variables, packed)[0]
  for tokens, start in zip(ids, starts, strict=True):
    alone = forward(variables, reference.rows([tokens], length=20))[0, : len(tokens)]
    np.testing.assert_allclose(together[start : start + len(tokens)], alone, atol=2e-5)


def test_configs_that_would_compute_something_else_are_refused():
  config = reference.config('bert').to_dict()
  for changes, message in (
    ({'model_type': 'roberta'}, "model_type 'roberta'"),
    ({'hidden_act': 'silu'}, "hidden_act 'silu'"),
    ({'position_embedding_type': 'relative_key'}, "'relative_key'"),
  ):
    with pytest.raises(UserError, match=message):
      families.from_hf(config | changes)
  ours = families.from_hf(config)
  assert families.from_hf(families.find('bert').to_hf(ours)) == dataclasses.replace(ours)


def test_minilm_matches_transformers():
  torch = pytest.importorskip('torch')
  try:
    folder = weights.find('minilm-l6')
  except UserError as error:
    pytest.skip(str(error))
  import transformers

  model = network.from_hf(folder)
  variables = hf.load(folder, model, jax.random.key(0))
  ids = reference.sequences((60, 25), vocab=30522)
  batch = reference.rows(ids, types=_types(ids))
  real = batch['segments_BT'] > 0
  theirs = transformers.AutoModel.from_pretrained(folder).eval()
  with torch.no_grad():
    hidden = theirs(**reference.torch_inputs(batch, types=True)).last_hidden_state.numpy()[real]
  reference.assert_close(jax.jit(model.hidden)(variables, batch)[real], hidden)
