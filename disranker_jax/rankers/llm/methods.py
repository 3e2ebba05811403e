"""The methods by name: which algorithm, which contract, and what its scores are good for."""

import dataclasses
import math
from collections.abc import Callable

from disranker_jax.data import named_contracts
from disranker_jax.data.contracts import Contract
from disranker_jax.errors import UserError
from disranker_jax.rankers.llm import listwise, pairwise, pointwise, setwise
from disranker_jax.rankers.llm.asking import Steps


@dataclasses.dataclass(frozen=True)
class Options:
  """The settings of algorithms; each reads those that it has.

  window    documents of a listwise prompt
  stride    how far apart windows begin
  passes    of windows
  top       documents that a sort brings into order; the others keep the first stage's order
  children  documents that a setwise prompt compares with another one
  """

  window: int = 20
  stride: int = 10
  passes: int = 1
  top: int = 10
  children: int = 3

  def __post_init__(self):
    for name, least in (('window', 2), ('stride', 1), ('passes', 1), ('top', 1), ('children', 2)):
      if getattr(self, name) < least:
        raise UserError(f'{name}: is {getattr(self, name)}; must be {least} or more')
    if self.stride > self.window:
      raise UserError(f'stride: is {self.stride}; must be at most the window, {self.window}')


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to rank documents by prompts.

  contract  the contract that it uses unless another one is named
  gives     what its scores are: a key of GIVES
  docs      options -> documents of a prompt
  steps     (number of documents, options, contract) -> the algorithm for a query
  reads     what answers a prompt: 'labels', 'permutation' or 'text'
  prompts   (number of documents, options) -> prompts per query, about
  """

  name: str
  title: str
  contract: str
  gives: str
  docs: Callable[[Options], int]
  steps: Callable[[int, Options, Contract], Steps]
  prompts: Callable[[int, Options], float]
  reads: str = 'labels'


@dataclasses.dataclass(frozen=True)
class Gives:
  """What the scores of methods are, and how a student learns from them.

  text           what they are, and the losses that fit, for people
  learn          a loss that fits: distill.loss and distill.normalize_scores
  comparable     whether a score means the same in every query
  has_distances  whether differences of scores mean something, or their order alone
  """

  text: str
  learn: tuple[str, str]
  comparable: bool = False
  has_distances: bool = True


GIVES = {
  'odds': Gives("log-odds, grades or logits: loss 'hybrid'", ('hybrid', ''), comparable=True),
  'likelihood': Gives(
    "log-likelihoods: loss 'hybrid' with normalize_scores 'query', or 'margin_mse'",
    ('hybrid', 'query'),
  ),
  'points': Gives(
    "points: loss 'hybrid' with normalize_scores 'query', or 'ranknet'", ('hybrid', 'query')
  ),
  'window': Gives("log-probabilities of a window: loss 'listwise_kl'", ('listwise_kl', '')),
  'order': Gives(
    "positions: loss 'ranknet' or 'adr_mse'; never 'point_mse' or 'margin_mse'",
    ('ranknet', ''), has_distances=False,
  ),
}  # fmt: skip


def _pointwise(name: str, title: str, gives: str = 'odds') -> Method:
  return Method(
    name, title, name, gives, lambda o: 1, lambda n, o, c: pointwise.each_alone(n, c.formula),
    lambda n, o: n,
  )  # fmt: skip


def _pairs(name: str, title: str, gives: str, steps, prompts) -> Method:
  return Method(name, title, 'prp', gives, lambda o: 2, lambda n, o, c: steps(n, o), prompts)


def _sifts(n: int, o: Options, arity: int) -> float:
  """Nodes that a heapsort passes after the heap is built, about; the heap shrinks meanwhile."""
  top = min(o.top, n)
  return top * (1 - top / (2 * n)) * math.log(n, arity) if n > 1 else 0.0


def _windows(n: int, o: Options) -> float:
  return o.passes * len(listwise.spans(n, o.window, o.stride))


def _text_steps(n: int, o: Options, c: Contract) -> Steps:
  identifiers = [label.strip() for label in c.labels]
  read = listwise.by_text(identifiers, c.answer)
  return listwise.windows(n, o.window, o.stride, o.passes, read)


METHODS = {
  method.name: method
  for method in (
    _pointwise('yes_no', 'pointwise yes/no'),
    _pointwise('graded', 'pointwise grades'),
    _pointwise('query_likelihood', 'query likelihood', 'likelihood'),
    _pointwise('qwen3_reranker', 'Qwen3-Reranker'),
    _pointwise('qwen3_reranker_vllm', 'Qwen3-Reranker (vLLM)'),
    _pointwise('zerank', 'zerank'),
    _pointwise('mxbai_v2', 'mxbai-rerank-v2'),
    _pointwise('bge_gemma', 'bge-reranker-v2-gemma'),
    _pointwise('rankllama_v1', 'RankLLaMA'),
    _pointwise('rankllama_tevatron', 'RankLLaMA (Tevatron)'),
    _pointwise('rankllama_paper', 'RankLLaMA (paper)'),
    _pairs(
      'prp_allpair', 'PRP, all pairs', 'points',
      lambda n, o: pairwise.allpair(n), lambda n, o: n * (n - 1),
    ),
    _pairs(
      'prp_allpair_soft', 'PRP, all pairs, soft', 'points',
      lambda n, o: pairwise.allpair(n, soft=True), lambda n, o: n * (n - 1),
    ),
    _pairs(
      'prp_heapsort', 'PRP, heapsort', 'order',
      lambda n, o: pairwise.heapsort(n, o.top),
      lambda n, o: 2 * (1.5 * n + 1.4 * _sifts(n, o, 2)),
    ),
    _pairs(
      'prp_sliding', 'PRP, sliding', 'order',
      lambda n, o: pairwise.sliding(n, o.top),
      lambda n, o: 2 * sum(range(max(n - o.top, 0), n)),
    ),
    Method(
      'setwise', 'setwise, one window', 'setwise', 'window', lambda o: o.window,
      lambda n, o, c: listwise.at_once(n, o.window, o.stride, o.passes), _windows,
    ),
    Method(
      'setwise_heapsort', 'setwise heapsort', 'setwise', 'order', lambda o: o.children + 1,
      lambda n, o, c: setwise.heapsort(n, o.top, o.children),
      lambda n, o: n / o.children + _sifts(n, o, o.children),
    ),
    Method(
      'setwise_bubblesort', 'setwise bubblesort', 'setwise', 'order', lambda o: o.children + 1,
      lambda n, o, c: setwise.bubblesort(n, o.top, o.children),
      lambda n, o: sum(math.ceil((n - 1 - i) / o.children) for i in range(min(o.top, n))),
    ),
    Method(
      'listwise', 'listwise, label logits', 'listwise', 'window', lambda o: o.window,
      lambda n, o, c: listwise.at_once(n, o.window, o.stride, o.passes), _windows,
    ),
    Method(
      'first', 'FIRST', 'first', 'window', lambda o: o.window,
      lambda n, o, c: listwise.at_once(n, o.window, o.stride, o.passes), _windows,
    ),
    Method(
      'listwise_permutation', 'listwise, constrained decoding', 'listwise', 'order',
      lambda o: o.window,
      lambda n, o, c: listwise.windows(n, o.window, o.stride, o.passes, listwise.as_decoded),
      _windows, 'permutation',
    ),
    Method(
      'listwise_text', 'listwise, free decoding', 'rankzephyr', 'order', lambda o: o.window,
      _text_steps, _windows, 'text',
    ),
  )
}  # fmt: skip


def find(name: str) -> Method:
  """Raises: UserError for a name that is none."""
  if name not in METHODS:
    raise UserError(f'method {name!r}: there is none of this name; choose of {", ".join(METHODS)}')
  return METHODS[name]


def contract_of(method: Method, name: str = '', **changes) -> Contract:
  """The contract of a method, or another one by name or file; with some fields changed.

  Raises: UserError if it does not fit the method.
  """
  found = named_contracts.find(name or method.contract, **changes)
  own = named_contracts.NAMED[method.contract]
  if found.several != own.several:
    wants = 'several documents ({documents})' if own.several else 'one document'
    raise UserError(
      f'contract {found.name!r}: method {method.name!r} needs one with {wants} per prompt'
    )
  if method.reads == 'permutation' and not found.separator:
    raise UserError(
      f'contract {found.name!r}: has no separator, which method {method.name!r} writes between '
      'labels; set it'
    )
  return found


def window_of(contract: Contract) -> int:
  """The default window: that of Options, or as many documents as the contract has labels."""
  return min(Options.window, contract.most) if contract.several else Options.window


def check_size(method: Method, options: Options, contract: Contract) -> None:
  """Raises: UserError if prompts have more documents than the contract has labels."""
  docs = method.docs(options)
  if docs > contract.most:
    raise UserError(
      f'contract {contract.name!r}: a prompt has at most {contract.most} documents, not {docs}; '
      'take a smaller window or fewer children, or a contract with more labels'
    )
