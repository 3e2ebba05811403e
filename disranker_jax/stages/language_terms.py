"""Terms beside the rank loss that keep a fine-tuned decoder a language model.

TSRankGPT's second stage (RankingGPT, Zhang et al. 2023, arXiv:2311.16720, section 3.2): the loss of
the next token on the whole text of relevant documents, and the divergence of the model from what it
was when the stage began. Both are means over the tokens of a query's best-labelled documents.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from disranker_jax.config.settings import Key, Section, at_least
from disranker_jax.errors import UserError
from disranker_jax.models.layers import constrain
from disranker_jax.models.network import Network, logprob_chunk
from disranker_jax.models.pooling import owners
from disranker_jax.rankers.pointwise import score_hidden
from disranker_jax.training import optimizer


@dataclasses.dataclass(frozen=True)
class LanguageTerms:
  """A loss on labels plus the two terms: (variables, batch) -> (sum, valid queries, metrics).

  `on_labels` is (scores_GN, batch) -> (loss_G, valid_G, metrics).
  """

  network: Network
  scorer: str
  on_labels: Callable
  lm_weight: float
  kl_weight: float

  def __call__(self, variables: dict, batch: dict) -> tuple[jax.Array, jax.Array, dict]:
    own = optimizer.own(variables)
    hidden_BTD = self.network.hidden(own, batch)
    scores_GN = score_hidden(self.network, self.scorer, own, hidden_BTD, batch)
    loss_G, valid_G, metrics = self.on_labels(scores_GN, batch)
    weights_AY = token_weights(batch, valid_G)
    nll, kl = self.terms(variables, hidden_BTD, batch, weights_AY)
    count = jnp.maximum(jnp.sum(valid_G), 1)
    metrics |= {'lm_loss': nll / count} | ({'kl': kl / count} if self.kl_weight else {})
    return jnp.sum(loss_G) + self.lm_weight * nll + self.kl_weight * kl, jnp.sum(valid_G), metrics

  def terms(self, variables, hidden_BTD, batch, weights_AY) -> tuple[jax.Array, jax.Array]:
    """Weighted sums over positions: -log p(next token), and KL(start || model)."""
    network, (blocks, places) = self.network, weights_AY.shape
    chunk = logprob_chunk(blocks, places)

    def chunks(x_AY):
      pads = ((0, 0), (0, -places % chunk), *((0, 0),) * (x_AY.ndim - 2))
      return jnp.pad(x_AY, pads).reshape(blocks, -1, chunk, *x_AY.shape[2:]).swapaxes(0, 1)

    def logs(head, hidden_ACD):
      hidden_PD = constrain(hidden_ACD.reshape(-1, hidden_ACD.shape[-1]))
      return jax.nn.log_softmax(network.module.apply(head, hidden_PD, method='logits'))

    def rows(hidden_BTD):
      return chunks(hidden_BTD.reshape(blocks, places, -1))

    head, arrays = network.vocabulary(optimizer.own(variables)), [rows(hidden_BTD)]
    if self.kl_weight:
      before = jax.lax.stop_gradient(optimizer.at_start(variables))
      old_head = network.vocabulary(before)
      arrays.append(rows(jax.lax.stop_gradient(network.hidden(before, batch))))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def of_chunk(head, targets_AC, weights_AC, hidden_ACD, *old_ACD):
      logs_PV, weights_P = logs(head, hidden_ACD), weights_AC.reshape(-1)
      chosen_P = jnp.take_along_axis(logs_PV, targets_AC.reshape(-1, 1), axis=-1)[:, 0]
      kl_P = jnp.zeros_like(chosen_P)
      if old_ACD:
        old_PV = logs(old_head, *old_ACD)
        kl_P = jnp.sum(jnp.exp(old_PV) * (old_PV - logs_PV), axis=-1)
      # Padding may hold any value.
      used_P = weights_P > 0
      return tuple(jnp.sum(jnp.where(used_P, x_P, 0.0) * weights_P) for x_P in (-chosen_P, kl_P))

    next_AY = jnp.roll(batch['tokens_BT'].reshape(blocks, places), -1, axis=1)
    with jax.named_scope('language_terms'):
      found = jax.lax.map(
        lambda xs: of_chunk(head, *xs), (chunks(next_AY), chunks(weights_AY), *arrays)
      )
    return tuple(map(jnp.sum, found))


def token_weights(batch: dict, valid_G: jax.Array) -> jax.Array:
  """What each position counts, [A, Y]: those with a next token in a best-labelled document.

  They sum to 1 for each valid query that has a label above 0.
  """
  mask_GN, labels_GN = batch['mask_GN'], batch['labels_GN']
  best_G1 = jnp.max(jnp.where(mask_GN, labels_GN, -jnp.inf), 1, keepdims=True)
  # A document with label 0 is not one that the query should be written for.
  chosen_GN = mask_GN & (labels_GN == best_G1) & (labels_GN > 0) & valid_G[:, None]
  owner_AY = owners(batch)
  blocks, docs = batch['index_AX'].shape
  chosen_AX = jnp.pad(chosen_GN.reshape(blocks, docs), ((0, 0), (0, 1)))
  follows_AY = jnp.pad(owner_AY[:, 1:] == owner_AY[:, :-1], ((0, 0), (0, 1)))
  used_AY = follows_AY & jnp.take_along_axis(chosen_AX, owner_AY, axis=1)
  per_query = mask_GN.shape[1]

  def of_block(used_Y, owner_Y):
    query_Y = owner_Y // per_query
    count_G = jax.ops.segment_sum(used_Y.astype(jnp.float32), query_Y, docs // per_query + 1)
    return used_Y / jnp.maximum(count_G, 1)[query_Y]

  return jax.vmap(of_block)(used_AY, owner_AY)


def are_used(c) -> bool:
  return bool(c.lm_weight or c.kl_weight)


def check(config) -> None:
  """Raises: UserError for a teacher without next-token logits."""
  if are_used(config.sft) and 'query_likelihood' not in config.teacher.scorer:
    raise UserError(
      f'config.sft.lm_weight and kl_weight: need next-token logits, which config.teacher.scorer='
      f"{config.teacher.scorer!r} does not compute; set scorer='query_likelihood', or both to 0"
    )


SETTINGS: Section = {
  'lm_weight': Key(
    0.0, at_least(0),
    "Weight of the next-token loss on the best-labelled documents' whole texts (TSRankGPT).",
  ),
  'kl_weight': Key(
    0.0, at_least(0),
    'Weight of the divergence from the model at the start of the stage, on the same tokens. It '
    'costs a second forward pass, and a copy of the trained parameters.',
  ),
}  # fmt: skip
