"""Hides tokens of a text, which a bidirectional decoder learns to name.

Masked next-token prediction (LLM2Vec, BehnamGhader et al. 2024, section 2.2): as in BERT's masked
language modelling, but a token is predicted at the position before it, as the decoder is used to.
"""

import dataclasses

import numpy as np

from disranker_jax.data.encoded import Encoded
from disranker_jax.errors import UserError

# Of the chosen tokens BERT hides 80 %, replaces 10 % by random ones, and leaves 10 %.
HIDDEN, RANDOM = 0.8, 0.1
RULES = ('bert', 'all')


@dataclasses.dataclass(frozen=True)
class Masking:
  """How tokens are hidden.

  Args:
    token: the id that stands for a hidden token.
    vocabulary: the size of the table of tokens.
    special: ids that are never hidden.
    share: of the other tokens, how many are chosen.
    rule: 'bert', or 'all': every chosen token is hidden (LLM2Vec's setting for Mistral).
  """

  token: int
  vocabulary: int
  special: frozenset[int]
  share: float = 0.2
  rule: str = 'bert'

  def __call__(self, text: Encoded, rng: np.random.Generator) -> Encoded:
    """The text with hidden tokens, at least one; `targets` has what they were."""
    free = np.flatnonzero(~np.isin(text.ids, list(self.special)))
    free = free[free > 0]  # nothing predicts the first token
    if not len(free):
      return dataclasses.replace(text, targets=np.zeros((2, 0), np.int32))
    chosen = np.sort(rng.permutation(free)[: max(1, round(self.share * len(free)))])
    ids, draws = text.ids.copy(), rng.random(len(chosen))
    hidden = draws < HIDDEN if self.rule == 'bert' else np.ones(len(chosen), bool)
    other = ~hidden & (draws < HIDDEN + RANDOM)
    ids[chosen[hidden]] = self.token
    ids[chosen[other]] = rng.integers(0, self.vocabulary, other.sum())
    targets = np.stack([chosen, text.ids[chosen]]).astype(np.int32)
    return dataclasses.replace(text, ids=ids, targets=targets)


def masking(tokenizer, vocabulary: int, token: str, share: float, rule: str) -> Masking:
  """The masking of a tokenizer. Raises: UserError if `token` is not one token of it."""
  if tokenizer is None:  # random ids of a bench
    return Masking(0, vocabulary, frozenset(), share, rule)
  ids = tokenizer.encode(token, add_special_tokens=False)
  if len(ids) != 1:
    raise UserError(
      f'config.cpt.mask_token={token!r}: is {len(ids)} tokens of this tokenizer '
      f"({tokenizer.convert_ids_to_tokens(ids)}); name one that it has, such as '_'"
    )
  return Masking(ids[0], vocabulary, frozenset(tokenizer.all_special_ids), share, rule)
