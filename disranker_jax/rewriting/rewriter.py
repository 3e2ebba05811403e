"""The likeliest rewrites of queries by a trained decoder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from disranker_jax.devices import sharding
from disranker_jax.models.load import TextModel, merged, open_model
from disranker_jax.models.settings import defaults as model_settings
from disranker_jax.rankers.backends import exported
from disranker_jax.rewriting.prompts import RewritePrompt
from disranker_jax.rewriting.queries import Query, searched
from disranker_jax.rewriting.sampling import Sampler

ROWS = 64  # queries that are rewritten together
# Settings of `rewrite` that an exported rewriter records, and what they are where it does not.
RECORDED = {'max_new': 16, 'think': False, 'mode': 'append', 'repeat': 2}
KEY = 'rewrite'  # of these in config.json


@dataclasses.dataclass(frozen=True)
class Rewriter:
  """Writes one rewrite of each query; of several processes all make the same calls.

  Args:
    c: has RECORDED's settings; the section `rewrite` of a config does.
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


@dataclasses.dataclass(frozen=True)
class Recorded:
  """How an exported rewriter writes, see RECORDED."""

  max_new: int
  think: bool
  mode: str
  repeat: int


def record(c) -> dict:
  """What an export records of the section `rewrite`, under KEY."""
  return {name: c[name] for name in RECORDED}


def open_exported(folder: Path, rows: int = ROWS) -> tuple[Rewriter, dict]:
  """The rewriter of an exported folder with its variables, on this process's devices.

  Raises: UserError if the folder has no decoder, or one whose template is not a rewriter's.
  """
  recorded = exported(folder)
  names = ('max_len', 'max_query_len')
  settings = model_settings(model=str(folder), **{n: recorded[n] for n in names if n in recorded})
  settings.template = recorded.get('template', '{query} : {title} : {summary}')
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1}, jax.local_devices())
  model = open_model(settings, 'lm')
  network, variables = merged(model.network, model.pretrained(0, mesh))
  c = Recorded(**RECORDED | recorded.get(KEY, {}))
  return Rewriter.of(dataclasses.replace(model, network=network), c, mesh, rows), variables
