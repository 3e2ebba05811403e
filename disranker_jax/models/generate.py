"""Text generation with a decoder and a key-value cache."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.errors import UserError
from disranker_jax.models.network import Network

SLOT_MULTIPLE = 64  # cache lengths are rounded up to this, so that few shapes are compiled


def generate(
  network: Network,
  variables: dict,
  prompts: list[list[int]],
  *,
  max_new: int = 64,
  eos_id: int | Iterable[int] | None = None,
  temperature: float = 0.0,
  top_p: float = 1.0,
  seed: int = 0,
) -> list[list[int]]:
  """New token ids for each prompt's ids, without the prompt.

  Greedy at temperature 0, else sampled from the smallest set of tokens with probability `top_p`.
  A row ends with its first `eos_id` (an id or several; the config's by default) or at `max_new`.

  Raises: UserError for a network without a head='lm', and for empty prompts.
  """
  if network.head != 'lm':
    raise UserError("generation needs a decoder with head='lm'")
  if not prompts or not all(prompts):
    raise UserError('generation needs at least one prompt, and no empty ones')
  eos_id = network.config.eos_id if eos_id is None else eos_id
  stops = set(eos_id) if isinstance(eos_id, (tuple, list, set)) else {eos_id}
  tokens_BT, segments_BS = _left_pad(prompts, max_new)
  cache = network.module.empty_cache(*segments_BS.shape)
  key, settings = jax.random.key(seed), jnp.array([temperature, top_p], jnp.float32)
  step = functools.partial(_step, network, temperature > 0)
  out, start = [[] for _ in prompts], 0
  alive = [True] * len(prompts)
  for _ in range(max_new):
    key, now = jax.random.split(key)
    next_B, cache = step(variables, cache, tokens_BT, segments_BS, start, now, settings)
    start += tokens_BT.shape[1]
    for row, token in enumerate(np.asarray(next_B).tolist()):
      if alive[row]:
        out[row].append(token)
        alive[row] = token not in stops
    if not any(alive):
      break
    tokens_BT = next_B[:, None]
  return out


def _left_pad(prompts, max_new):
  """Right-aligns prompts, so that every row's next token has the same slot."""
  longest = -(-max(map(len, prompts)) // SLOT_MULTIPLE) * SLOT_MULTIPLE
  room = -(-(longest + max_new) // SLOT_MULTIPLE) * SLOT_MULTIPLE
  tokens_BT = np.zeros((len(prompts), longest), np.int32)
  segments_BS = np.ones((len(prompts), room), np.int32)
  for row, prompt in enumerate(prompts):
    tokens_BT[row, longest - len(prompt) :] = prompt
    segments_BS[row, : longest - len(prompt)] = 0
  return jnp.asarray(tokens_BT), jnp.asarray(segments_BS)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _step(network, sample, variables, cache, tokens_BT, segments_BS, start, key, settings):
  """The next token of every row, and the cache with tokens_BT in the slots from `start` on."""
  pads_B1 = jnp.sum(segments_BS == 0, axis=1, keepdims=True)
  slots_1T = (start + jnp.arange(tokens_BT.shape[1]))[None]
  hidden_BTD, cache = network.module.apply(
    variables,
    tokens_BT,
    jnp.maximum(slots_1T - pads_B1, 0),
    cache,
    segments_BS,
    start,
    method='decode',
  )
  logits_BV = network.module.apply(variables, hidden_BTD[:, -1], method='logits')
  if not sample:
    return jnp.argmax(logits_BV, axis=-1), cache
  temperature, top_p = settings
  logits_BV = _nucleus(logits_BV / temperature, top_p)
  return jax.random.categorical(key, logits_BV), cache


def _nucleus(logits_BV, top_p):
  """Logits, with those outside the most likely `top_p` of the mass at minus infinity."""
  order_BV = jnp.argsort(-logits_BV, axis=-1)
  sorted_BV = jnp.take_along_axis(jax.nn.softmax(logits_BV, axis=-1), order_BV, axis=-1)
  # The mass before a token, so that the token which reaches `top_p` is kept; the likeliest token
  # is kept even at 0.
  keep_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV < top_p
  keep_BV = keep_BV.at[:, 0].set(True)
  keep_BV = jnp.take_along_axis(keep_BV, jnp.argsort(order_BV, axis=-1), axis=-1)
  return jnp.where(keep_BV, logits_BV, -jnp.inf)
