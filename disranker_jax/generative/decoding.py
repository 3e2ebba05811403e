"""The device program of constrained beam search: prompts' caches in, the beams of every step out.

Letters beyond those of frontier.py and models/layers.py: R rows of the cache, B * M.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from disranker_jax.generative import frontier
from disranker_jax.generative.frontier import Rows, Widths
from disranker_jax.generative.suffixes import LIGHT
from disranker_jax.models import generate, layers


@dataclasses.dataclass(frozen=True)
class View:
  """A way to write a page, and how much is written.

  anchor    the symbol before what is written, which has to end with the end token; None: any place
            in a text, and all n-grams of up to `length` tokens are results
  length    tokens at most, the end token included
  beams     n-grams that are continued
  unigrams  without an anchor: also the log-probabilities of so many first tokens
  """

  name: str
  anchor: int | None
  length: int
  beams: int
  unigrams: int = 0

  @property
  def start(self) -> tuple[int, ...]:
    """The n-gram that is given, before anything is written."""
    return () if self.anchor is None else (self.anchor,)


@dataclasses.dataclass(frozen=True)
class Plan:
  """The sizes of a view's program; static under jit."""

  view: View
  end: int
  prompt: int  # slots of prompts
  first: Widths
  later: Widths

  @property
  def slots(self) -> int:
    """Slots of the cache; the last token is never read."""
    return self.prompt + self.view.length - 1


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=5)
def search(network, plan, variables, index, start, caches, last_BD, segments_RS):
  """All steps of a batch.

  start    rows [S] of what is given
  caches   of R rows, with the prompts; the M rows of a query are equal
  last_BD  the last hidden state of each prompt

  Returns ({name: array}, caches). Arrays are [length, B, M], the beams of each step: `parent` (a
  beam of the step before), `token`, `score` (-inf: there is no such beam) and the rows `lo`, `hi`
  in the whole collection. With an anchor there are also `end_score`, `end_lo` and `end_hi`, of the
  end token after the beams of the step before; without one and with `unigrams`, `unigram` and
  `unigram_score` [B, U].
  """
  view, B = plan.view, len(last_BD)
  pads_R1 = jnp.sum(segments_RS == 0, axis=1, keepdims=True)
  body, head = generate.operands(network, variables)

  def step(rows, score_BM, hidden_RD, number, widths, more=()):
    logits_RV = network.module.apply(head, hidden_RD, method='logits')
    logits_BMV = logits_RV.reshape(*score_BM.shape, -1)
    depth = len(view.start) + number
    chosen, *single = frontier.choose(
      index, rows, depth, widths, logits_BMV, score_BM, plan.end, (view.beams, *more)
    )
    descend = functools.partial(frontier.descend, index, rows, depth, widths.light)
    rows, chosen = _with_rows(descend, chosen)
    out = chosen._asdict() | {'lo': rows.lo.sum(0), 'hi': rows.hi.sum(0)}
    if view.anchor is not None:
      out |= _ended(plan, descend, score_BM, logits_BMV)
    return rows, chosen, out, single

  def one_token(state, number):
    rows, chosen, caches = state
    caches = jax.tree.map(lambda x: _reordered(x, chosen.parent, plan), caches)
    slot = plan.prompt + number - 1
    hidden_RTD, caches = generate.advance(
      network, variables, body, chosen.token.reshape(-1, 1), slot - pads_R1, caches, segments_RS,
      slot,
    )  # fmt: skip
    rows, chosen, out, _ = step(rows, chosen.score, hidden_RTD[:, 0], number, plan.later)
    return (rows, chosen, caches), out

  rows = Rows(*(jnp.broadcast_to(x[:, None, None], (len(x), B, 1)) for x in start))
  last_BD = layers.constrain(last_BD)
  more = (view.unigrams,) if view.unigrams and view.anchor is None else ()
  rows, chosen, first, single = step(rows, jnp.zeros((B, 1)), last_BD, 0, plan.first, more)
  numbers = jnp.arange(1, view.length)
  (_, _, caches), later = jax.lax.scan(one_token, (rows, chosen, caches), numbers)
  arrays = {name: jnp.concatenate([first[name][None], x]) for name, x in later.items()}
  for best in single:
    arrays |= {'unigram': best.token, 'unigram_score': best.score}
  # The caches are returned so that the loop can work in the memory of those that it was given.
  return arrays, caches


def _reordered(x_RKSE, parent_BM, plan):
  """A cache with each beam's written slots taken from its parent; prompts are the same in all."""
  made = x_RKSE[:, :, plan.prompt :]
  split = made.reshape(*parent_BM.shape, *made.shape[1:])
  moved = jax.vmap(lambda x, parent: x[parent])(split, parent_BM).reshape(made.shape)
  return jax.lax.dynamic_update_slice_in_dim(x_RKSE, moved, plan.prompt, axis=2)


def _with_rows(descend, chosen):
  """The beams that go on, and their rows; a beam that there is not has no rows, and token 0."""
  is_there = chosen.score > -jnp.inf
  chosen = chosen._replace(token=jnp.where(is_there, chosen.token, 0))
  rows = descend(chosen.parent, chosen.token)
  none = Rows(0, 0, LIGHT)
  return Rows(*(jnp.where(is_there[None], x, no) for x, no in zip(rows, none, strict=True))), chosen


def _ended(plan, descend, score_BM, logits_BMV):
  """The beams with the end token, where it follows them."""
  B, M = score_BM.shape
  parent_BM = jnp.broadcast_to(jnp.arange(M), (B, M))
  new = descend(parent_BM, jnp.full((B, M), plan.end))
  lo, hi = new.lo.sum(0), new.hi.sum(0)
  logprob = logits_BMV[..., plan.end] - jax.nn.logsumexp(logits_BMV, axis=-1)
  score = jnp.where(hi > lo, score_BM + logprob, -jnp.inf)

  def padded(x, value):  # the first step has one beam
    return jnp.pad(x, ((0, 0), (0, plan.view.beams - M)), constant_values=value)

  return {'end_score': padded(score, -jnp.inf), 'end_lo': padded(lo, 0), 'end_hi': padded(hi, 0)}
