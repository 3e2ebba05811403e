"""Ranking metrics of a run against judgements or another run, per query and averaged.

A run is {query_id: {doc_id: score}}, qrels are {query_id: {doc_id: grade}}. Equal scores are
ordered by document id, the greater id first, as in trec_eval; the order of the input never matters.
A judged query that the run lacks counts as 0. Documents without a judgement have gain 0 and form no
pairs; documents with a negative grade (spam, in some collections) have gain 0.

A judged document that the run lacks gains nothing in nDCG, MRR, MAP, recall and hits, while the
best possible ranking has it. PNR counts the pairs of the judged documents of a pool; there it ranks
last (`pairs`). The pool is the same for all runs of a table, see documents.py.

METRICS lists the names. `@K` cuts the ranking at K documents; without it the whole ranking counts.
The names of ir_measures work too (`nDCG@10`, `RR`, `AP@100`, `R@10`, `Success@5`), but our nDCG has
exponential gain: ir_measures' nDCG is `ndcg_linear`.
"""

import difflib
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from disranker_jax.errors import UserError

Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]
Ranking = Mapping[str, float] | list[str]  # scores, or document ids with the best first

# The columns of the result table.
COLUMNS = ('pnr', 'ndcg@5', 'ndcg@10', 'mrr@10')
# What `per_query` computes by default.
STANDARD = (
  *COLUMNS, 'ndcg@1', 'ndcg@3', *(f'ndcg_linear@{k}' for k in (1, 3, 5, 10)),
  'mrr', 'map', 'recall@10', 'recall@100',
)  # fmt: skip
USUAL = 10  # labels; of higher ones, 2^y - 1 leaves nothing of those that are 10 below the best
# The values of a query that are not metrics.
COUNTS = ('concordant', 'discordant', 'tied', 'documents', 'missing', 'relevant')


def ranked(scores: Ranking) -> list[str]:
  """Document ids by descending score; of equal scores the greater id first, as in trec_eval."""
  if isinstance(scores, list):
    return scores
  return [doc for _, doc in sorted(((s, doc) for doc, s in scores.items()), reverse=True)]


def steep(highest: int, key: str = 'config.evaluate.min_relevance') -> str:
  """What is to be known of labels so high that nDCG is that of the best one alone; else ''."""
  if highest <= USUAL:
    return ''
  return (
    f'labels go up to {highest:,}, and the gain of nDCG is 2^label - 1, so almost only the best '
    f'label counts; map the labels to 0 to 4, and set {key} to the lowest relevant one'
  )


def exponential(grade: int) -> float:
  """2^y - 1, the gain of web search (Burges et al., 2005); 0 for a negative grade."""
  return 2.0**grade - 1 if grade > 0 else 0.0


def linear(grade: int) -> float:
  """y, the gain of Järvelin and Kekäläinen (2002) and of trec_eval; 0 for a negative grade."""
  return float(max(grade, 0))


def dcg(grades: Sequence[int], gain: Callable[[int], float] = exponential) -> float:
  """sum_r gain(y_r) / log2(r + 1) over the ranks r = 1, 2, ..."""
  return sum(gain(y) / math.log2(r + 1) for r, y in enumerate(grades, 1) if y > 0)


def ndcg(
  scores: Ranking,
  grades: Mapping[str, int],
  depth: int | None = None,
  gain: Callable[[int], float] = exponential,
) -> float:
  """nDCG@depth; the ideal order is of all judged documents; 0 if no grade is above 0."""
  ideal = dcg(sorted(grades.values(), reverse=True)[:depth], gain)
  got = dcg([grades.get(doc, 0) for doc in ranked(scores)[:depth]], gain)
  return got / ideal if ideal else 0.0


def reciprocal_rank(
  scores: Ranking, grades: Mapping[str, int], depth: int | None = None, relevant: int = 1
) -> float:
  """1 / rank of the first document with at least grade `relevant` in the top `depth`, else 0."""
  ranks = hits(scores, grades, depth, relevant)
  return 1 / ranks[0] if ranks else 0.0


