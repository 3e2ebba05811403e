"""TSRankGPT's terms: the next-token loss on relevant texts, and the divergence from the start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax import losses
from disranker_jax.data.batches import EncodedGroup, Packer, Shape, join
from disranker_jax.data.encoded import Encoded
from disranker_jax.errors import UserError
from disranker_jax.models import network, tiny
from disranker_jax.stages import sft
from disranker_jax.stages.language_terms import LanguageTerms
from disranker_jax.training import optimizer

LABELS = ([2.0, 0.0, 2.0], [0.0, 1.0], [1.0, 1.0])  # the last query has nothing to learn from


def text(n, seed) -> Encoded:
  ids = np.r_[1, np.random.default_rng(seed).integers(3, 500, n - 1)].astype(np.int32)
  return Encoded(ids, np.zeros_like(ids), n - 1, (n // 2, n))


GROUPS = [
  EncodedGroup(
    [text(5 + 3 * i + g, 10 * g + i) for i in range(len(labels))], np.array(labels),
    np.zeros(len(labels)), f'q{g}',
  )
  for g, labels in enumerate(LABELS)
]  # fmt: skip


def packed(groups, shape):
  packer = Packer(shape)
  assert all(packer.add(group) for group in groups)
  return packer.batch()


@pytest.fixture(scope='module')
def net(tmp_path_factory):
  folder = tmp_path_factory.mktemp('base') / 'decoder'
  tiny.make('tiny-decoder', folder)
  return network.from_hf(folder, head='lm', lora_rank=2)


@pytest.fixture(scope='module')
def variables(net):
  made = net.init(jax.random.key(0))
  lora = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), made['lora']
  )
  return {**made, 'lora': lora}


def terms(net, lm=1.0, kl=0.0):
  per_group = losses.choose(losses.ON_LABELS, 'perplexity_nce')
  on_labels = functools.partial(sft.of_scores, per_group)
  return LanguageTerms(net, 'query_likelihood', on_labels, lm, kl)


def logs(net, variables, doc) -> np.ndarray:
  """log p of every token after the ones before it, for each position: [T - 1, V]."""
  n = len(doc)
  batch = {
    'tokens_BT': doc.ids[None], 'segments_BT': np.ones((1, n), int),
    'positions_BT': np.arange(n)[None],
  }  # fmt: skip
  states = net.hidden(variables, batch)[0]
  return np.asarray(jax.nn.log_softmax(net.module.apply(variables, states, method='logits')))[:-1]


def expected(net, variables, start) -> tuple[float, float]:
  """The terms of the two valid queries by hand: means over the tokens of the best documents."""
  nll = kl = 0.0
  for group, labels in zip(GROUPS[:2], LABELS, strict=False):
    best = [d for d, label in zip(group.docs, labels, strict=True) if label == max(labels)]
    tokens = [(doc, logs(net, variables, doc), logs(net, start, doc)) for doc in best]
    count = sum(len(doc) - 1 for doc in best)
    nll -= sum(new[np.arange(len(d) - 1), d.ids[1:]].sum() for d, new, _ in tokens) / count
    kl += sum((np.exp(old) * (old - new)).sum() for _, new, old in tokens) / count
  return nll, kl


@pytest.mark.parametrize('shape', [Shape(3, 64, 3, 32), Shape(5, 40, 3, 40)])
def test_both_are_means_over_the_tokens_of_the_best_documents(net, variables, shape):
  batch = packed(GROUPS, shape)
  start = net.init(jax.random.key(0))
  nll, kl = expected(net, variables, start)
  frozen = {'frozen': {'lora': start['lora']}}
  plain, count, _ = jax.jit(terms(net, 0.0))(variables, batch)
  with_lm, _, metrics = jax.jit(terms(net, 0.5))(variables, batch)
  both, _, more = jax.jit(terms(net, 0.5, 2.0))(variables | frozen, batch)
  assert count == 2
  np.testing.assert_allclose(metrics['lm_loss'], nll / 2, rtol=1e-4)
  np.testing.assert_allclose(more['kl'], kl / 2, rtol=1e-3)
  np.testing.assert_allclose(with_lm - plain, 0.5 * nll, rtol=1e-3)
  np.testing.assert_allclose(both - with_lm, 2 * kl, rtol=1e-2)


def test_blocks_change_nothing(net, variables):
  one = packed(GROUPS, Shape(4, 64, 3, 32))
  two = join([packed(part, Shape(2, 64, 3, 32)) for part in (GROUPS[:1], GROUPS[1:])])
  a, b = (jax.jit(terms(net))(variables, batch) for batch in (one, two))
  np.testing.assert_allclose(a[0], b[0], rtol=1e-5)


def test_at_the_start_there_is_no_divergence_and_the_start_is_never_trained(net, variables):
  batch = packed(GROUPS, Shape(3, 64, 3, 32))
  whole = variables | optimizer.start(variables, 'lora')
  _, _, metrics = jax.jit(terms(net, 1.0, 1.0))(whole, batch)
  assert abs(metrics['kl']) < 1e-6
  trained, frozen = optimizer.split(whole, 'lora')
  assert all(path.startswith('lora/') for path in trained)
  assert any(path.startswith('frozen/lora/') for path in frozen)

  def kl(variables):
    return terms(net, 0.0, 1.0)(variables, batch)[2]['kl']

  moved = whole | {'lora': jax.tree.map(lambda x: x + 0.02, variables['lora'])}
  grads = jax.jit(jax.grad(kl))(moved)
  assert max(jnp.abs(x).max() for x in jax.tree.leaves(grads['lora'])) > 1e-4
  assert max(jnp.abs(x).max() for x in jax.tree.leaves(grads['frozen'])) == 0


def test_what_is_in_padding_changes_nothing(net, variables):
  batch = packed(GROUPS, Shape(3, 64, 3, 32))
  other = batch | {'tokens_BT': np.where(batch['segments_BT'] > 0, batch['tokens_BT'], 9)}
  a, b = (jax.jit(terms(net))(variables, x)[0] for x in (batch, other))
  np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_score_head_has_no_next_token():
  from disranker_jax.commands.common import load_config

  with pytest.raises(
    UserError, match=r'config.sft.lm_weight and kl_weight: need next-token logits'
  ):
    load_config('configs/tiny.py', ['--config.sft.lm_weight=0.5'])
