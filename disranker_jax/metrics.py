"""PNR, nDCG and MRR of a run against judgements, per query and in the mean.

A run is {query_id: {doc_id: score}}, qrels are {query_id: {doc_id: grade}}. Ties are broken by
document id (the greater id first, as trec_eval does), so input order cannot matter. A judged query
that the run does not have counts as 0; documents without a judgement have gain 0 and form no pairs.
"""

import math
from collections.abc import Mapping

Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]

# How a table names them, in its order.
COLUMNS = ('pnr', 'ndcg@5', 'ndcg@10', 'mrr@10')


def ranked(scores: Mapping[str, float]) -> list[str]:
  """Document ids by falling score; of equal scores the greater id first (trec_eval's rule)."""
  return sorted(sorted(scores, reverse=True), key=lambda doc: -scores[doc])


def dcg(grades: list[int]) -> float:
  """sum_r (2^y_r - 1) / log2(r + 1) over the ranks r = 1, 2, ..."""
  return sum((2.0**y - 1) / math.log2(r + 1) for r, y in enumerate(grades, 1))


def ndcg(scores: Mapping[str, float], grades: Mapping[str, int], depth: int) -> float:
  """nDCG@depth with exponential gain; the ideal order is of all judged documents; 0 if none > 0."""
  ideal = dcg(sorted(grades.values(), reverse=True)[:depth])
  got = dcg([grades.get(doc, 0) for doc in ranked(scores)[:depth]])
  return got / ideal if ideal else 0.0


def reciprocal_rank(
  scores: Mapping[str, float], grades: Mapping[str, int], depth: int, relevant: int = 1
) -> float:
  """1 / rank of the first document with at least grade `relevant` in the top `depth`, else 0."""
  for rank, doc in enumerate(ranked(scores)[:depth], 1):
    if grades.get(doc, 0) >= relevant:
      return 1 / rank
  return 0.0


def pairs(scores: Mapping[str, float], grades: Mapping[str, int]) -> tuple[int, int, int]:
  """(concordant, discordant, tied) of the run's judged pairs with unequal grades."""
  judged = [(grades[doc], score) for doc, score in scores.items() if doc in grades]
  concordant = discordant = tied = 0
  for i, (grade_i, score_i) in enumerate(judged):
    for grade_j, score_j in judged[:i]:
      if grade_i == grade_j:
        continue
      if score_i == score_j:
        tied += 1
      elif (score_i > score_j) == (grade_i > grade_j):
        concordant += 1
      else:
        discordant += 1
  return concordant, discordant, tied


def ratio(concordant: int, discordant: int) -> float:
  """Concordant / discordant; inf without a discordant pair, nan without any pair."""
  if discordant:
    return concordant / discordant
  return math.inf if concordant else math.nan


def per_query(run: Run, qrels: Qrels, relevant: int = 1) -> dict[str, dict[str, float]]:
  """Every metric of every judged query: {query_id: {metric: value}}, pair counts included.

  `relevant` is the lowest grade that MRR takes for an answer; nDCG and PNR use all grades.
  """
  rows = {}
  for query, grades in qrels.items():
    scores = run.get(query, {})
    concordant, discordant, tied = pairs(scores, grades)
    rows[query] = {
      'pnr': ratio(concordant, discordant),
      'ndcg@5': ndcg(scores, grades, 5),
      'ndcg@10': ndcg(scores, grades, 10),
      'mrr@10': reciprocal_rank(scores, grades, 10, relevant),
      'concordant': concordant,
      'discordant': discordant,
      'tied': tied,
      'documents': len(scores),
    }
  return rows


def summary(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  """Means over queries; PNR pooled over all their pairs (the paper's sum), with its tie rate."""
  total = {k: sum(r[k] for r in rows.values()) for k in ('concordant', 'discordant', 'tied')}
  every = sum(total.values())
  means = {m: sum(r[m] for r in rows.values()) / max(len(rows), 1) for m in COLUMNS if m != 'pnr'}
  finite = [r['pnr'] for r in rows.values() if math.isfinite(r['pnr'])]
  return {
    'pnr': ratio(total['concordant'], total['discordant']),
    **means,
    'pnr_per_query': sum(finite) / len(finite) if finite else math.nan,
    'tie_rate': total['tied'] / every if every else 0.0,
    'queries': len(rows),
    'pairs': sum(int(r['documents']) for r in rows.values()),
  }
