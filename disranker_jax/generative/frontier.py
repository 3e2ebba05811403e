"""The order of suffixes on a device: what may follow the n-grams of a beam, and the best of it.

Letters: S parts of the collection, B queries, M beams of each, C candidates of a beam, K chosen
ones, N tokens of a part, H heavy prefixes, F their followers. The parts are one unless the
collection is split, see `Suffixes.split`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.generative import suffixes
from disranker_jax.generative.suffixes import Suffixes


class Index(NamedTuple):
  """The arrays of each part's `Suffixes`, padded so that no slice of them is cut short."""

  text_SN: jax.Array
  order_SN: jax.Array
  first_SH: jax.Array
  token_SF: jax.Array
  wide_SF: jax.Array
  child_SF: jax.Array


class Rows(NamedTuple):
  """The rows of n-grams, [S, B, M]: `Suffixes.interval` and `Suffixes.number`.

  An n-gram that a part does not have has no rows: lo = hi is the row where it would be. So the sum
  of the parts' intervals is the interval in the whole collection.
  """

  lo: jax.Array
  hi: jax.Array
  number: jax.Array


class Candidates(NamedTuple):
  """What follows each beam, [S, B, M, C]: tokens in ascending order, and their rows.

  token  may have several entries, one for each row; -1: the end of the text, or padding
  wide   how many rows an entry stands for; 0: padding
  child  the number of the beam and token as a heavy prefix, or LIGHT
  """

  token: jax.Array
  wide: jax.Array
  child: jax.Array


PADDING = Candidates(-1, 0, suffixes.LIGHT)


class Widths(NamedTuple):
  """How many candidates are looked at: rows of a light prefix, followers of a heavy one.

  0 where all prefixes are of the other kind.
  """

  light: int
  heavy: int


class Chosen(NamedTuple):
  """The best continuations of a query's beams, [B, K], best first; score -inf where there is none.

  Equal scores are ordered by parent, then by token.
  """

  score: jax.Array
  parent: jax.Array
  token: jax.Array


def stack(parts: Sequence[Suffixes], slack: int) -> Index:
  """The parts' arrays on the host. At most `slack` followers are read at a time."""

  def padded(arrays, more, value):
    length = max(map(len, arrays)) + more
    out = np.full((len(arrays), length), value, np.int32)
    for row, array in zip(out, arrays, strict=True):
      row[: len(array)] = array
    return out

  return Index(
    padded([p.text_N for p in parts], parts[0].depth, -1),
    padded([p.order_N for p in parts], parts[0].window, 0),
    padded([p.heavy.first for p in parts], 0, 0),
    *(
      padded([getattr(p.heavy, name) for p in parts], slack, 0)
      for name in ('token', 'wide', 'child')
    ),
  )


def candidates(index: Index, rows: Rows, depth: jax.Array | int, widths: Widths) -> Candidates:
  """What follows the n-grams of `depth` tokens, [S, B, M, C]."""
  return jax.vmap(lambda index, rows: _candidates(index, rows, depth, widths))(index, rows)


def _candidates(index, rows, depth, widths):
  """`candidates` of one part."""
  found = []
  if widths.light:
    is_there = _is_below(rows.hi - rows.lo, widths.light)
    start_BMC = _pieces(index.order_SN, rows.lo, widths.light)
    token = jnp.where(is_there, index.text_SN[start_BMC + depth], PADDING.token)
    found.append((token, is_there.astype(jnp.int32), jnp.full_like(token, PADDING.child)))
  if widths.heavy:
    number = jnp.maximum(rows.number, 0)
    first, last = index.first_SH[number], index.first_SH[number + 1]
    is_there = _is_below(last - first, widths.heavy)
    arrays = zip((index.token_SF, index.wide_SF, index.child_SF), PADDING, strict=True)
    found.append([jnp.where(is_there, _pieces(x, first, widths.heavy), no) for x, no in arrays])
  if len(found) == 1:
    return Candidates(*found[0])
  is_heavy, width = (rows.number >= 0)[..., None], max(widths)
  columns = zip(*found, PADDING, strict=True)
  return Candidates(*(
    jnp.where(is_heavy, _widened(heavy, width, no), _widened(light, width, no))
    for light, heavy, no in columns
  ))  # fmt: skip


def _is_below(count_BM, width):
  """Which of `width` places are below each count, [B, M, width]."""
  return jnp.arange(width)[None, None] < count_BM[..., None]


