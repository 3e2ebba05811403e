"""Scores of pages with gradients: weights, sums over pages, the losses of DGR and LTRGR."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax import losses
from disranker_jax.data.batches import EncodedGroup
from disranker_jax.generative import evidence, ngrams
from disranker_jax.generative.examples import Drawn, Encoder, Example, ExamplePage, Material
from disranker_jax.generative.ngrams import PageLoss, two_margins
from disranker_jax.generative.records import Match, Ngram
from disranker_jax.generative.stages import align
from disranker_jax.generative.stages.ranking import stacked

SIZE = 2_200_000_000
SETTINGS = types.SimpleNamespace(smoothing=5.0, query_form='capped', query_bonus=14.0)


def batch_of(**arrays) -> dict:
  """A batch of one query from lists; what is not given is 0."""
  count = len(arrays['page'])
  values = {name: np.zeros(count) for name in ('teacher', *ngrams.VALUES)}
  values |= {'scale': np.ones(count)} | arrays
  batch = {f'{k}_GN': jnp.array([v], jnp.float32) for k, v in values.items()}
  return batch | {'mask_GN': jnp.ones((1, count), bool)}


def test_the_weights_of_training_are_those_of_search():
  logprobs = np.array([0.0, -1e-3, -0.7, -2.0, -5.0, -10.0, -15.0, -60.0, -np.inf])
  for count in (1, 1000, 1_000_000):
    prior = evidence.prior(count, SIZE)
    batch = batch_of(page=np.ones(len(logprobs)), prior=np.full(len(logprobs), prior))
    found = ngrams.weights(jnp.array([logprobs], jnp.float32), batch, 2.0)[0]
    expected = evidence.weight(logprobs, count, SIZE)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('exponent', [0.5, 1.0, 2.0])
def test_gradients_by_finite_differences(exponent):
  logprobs = np.array([-0.4, -2.0, -6.0, -11.0, -20.0, -3.0, -16.0])
  batch = batch_of(
    page=[1, 1, 2, 2, 2, 1, 3], prior=evidence.prior([1, 9, 40, 2, 1, 7, 3], 350_000),
    coverage=[1, 0.6, 1, 0.2, 0.7, 0.4, 1], bonus=[0, 0, 0, 0, 0, 0, 14],
  )  # fmt: skip

  @jax.jit
  def scores(logprobs_N):
    return ngrams.page_scores(logprobs_N[None], batch, 3, exponent)[0]

  grads_DN = jax.jacobian(scores)(jnp.array(logprobs))
  for n, step in enumerate(0.01 * np.eye(len(logprobs))):
    change_D = scores(jnp.array(logprobs + step)) - scores(jnp.array(logprobs - step))
    np.testing.assert_allclose(grads_DN[:, n], change_D / 0.02, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize('exponent', [0.5, 1.0, 2.0])
def test_gradients_are_finite_for_every_log_probability(exponent):
  batch = batch_of(page=np.ones(5), prior=np.full(5, -12.0), coverage=np.ones(5))
  edge = float(-np.logaddexp(0, 12.0))  # its log-odds are the prior's

  def score(logprobs):
    return ngrams.page_scores(logprobs, batch, 2, exponent).sum()

  value, grads = jax.jit(jax.value_and_grad(score))(
    jnp.array([[0.0, -1e-6, edge, -200.0, -np.inf]])
  )
  assert np.isfinite(value) and np.isfinite(grads).all()


def test_a_pseudo_query_has_a_score_of_its_own_and_a_gradient():
  # Without a bonus one of 20 tokens would weigh nothing; the released code gives all of them 944
  # or more, whatever the model says.
  batch = batch_of(page=[1, 1, 1], prior=[-11.0] * 3, coverage=[1] * 3, bonus=[14, 14, 14])
  weigh = lambda x: ngrams.weights(x, batch, 2.0)  # noqa: E731
  logprobs = jnp.array([[-18.0, -24.0, -5.0]])
  found = weigh(logprobs)[0]
  odds = [-4 - np.log1p(-np.exp(-4)), -10 - np.log1p(-np.exp(-10)), -1 - np.log1p(-np.exp(-1))]
  np.testing.assert_allclose(found, [max(0, x + 11) ** 2 for x in odds], rtol=1e-4)
  grads = jax.grad(lambda x: weigh(x).sum())(logprobs)[0]
  assert grads[0] > 1 and grads[1] > 1 and grads[2] == 0  # the last one is at its limit


@pytest.mark.parametrize('form', ['capped', 'mean'])
def test_a_pseudo_query_weighs_in_training_what_it_weighs_in_search(form):
  settings = types.SimpleNamespace(
    smoothing=5.0, exponent=2.0, query_form=form, query_bonus=14.0, coverage=0.8
  )
  grams = [Ngram('query', tuple(range(n)), -0.9 * n, 7 * n, 7 * n + 2) for n in (3, 9, 17)]
  grams += [Ngram('title', (1, 2), -3.0, 0, 1)]
  text = types.SimpleNamespace(text_N=np.zeros(350_000, int))
  searched = dict(evidence.Evidence(text, np.array([0]), settings).weighed(grams))
  material = Material((), 350_000, lambda query, view: [1, 2], lambda *_: ())
  found = ExamplePage('1', 0.0, -1, tuple(Match(ngram, 1.0, 1.0) for ngram in grams))
  group = Encoder(material, settings, 8)(Drawn('q', ((0, found, 0.0),)))
  logprobs = jnp.array([[ngram.logprob for ngram in grams]])
  trained = ngrams.weights(logprobs, stacked([group]), 2.0)[0]
  np.testing.assert_allclose(trained, [searched[ngram] for ngram in grams], rtol=1e-4)
  # All are equally likely by token. The bonus takes the two short ones to their bound, -1.
  first, second, third = (searched[ngram] for ngram in grams[:3])
  assert first == second and (third == pytest.approx(first)) == (form == 'mean')


def test_likelier_pseudo_queries_weigh_more_by_their_mean_and_have_gradients():
  grams = [Ngram('query', tuple(range(12)), logprob, 0, 1) for logprob in (-6.0, -9.0, -14.0)]
  settings = types.SimpleNamespace(query_form='mean', query_bonus=14.0)
  scales, bonuses = zip(*(evidence.lift(ngram, settings) for ngram in grams), strict=True)
  batch = batch_of(page=[1, 1, 1], prior=[-11.0] * 3, coverage=[1] * 3, scale=scales, bonus=bonuses)
  logprobs = jnp.array([[ngram.logprob for ngram in grams]])
  found = ngrams.weights(logprobs, batch, 2.0)[0]
  # A third of each: -2, -3 and -14 / 3.
  expected = [evidence.log_odds(x) + 11 for x in (-2.0, -3.0, -14 / 3)]
  np.testing.assert_allclose(found, np.square(expected), rtol=1e-4)
  assert (jax.grad(lambda x: ngrams.weights(x, batch, 2.0).sum())(logprobs)[0] > 1).all()


# Pages with one n-gram each, so that any score can be given


def page(doc_id, target=np.nan, label=-1, count=1) -> ExamplePage:
  tokens = (3 + int(doc_id),)
  match = Match(Ngram('body', tokens, -1.0, 0, count), 1.0, 1.0)
  return ExamplePage(str(doc_id), target, label, (match,) if count else ())


MATERIAL = Material((), SIZE, lambda query, view: [1, 2], lambda *_: ())
C = types.SimpleNamespace(documents=6, ngrams=8, positives_first=True, loss='distilled_ranknet')


def encoded(example, c=C, seed=0) -> EncodedGroup:
  drawn = align.draw(c, MATERIAL.written, example, np.random.default_rng(seed))
  return Encoder(MATERIAL, SETTINGS, c.ngrams)(drawn)


def page_loss(rank, scale=1.0, pages=6) -> PageLoss:
  return PageLoss(None, rank, pages, scale, 2.0, 1.0)


def logprob_of(score, count=1):
  """The log p whose weight is `score`."""
  odds = np.sqrt(score) + evidence.prior(count, SIZE)
  return -np.logaddexp(0, -odds)


def released(lists, margin=300.0, step=100.0) -> float:
  """DGR's loss as released, of page scores in the order of each list."""
  values = []
  for scores in lists:
    terms = []
    for i, better in enumerate(scores):
      for j in range(i + 1, len(scores)):
        weight = 3.0 if i == 0 else 1 / (i + 1)
        terms.append(weight * max(0.0, scores[j] - better + margin + (j - i - 1) * step))
    kept = [term for term in terms if term]
    values.append(sum(kept) / len(kept) if kept else 0.0)
  return sum(values) / len(values)


