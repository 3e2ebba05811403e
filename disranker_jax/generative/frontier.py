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
  low_SF: jax.Array
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


class Widths(NamedTuple):
  """How many candidates of a beam are looked at: rows of a light prefix, followers of a heavy one.

  0 where all prefixes are of the other kind.
  """

  light: int
  heavy: int

  def tiers(self) -> list[int]:
    """The numbers of a heavy prefix's followers for which there is a program of its own.

    Most steps have no heavy prefix, or none with many followers.
    """
    if not self.light:
      return [self.heavy]
    between = [self.light * 8**power for power in range(8)]
    return [
      0,
      *(width for width in between if width < self.heavy),
      *[self.heavy] * (self.heavy > 0),
    ]


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
      for name in ('token', 'low', 'wide', 'child')
    ),
  )


def choose(
  index: Index, rows: Rows, depth: jax.Array | int, widths: Widths, logits_BMV: jax.Array,
  score_BM: jax.Array, barred: int, counts: Sequence[int],
) -> list[Chosen]:  # fmt: skip
  """The best tokens after the beams' n-grams of `depth` tokens: for each of `counts`, so many.

  What must not be written is no candidate: what is no token of the model, such as an anchor, and
  the token `barred`. Log-probabilities are those of the whole vocabulary.
  """
  norm_BM1 = jax.nn.logsumexp(logits_BMV, axis=-1, keepdims=True)
  tiers = widths.tiers()

  def with_heavy(width):
    def of_part(index, rows):
      token = _candidates(index, rows, depth, Widths(widths.light, width))
      score = _scores(token, logits_BMV, norm_BM1, score_BM, barred)
      return [_best(score, token, count) for count in counts]

    each = jax.vmap(of_part)(index, rows)  # over S
    return [_merged(x, count) for x, count in zip(each, counts, strict=True)]

  if len(tiers) == 1:
    return with_heavy(tiers[0])
  first, last = jax.vmap(_followers)(index, rows)
  most = jnp.max(last - first)
  tier = sum((most > width).astype(jnp.int32) for width in tiers[:-1])
  return jax.lax.switch(tier, [functools.partial(with_heavy, width) for width in tiers])


def _followers(index, rows):
  """Where the followers of heavy prefixes begin and end, [B, M] each; for light ones nowhere."""
  number = jnp.maximum(rows.number, 0)
  first, last = index.first_SH[number], index.first_SH[number + 1]
  return first, jnp.where(rows.number >= 0, last, first)


def _candidates(index, rows, depth, widths):
  """The tokens that follow in one part, [B, M, C], ascending.

  A token may have several places, one for each row. -1 stands for the end of the text, and pads.
  """
  found = []
  if widths.light:
    found.append(_row_tokens(index, rows, depth, widths.light))
  if widths.heavy:
    first, last = _followers(index, rows)
    token = _pieces(index.token_SF, first, widths.heavy)
    found.append(jnp.where(_is_below(last - first, widths.heavy), token, -1))
  if len(found) == 1:
    return found[0]
  is_heavy, width = (rows.number >= 0)[..., None], max(widths)
  light, heavy = (
    jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])), constant_values=-1) for x in found
  )
  return jnp.where(is_heavy, heavy, light)


def _row_tokens(index, rows, depth, width):
  """The tokens after n-grams of `depth` tokens in the first `width` of their rows, -1 behind."""
  start_BMC = _pieces(index.order_SN, rows.lo, width)
  is_row = _is_below(rows.hi - rows.lo, width)
  return jnp.where(is_row, index.text_SN[start_BMC + depth], -1)


def _is_below(count_BM, width):
  """Which of `width` places are below each count, [B, M, width]."""
  return jnp.arange(width)[None, None] < count_BM[..., None]


def _pieces(x_N, start_BM, width):
  """x_N[start : start + width] for each start."""
  piece = functools.partial(jax.lax.dynamic_slice_in_dim, x_N, slice_size=width)
  return jax.vmap(jax.vmap(piece))(start_BM)


