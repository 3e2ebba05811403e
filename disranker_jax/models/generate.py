"""Text generation with a decoder and a key-value cache; the loop over tokens runs on the device."""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import eight_bits, kinds, layers, sampling, tree
from disranker_jax.models.network import Network

# Lengths of prompts and of caches are rounded up to these, so that few shapes are compiled. The
# prefill computes its padding; the loop over tokens takes longer to compile.
PROMPT_MULTIPLE, CACHE_MULTIPLE = 16, 64
OPERANDS = ('kernel', 'lora_a', 'lora_b')  # the ends of the paths of what only dots read


class Shared(NamedTuple):
  """What calls with the same parameters have in common; `share` makes it.

  operands  as `operands` returns them
  ids       the tokens that all prompts begin with
  caches    each layer's keys and values of these, {'k', 'v': [1, K, P, E]}; () if there are none
  """

  operands: tuple
  ids: tuple[int, ...] = ()
  caches: Sequence[dict] = ()


def share(network: Network, variables: dict, ids: Sequence[int] = ()) -> Shared:
  """Computes what `generate` needs once for all prompts that begin with `ids`."""
  caches = ()
  if ids:
    tokens_1P = np.array([ids], np.int32)
    _, caches = prefill(network, len(ids), 1, variables, tokens_1P, np.ones_like(tokens_1P))
  return Shared(jax.jit(operands, static_argnums=0)(network, variables), tuple(ids), caches)


def common(prompts: Sequence[list[int]]) -> list[int]:
  """The longest beginning that all prompts have and that is none of them."""
  first, last = min(prompts), max(prompts)
  pairs = enumerate(zip(first, last, strict=False))
  same = next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))
  return first[: min(same, *(len(prompt) - 1 for prompt in prompts))]


def generate(
  network: Network,
  variables: dict,
  prompts: list[list[int]],
  *,
  max_new: int = 64,
  eos_id: int | Iterable[int] | None = None,
  temperature: float = 0.0,
  top_p: float = 1.0,
  top_k: int = 0,
  samples: int = 1,
  seed: int = 0,
  at_least: int = 0,
  min_new: int = 0,
  numbers: Sequence[int] | None = None,
  with_logprobs: bool = False,
  shared: Shared | None = None,
) -> list[list[int]] | tuple[list[list[int]], list[np.ndarray]]:
  """New token ids for each prompt's ids, without the prompt.

  Greedy at temperature 0, else sampled from the smallest set of tokens with probability `top_p`, of
  the `top_k` likeliest (0: of all).
  With `samples` there are so many rows for each prompt, one behind the other; they share its
  prefill. A row ends with its first `eos_id` (an id or several; the config's by default), which is
  none of its first `min_new` tokens, or at `max_new`. A row's draws depend on `seed` and on its
  prompt's number in `numbers` (below 2**32), by default its place, not on the other rows. Prompts
  are padded to `at_least` tokens, so that calls have the same shape. Of several processes all make
  the same call and get the same rows. With `shared` the tokens that all prompts begin with are not
  computed again, and neither are operands.

  `with_logprobs` also returns, for each row, the log-probabilities of its tokens under
  softmax(logits / temperature), of all tokens even if `top_p` or `top_k` excludes some; at
  temperature 0 under softmax(logits).

  Raises: UserError for a network that is not causal or without a head='lm', for empty prompts, and
  for prompts that do not go on after what they should share.
  """
  check_writes(network)
  if not prompts or not all(prompts):
    raise UserError('generation needs at least one prompt, and no empty ones')
  shared = shared or share(network, variables)
  count = len(shared.ids)
  if any(len(prompt) <= count or tuple(prompt[:count]) != shared.ids for prompt in prompts):
    raise UserError(f'a prompt does not begin with the {count} shared tokens, or ends with them')
  eos_id = network.end_ids if eos_id is None else eos_id
  stops = sorted(set(eos_id)) if isinstance(eos_id, Iterable) else [eos_id]
  stops = jnp.array(stops or [-1], jnp.int32)
  tokens_BT, segments_BT = left_pad(prompts, at_least)
  slots = slots_for(tokens_BT.shape[1] + max_new)
  if count:
    last_BD, caches = _prefill_rest(
      network, slots, samples, variables, shared.operands[0], shared.caches, tokens_BT, segments_BT
    )
  else:
    last_BD, caches = prefill(network, slots, samples, variables, tokens_BT, segments_BT)
  segments_BS = with_room(np.repeat(segments_BT, samples, axis=0), slots)
  numbers = np.arange(len(prompts)) if numbers is None else np.asarray(numbers)
  numbers_B = (numbers[:, None] * samples + np.arange(samples)).astype(np.uint32).reshape(-1)
  settings = jnp.array([temperature, top_p], jnp.float32)
  out_BN, logprobs_BN, _ = _continue(
    network, temperature > 0, with_logprobs, slots - tokens_BT.shape[1], top_k, variables, caches,
    last_BD, segments_BS, min_new, max_new, stops, jax.random.key(seed), numbers_B, settings,
    shared.operands,
  )  # fmt: skip
  rows_BN = sharding.on_host(out_BN)[:, :max_new]
  rows = [row[: _length(row, stops)].tolist() for row in rows_BN]
  if not with_logprobs:
    return rows
  logprobs = sharding.on_host(logprobs_BN)
  return rows, [each[: len(row)] for each, row in zip(logprobs, rows, strict=True)]


