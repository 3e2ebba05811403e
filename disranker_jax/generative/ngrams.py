"""The scores of pages by their n-grams, with gradients, and the losses on them.

A batch of data/batches.py holds queries; a query's documents are the n-grams of its pages, each
behind the prompt of its view, and the texts that the retriever shall go on writing. What a loss has
to know of each document is in VALUES. evidence.py has the same weights for search.

Shapes beside those of a batch: D pages of a query.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from disranker_jax import losses
from disranker_jax.generative.evidence import lifted, log_odds
from disranker_jax.rankers.pointwise import sum_logprobs

# page      its page, from 1; 0: a text to write, or padding
# prior     its log-odds in the collection, see evidence.prior
# coverage  what its weight is multiplied by in its page, see records.Match
# scale, bonus  what its log p is multiplied by, and what is added to it, see evidence.lifted
VALUES = ('page', 'prior', 'coverage', 'scale', 'bonus')


def weights(logprobs_GN: jax.Array, batch: dict, exponent: float) -> jax.Array:
  """max(0, log-odds of the model - prior) ** exponent, [G, N]; gradients are finite everywhere."""
  logprobs_GN = lifted(logprobs_GN, batch['scale_GN'], batch['bonus_GN'], jnp)
  gain_GN = log_odds(logprobs_GN, jnp) - batch['prior_GN']
  # A power below 1 has no finite gradient at 0.
  return jnp.where(gain_GN > 0, jnp.where(gain_GN > 0, gain_GN, 1.0) ** exponent, 0.0)


def of_page(batch: dict, pages: int) -> jax.Array:
  """True where a document is an n-gram of a page, [G, N, D]."""
  number_GN1 = batch['page_GN'][:, :, None]
  return (number_GN1 == jnp.arange(1, pages + 1)[None, None]) & batch['mask_GN'][:, :, None]


def page_scores(logprobs_GN: jax.Array, batch: dict, pages: int, exponent: float) -> jax.Array:
  """The sum of weight * coverage over each page's n-grams, [G, D]; 0 for a page without any."""
  parts_GN = weights(logprobs_GN, batch, exponent) * batch['coverage_GN']
  return jnp.sum(jnp.where(of_page(batch, pages), parts_GN[:, :, None], 0.0), axis=1)


def page_values(values_GN: jax.Array, batch: dict, pages: int) -> tuple[jax.Array, jax.Array]:
  """(values that the n-grams of a page have in common, which pages there are), [G, D]."""
  of_GND = of_page(batch, pages)
  real_GD = jnp.any(of_GND, axis=1)
  values_GD = jnp.max(jnp.where(of_GND, values_GN[:, :, None], -jnp.inf), axis=1)
  return jnp.where(real_GD, values_GD, 0.0), real_GD


def writing_loss(logprobs_GN, counts_GN, batch) -> jax.Array:
  """-log p of a token of the texts to write, [G]: mean over tokens, then over the query's texts."""
  written_GN = batch['mask_GN'] & (batch['page_GN'] == 0)
  nll_GN = jnp.where(written_GN, -logprobs_GN / jnp.maximum(counts_GN, 1), 0.0)
  return jnp.sum(nll_GN, 1) / jnp.maximum(jnp.sum(written_GN, 1), 1)


@dataclasses.dataclass(frozen=True)
class PageLoss:
  """A loss on the pages of queries plus one on texts to write, for train.Task.

  Args:
    rank: (scores_GD, targets_GD, mask_GD) -> (loss_G, valid_G), as of losses/.
    pages: D.
    scale: page scores are divided by it, so that margins mean the same in every collection.
    exponent: of the weights.
    generation: the weight of the loss on texts to write.
  """

  network: object
  rank: Callable
  pages: int
  scale: float
  exponent: float
  generation: float

  def __call__(self, variables: dict, batch: dict) -> tuple[jax.Array, jax.Array, dict]:
    """(sum over queries, queries, metrics)."""
    return self.of_logprobs(*self.logprobs(variables, batch), batch)

  def logprobs(self, variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """(log p, number of tokens) of each document, [G, N]."""
    hidden_BTD = self.network.hidden(variables, batch)
    return sum_logprobs(self.network, variables, hidden_BTD, batch)

  def scores(self, logprobs_GN, batch) -> jax.Array:
    """Page scores in units of the scale, [G, D]."""
    return page_scores(logprobs_GN, batch, self.pages, self.exponent) / self.scale

  def targets(self, batch) -> tuple[jax.Array, jax.Array]:
    """(what pages are to be ordered by, which pages there are), [G, D]."""
    return page_values(batch['teacher_GN'], batch, self.pages)

  def of_logprobs(self, logprobs_GN, counts_GN, batch) -> tuple[jax.Array, jax.Array, dict]:
    """The loss from the documents' log-probabilities; only what names documents is read."""
    scores_GD = self.scores(logprobs_GN, batch)
    targets_GD, mask_GD = self.targets(batch)
    rank_G, valid_G = self.rank(scores_GD, targets_GD, mask_GD)
    rank_G = jnp.where(valid_G, rank_G, 0.0)
    writing_G = writing_loss(logprobs_GN, counts_GN, batch)
    queries = jnp.sum(jnp.any(batch['mask_GN'], axis=1))
    ordered_GDD = losses.preferred(targets_GD, mask_GD)
    right_GDD = ordered_GDD & (losses.differences(scores_GD) > 0)
    metrics = {
      'rank': jnp.sum(rank_G) / jnp.maximum(queries, 1),
      'writing': jnp.sum(writing_G) / jnp.maximum(queries, 1),
      'pair_accuracy': jnp.sum(right_GDD) / jnp.maximum(jnp.sum(ordered_GDD), 1),
      'examples': jnp.sum(mask_GD),
    }
    return jnp.sum(rank_G + self.generation * writing_G), queries, metrics


def two_margins(scores_GD, targets_GD, mask_GD, *, margin: float = 0.3, drawn_margin: float = 0.4):
  """LTRGR's loss: (max(0, n - p + margin) + max(0, n' - p' + drawn_margin)) / 2.

  p is the first relevant page and n the first other one, p' and n' are drawn at random.

  Args:
    scores_GD: of the pages p, n, p', n'. Without p' or n' the first one takes its place.
    targets_GD: not used, since their places say what pages are.

  Source: LTRGR (Li et al., 2023, arXiv:2306.15222), as released, by a thousandth.
  """
  del targets_GD
  best, other, drawn, drawn_other = jnp.moveaxis(jnp.where(mask_GD, scores_GD, 0.0), 1, 0)
  drawn = jnp.where(mask_GD[:, 2], drawn, best)
  drawn_other = jnp.where(mask_GD[:, 3], drawn_other, other)
  first_G = jax.nn.relu(other - best + margin)
  second_G = jax.nn.relu(drawn_other - drawn + drawn_margin)
  return (first_G + second_G) / 2, mask_GD[:, 0] & mask_GD[:, 1]