def test_the_released_lists():
  rng = np.random.default_rng(0)
  teacher = {10: 3.0, 11: 7.5, 12: -2.0, 13: 5.0}  # of pages that are not relevant
  others = tuple(page(doc, target) for doc, target in teacher.items())
  # The teacher thinks little of a relevant page, or has no score of it.
  relevant = {1: page(1, -9.0, 1), 2: page(2, np.nan, 1)}
  loss = page_loss(losses.choose(losses.ON_SCORES, C.loss), scale=1000)
  compute = jax.jit(loss.of_logprobs)
  for _ in range(5):
    scores = {doc: rng.uniform(20, 500) for doc in (1, 2, *teacher)}
    order = sorted(teacher, key=lambda doc: -teacher[doc])
    expected = released([[scores[first], *(scores[doc] for doc in order)] for first in relevant])
    groups = [encoded(Example('q', (first, *others))) for first in relevant.values()]
    logprobs = np.array([[logprob_of(scores[d.ids[-1] - 3]) for d in g.docs] for g in groups])
    total, queries, _ = compute(jnp.array(logprobs), jnp.ones((2, 5)), stacked(groups))
    assert queries == 2
    np.testing.assert_allclose(1000 * total / queries, expected, rtol=1e-3)


def test_kept_margins_are_a_loss_of_zero_and_no_gradient():
  group = encoded(Example('q', (page(1, 0.0, 1), page(2, 5.0), page(3, 4.0))))
  of = {1: 770.0, 2: 370.0, 3: 30.0}
  logprobs = jnp.array([[logprob_of(of[d.ids[-1] - 3]) for d in group.docs]], jnp.float32)
  loss = page_loss(losses.choose(losses.ON_SCORES, C.loss), scale=1000)
  batch = {k: jnp.asarray(v) for k, v in stacked([group]).items()}
  value = lambda x: loss.of_logprobs(x, jnp.ones_like(x), batch)[0]  # noqa: E731
  total, grads = jax.jit(jax.value_and_grad(value))(logprobs)
  assert total == 0 and not grads.any()


