"""From the hidden states of packed rows to one vector per document, which the head scores."""

import jax
import jax.numpy as jnp


def pick(hidden_BTD: jax.Array, index_AX: jax.Array) -> jax.Array:
  """Hidden states [A, X, D] at positions of each block's flattened rows.

  It gathers inside blocks, so that a device with whole blocks needs no rows of other devices.
  """
  blocks, width = index_AX.shape[0], hidden_BTD.shape[-1]
  hidden_AYD = hidden_BTD.reshape(blocks, -1, width)
  return jnp.take_along_axis(hidden_AYD, index_AX[:, :, None], axis=1)


def token(hidden_BTD: jax.Array, batch: dict) -> jax.Array:
  """The hidden state of each document's scored token, [A, X, D]."""
  return pick(hidden_BTD, batch['index_AX'])


def mean(hidden_BTD: jax.Array, batch: dict) -> jax.Array:
  """The mean of each document's hidden states, [A, X, D] fp32, 0 where mask_GN is False.

  All tokens of the segment count, special ones too. Sums stay inside blocks, as in `pick`.
  """
  blocks, docs = batch['index_AX'].shape
  hidden_AYD = hidden_BTD.reshape(blocks, -1, hidden_BTD.shape[-1]).astype(jnp.float32)

  def of_block(hidden_YD, owner_Y):
    total_XD = jax.ops.segment_sum(hidden_YD, owner_Y, docs + 1)[:docs]
    count_X = jax.ops.segment_sum(jnp.ones_like(owner_Y, jnp.float32), owner_Y, docs + 1)[:docs]
    return total_XD / jnp.maximum(count_X, 1)[:, None]

  return jax.vmap(of_block)(hidden_AYD, owners(batch))


def owners(batch: dict) -> jax.Array:
  """The document in its block of each position, [A, Y]; X where there is none."""
  index_AX = batch['index_AX']
  blocks, docs = index_AX.shape
  positions_AY = batch['positions_BT'].reshape(blocks, -1)
  places = positions_AY.shape[1]
  # A document is found by the place of its first token, because positions start at 0 there.
  first_AY = jnp.arange(places)[None] - positions_AY
  own_AX = jnp.take_along_axis(first_AY, index_AX, axis=1)
  own_AX = jnp.where(batch['mask_GN'].reshape(blocks, -1), own_AX, places)
  real_AY = batch['segments_BT'].reshape(blocks, -1) > 0

  def of_block(first_Y, real_Y, own_X):
    # Places beyond the end are dropped; tokens of no document go to an additional one.
    document_Y = jnp.full(places, docs).at[own_X].set(jnp.arange(docs), mode='drop')
    return jnp.where(real_Y, document_Y[first_Y], docs)

  return jax.vmap(of_block)(first_AY, real_AY, own_AX)


POOLINGS = {'token': token, 'mean': mean}