def average_precision(
  scores: Ranking, grades: Mapping[str, int], depth: int | None = None, relevant: int = 1
) -> float:
  """Sum of the precisions at the relevant documents of the top `depth`, over all relevant ones."""
  ranks = hits(scores, grades, depth, relevant)
  precisions = [count / rank for count, rank in enumerate(ranks, 1)]
  return sum(precisions) / max(count_relevant(grades, relevant), 1)


def recall(
  scores: Ranking, grades: Mapping[str, int], depth: int | None = None, relevant: int = 1
) -> float:
  """The share of the relevant documents that is in the top `depth`; 0 if none is relevant."""
  return len(hits(scores, grades, depth, relevant)) / max(count_relevant(grades, relevant), 1)


def success(
  scores: Ranking, grades: Mapping[str, int], depth: int | None = None, relevant: int = 1
) -> float:
  """1 if a document with at least grade `relevant` is in the top `depth`, else 0 (hits@K)."""
  return float(bool(hits(scores, grades, depth, relevant)))


def judged(scores: Ranking, grades: Mapping[str, int], depth: int | None = None) -> float:
  """The share of the top `depth` that has a judgement; if it is low, other metrics mean little."""
  top = ranked(scores)[:depth]
  return sum(doc in grades for doc in top) / max(len(top), 1)


def hits(scores: Ranking, grades: Mapping[str, int], depth: int | None, relevant: int) -> list[int]:
  """Ranks, from 1, of the documents in the top `depth` that are judged at least `relevant`."""
  top = ranked(scores)[:depth]
  return [r for r, doc in enumerate(top, 1) if doc in grades and grades[doc] >= relevant]


def count_relevant(grades: Mapping[str, int], relevant: int) -> int:
  return sum(grade >= relevant for grade in grades.values())


class Metric(NamedTuple):
  """A metric: its name in tables, its formula, and what a reader must know about it.

  `formula(ranking, grades, depth[, relevant])` is None for metrics that need more than one query's
  ranking and grades. `has_threshold`: it takes `relevant`, the lowest grade of a relevant document.
  """

  title: str
  formula: Callable[..., float] | None = None
  has_threshold: bool = False
  variant: str = ''
  note: str = ''


METRICS = {
  'pnr': Metric('PNR', note='concordant / discordant pairs, pooled over queries'),
  'pnr_per_query': Metric(
    'PNR by query', note="of the mean share of concordant pairs, so every query counts alike",
  ),
  'ndcg': Metric('nDCG', ndcg),
  'ndcg_linear': Metric(
    'nDCG', functools.partial(ndcg, gain=linear), variant='linear gain',
    note='the gain is the grade, as in trec_eval',
  ),
  'mrr': Metric('MRR', reciprocal_rank, has_threshold=True),
  'map': Metric('MAP', average_precision, has_threshold=True),
  'recall': Metric('Recall', recall, has_threshold=True),
  'hits': Metric(
    'Hits', success, has_threshold=True, note='share of the queries with a relevant document',
  ),
  'judged': Metric('Judged', judged, note='share of the ranking that has a judgement'),
  'gsb': Metric('delta-GSB', note='by nDCG@{depth}, equal if at most {same:g} apart'),
  'tau': Metric("Kendall's tau", note='with {teacher}, mean over queries'),
}  # fmt: skip
ALIASES = {'rr': 'mrr', 'ap': 'map', 'r': 'recall', 'success': 'hits'}  # ir_measures' names


def canonical(name: str) -> str:
  """Our name of a metric that may have ir_measures' name: 'nDCG@5' -> 'ndcg@5', 'RR' -> 'mrr'."""
  kind, at, depth = name.partition('@')
  kind = kind.lower()
  return ALIASES.get(kind, kind) + at + depth


def title(name: str) -> str:
  """The name in tables: 'ndcg_linear@5' -> 'nDCG@5 (linear gain)'."""
  kind, at, depth = name.partition('@')
  variant = METRICS[kind].variant
  return f'{METRICS[kind].title}{at}{depth}' + (f' ({variant})' if variant else '')


