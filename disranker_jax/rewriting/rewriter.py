"""The likeliest rewrites of queries by a trained decoder."""

import dataclasses
from collections.abc import Sequence

from disranker_jax.config.settings import Key, Section, at_least, between, boolean, one_of
from disranker_jax.models.load import TextModel
from disranker_jax.rewriting.prompts import RewritePrompt
from disranker_jax.rewriting.queries import MODES, Query, searched
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

  def searched(self, variables: dict, queries: Sequence[Query]) -> list[str]:
    """What the search engine is given for each query."""
    rewrites = self(variables, [query.text for query in queries])
    return [
      searched(query.text, rewrite, self.c.mode, self.c.repeat)
      for query, rewrite in zip(queries, rewrites, strict=True)
    ]
