"""Choosing next tokens: the likeliest, or a draw from the likeliest, by their number or their mass.

Nothing here sorts the vocabulary: sorting [B, V] on a CPU takes longer than the network.
"""

import functools

import jax
import jax.numpy as jnp


def likeliest(logits_BV: jax.Array) -> jax.Array:
  """The first token with the largest logit, [B] int32: argmax, as two reductions that vectorise."""
  best_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
  id_1V = jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)[None]
  return jnp.min(jnp.where(logits_BV >= best_B1, id_1V, logits_BV.shape[-1] - 1), axis=-1)


def drawn(logits_BV: jax.Array, keys_B: jax.Array, temperature, top_p, top_k: int = 0) -> jax.Array:
  """Tokens [B] drawn from the nucleus of softmax(logits / temperature) with each row's key.

  With `top_k`, the softmax is over so many of the likeliest tokens, and all that are as likely as
  the last of them; the others have probability 0.

  The nucleus is the smallest set of likeliest tokens whose mass reaches `top_p`, with all tokens
  that are as likely as its last one. A token is outside if those likelier than it have that mass.
  Then all of the nucleus is likelier too, and so the next draw is among those only. Accepted draws
  are distributed as the nucleus is.
  """
  if top_k:
    least_B1 = jax.lax.top_k(logits_BV, min(top_k, logits_BV.shape[-1]))[0][:, -1:]
    logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
  probs_BV = jax.nn.softmax(logits_BV / temperature, axis=-1)

  def undecided(state):
    return ~state[-1].all()

  def draw(state):
    number, bound_B, token_B, done_B = state
    point_B = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, number)))(keys_B)
    new_B = inverse(jnp.where(probs_BV > bound_B[:, None], probs_BV, 0), point_B)
    prob_B = jnp.take_along_axis(probs_BV, new_B[:, None], axis=-1)[:, 0]
    likelier_B = jnp.sum(jnp.where(probs_BV > prob_B[:, None], probs_BV, 0), axis=-1)
    inside_B = (likelier_B < top_p) | (likelier_B == 0) | (top_p >= 1)
    bound_B = jnp.where(done_B | inside_B, bound_B, prob_B)
    return number + 1, bound_B, jnp.where(done_B, token_B, new_B), done_B | inside_B

  rows = len(logits_BV)
  none = jnp.zeros(rows), jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
  return jax.lax.while_loop(undecided, draw, (jnp.int32(0), *none))[2]


def inverse(mass_BV: jax.Array, point_B: jax.Array) -> jax.Array:
  """The first token at which the cumulated mass exceeds `point` of the total, [B].

  First among groups of tokens, then inside one: cumulating a whole vocabulary is slow.
  """
  rows, vocabulary = mass_BV.shape
  width = max(1, round(vocabulary**0.5))
  mass_BGW = jnp.pad(mass_BV, ((0, 0), (0, -vocabulary % width))).reshape(rows, -1, width)
  group_B, rest_B = _place(mass_BGW.sum(-1), point_B)
  mass_BW = jnp.take_along_axis(mass_BGW, group_B[:, None, None], axis=1)[:, 0]
  return (group_B * width + _place(mass_BW, rest_B)[0]).astype(jnp.int32)


def _place(mass_BX, point_B):
  """(the entry that holds `point` of the total, how far into it the point is, both [B])."""
  pick = functools.partial(jnp.take_along_axis, axis=-1)
  sums_BX = jnp.cumsum(mass_BX, axis=-1)
  target_B = point_B * sums_BX[:, -1]
  # Rounding must not lead beyond the last entry that has mass.
  last_B = mass_BX.shape[-1] - 1 - jnp.argmax(mass_BX[:, ::-1] > 0, axis=-1)
  at_B = jnp.minimum(jnp.sum(sums_BX <= target_B[:, None], axis=-1), last_B)
  held_B = pick(mass_BX, at_B[:, None])[:, 0]
  start_B = pick(sums_BX, at_B[:, None])[:, 0] - held_B
  return at_B, jnp.clip((target_B - start_B) / held_B, 0, 1 - 1e-7)
