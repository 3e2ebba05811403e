"""Decodes permutations of labels under constraints, such as the order of a prompt's documents."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from disranker_jax.models import generate
from disranker_jax.models.network import Network


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
    tokens_BT, segments_BT = generate.left_pad(prompts, self.prompt_len)
    decided = (len(self.labels) - 1) * (1 + len(self.between))
    slots = generate.slots_for(tokens_BT.shape[1] + decided)
    last_BD, caches = generate.prefill(self.network, slots, 1, variables, tokens_BT, segments_BT)
    segments_BS = generate.with_room(segments_BT, slots)
    start, counts_B = tokens_BT.shape[1], jnp.asarray(counts, jnp.int32)
    return _permuted(self, start, variables, caches, last_BD, segments_BS, counts_B)[0]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _permuted(todo: Permutations, start, variables, caches, last_BD, segments_BS, counts_B):
  """(the places, the caches: the loop works in the memory of those that it was given)."""
  network, rows, step_len = todo.network, len(last_BD), 1 + len(todo.between)
  body, _ = generate.operands(network, variables)
  labels_N = jnp.array(todo.labels, jnp.int32)
  between_BS = jnp.broadcast_to(jnp.array(todo.between, jnp.int32), (rows, len(todo.between)))
  pads_B1 = jnp.sum(segments_BS == 0, axis=1, keepdims=True)
  last_1X = jnp.zeros((rows, 1), jnp.int32)

  def choose(hidden_BD, left_BN):
    logits_BN = network.label_logits(variables, hidden_BD[:, None], last_1X, todo.labels)
    place_B = jnp.argmax(jnp.where(left_BN, logits_BN, -jnp.inf), axis=-1)
    return place_B, left_BN & ~jax.nn.one_hot(place_B, len(todo.labels), dtype=bool)

  def step(carry, slot):
    caches, hidden_BD, left_BN = carry
    place_B, left_BN = choose(hidden_BD, left_BN)
    known_BT = jnp.concatenate([labels_N[place_B][:, None], between_BS], axis=1)
    positions_BT = slot + jnp.arange(step_len)[None] - pads_B1
    hidden_BTD, caches = generate.advance(
      network, variables, body, known_BT, positions_BT, caches, segments_BS, slot
    )
    return (caches, hidden_BTD[:, -1], left_BN), place_B

  left_BN = jnp.arange(len(todo.labels))[None] < counts_B[:, None]
  slots = start + jnp.arange(len(todo.labels) - 1) * step_len
  (caches, hidden_BD, left_BN), places_NB = jax.lax.scan(step, (caches, last_BD, left_BN), slots)
  last_B, _ = choose(hidden_BD, left_BN)
  return jnp.concatenate([places_NB.T, last_B[:, None]], axis=1), caches