def check_writes(network: Network) -> None:
  """Raises: UserError for a network that cannot write text."""
  if network.head != 'lm':
    raise UserError("generation needs a decoder with head='lm'")
  if not network.causal:
    raise UserError('a bidirectional model writes no text: it would have to see what follows')


def left_pad(prompts: list[list[int]], at_least: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """(tokens_BT, segments_BT) of right-aligned prompts, so that all continue in the same slot."""
  longest = padded_len(max(at_least, *map(len, prompts)))
  tokens_BT = np.zeros((len(prompts), longest), np.int32)
  segments_BT = np.zeros((len(prompts), longest), np.int32)
  for row, prompt in enumerate(prompts):
    tokens_BT[row, longest - len(prompt) :] = prompt
    segments_BT[row, longest - len(prompt) :] = 1
  return tokens_BT, segments_BT


def padded_len(tokens: int) -> int:
  """The slots of prompts of up to so many tokens."""
  return -(-tokens // PROMPT_MULTIPLE) * PROMPT_MULTIPLE


def slots_for(tokens: int) -> int:
  """The slots of a cache that holds so many tokens."""
  return -(-tokens // CACHE_MULTIPLE) * CACHE_MULTIPLE


def with_room(segments_BT: np.ndarray, slots: int) -> np.ndarray:
  """The segments of a cache [B, slots] in which a text follows each prompt."""
  room = slots - segments_BT.shape[1]
  return np.pad(segments_BT, ((0, 0), (0, room)), constant_values=1)


def _length(row, stops):
  """How many tokens a row has: up to its first end token."""
  ends = np.isin(row, np.asarray(stops))
  return int(ends.argmax()) + 1 if ends.any() else len(row)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def prefill(network, slots, samples, variables, tokens_BT, segments_BT):
  """The last hidden state of each row, and each layer's cache with room for `slots`."""
  T = tokens_BT.shape[1]
  pads_B1 = T - jnp.sum(segments_BT, axis=1, keepdims=True)
  positions_BT = jnp.maximum(jnp.arange(T)[None] - pads_B1, 0)
  hidden_BTD, cache = network.module.clone(keep=True).apply(
    variables, tokens_BT, segments_BT, positions_BT, method='prefill'
  )

  def of_layer(x_BKTE):
    x_BKSE = jnp.pad(x_BKTE, ((0, 0), (0, 0), (0, slots - T), (0, 0)))
    return layers.constrain(jnp.repeat(x_BKSE, samples, axis=0))

  # One array for each layer: a stack would be copied for each token that is added to it.
  each = [{name: of_layer(x[i]) for name, x in cache.items()} for i in range(network.config.layers)]
  return jnp.repeat(hidden_BTD[:, -1], samples, axis=0), each


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill_rest(network, slots, samples, variables, body, shared, tokens_BT, segments_BT):
  """As `prefill`, for rows whose first P tokens have the caches `shared`.

  Rows are right-aligned: what is computed are the columns from P on, which hold all that is not
  shared, and in shorter rows the end of what is shared once more.
  """
  T, P = tokens_BT.shape[1], shared[0]['k'].shape[2]
  pads_B1 = T - jnp.sum(segments_BT, axis=1, keepdims=True)
  shared_BS = jnp.clip(jnp.arange(slots)[None] - pads_B1, 0, P - 1)

  def of_layer(x_1KPE):
    return layers.constrain(jnp.take(x_1KPE[0], shared_BS, axis=1).swapaxes(0, 1))

  caches = jax.tree.map(of_layer, shared)
  positions_BT = jnp.maximum(jnp.arange(P, T)[None] - pads_B1, 0)
  segments_BS = jnp.pad(segments_BT, ((0, 0), (0, slots - T)), constant_values=1)
  hidden_BTD, caches = advance(
    network, variables, body, tokens_BT[:, P:], positions_BT, caches, segments_BS, P
  )

  def of_samples(x):
    return layers.constrain(jnp.repeat(x, samples, axis=0))

  return jnp.repeat(hidden_BTD[:, -1], samples, axis=0), jax.tree.map(of_samples, caches)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), donate_argnums=6)
def _continue(
  network, sample, scored, room, top_k, variables, caches, last_BD, segments_BS, min_new, max_new,
  stops, key, numbers_B, settings, prepared,
):  # fmt: skip
  """Up to `max_new` tokens after each row's last hidden state, in an array [B, room].

  If `scored`, their log-probabilities are in another one. What is behind a row's end token has no
  meaning.
  """
  rows, slots = segments_BS.shape
  pads_B1 = jnp.sum(segments_BS == 0, axis=1, keepdims=True)
  body, head = prepared
  keys_B = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers_B)

  def chosen(number, hidden_BD):
    logits_BV = network.module.apply(head, hidden_BD, method='logits')
    vocab = logits_BV.shape[-1]
    is_end_V = jnp.zeros(vocab, bool).at[jnp.where(stops < 0, vocab, stops)].set(True, mode='drop')
    logits_BV = jnp.where((number < min_new) & is_end_V[None], -jnp.inf, logits_BV)
    if not sample:
      return sampling.likeliest(logits_BV), logits_BV
    now_B = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)
    return sampling.drawn(logits_BV, now_B, *settings, top_k), logits_BV / settings[0]

  def goes_on(state):
    number, _, _, done_B, _, _ = state
    return (number < max_new) & ~done_B.all()

  def one_token(state):
    number, out_BN, logprobs_BN, done_B, hidden_BD, caches = state
    token_B, logits_BV = chosen(number, hidden_BD)
    out_BN = jax.lax.dynamic_update_slice(out_BN, token_B[:, None], (0, number))
    if scored:
      now_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)
      now_B1 -= jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
      logprobs_BN = jax.lax.dynamic_update_slice(logprobs_BN, now_B1, (0, number))
    done_B |= jnp.isin(token_B, stops)
    slot = slots - room + number
    hidden_BTD, caches = advance(
      network, variables, body, token_B[:, None], slot - pads_B1, caches, segments_BS, slot
    )
    return number + 1, out_BN, logprobs_BN, done_B, hidden_BTD[:, 0], caches

  out_BN, logprobs_BN = jnp.zeros((rows, room), jnp.int32), jnp.zeros((rows, room * scored))
  start = (jnp.int32(0), out_BN, logprobs_BN, jnp.zeros(rows, bool), last_BD, caches)
  _, out_BN, logprobs_BN, _, _, caches = jax.lax.while_loop(goes_on, one_token, start)
  # The caches are returned so that the loop can work in the memory of those that it was given.
  return out_BN, logprobs_BN, caches


