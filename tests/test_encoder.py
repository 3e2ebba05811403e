"""The encoder against transformers, packed rows, and configs it must refuse."""

import dataclasses
import math

import hf_reference as reference
import jax
import numpy as np
import pytest
import transformers

from disranker_jax.errors import UserError
from disranker_jax.models import families, hf, network, tree, weights
from disranker_jax.models.families import bert


def _types(ids):
  return [[0] * (len(x) // 2) + [1] * (len(x) - len(x) // 2) for x in ids]


KINDS = ('bert', 'roberta', 'xlm-roberta', 'electra', 'distilbert')


def _has_types(kind):
  return kind in ('bert', 'electra')


def _sequences(kind, lengths):
  """Token ids without the padding id, which RoBERTa finds positions by."""
  ids = reference.sequences(lengths)
  pad = reference.config(kind).pad_token_id
  return [[token if token != pad else 4 for token in row] for row in ids]


def _rows(kind, lengths):
  """A batch for both sides, padded with the model's own padding id."""
  ids = _sequences(kind, lengths)
  batch = reference.rows(ids, types=_types(ids) if _has_types(kind) else None)
  pad = reference.config(kind).pad_token_id
  batch['tokens_BT'] = np.where(batch['segments_BT'] > 0, batch['tokens_BT'], pad)
  return batch


@pytest.mark.parametrize(
  'kind, act', [('bert', 'gelu_new'), ('bert', 'relu'), *((kind, 'gelu') for kind in KINDS)]
)
def test_hidden_states_and_scores_match_transformers(kind, act, tmp_path):
  torch = pytest.importorskip('torch')
  theirs = reference.model(kind, 'SequenceClassification', hidden_act=act)
  theirs.save_pretrained(tmp_path)
  model = network.from_hf(tmp_path)
  variables = hf.load(tmp_path, model, jax.random.key(0))
  batch = _rows(kind, (12, 7, 2))
  real = batch['segments_BT'] > 0
  with torch.no_grad():
    inputs = reference.torch_inputs(batch, types=_has_types(kind))
    hidden = theirs.base_model(**inputs).last_hidden_state.numpy()[real]
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


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_match_transformers(kind, tmp_path):
  torch = pytest.importorskip('torch')
  theirs = reference.model(kind, 'SequenceClassification')
  theirs.save_pretrained(tmp_path)
  model = network.from_hf(tmp_path)
  variables = hf.load(tmp_path, model, jax.random.key(0))
  batch = _rows(kind, (12, 7))
  scores = theirs(**reference.torch_inputs(batch, types=_has_types(kind))).logits[:, 0]
  torch.nn.functional.softplus(scores[1] - scores[0]).backward()  # RankNet's loss of one pair
  batch |= {'index_AX': np.arange(2)[None] * 12, 'mask_GN': np.ones((1, 2), bool)}

  def loss(variables):
    [[first, second]] = model.scores(variables, batch)
    return jax.nn.softplus(second - first)

  slopes = tree.flatten(jax.jit(jax.grad(loss))(variables)['params'])
  wanted = {name: value.grad for name, value in theirs.named_parameters()}
  names = {ours: name for name, ours in model.family.tensors.items()}
  for path, slope in slopes.items():
    each = [wanted[names[path].format(i)].numpy() for i in range(3 if 'blocks' in path else 1)]
    each = [x.T if path.endswith('kernel') else x for x in each]
    # A key's bias changes no attention, so its gradient is rounding.
    scale = 1e-3 * max(np.abs(x).max() for x in each) + 1e-7
    np.testing.assert_allclose(np.squeeze(slope), np.squeeze(np.stack(each)), atol=scale)


@pytest.mark.parametrize('kind', KINDS)
def test_packed_rows_equal_separate_rows_in_both_directions(kind):
  model, variables = reference.network(kind, 6.0)
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
    ({'model_type': 'camembert'}, "model_type 'camembert'"),
    ({'hidden_act': 'silu'}, "hidden_act 'silu'"),
    ({'position_embedding_type': 'relative_key'}, "'relative_key'"),
  ):
    with pytest.raises(UserError, match=message):
      families.from_hf(config | changes)


@pytest.mark.parametrize('kind', (*KINDS, 'modernbert'))
def test_an_encoder_that_is_a_decoder_is_refused(kind):
  # transformers makes BERT, RoBERTa and ELECTRA causal by this key.
  config = transformers.AutoConfig.for_model(kind).to_dict()
  assert families.from_hf(config | {'is_decoder': False}) == families.from_hf(config)
  with pytest.raises(UserError, match='is_decoder true is not supported for an encoder'):
    families.from_hf(config | {'is_decoder': True})


@pytest.mark.parametrize('kind', KINDS)
def test_config_survives_the_trip(kind):
  ours = families.from_hf(reference.config(kind).to_dict())
  assert families.from_hf(families.find(kind).to_hf(ours)) == ours


@pytest.mark.parametrize('kind, most', [('bert', 40), ('roberta', 38), ('xlm-roberta', 36)])
def test_the_longest_text_fits_the_table_of_positions(kind, most):
  config = families.from_hf(reference.config(kind).to_dict())
  assert families.find(kind).max_len(config) == most


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


def test_gelu_of_bf16_is_the_exact_one_rounded_once():
  x = np.linspace(-8, 8, 4001).astype(jax.numpy.bfloat16)
  wide = x.astype(np.float64)
  exact = np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in wide])
  ours = np.asarray(bert.gelu(x)).astype(np.float64)
  rounded = exact.astype(jax.numpy.bfloat16).astype(np.float64)
  large = wide > -2  # below, 1 + erf has few of fp32's digits left
  assert (ours == rounded)[large].mean() > 0.99
  np.testing.assert_allclose(ours, exact, rtol=2**-8, atol=1e-6)
