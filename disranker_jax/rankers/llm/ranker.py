"""A model that ranks by prompts: the method, its contract, and the devices, as one object."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from disranker_jax.data.contract_prompts import ContractPrompt
from disranker_jax.data.contracts import Contract
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.records import Group
from disranker_jax.devices import memory, processes
from disranker_jax.errors import UserError
from disranker_jax.models import eight_bits, families, hf, weights
from disranker_jax.models.load import TextModel, is_language_model, merged, open_model
from disranker_jax.models.settings import defaults as model_settings
from disranker_jax.rankers.llm import batches, scheduler
from disranker_jax.rankers.llm.asking import Docs
from disranker_jax.rankers.llm.methods import Method, Options

ROW_MULTIPLE = 64  # the length of rows is rounded up to this
# Rows hold two of the longest prompts, up to this length: rows of one are a quarter padding, and
# longer ones cost more attention.
LONG_ROW = 1024
SEQUENTIAL_UNIT = 64  # queries that share batches where each has few prompts at a time
ANSWERING = {
  'labels': batches.LabelLogits, 'permutation': batches.PermutedLabels, 'text': batches.Texts,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
  """What decides the scores of an LLM ranker, apart from the model's parameters.

  Args:
    query_tokens, doc_tokens: longer queries and documents lose their ends.
    longest: the most documents of a query.
  """

  method: Method
  contract: Contract
  options: Options
  query_tokens: int = 64
  doc_tokens: int = 128

  def prompt(self, tokenizer) -> ContractPrompt:
    """Raises: UserError if the tokenizer does not fit the contract."""
    docs = self.method.docs(self.options)
    made = ContractPrompt(self.contract, tokenizer, docs, self.query_tokens, self.doc_tokens)
    if self.method.reads != 'text':
      _ = made.label_ids  # so that labels of several tokens are an error now
    return made

  def row_len(self, prompt: ContractPrompt) -> int:
    """Tokens of a row."""
    two = min(2 * prompt.max_len, max(prompt.max_len, LONG_ROW))
    return -(-two // ROW_MULTIPLE) * ROW_MULTIPLE

  @property
  def head(self) -> str:
    """The head that the network needs."""
    return 'rank' if self.contract.formula == 'head' else 'lm'

  def fitted(self, longest: int) -> 'Plan':
    """With a window no larger than any query, since memory grows with the window."""
    o = self.options
    window = max(2, min(o.window, longest))
    options = dataclasses.replace(o, window=window, stride=min(o.stride, window))
    return dataclasses.replace(self, options=options)

  def to_dict(self) -> dict:
    """For fingerprints: all that changes a score."""
    return {
      'method': self.method.name,
      'contract': self.contract.to_dict(),
      'options': dataclasses.asdict(self.options),
      'query_tokens': self.query_tokens,
      'doc_tokens': self.doc_tokens,
    }


def open_for(plan: Plan, name: str | Path, **settings) -> tuple[TextModel, ContractPrompt]:
  """(model without parameters, prompt) of a model.

  Raises: UserError if the model is none, or cannot read the plan's prompts.
  """
  folder = weights.find(name)
  # The lengths follow from the prompt, which needs the tokenizer.
  opening = model_settings(model=str(folder), max_len=8, row_len=8, **settings)
  if not is_language_model(folder):
    model_type = hf.open_config(folder).model_type
    raise UserError(f'{folder}: is a {model_type} model, which answers no prompts; name a decoder')
  model = open_model(opening, plan.head)
  prompt = plan.prompt(model.tokenizer)
  check_length(plan, prompt, model.network.config, folder)
  check_head(plan, model.network, folder)
  longest = plan.row_len(prompt)
  model.settings.update({'max_len': longest, 'row_len': longest})
  return model, prompt


def check_length(plan: Plan, prompt: ContractPrompt, config: families.Config, folder: Path) -> None:
  """Raises: UserError for a model whose context is too short."""
  most = families.find(config.model_type).max_len(config)
  if prompt.max_len > most:
    docs = f'{prompt.docs} documents' if prompt.docs > 1 else 'a document'
    smaller = 'window or doc_tokens' if prompt.docs > 1 else 'doc_tokens'
    raise UserError(
      f'{folder}: reads at most {most:,} tokens, but a prompt with {docs} of {plan.doc_tokens} '
      f'tokens can have {prompt.max_len:,}; lower {smaller}'
    )


def check_head(plan: Plan, network, folder: Path) -> None:
  """Raises: UserError for a folder that lacks the head that the contract reads."""
  if plan.head == 'lm' and not network.causal:
    raise UserError(
      f'{folder}: is bidirectional, so it has no next-token logits, which contract '
      f'{plan.contract.name!r} reads; name a causal model'
    )
  if plan.head == 'rank' and hf.lacking(folder, network):
    raise UserError(
      f'{folder}: has no trained head (score.weight), which contract {plan.contract.name!r} '
      'reads; name a model that has one, or a contract with labels'
    )


@dataclasses.dataclass(frozen=True)
class Ranked:
  """The result for a query: scores_N float32 in the order of its documents, and counts."""

  scores: np.ndarray
  counts: dict[str, int]


class LLMRanker:
  """Ranks groups by prompts; a `Ranker`.

  `rows` is the number of rows of a batch, which have as many tokens as the longest prompt. With
  `quantize` kernels are of 8 bits, and those of `variables` are deleted.

  Of several processes each ranks groups of its own with all parameters, on a `mesh` of its own
  devices (sharding.local): how many prompts follow one another differs between queries, so they
  cannot step together. At the end they wait for each other.
  """

  def __init__(
    self, plan: Plan, network, variables, prompt: ContractPrompt, mesh, rows: int,
    live: int = scheduler.LIVE, quantize: str = '',
  ):  # fmt: skip
    self.network, variables = merged(network, variables)
    variables = eight_bits.quantised(variables, quantize)
    self.plan, self.prompt, self._live = plan, prompt, live
    self.rows, self.row_len = rows, plan.row_len(prompt)
    more = (self.row_len,) if plan.method.reads == 'labels' else ()
    kind = ANSWERING[plan.method.reads]
    self._answering = kind(self.network, variables, prompt, mesh, rows, *more)
    self.work = self._answering.work
    self.queries = 0
    self.counts: list[dict[str, int]] = []  # of each query that is ranked

  def __call__(self, groups: Iterable[Group]) -> Iterator[tuple[Group, np.ndarray]]:
    """See Ranker."""
    for _, group, ranked in self.ranked([(None, groups)]):
      yield group, ranked.scores

  def ranked(
    self, parts: Iterable[tuple[object, Iterable[Group]]]
  ) -> Iterator[tuple[object, Group, Ranked]]:
    """(part, group, result) for the groups of several parts, in order.

    A part shares no batches with others, so its results do not depend on them to the last bit.

    Raises: Stopped in every process after SIGTERM or Ctrl-C in one, when the others have ranked
    their groups; UserError without enough device memory.
    """
    lower = 'take fewer rows per batch, shorter documents or smaller windows'
    with (
      memory.limited('ranking', self._answering.needs, lower),
      processes.StopRequest() as request,
    ):
      self.work.begin()
      for part, groups in parts:
        run = scheduler.Scheduler(
          self._answering, self._start, self._encode, self._live, lambda: bool(request)
        )
        for query in run(groups):
          self.work.scored += len(query.group.docs)
          self.queries += 1
          ranked = _ranked(query)
          self.counts.append(ranked.counts)
          yield part, query.group, ranked
        if request:
          break
      # A barrier waits for days, a collective does not on every platform.
      processes.barrier('ranking: all have ranked')
      if processes.any_of(bool(request)):
        raise request.stopped('ranking: stopped')

  def _start(self, group: Group):
    return self.plan.method.steps(len(group.docs), self.plan.options, self.plan.contract)

  def _encode(self, group: Group, asked: list[Docs]) -> list[Encoded]:
    docs = [group.docs[i] for i in places(group)]
    return self.prompt.encode_many([(group.query, [docs[i] for i in each]) for each in asked])

  def parts(
    self, parts: Iterable[tuple[object, Iterable[Group]]]
  ) -> Iterator[tuple[object, Group, np.ndarray, dict[str, int]]]:
    """As `ranked`: (part, group, scores_N, counts)."""
    for part, group, ranked in self.ranked(parts):
      yield part, group, ranked.scores, ranked.counts

  @property
  def least_unit(self) -> int:
    """Queries that are ranked together, at least: prompts of a sort follow one another."""
    return SEQUENTIAL_UNIT if self.plan.method.gives == 'order' else 1

  def tokens_of(self, group: Group) -> float:
    """Tokens that ranking a query takes, about."""
    docs = [group.docs[i] for i in places(group)][: self.prompt.docs]
    if not docs:
      return 0.0
    [encoded] = self.prompt.encode_many([(group.query, docs)])
    return self.plan.method.prompts(len(group.docs), self.plan.options) * len(encoded)

  @property
  def positions(self) -> int:
    """Tokens that a batch holds, padding included."""
    return self.rows * self.row_len

  @property
  def ms_per_query(self) -> float:
    """Milliseconds of the devices per query."""
    return self.work.ms_per(self.queries)


def places(group: Group) -> list[int]:
  """The documents in the order in which algorithms get them: by rank, then by id.

  Not in the order of the data, which may be that of the labels: ties keep this order.
  """
  last = len(group.docs) + max((doc.rank for doc in group.docs), default=0)
  keys = [(doc.rank or last, doc.doc_id) for doc in group.docs]
  return sorted(range(len(keys)), key=keys.__getitem__)


def _ranked(query: scheduler.Query) -> Ranked:
  scores = np.zeros(len(query.group.docs), np.float32)
  scores[places(query.group)] = query.outcome.scores
  n = len(scores)
  pairs = {'queries': 1, 'documents': n, 'pairs': n * (n - 1) // 2, 'tied': query.outcome.tied}
  return Ranked(scores, pairs | dict(query.counts))