def narrow(network: Network, variables: dict) -> dict:
  """The variables in the dtypes in which `generate` reads them if these are smaller.

  It gives the same for them.
  """
  read = layers.operand_dtype(network.precision)
  # Rows of the table of embeddings are activations.
  ends = OPERANDS if network.precision != 'bfloat16' else (*OPERANDS, 'embedding')

  def cast(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    is_wider = name.endswith(ends) and x.dtype.itemsize > jnp.dtype(read).itemsize
    return x.astype(read) if is_wider else x

  return jax.tree.map_with_path(cast, variables)


def operands(network, variables):
  """(each layer's variables, the variables that logits need), in the dtype that dots read.

  They are cut and cast here, once: in the loop they would be for each token. Kernels of 8 bits stay
  as they are.
  """
  dtype = layers.operand_dtype(network.precision)

  def cast(path, x):
    is_read = path.endswith((*OPERANDS, 'embedding'))
    return x.astype(dtype) if is_read and not eight_bits.is_small(x) else x

  blocks = {kind: tree.flatten(x['blocks']) for kind, x in variables.items() if 'blocks' in x}
  each = [
    {
      kind: tree.unflatten({path: cast(path, x[i]) for path, x in flat.items()})
      for kind, flat in blocks.items()
    }
    for i in range(network.config.layers)
  ]
  path = network.family.logits_path(network.config)
  name, leaf = path.split('/')
  table = variables['params'][name][leaf]
  return each, {'params': {name: {leaf: cast(path, table)}}}


def advance(network, variables, body, tokens_BT, positions_BT, caches, segments_BS, start):
  """Hidden states of the tokens in the slots from `start` on, and the caches with them added."""
  module, c = network.module, network.config
  x_BTD = module.apply(variables, tokens_BT, method='embedded')
  angles = kinds.angles(c.kinds, positions_BT, c.head_dim)
  out = []
  for number, layer, cache in zip(kinds.numbers(c.kinds).tolist(), body, caches, strict=True):
    x_BTD, cache = module.block.apply(layer, x_BTD, number, segments_BS, angles, cache, start)
    out.append(cache)
  return module.apply(variables, x_BTD, method='normed'), out
