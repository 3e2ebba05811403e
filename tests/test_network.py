"""Scores at gathered positions, chunked log-probabilities, heads, LoRA and what is static."""

import dataclasses

import hf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.models import load, network, tree
from disranker_jax.models.network import Network


def _packed_and_padded(causal):
  """The same two groups of documents, once two rows packed, once a row each."""
  ids = reference.sequences((5, 7, 4, 6))
  padded = reference.rows(ids, length=8)
  packed = {key: np.zeros((2, 13), np.int32) for key in reference.KEYS}
  starts = [(0, 0), (0, 5), (1, 0), (1, 4)]
  for segment, ((row, start), tokens) in enumerate(zip(starts, ids, strict=True), 1):
    reference.place(packed, row, start, segment, tokens)
  last = [len(x) - 1 if causal else 0 for x in ids]
  # Group 0 has three documents, group 1 one.
  mask = np.array([[True, True, True], [True, False, False]])
  for batch, flat in (
    (padded, [8 * i + at for i, at in enumerate(last)]),
    (packed, [13 * row + start + at for (row, start), at in zip(starts, last, strict=True)]),
  ):
    batch |= {'index_AX': np.array([[*flat[:3], flat[3], 0, 0]]), 'mask_GN': mask}
  return packed, padded


@pytest.mark.parametrize('kind', ['mistral', 'bert'])
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_packed_scores_equal_padded_scores_and_absent_documents_score_0(kind, precision):
  model, variables = reference.network(kind, precision=precision)
  packed, padded = _packed_and_padded(model.family.causal)
  ours, theirs = (jax.jit(model.scores)(variables, batch) for batch in (packed, padded))
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, theirs, atol=1e-5 if precision == 'float32' else 5e-3)
  mask = packed['mask_GN']
  assert (ours[~mask] == 0).all() and len(set(ours[mask].tolist())) == 4


def test_absent_documents_send_no_gradient():
  model, variables = reference.network()
  packed, _ = _packed_and_padded(True)
  nothing = packed | {'mask_GN': np.zeros((2, 3), bool)}
  grads = jax.jit(jax.grad(lambda v: jnp.sum(model.scores(v, nothing) + 1.0)))(variables)
  assert all((x == 0).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize('kind', ['mistral', 'llama'])  # own and tied output embeddings
def test_logprobs_equal_the_plain_log_softmax_in_value_and_gradient(kind, monkeypatch):
  monkeypatch.setattr(network, 'LOGPROB_CHUNK', 4)
  model, variables = reference.network(kind, head='lm')
  batch = reference.rows(reference.sequences((9, 6)))
  # Three chunks: full, with three positions that only fill up, and empty.
  index = np.array([[3, 0, 14, 7, 7, 0, 0, 0, 0, 0]])
  targets = np.array([[5, 60, 0, 1, 2, 0, 0, 0, 0, 0]])
  real = np.arange(10)[None] < 5

  def chunked(v):
    return model.logprobs(v, model.hidden(v, batch), index, targets, real)

  def plain(v):
    hidden = model.hidden(v, batch).reshape(-1, 32)[index[0]]
    logits = model.module.apply(v, hidden, method='logits')
    return jnp.where(real[0], jax.nn.log_softmax(logits)[np.arange(10), targets[0]], 0.0)

  weight = jnp.arange(10.0) + 1
  (ours, g_ours), (theirs, g_theirs) = (
    jax.jit(jax.value_and_grad(lambda v, f=f: jnp.sum(f(v).reshape(-1) * weight)))(variables)
    for f in (chunked, plain)
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), g_ours, g_theirs)


def test_a_chunk_of_positions_that_only_fill_up_is_not_computed(monkeypatch):
  monkeypatch.setattr(network, 'LOGPROB_CHUNK', 4)
  model, variables = reference.network(head='lm')
  hidden = jnp.ones((1, 8, 32)).at[0, 7].set(jnp.nan)
  index, real = np.repeat([[0, 7]], 4, axis=1), np.arange(8)[None] < 3

  def loss(hidden, v):
    return jnp.sum(model.logprobs(v, hidden, index, index, real))

  for grad in jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(hidden, variables)):
    assert np.isfinite(grad).all()  # through a product with 0, a NaN stays one


