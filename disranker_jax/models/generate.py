"""Text generation with a decoder and a key-value cache."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

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
  at_least: int = 0,
) -> list[list[int]]:
  """New token ids for each prompt's ids, without the prompt.

  Greedy at temperature 0, else sampled from the smallest set of tokens with probability `top_p`.
  A row ends with its first `eos_id` (an id or several; the config's by default) or at `max_new`.
  Prompts are padded to `at_least` tokens, so that calls have the same shape.

  Raises: UserError for a network without a head='lm', and for empty prompts.
  """
  if network.head != 'lm':
    raise UserError("generation needs a decoder with head='lm'")
  if not prompts or not all(prompts):
    raise UserError('generation needs at least one prompt, and no empty ones')
  eos_id = network.config.eos_id if eos_id is None else eos_id
  stops = set(eos_id) if isinstance(eos_id, (tuple, list, set)) else {eos_id}
  tokens_BT, segments_BS = _left_pad(prompts, max_new, at_least)
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


def _left_pad(prompts, max_new, at_least=0):
  """Right-aligns prompts, so that every row's next token has the same slot."""
  longest = -(-max(at_least, *map(len, prompts)) // SLOT_MULTIPLE) * SLOT_MULTIPLE
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
  hidden_BTD, cache = _extended(network, variables, cache, tokens_BT, segments_BS, start)
  logits_BV = network.module.apply(variables, hidden_BTD[:, -1], method='logits')
  if not sample:
    return jnp.argmax(logits_BV, axis=-1), cache
  temperature, top_p = settings
  logits_BV = _nucleus(logits_BV / temperature, top_p)
  return jax.random.categorical(key, logits_BV), cache


def _extended(network, variables, cache, tokens_BT, segments_BS, start):
  """(hidden states of new tokens, the cache with them in the slots from `start` on)."""
  pads_B1 = jnp.sum(segments_BS == 0, axis=1, keepdims=True)
  slots_1T = (start + jnp.arange(tokens_BT.shape[1]))[None]
  positions_BT = jnp.maximum(slots_1T - pads_B1, 0)
  return network.module.apply(
    variables, tokens_BT, positions_BT, cache, segments_BS, start, method='decode'
  )


@dataclasses.dataclass(frozen=True)
class Permutations:
  """Decodes permutations of labels: greedy, but only labels that are left are allowed.

  After each label the tokens `between` follow without being predicted, and the last label is the
  one that is left, so n labels take n - 1 decisions. All of them run on the device in one call.

  Args:
    labels: the token of each label.
    prompt_len: tokens that prompts are padded to.
  """

  network: Network
  labels: tuple[int, ...]
  between: tuple[int, ...]
  prompt_len: int

  def __call__(
    self, variables: dict, prompts: Sequence[list[int]], counts: Sequence[int]
  ) -> jax.Array:
    """Places of labels [B, N], best first; of row b the first `counts[b]` are a permutation."""
    new = (len(self.labels) - 1) * (1 + len(self.between))
    tokens_BT, segments_BS = _left_pad(prompts, new, self.prompt_len)
    return _permuted(self, variables, tokens_BT, segments_BS, jnp.asarray(counts, jnp.int32))


@functools.partial(jax.jit, static_argnums=0)
def _permuted(todo: Permutations, variables, tokens_BT, segments_BS, counts_B):
  network, rows = todo.network, tokens_BT.shape[0]
  labels_N = jnp.array(todo.labels, jnp.int32)
  between_BS = jnp.broadcast_to(jnp.array(todo.between, jnp.int32), (rows, len(todo.between)))
  extended = functools.partial(_extended, network, variables)
  last_1X = jnp.zeros((rows, 1), jnp.int32)

  def choose(hidden_BD, left_BN):
    logits_BN = network.label_logits(variables, hidden_BD[:, None], last_1X, todo.labels)
    place_B = jnp.argmax(jnp.where(left_BN, logits_BN, -jnp.inf), axis=-1)
    return place_B, left_BN & ~jax.nn.one_hot(place_B, len(todo.labels), dtype=bool)

  def step(carry, start):
    cache, hidden_BD, left_BN = carry
    place_B, left_BN = choose(hidden_BD, left_BN)
    known_BT = jnp.concatenate([labels_N[place_B][:, None], between_BS], axis=1)
    hidden_BTD, cache = extended(cache, known_BT, segments_BS, start)
    return (cache, hidden_BTD[:, -1], left_BN), place_B

  cache = network.module.empty_cache(*segments_BS.shape)
  hidden_BTD, cache = extended(cache, tokens_BT, segments_BS, 0)
  left_BN = jnp.arange(len(todo.labels))[None] < counts_B[:, None]
  starts = tokens_BT.shape[1] + jnp.arange(len(todo.labels) - 1) * (1 + len(todo.between))
  carry, places_NB = jax.lax.scan(step, (cache, hidden_BTD[:, -1], left_BN), starts)
  last_B, _ = choose(carry[1], carry[2])
  return jnp.concatenate([places_NB.T, last_B[:, None]], axis=1)


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