def zero_without(names: Sequence[str], relevant: int) -> list[str]:
  """The titles, each once, of the metrics that are 0 for a query without a grade of `relevant`.

  nDCG is among them only for 1: its gain does not depend on `relevant`.
  """
  kinds = dict.fromkeys(name.partition('@')[0] for name in names)
  zero = [
    METRICS[kind].title
    for kind in kinds
    if METRICS[kind].has_threshold or (relevant == 1 and kind.startswith('ndcg'))
  ]
  return list(dict.fromkeys(zero))


def formula(name: str, relevant: int = 1) -> Callable[[Ranking, Mapping[str, int]], float]:
  """`(scores, grades) -> value` of a name such as 'ndcg@5'. Raises: UserError if there is none."""
  kind, at, depth = canonical(name).partition('@')
  known = [k for k, metric in METRICS.items() if metric.formula]
  if kind not in known:
    near = difflib.get_close_matches(kind, ['pnr', *known], 1)
    hint = f'did you mean {near[0]}?' if near else f'choose one of pnr, {", ".join(known)}'
    raise UserError(f'metric {name!r}: unknown; {hint}')
  if at and not (depth.isascii() and depth.isdigit() and int(depth)):
    raise UserError(f'metric {name!r}: the depth must be 1 or more, as in {kind}@10')
  fixed = {'depth': int(depth) if at else None}
  if METRICS[kind].has_threshold:
    fixed['relevant'] = relevant
  return functools.partial(METRICS[kind].formula, **fixed)


def pairs(
  scores: Mapping[str, float], grades: Mapping[str, int], pool: Collection[str] | None = None
) -> tuple[float, float, float]:
  """(concordant, discordant, tied) of the pairs of judged documents with unequal grades.

  Only documents of the pool form pairs; without one, those that the run holds. A document that the
  run lacks ranks behind all others. A pair of two such documents is half concordant and half
  discordant, as it is on average if they follow in random order. So every run has the same pairs,
  and no run gains by leaving documents out.

  O(L n log n) for n documents of L different grades, so a run may be thousands deep. The counts are
  integers if no document is missing.
  """
  counted = [doc for doc in (scores if pool is None else pool) if doc in grades]
  held = [doc for doc in counted if doc in scores]
  scores_N = np.array([scores[doc] for doc in held], np.float64)
  grades_N = np.array([grades[doc] for doc in held], np.int64)
  missing_N = np.sort(np.array([grades[doc] for doc in counted if doc not in scores], np.int64))
  concordant = tied = every = 0
  for grade in np.unique(grades_N):
    worse = np.sort(scores_N[grades_N < grade])
    mine = scores_N[grades_N == grade]
    below = np.searchsorted(worse, mine, 'left')
    concordant += int(below.sum())
    tied += int((np.searchsorted(worse, mine, 'right') - below).sum())
    every += len(worse) * len(mine)
  discordant = every - concordant - tied
  if not len(missing_N):
    return concordant, discordant, tied
  concordant += int(np.searchsorted(missing_N, grades_N, 'left').sum())
  discordant += int((len(missing_N) - np.searchsorted(missing_N, grades_N, 'right')).sum())
  halves = int(np.searchsorted(missing_N, missing_N, 'left').sum()) / 2
  return concordant + halves, discordant + halves, tied


def ratio(concordant: int, discordant: int) -> float:
  """Concordant / discordant; inf without a discordant pair, nan without any pair."""
  if discordant:
    return concordant / discordant
  return math.inf if concordant else math.nan


def odds(share):
  """PNR of a share of concordant pairs, as numbers or arrays: share / (1 - share)."""
  with np.errstate(divide='ignore', invalid='ignore'):
    return np.divide(share, 1 - np.asarray(share))[()]


def share(row: Mapping[str, float]) -> float:
  """A query's share of concordant pairs; 1/2 if all are tied, nan if it has no pair.

  Queries without a pair are the same for all runs with one pool, so means over the others are of
  the same queries.
  """
  ordered = row['concordant'] + row['discordant']
  if ordered:
    return row['concordant'] / ordered
  return 0.5 if row.get('tied') else math.nan