def test_pages_without_ngrams_score_zero_and_leave_everything_finite():
  pages = (page(1, 9.0, 1, count=0), page(2, 5.0), page(3, 4.0, count=0), page(4, 1.0))
  c = types.SimpleNamespace(**(vars(C) | {'positives_first': False}))
  group = encoded(Example('q', pages), c)
  loss = page_loss(losses.choose(losses.ON_SCORES, c.loss), scale=100.0)
  batch = {k: jnp.asarray(v) for k, v in stacked([group]).items()}
  holds = [d.ids[-1] - 3 if d.predictions else 0 for d in group.docs]
  logprobs = jnp.array([[{2: -1.0, 4: -2.0}.get(n, 0.0) for n in holds]])
  scores = loss.scores(logprobs, batch)[0]
  by_page = dict(zip((1, 2, 3, 4), scores.tolist(), strict=False))
  assert by_page[1] == by_page[3] == 0 and min(by_page[2], by_page[4]) > 0
  targets, real = loss.targets(batch)
  assert targets[0].tolist() == [9, 5, 4, 1, 0, 0] and real[0].tolist() == [True] * 4 + [False] * 2
  value = lambda x: loss.of_logprobs(x, jnp.ones_like(x), batch)[0]  # noqa: E731
  total, grads = jax.jit(jax.value_and_grad(value))(logprobs)
  assert np.isfinite(total) and np.isfinite(grads).all() and grads.any()
  assert not grads[0, [n for n, doc in enumerate(group.docs) if not doc.predictions]].any()


def test_texts_to_write_are_a_mean_over_tokens_then_over_texts():
  batch = batch_of(page=[1, 0, 0], coverage=[1, 0, 0], prior=[-9, 0, 0])
  logprobs, counts = jnp.array([[-1.0, -6.0, -2.0]]), jnp.array([[1.0, 3.0, 4.0]])
  assert ngrams.writing_loss(logprobs, counts, batch)[0] == pytest.approx((2.0 + 0.5) / 2)


# LTRGR


@pytest.mark.parametrize('absent', [(), (2,), (3,), (2, 3)])
def test_two_margins(absent):
  scores = np.random.default_rng(1).normal(0, 0.5, (50, 4)).astype(np.float32)
  mask = np.array([n not in absent for n in range(4)])[None].repeat(50, 0)
  loss_G, valid_G = two_margins(jnp.array(scores), None, jnp.array(mask))
  for (p, n, drawn_p, drawn_n), loss in zip(scores, loss_G, strict=True):
    drawn_p, drawn_n = p if 2 in absent else drawn_p, n if 3 in absent else drawn_n
    first, second = max(0, n - p + 0.3), max(0, drawn_n - drawn_p + 0.4)
    assert loss == pytest.approx(0.5 * first + 0.5 * second, abs=1e-5)
  assert valid_G.all()


def test_two_margins_need_both_kinds_of_pages():
  mask = jnp.array([[True, False, False, False], [False, True, False, True]])
  _, valid_G = two_margins(jnp.zeros((2, 4)), None, mask)
  assert not valid_G.any()