def _pieces(x_N, start_BM, width):
  """x_N[start : start + width] for each start."""
  piece = functools.partial(jax.lax.dynamic_slice_in_dim, x_N, slice_size=width)
  return jax.vmap(jax.vmap(piece))(start_BM)


def _widened(x, width, value):
  return jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])), constant_values=value)


def scores(
  follow: Candidates, logits_BMV: jax.Array, score_BM: jax.Array, barred: int
) -> jax.Array:
  """Scores [S, B, M, C] of the beams with each candidate, -inf for what must not be written.

  That is what is no token of the model, such as an anchor; the token `barred`; a token's further
  rows. The log-probabilities are those of the whole vocabulary.
  """
  norm_BM1 = jax.nn.logsumexp(logits_BMV, axis=-1, keepdims=True)

  def of_part(token):
    before = jnp.pad(token, ((0, 0), (0, 0), (1, 0)), constant_values=PADDING.token)[..., :-1]
    is_new = (token != before) & (token >= 0) & (token < logits_BMV.shape[-1]) & (token != barred)
    logits = jnp.take_along_axis(logits_BMV, jnp.where(is_new, token, 0), axis=-1)
    return jnp.where(is_new, score_BM[..., None] + (logits - norm_BM1), -jnp.inf)

  return jax.vmap(of_part)(follow.token)


def best(score_SBMC: jax.Array, token_SBMC: jax.Array, count: int) -> Chosen:
  """The `count` best candidates of each query in all parts, each (parent, token) once."""
  each = jax.vmap(functools.partial(_best, count=count))(score_SBMC, token_SBMC)
  return Chosen(*(x[0] for x in each)) if len(each.score) == 1 else _merged(each, count)


def _best(score_BMC, token_BMC, count):
  """`best` in one part."""
  B, M, C = score_BMC.shape
  score, at = jax.lax.top_k(score_BMC.reshape(B, M * C), min(count, M * C))
  token = jnp.take_along_axis(token_BMC.reshape(B, M * C), at, axis=-1)
  pad = ((0, 0), (0, count - score.shape[-1]))
  score = jnp.pad(score, pad, constant_values=-jnp.inf)
  return Chosen(score, *(jnp.pad(x, pad) for x in (at // C, token)))


def _merged(each, count):
  """The best of all parts, from the best of each, [S, B, K]."""
  score, *pair = (x.swapaxes(0, 1).reshape(x.shape[1], -1) for x in each)
  score, *pair = jax.lax.sort((-score, *pair), num_keys=3)
  is_again = functools.reduce(jnp.logical_and, (x[:, 1:] == x[:, :-1] for x in pair))
  score = jnp.where(jnp.pad(is_again, ((0, 0), (1, 0))), -jnp.inf, -score)
  score, at = jax.lax.top_k(score, count)
  return Chosen(score, *(jnp.take_along_axis(x, at, axis=-1) for x in pair))


def descend(follow: Candidates, rows: Rows, parent_BK: jax.Array, token_BK: jax.Array) -> Rows:
  """The rows of beams with one token more, [S, B, K]."""
  take = jax.vmap(lambda x, at: x[at])  # over B
  chosen = token_BK[..., None]

  def of_part(follow, rows):
    token, wide, child = (take(x, parent_BK) for x in follow)
    lo = take(rows.lo, parent_BK) + jnp.sum(jnp.where(token < chosen, wide, 0), axis=-1)
    hi = lo + jnp.sum(jnp.where(token == chosen, wide, 0), axis=-1)
    return Rows(lo, hi, jnp.max(jnp.where(token == chosen, child, suffixes.LIGHT), axis=-1))

  return jax.vmap(of_part)(follow, rows)


def widest(
  part: Suffixes, start: Sequence[int], end: int, vocab: int, length: int
) -> tuple[int, int]:
  """The most followers that heavy prefixes have: the prefix `start`, and those longer than it.

  Longer ones are what is written after it: up to `length` tokens, none of them `end` or an anchor.
  0 where no such prefix is heavy.
  """
  number = part.number(start)
  level = [] if number == suffixes.LIGHT else [number]
  sizes = []
  for _ in range(length):
    places = [part.heavy.followers(n) for n in level]
    sizes.append(max((at.stop - at.start for at in places), default=0))
    level = []
    for at in places:
      token, child = part.heavy.token[at], part.heavy.child[at]
      goes_on = (child != suffixes.LIGHT) & (token < vocab) & (token != end)
      level += child[goes_on].tolist()
  return sizes[0], max(sizes[1:], default=0)
