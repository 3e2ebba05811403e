"""LLM rankers in a plan: how many prompts a query takes, how long they are, how much is decoded."""

import dataclasses
import math

from ml_collections import ConfigDict

from disranker_jax.data.contract_prompts import ExpectedPrompt
from disranker_jax.data.source import DEPTH
from disranker_jax.rankers.llm.ranker import Plan
from disranker_jax.stages import prompting

# Tokens of a document in the text of an answer, such as '[12] > ', and of the rest of it.
ANSWER_TOKENS, MORE_TOKENS = 6, 8


@dataclasses.dataclass(frozen=True)
class Asked:
  """What an LLM ranker asks about each query.

  documents  of a query: config.score.group_size or config.data.depth, else 20
  """

  section: str
  method: str
  todo: Plan
  documents: int

  @property
  def expected(self) -> ExpectedPrompt:
    """The prompts without a tokenizer."""
    t = self.todo
    return ExpectedPrompt(t.contract, t.method.docs(t.options), t.query_tokens, t.doc_tokens)

  @property
  def per_query(self) -> float:
    """Prompts of a query, about."""
    return self.todo.method.prompts(self.documents, self.todo.options)

  @property
  def decodes(self) -> bool:
    return self.todo.method.reads != 'labels'

  @property
  def row_len(self) -> int:
    """Tokens of a row; decoding has a prompt in each row, and labels are read from packed ones."""
    return self.expected.max_len if self.decodes else self.todo.row_len(self.expected)

  @property
  def passes(self) -> int:
    """Passes over the parameters after that over the prompts, for a batch."""
    docs = self.expected.docs
    kinds = {'permutation': docs - 1, 'text': MORE_TOKENS + ANSWER_TOKENS * docs}
    return kinds.get(self.todo.method.reads, 0)

  def per_step(self, rows: int, row_len: int, tokens: int) -> int:
    """Prompts of a batch, of so many tokens each."""
    return rows * (1 if self.decodes else max(1, row_len // tokens))

  def steps(self, pairs: int, per_step: int) -> int:
    """Batches for the documents of all queries."""
    return max(1, math.ceil(pairs / self.documents * self.per_query / per_step))


def names(config: ConfigDict) -> list[str]:
  """What of the stage evaluate can be planned; nothing in a system without LLM rankers."""
  return [f'evaluate:{method}' for method in config.get('evaluate', {}).get('rankers', ())]


def find(config: ConfigDict, name: str) -> Asked | None:
  """What a planned stage asks; None if no LLM ranker is in it. Raises: UserError."""
  section, _, method = name.partition(':')
  method = method or (config.score.method if section == 'score' else '')
  if not method:
    return None
  documents = config[section].get('group_size', 0) or config.data.depth or DEPTH
  todo = prompting.plan(config, section, method).fitted(documents)
  return Asked(section, method, todo, documents)
