"""Ranking and distillation losses: pure functions of scores, targets and a mask.

A public loss is called `(scores_GN, targets_GN, mask_GN, **settings) -> scalar`; its `per_group`
attribute, called the same way, gives `(loss_G, valid_G)`; `learns` of a loss on a teacher's scores
says what it learns of them, see `common.learns`. Shapes: G queries (groups), N documents per query;
`mask_GN` is True for real documents.

Every loss is first a value per query, then the mean over valid queries: a query with many documents
weighs no more than one with few, and gradient accumulation adds (sum, weight) over micro-batches
exactly. Ties, padding, single documents and queries with equal labels give finite values and
gradients. Neither padding nor the order of documents changes a value: where tied documents need a
rank they share their mean rank. A query without anything to learn from is not valid.

In formulas s is a score, y a grade (its gain is 2^y - 1), t a teacher's score, r a rank from 1.

A new loss is a function in one of the modules, imported here into one of the two tables; on
a teacher's scores it has `learns`. The tests of all invariants above run over the tables; add its
formula to tests/losses_reference.py.
"""

import difflib
import functools
import inspect
import math
from collections.abc import Callable

from disranker_jax.errors import UserError
from disranker_jax.losses.common import differences as differences
from disranker_jax.losses.common import mean_over_groups as mean_over_groups
from disranker_jax.losses.common import preferred as preferred
from disranker_jax.losses.distillation import adr_mse, distilled_ranknet, hybrid, margin_mse
from disranker_jax.losses.layers import hidden_mse as hidden_mse
from disranker_jax.losses.layers import layer_pairs as layer_pairs
from disranker_jax.losses.listwise import (
  approx_ndcg,
  info_nce,
  lambda_loss,
  listwise_kl,
  perplexity_nce,
  softmax_ce,
)
from disranker_jax.losses.pairwise import pairwise_hinge, ranknet
from disranker_jax.losses.pointwise import point_mse, pointwise_ce

# Losses on labels: sft.loss, student_sft.loss, distill.hard_loss.
ON_LABELS = {
  'pairwise_hinge': pairwise_hinge,
  'ranknet': ranknet,
  'lambda_loss': lambda_loss,
  'approx_ndcg': approx_ndcg,
  'info_nce': info_nce,
  'perplexity_nce': perplexity_nce,
  'softmax_ce': softmax_ce,
  'listwise_kl': listwise_kl,
  'pointwise_ce': pointwise_ce,
}
# Losses on a teacher's scores: distill.loss.
ON_SCORES = {
  'hybrid': hybrid,
  'point_mse': point_mse,
  'margin_mse': margin_mse,
  'listwise_kl': listwise_kl,
  'adr_mse': adr_mse,
  'ranknet': ranknet,
  'pairwise_hinge': pairwise_hinge,
  'distilled_ranknet': distilled_ranknet,
}
# Settings that a loss divides by.
DIVISORS = ('temperature', 'student_temperature', 'teacher_temperature', 'top')


def settings(loss: Callable) -> dict[str, float | int]:
  """The settings of a loss with their defaults."""
  parameters = inspect.signature(loss).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def choose(table: dict[str, Callable], spec: str, key: str = 'loss', **shared) -> Callable:
  """The `per_group` of the loss that a config names, with its settings filled in.

  Args:
    table: ON_LABELS or ON_SCORES.
    spec: 'name' or 'name?setting=value&setting=value'.
    key: the config key, for messages.
    shared: settings with a config key of their own (margin, beta), for losses that have them.

  Raises: UserError for an unknown loss or setting, and for an impossible value.
  """
  where, (name, _, options) = f'config.{key}={spec!r}', spec.partition('?')
  known = settings(table[_one_of(table, name, where)])
  chosen = known | {k: v for k, v in shared.items() if k in known}
  for option in options.split('&') if options else ():
    setting, _, text = option.partition('=')
    kind = type(known[_one_of(known, setting, where)])
    try:
      chosen[setting] = kind(text)
    except ValueError:
      raise UserError(f'{where}: {setting} cannot be {text!r}') from None
  for setting, value in chosen.items():
    if not 0 <= value < math.inf or (value == 0 and setting in DIVISORS):
      low = 'above 0' if setting in DIVISORS else '0 or more'
      raise UserError(f'{where}: {setting}={value} must be {low}')
  return functools.partial(table[name].per_group, **chosen)


def _one_of(known: dict, word: str, where: str) -> str:
  if word in known:
    return word
  near = difflib.get_close_matches(word, known, 1)
  every = ', '.join(map(repr, known)) or 'none'
  hint = f'did you mean {near[0]!r}?' if near else f'there are {every}'
  raise UserError(f'{where}: {word!r} is unknown; {hint}')
