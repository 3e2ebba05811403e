"""Fuses rankings of the same queries, such as a model's with the first stage's.

A document's fused score is a weighted sum over the rankings, per query. What is added up:
  ranks    1 / (60 + rank): reciprocal rank fusion (Cormack et al., SIGIR 2009)
  scores   the score, scaled to 0..1 over the query's documents (min-max)
  zscores  the score, scaled to mean 0 and standard deviation 1 over the query's documents

With weights that add up to 1, sums of scaled scores are the convex combination of Bruch et al. ("An
Analysis of Fusion Functions for Hybrid Retrieval", TOIS 2023): shifts and positive factors of a
ranking's scores change nothing. If all scores of a query are equal, they are scaled to 0.

A document that a ranking lacks gets what its last document gets; by ranks it gets 0. If the scores
of all others are equal, they get 1 and it gets 0. Documents are named by any key, such as an id or
an index.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.progress import amount

K = 60  # the paper's constant, and the default of search engines that offer this fusion
DEFAULT = 0.5  # the model's weight where there is nothing to choose it by
STEPS = 20  # weights that are tried: 0, .05, ... 1
METRIC = 'ndcg@5'  # by which a weight is chosen
SIGNALS = ('scores', 'ranks')  # what is known of a first stage

Scores = Mapping[Hashable, float]


def of_ranks(ranks: Mapping[Hashable, int]) -> dict[Hashable, float]:
  """{doc: 1 / (60 + rank)} of given ranks, which begin at 1."""
  return {doc: 1 / (K + rank) for doc, rank in ranks.items()}


def reciprocal_ranks(scores: Scores) -> dict[Hashable, float]:
  """{doc: 1 / (60 + rank)}; of equal scores the greater id is first, as in metrics."""
  return of_ranks({doc: rank for rank, doc in enumerate(metrics.ranked(scores), 1)})


def min_max(scores: Scores) -> dict[Hashable, float]:
  """{doc: score} scaled to 0..1; all 0 if all scores are equal."""
  # Halves, because the difference of two large numbers can be infinite.
  low, high = min(scores.values()) / 2, max(scores.values()) / 2
  return {doc: (score / 2 - low) / ((high - low) or 1) for doc, score in scores.items()}


def z_scores(scores: Scores) -> dict[Hashable, float]:
  """{doc: score} with mean 0 and standard deviation 1; all 0 if all scores are equal."""
  scaled = min_max(scores)
  mean, deviation = statistics.fmean(scaled.values()), statistics.pstdev(scaled.values())
  return {doc: (score - mean) / (deviation or 1) for doc, score in scaled.items()}


METHODS: dict[str, Callable[[Scores], dict[Hashable, float]]] = {
  'ranks': reciprocal_ranks, 'scores': min_max, 'zscores': z_scores,
}  # fmt: skip


def fuse(
  rankings: Sequence[Scores], weights: Sequence[float], method: str = 'scores'
) -> dict[Hashable, float]:
  """{doc: fused score} of the documents of one query that at least one ranking has."""
  fused: dict[Hashable, float] = dict.fromkeys((doc for r in rankings for doc in r), 0.0)
  for ranking, weight in zip(rankings, weights, strict=True):
    if ranking:
      for doc, value in addends(ranking, fused, method).items():
        fused[doc] += weight * value
  return fused


def addends(ranking: Scores, docs: Collection[Hashable], method: str) -> dict[Hashable, float]:
  """What a ranking adds to each document before it is weighted, to those that it lacks, too."""
  values = METHODS[method](ranking)
  lowest, highest = min(values.values()), max(values.values())
  if method == 'ranks':
    lowest = 0.0
  elif lowest == highest and len(values) < len(docs):
    # All that it says is which documents it found.
    return {doc: float(doc in values) for doc in docs}
  return {doc: values.get(doc, lowest) for doc in docs}


def fuse_runs(
  runs: Sequence[metrics.Run], weights: Sequence[float], method: str = 'ranks'
) -> dict[str, dict[str, float]]:
  """{query_id: {doc_id: fused score}} of the queries that at least one run has."""
  queries = dict.fromkeys(query for run in runs for query in run)
  return {query: fuse([run.get(query, {}) for run in runs], weights, method) for query in queries}


def convex(
  model: Scores, first: Scores, weight: float, method: str = 'scores'
) -> dict[Hashable, float]:
  """{doc: weight * the model's scaled score + (1 - weight) * the first stage's}."""
  return fuse((model, first), (weight, 1 - weight), method)


def choose(
  models: metrics.Run, firsts: metrics.Run, qrels: metrics.Qrels, method: str = 'scores'
) -> tuple[float, dict[float, float]]:
  """(the model's weight with the best mean nDCG@5, {weight: nDCG@5}), over the judged queries.

  Of equal ones the nearest to .5 is taken, of two that are equally near the smaller.
  """
  value, found = metrics.formula(METRIC), {}
  for step in range(STEPS + 1):
    weight = step / STEPS
    of_queries = [
      value(convex(models.get(q, {}), firsts.get(q, {}), weight, method), grades)
      for q, grades in qrels.items()
    ]
    found[weight] = math.fsum(of_queries) / max(len(of_queries), 1)
  best = max(found.values())
  equal = [weight for weight, mean in found.items() if math.isclose(mean, best, abs_tol=1e-9)]
  # Rounded, because .7 is a little nearer to .5 than .3 is.
  return min(equal, key=lambda weight: (round(abs(weight - DEFAULT), 6), weight)), found


@dataclasses.dataclass(frozen=True)
class Fusion:
  """How a model is fused with the first stage, as its exported folder records it.

  weight       the model's, 0 to 1; the first stage has the rest
  signal       what is known of the first stage: 'scores' or 'ranks'
  queries      held-out training queries by which the weight was chosen; 0: it is the default
  fused, model, first_stage  their mean nDCG@5 on these queries
  """

  weight: float
  signal: str = 'scores'
  queries: int = 0
  fused: float = 0.0
  model: float = 0.0
  first_stage: float = 0.0

  @property
  def text(self) -> str:
    """The weight and where it is from."""
    said = f"weight {self.weight:g} of the model's scores, {1 - self.weight:.2g} of the first stage"
    said = f'{said} (its {self.signal}), '
    if not self.queries:
      return f'{said}the default: there were too few held-out queries to choose it'
    return (
      f'{said}chosen on '
      f'{amount(self.queries, "held-out training query", "held-out training queries")}: '
      f'{metrics.title(METRIC)} {self.fused:.3f}, the model alone {self.model:.3f}, the first '
      f'stage alone {self.first_stage:.3f}'
    )

  def to_dict(self) -> dict[str, Any]:
    method = {'method': 'convex combination', 'normaliser': 'min-max', 'metric': METRIC}
    return method | dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, value: Any, where: str) -> 'Fusion':
    """Raises: UserError naming `where` it is, if it is damaged."""
    names = [field.name for field in dataclasses.fields(cls)]
    try:
      found = cls(**{name: value[name] for name in names if name in value})
      numbers = (found.weight, found.fused, found.model, found.first_stage)
      is_good = all(type(x) in (int, float) and 0 <= x <= 1 for x in numbers)
      is_good = is_good and type(found.queries) is int and found.signal in SIGNALS
    except (TypeError, KeyError):
      is_good = False
    if not is_good:
      raise UserError(f'{where}: fusion is damaged; export the model again')
    return found


def check_weight(weight: Any, name: str) -> float:
  """A weight from 0 to 1. Raises: UserError naming the argument."""
  if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
    raise UserError(f'{name}: must be a number from 0 (first stage alone) to 1 (model alone)')
  return float(weight)


def check_signal(values: Sequence[Any], count: int, name: str, kind: str) -> dict[int, float]:
  """{index: first-stage score} of a list with a score or rank per text, None for none.

  Raises: UserError naming the argument, and the item that is wrong.
  """
  if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, '__len__'):
    raise UserError(f'{name}: must be a list with a number per text')
  if len(values) != count:
    raise UserError(
      f'{name}: has {amount(len(values), "value")} for {amount(count, "text")}; give one per text, '
      'and null (None) for a text that the first stage did not find'
    )
  kept = {}
  for i, value in enumerate(values):
    value = value.item() if hasattr(value, 'item') else value  # of numpy
    if value is None:
      continue
    if kind == 'ranks' and (type(value) is not int or value < 1):
      raise UserError(f'{name}[{i}]: must be an integer of 1 or more, 1 for the best text')
    try:
      is_finite = type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
      is_finite = False
    if not is_finite:
      raise UserError(f'{name}[{i}]: must be a finite number')
    kept[i] = value
  return of_ranks(kept) if kind == 'ranks' else {i: float(v) for i, v in kept.items()}