def test_logprobs_never_hold_logits_of_all_positions():
  model, variables = reference.network(head='lm')
  P, V = 2048, model.config.vocab
  hidden, index = jnp.zeros((4, 512, 32)), jnp.arange(P)[None]

  def loss(v):
    return jnp.sum(model.logprobs(v, hidden, index, index % V, index >= 0))

  compiled = jax.jit(jax.grad(loss)).lower(variables).compile().as_text()
  assert f'[{network.LOGPROB_CHUNK},{V}]' in compiled
  assert f'[{P},{V}]' not in compiled and f'[4,512,{V}]' not in compiled


def test_lora_alone_learns_and_merging_gives_the_same_scores():
  model, variables = reference.network(lora_rank=2, lora_alpha=4.0)
  packed, _ = _packed_and_padded(True)
  base = dataclasses.replace(model, lora_rank=0)
  plain = jax.jit(base.scores)(variables, packed)
  np.testing.assert_array_equal(plain, jax.jit(model.scores)(variables, packed))

  def loss(lora):
    return jnp.sum(jnp.square(model.scores(variables | {'lora': lora}, packed) - 1.0))

  grads = jax.jit(jax.grad(loss))(variables['lora'])
  # With B at zero only B has a gradient, and every B has one.
  for path, grad in tree.flatten(grads).items():
    assert np.any(grad) == path.endswith('lora_b'), path
  lora = jax.tree.map(
    lambda x: x + 0.1 * np.sin(np.arange(x.size, dtype='f')).reshape(x.shape), variables['lora']
  )
  tuned = jax.jit(model.scores)(variables | {'lora': lora}, packed)
  merged = jax.jit(base.scores)({'params': model.merge_lora(variables['params'], lora)}, packed)
  assert np.abs(tuned - plain).max() > 1e-3
  np.testing.assert_allclose(merged, tuned, atol=1e-5)


def test_adapters_are_added_to_fp32_kernels_for_scoring_and_stay_beside_bf16_ones():
  model, variables = reference.network(lora_rank=2)
  packed, _ = _packed_and_padded(True)
  lora = jax.tree.map(lambda x: x + 0.1, variables['lora'])
  variables = variables | {'lora': lora}
  alone, summed = load.merged(model, variables)
  assert alone.lora_rank == 0 and set(summed) == {'params'}
  np.testing.assert_allclose(
    jax.jit(alone.scores)(summed, packed), jax.jit(model.scores)(variables, packed), atol=1e-5
  )
  shapes = jax.eval_shape(lambda: variables)
  assert load.merged(model, shapes)[1] == jax.eval_shape(lambda: summed)
  low = variables | {'params': jax.tree.map(lambda x: x.astype('bfloat16'), variables['params'])}
  assert load.merged(model, low) == (model, low)


def test_a_ranker_is_static_under_jit_and_its_variables_are_plain_dicts():
  model, variables = reference.network('bert', lora_rank=2)
  _, padded = _packed_and_padded(False)
  step = jax.jit(lambda model, v, batch: model.scores(v, batch), static_argnums=0)
  step(model, variables, padded)
  step(dataclasses.replace(model), variables, padded)
  assert step._cache_size() == 1
  assert type(variables) is dict and type(variables['lora']['blocks']['q']) is dict
  kernels = 3 * (4 * 32 * 32 + 2 * 32 * 48) + 32 * 32 + 32
  biases = 3 * (4 * 32 + 48 + 32) + 32 + 1
  norms, tables = 2 * 32 * (1 + 3 * 2), (61 + 40 + 2) * 32
  assert model.count_params() == kernels + biases + norms + tables


def test_wrong_settings_are_refused(tmp_path):
  config = reference.network('bert')[0].config
  with pytest.raises(UserError, match="head 'lm'"):
    Network(config, head='lm')
  with pytest.raises(UserError, match="precision 'half'"):
    Network(config, precision='half')
  with pytest.raises(UserError, match=r'config\.json is missing'):
    network.from_hf(tmp_path)
  reference.config('bert').save_pretrained(tmp_path)
  assert network.from_hf(tmp_path, layers=[0, 2]).config.layers == 2
  for layers in ([0, 3], [], [1, 1]):
    with pytest.raises(UserError, match='has the layers 0 to 2'):
      network.from_hf(tmp_path, layers=layers)