def _scores(token, logits_BMV, norm_BM1, score_BM, barred):
  """Scores [B, M, C] of the beams with each candidate, -inf for what must not be written."""
  before = jnp.pad(token, ((0, 0), (0, 0), (1, 0)), constant_values=-1)[..., :-1]
  is_new = (token != before) & (token >= 0) & (token < logits_BMV.shape[-1]) & (token != barred)
  logits = jnp.take_along_axis(logits_BMV, jnp.where(is_new, token, 0), axis=-1)
  return jnp.where(is_new, score_BM[..., None] + (logits - norm_BM1), -jnp.inf)


def _best(score_BMC, token_BMC, count):
  """The `count` best candidates of each query in one part."""
  B, M, C = score_BMC.shape
  score, at = jax.lax.top_k(score_BMC.reshape(B, M * C), min(count, M * C))
  token = jnp.take_along_axis(token_BMC.reshape(B, M * C), at, axis=-1)
  pad = ((0, 0), (0, count - score.shape[-1]))
  score = jnp.pad(score, pad, constant_values=-jnp.inf)
  return Chosen(score, *(jnp.pad(x, pad) for x in (at // C, token)))


def _merged(each, count):
  """The best of all parts, from the best of each, [S, B, K]; each (parent, token) once."""
  if len(each.score) == 1:
    return Chosen(*(x[0] for x in each))
  score, *pair = (x.swapaxes(0, 1).reshape(x.shape[1], -1) for x in each)
  score, *pair = jax.lax.sort((-score, *pair), num_keys=3)
  is_again = functools.reduce(jnp.logical_and, (x[:, 1:] == x[:, :-1] for x in pair))
  score = jnp.where(jnp.pad(is_again, ((0, 0), (1, 0))), -jnp.inf, -score)
  score, at = jax.lax.top_k(score, count)
  return Chosen(score, *(jnp.take_along_axis(x, at, axis=-1) for x in pair))


def descend(
  index: Index, rows: Rows, depth: jax.Array | int, light: int, parent_BK: jax.Array,
  token_BK: jax.Array,
) -> Rows:  # fmt: skip
  """The rows [S, B, K] of beams with one token more; `light` as in Widths."""
  take = jax.vmap(lambda x, at: x[at])  # over B

  def of_part(index, rows):
    rows = Rows(*(take(x, parent_BK) for x in rows))
    longer = _among_followers(index, rows, token_BK)
    if not light:
      return longer
    token = _row_tokens(index, rows, depth, light)
    is_row = _is_below(rows.hi - rows.lo, light)
    lo = rows.lo + jnp.sum(is_row & (token < token_BK[..., None]), axis=-1)
    hi = lo + jnp.sum(is_row & (token == token_BK[..., None]), axis=-1)
    by_rows = Rows(lo, hi, jnp.full_like(lo, suffixes.LIGHT))
    is_heavy = rows.number >= 0
    return Rows(*(jnp.where(is_heavy, x, y) for x, y in zip(longer, by_rows, strict=True)))

  return jax.vmap(of_part)(index, rows)


def _among_followers(index, rows, token_BK):
  """The rows of heavy prefixes with one token more, in one part, by binary search."""
  first, last = _followers(index, rows)

  def halve(_, bounds):
    lo, hi = bounds
    middle = (lo + hi) // 2
    is_less = index.token_SF[middle] < token_BK
    return (
      jnp.where((lo < hi) & is_less, middle + 1, lo),
      jnp.where((lo < hi) & ~is_less, middle, hi),
    )

  rounds = len(index.token_SF).bit_length()
  at, _ = jax.lax.fori_loop(0, rounds, halve, (first, last))
  is_found = (at < last) & (index.token_SF[at] == token_BK)
  lo = jnp.where(at < last, index.low_SF[at], rows.hi)
  hi = lo + jnp.where(is_found, index.wide_SF[at], 0)
  return Rows(lo, hi, jnp.where(is_found, index.child_SF[at], suffixes.LIGHT))


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
