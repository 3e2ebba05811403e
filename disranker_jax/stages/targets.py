"""What a student learns from a teacher's scores: the scores, or these standardised."""

from collections.abc import Callable

import numpy as np

from disranker_jax.errors import UserError


def unchanged(scores_N: np.ndarray) -> np.ndarray:
  return scores_N


def normalizer(facts: dict, how: str) -> tuple[Callable, dict[str, float]]:
  """(function from a query's teacher scores to the student's targets, the numbers that it uses).

  A teacher's scores of different queries may not be comparable; a query likelihood, for example,
  depends mostly on the query. Point-MSE would then fit differences between queries, which do not
  change any ranking, so 'query' subtracts each query's mean.

  Args:
    facts: 'mean', 'std' and 'within' (deviation from the query's mean) of all scores.
    how: config.distill.normalize_scores.

  Raises: UserError if all scores are equal.
  """
  if not how:
    return unchanged, {}
  std = np.float32(facts['within' if how == 'query' else 'std'])
  if not std > 0:
    raise UserError(
      f'config.distill.normalize_scores={how!r}: all teacher scores are equal; check the stage '
      'score, or config.data.teachers'
    )
  if how == 'query':
    return lambda scores_N: (scores_N - scores_N.mean()) / std, {'std': facts['within']}
  mean = np.float32(facts['mean'])
  return lambda scores_N: (scores_N - mean) / std, {'mean': facts['mean'], 'std': facts['std']}
