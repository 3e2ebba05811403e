"""The likeliest rewrites of queries by a trained decoder."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from disranker_jax.config.settings import Key, Section, at_least, between, boolean, one_of
from disranker_jax.models.load import TextModel
from disranker_jax.rewriting.prompts import RewritePrompt
from disranker_jax.rewriting.queries import MODES, has_words, searched
from disranker_jax.rewriting.sampling import Sampler

ROWS = 64  # queries that are rewritten together
# How a rewrite is written and searched; the section `rewrite` of the config has these keys.
SETTINGS: Section = {
  'max_new': Key(16, at_least(1), 'Tokens of a rewrite; one that has not ended is cut off.'),
  'mode': Key(
    'append', one_of(*MODES),
    "What is searched: 'append' is the query, `repeat` times, and the rewrite; 'replace' is the "
    'rewrite alone.',
  ),
  'repeat': Key(2, between(1, 100), "How often 'append' has the query."),
  'think': Key(
    False, boolean(),
    'The rewrite is what <answer> holds after <think>...</think>; one without them fails.',
  ),
}  # fmt: skip


class Rewritten(NamedTuple):
  """A rewrite, '' if the model wrote none, and what the search engine is given for the query."""

  rewrite: str
  searched: str


@dataclasses.dataclass(frozen=True)
class Rewriter:
  """Writes one rewrite of each query; of several processes all make the same calls.

  Args:
    c: has the keys of SETTINGS, as the section `rewrite` of a config.
  """

  sampler: Sampler
  prompt: RewritePrompt
  c: object

  @classmethod
  def of(cls, model: TextModel, c, mesh, rows: int = ROWS) -> 'Rewriter':
    """A rewriter with the model's prompt. Raises: UserError as RewritePrompt does."""
    prompt = RewritePrompt(model, model.settings.max_len - c.max_new)
    longest = prompt.longest
    greedy = Sampler(model.network, mesh, prompt.stops, rows, longest, c.max_new, temperature=0.0)
    return cls(greedy, prompt, c)

  def __call__(self, variables: dict, queries: Sequence[str]) -> list[str]:
    """The rewrites, '' where a completion has none."""
    prompts = [self.prompt(query) for query in queries]
    # Greedy samples have no draws that a step or a number could change.
    drawn = self.sampler(variables, prompts, [0] * len(prompts), step=0)
    return self.prompt.texts([sample.ids for [sample] in drawn], self.c.think)

  def rewritten(self, variables: dict, queries: Sequence[str]) -> list[Rewritten]:
    """The rewrites, '' also where one has no word, with what the search engine is given."""
    return together(queries, self(variables, queries), self.c.mode, self.c.repeat)


def together(
  queries: Sequence[str], rewrites: Sequence[str], mode: str, repeat: int
) -> list[Rewritten]:
  """Rewrites of queries with what is searched, see `queries.searched`."""
  kept = [rewrite if has_words(rewrite) else '' for rewrite in rewrites]  # which is not searched
  return [
    Rewritten(rewrite, searched(query, rewrite, mode, repeat))
    for query, rewrite in zip(queries, kept, strict=True)
  ]
