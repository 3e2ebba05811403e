"""Losses against other packages' where theirs are right, each brought to our scale.

Both average pairs over a whole batch, where we average queries, and rank tied scores in the order
they come in. So the cases are single queries without tied scores.
"""

import functools

import jax
import numpy as np
import pytest

from disranker_jax import losses

N = 6


def queries():
  """(scores, grades with ties, mask) of single queries, with and without padding."""
  rng = np.random.default_rng(11)
  for documents in (2, 4, N, N):
    scores_N = rng.normal(size=N).astype(np.float32)
    grades_N = rng.integers(0, 4, N).astype(np.float32)
    grades_N[:2] = 0, 3
    yield scores_N, grades_N, np.arange(N) < documents


def ours(spec, scores_N, targets_N, mask_N):
  """Our loss of one query and its gradient, on the documents that are real."""
  per_group = losses.choose(losses.ON_LABELS | losses.ON_SCORES, spec)
  loss = losses.mean_over_groups(per_group)
  case = targets_N[None], mask_N[None]
  value, gradient = jax.value_and_grad(lambda s: loss(s[None], *case))(scores_N)
  return value, gradient[mask_N]


@pytest.fixture(scope='module')
def rax():
  return pytest.importorskip('rax')


def rax_losses(rax):
  """{spec: rax's value of (scores, labels, where)}."""

  def lambda_loss(k, scores, labels, where):
    weight = functools.partial(rax.dcg_lambdaweight, normalize=True, topn=k)
    total = rax.pairwise_logistic_loss(
      scores, labels, where=where, lambdaweight_fn=weight, reduce_fn=jax.numpy.sum
    )
    return total / len(scores)  # which its weights are multiplied by

  def approx_ndcg(temperature, scores, labels, where):
    ranks = functools.partial(
      rax.utils.approx_ranks, step_fn=lambda x: jax.nn.sigmoid(x / temperature)
    )
    return 1 - rax.ndcg_metric(scores, labels, where=where, rank_fn=ranks)

  def softmax(scores, labels, where):
    return rax.softmax_loss(scores, labels, where=where, label_fn=rax.utils.normalize_probabilities)

  def margin_mse(scores, labels, where):
    # Its mean is over n^2 pairs, with every document and itself.
    n = where.sum()
    return rax.pairwise_mse_loss(scores, labels, where=where) * n / (n - 1)

  return {
    'pairwise_hinge': lambda s, y, where: 0.1 * rax.pairwise_hinge_loss(s / 0.1, y, where=where),
    'ranknet': lambda s, y, where: rax.pairwise_logistic_loss(s, y, where=where),
    'lambda_loss': functools.partial(lambda_loss, None),
    'lambda_loss?k=2': functools.partial(lambda_loss, 2),
    'approx_ndcg': functools.partial(approx_ndcg, 0.1),
    'approx_ndcg?temperature=1': functools.partial(approx_ndcg, 1.0),
    'softmax_ce': softmax,
    'pointwise_ce': lambda s, y, where: rax.pointwise_sigmoid_loss(s, y, where=where),
    'point_mse': lambda s, t, where: 2 * rax.pointwise_mse_loss(s, t, where=where),
    'margin_mse': margin_mse,
  }


@pytest.mark.parametrize('spec', rax_losses(None))
def test_values_and_gradients_are_raxs(rax, spec):
  theirs = jax.value_and_grad(rax_losses(rax)[spec])
  for scores, targets, mask in queries():
    value, gradient = ours(spec, scores, targets, mask)
    expected, expected_gradient = theirs(scores, targets, mask)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient[mask], rtol=1e-4, atol=1e-5)


class Scored:
  """What a loss of sentence-transformers asks of its model; gives the scores that it was given."""

  num_labels, device = 1, 'cpu'

  def __init__(self, scores):
    self.scores = scores

  def preprocess(self, pairs, **kwargs):
    return {'documents': self.scores[[document for _, document in pairs]]}

  def __call__(self, batch):
    return {'scores': batch['documents']}


def sentence_transformers_losses(package, torch):
  """{spec: (its loss of a model, ours from its value and the grades)}."""

  def summed(value, grades):
    return value * (grades[:, None] > grades).sum()  # its mean is over pairs

  def less_entropy(value, grades):
    return value + torch.nn.functional.log_softmax(grades, 0) @ torch.softmax(grades, 0)

  def same(value, grades):
    return value

  scheme = getattr(package, 'LambdaRankScheme', None)
  natural = {'reduction_log': 'natural'}
  return {
    'ranknet': (lambda model: package.RankNetLoss(model, **natural), same),
    'lambda_loss': (lambda model: package.LambdaLoss(model, scheme(), **natural), summed),
    'listwise_kl': (lambda model: package.ListNetLoss(model), less_entropy),
    'adr_mse': (lambda model: package.ADRMSELoss(model), same),
    'adr_mse?temperature=0.5': (lambda model: package.ADRMSELoss(model, alpha=2.0), same),
  }


@pytest.fixture(scope='module')
def cross_encoder_losses():
  return pytest.importorskip('sentence_transformers.cross_encoder.losses')


@pytest.mark.parametrize('spec', sentence_transformers_losses(None, None))
def test_values_and_gradients_are_sentence_transformers(cross_encoder_losses, spec):
  torch = pytest.importorskip('torch')
  build, brought_to_ours = sentence_transformers_losses(cross_encoder_losses, torch)[spec]
  for scores, targets, mask in queries():
    model = Scored(torch.tensor(scores[mask], requires_grad=True))
    grades = torch.tensor(targets[mask])
    documents = list(range(mask.sum()))
    expected = brought_to_ours(build(model)([['query'], [documents]], [grades]), grades)
    expected.backward()
    value, gradient = ours(spec, scores, targets, mask)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, model.scores.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_listwise_kl_is_torchs_with_hintons_scale():
  functional = pytest.importorskip('torch.nn.functional')
  torch = pytest.importorskip('torch')
  spec = 'listwise_kl?student_temperature=2&teacher_temperature=0.5'
  for scores, targets, mask in queries():
    log_q, p = (functional.log_softmax(torch.tensor(x[mask]), 0) for x in (scores / 2, targets * 2))
    # Its input are log-probabilities of the student; probabilities give what is not a divergence.
    expected = 4 * functional.kl_div(log_q, p, reduction='sum', log_target=True)
    np.testing.assert_allclose(ours(spec, scores, targets, mask)[0], expected.item(), rtol=1e-5)


def test_distilled_ranknet_is_dgrs_for_a_list_sorted_by_the_teacher():
  """The released formula: margin 300, 100 more for each place between, on a whole score matrix."""
  rng = np.random.default_rng(4)
  scores = rng.normal(0, 400, 5)
  place = np.arange(5)
  gap = scores[None] - scores[:, None] + 300 + (place[None] - place[:, None] - 1) * 100
  weight = np.where(place == 0, 3.0, 1 / (place + 1))[:, None]
  terms = np.triu(weight * np.maximum(gap, 0), 1)
  shuffled = rng.permutation(5)
  case = scores.astype(np.float32)[shuffled], -place.astype(np.float32)[shuffled]
  spec = 'distilled_ranknet?margin=300&step=100&first_weight=3'
  value, _ = ours(spec, *case, np.ones(5, bool))
  np.testing.assert_allclose(value, terms[terms != 0].mean(), rtol=1e-5)
  # The defaults are a thousandth of it.
  value, _ = ours('distilled_ranknet', case[0] / 1000, case[1], np.ones(5, bool))
  np.testing.assert_allclose(value, terms[terms != 0].mean() / 1000, rtol=1e-4)