def per_query(
  run: Run,
  qrels: Qrels,
  relevant: int = 1,
  names: Sequence[str] = STANDARD,
  pool: Mapping[str, Collection[str]] | None = None,
) -> dict[str, dict[str, float]]:
  """The metrics of every judged query: {query_id: {metric: value}}, with COUNTS.

  Args:
    relevant: the lowest grade that counts as relevant for MRR, MAP, recall and hits.
    pool: the documents of each query whose pairs PNR counts (`pairs`), the same for all runs that
      are compared; default: those of the run.
  """
  formulas = {name: formula(name, relevant) for name in names if name != 'pnr'}
  rows = {}
  for query, grades in qrels.items():
    scores = run.get(query, {})
    order = ranked(scores)
    of_query = None if pool is None else pool.get(query, ())
    concordant, discordant, tied = pairs(scores, grades, of_query)
    rows[query] = {
      'pnr': ratio(concordant, discordant),
      **{name: value(order, grades) for name, value in formulas.items()},
      'concordant': concordant,
      'discordant': discordant,
      'tied': tied,
      'documents': len(scores),
      'missing': sum(doc in grades and doc not in scores for doc in of_query or ()),
      'relevant': count_relevant(grades, relevant),
    }
  return rows


def summary(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  """Means over queries, PNR pooled over the pairs of all queries, as in the paper, and counts.

  The counts say what the figures are of: `queries`; those without a document in the run
  (`queries_missing`) and without a relevant one in the judgements (`queries_without_relevant`),
  which both count as 0; `pairs`, the ranked query-document pairs; `missing`, the judged documents
  of the pool that the run lacks; `tie_rate`, the share of PNR's pairs with equal scores.
  """
  total = {k: sum(r[k] for r in rows.values()) for k in ('concordant', 'discordant', 'tied')}
  every = sum(total.values())
  names = [m for m in next(iter(rows.values()), STANDARD) if m not in ('pnr', *COUNTS)]
  means = {m: sum(r[m] for r in rows.values()) / max(len(rows), 1) for m in names}
  shares = [value for row in rows.values() if not math.isnan(value := share(row))]
  mean_share = sum(shares) / len(shares) if shares else math.nan
  return {
    'pnr': ratio(total['concordant'], total['discordant']),
    **means,
    'pnr_per_query': float(odds(mean_share)),
    'tie_rate': total['tied'] / every if every else 0.0,
    'queries': len(rows),
    'queries_missing': sum(not r['documents'] for r in rows.values()),
    'queries_without_relevant': sum(not r['relevant'] for r in rows.values()),
    'pairs': sum(int(r['documents']) for r in rows.values()),
    'missing': sum(int(r['missing']) for r in rows.values()),
  }


def tau(scores: Mapping[str, float], reference: Mapping[str, float]) -> float:
  """Kendall's tau-b between two scorings of the reference's documents, from -1 to 1.

  tau-b = (C - D) / sqrt((pairs untied here) (pairs untied there)) (Kendall, 1945). Documents that
  `scores` lacks are tied behind all others; those that the reference lacks do not count. It is 0
  if all scores are equal, thus for a missing query, and nan if all scores of the reference are.
  """
  last = math.nextafter(min(scores.values(), default=0.0), -math.inf)
  ours_N = np.array([scores.get(doc, last) for doc in reference], np.float64)
  theirs_N = np.array(list(reference.values()), np.float64)
  agreement = untied_ours = untied_theirs = 0.0
  for i in range(1, len(theirs_N)):  # one row of the matrix of pairs at a time: O(n) memory
    ours, theirs = np.sign(ours_N[:i] - ours_N[i]), np.sign(theirs_N[:i] - theirs_N[i])
    agreement += ours @ theirs
    untied_ours += ours @ ours
    untied_theirs += theirs @ theirs
  if not untied_theirs:
    return math.nan
  return float(agreement / math.sqrt(untied_ours * untied_theirs)) if untied_ours else 0.0


def mean_tau(run: Run, reference: Run) -> float:
  """The mean of `tau` over the queries where it is defined; nan if there are none."""
  values = [tau(run.get(query, {}), scores) for query, scores in reference.items()]
  defined = [value for value in values if not math.isnan(value)]
  return sum(defined) / len(defined) if defined else math.nan
