"""Statistics of a teacher's scores, and whether the scores have collapsed.

Arrays: R scores in the order of the queries; `sizes`, documents per query.
"""

import numpy as np

from disranker_jax.errors import UserError

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 40
# Within this share of the range from either end a score counts as saturated.
EDGE = 1e-3


def describe(scores_R: np.ndarray, sizes, labels_R: np.ndarray | None = None) -> dict:
  """Count, moments, quantiles, histogram, ties, saturation, and quantiles by label.

  `within` is the standard deviation around each query's own mean. `ties` is the share of document
  pairs of one query with equal scores, which teach no order. `saturated` is the share of scores at
  the ends of the range, typical of a squashed output.
  """
  values_R = np.asarray(scores_R, np.float64)
  low, high = float(values_R.min()), float(values_R.max())
  counts, edges = np.histogram(values_R, BINS)
  margin = EDGE * (high - low)
  stats = {
    'queries': len(sizes),
    'pairs': len(values_R),
    'mean': float(values_R.mean()),
    'std': float(values_R.std()),
    'within': float(np.sqrt(np.mean(around(values_R, sizes) ** 2))),
    'min': low,
    'max': high,
    'quantiles': quantiles(values_R),
    'histogram': {'edges': edges.tolist(), 'counts': counts.tolist()},
    'ties': tie_rate(scores_R, sizes),
    'saturated': float(np.mean((values_R <= low + margin) | (values_R >= high - margin))),
  }
  if labels_R is not None:
    stats['by_label'] = {
      int(label): {'pairs': int((labels_R == label).sum())}
      | {'mean': float(values_R[labels_R == label].mean())}
      | {'quantiles': quantiles(values_R[labels_R == label])}
      for label in np.unique(labels_R)
    }
  return stats


def around(values_R: np.ndarray, sizes) -> np.ndarray:
  """The values minus the mean of their query."""
  sizes = np.asarray(sizes, np.int64)
  query_R = np.repeat(np.arange(len(sizes)), sizes)
  return values_R - (np.bincount(query_R, values_R) / np.maximum(sizes, 1))[query_R]


def quantiles(values_R: np.ndarray) -> dict[str, float]:
  return {f'{q:g}': float(v) for q, v in zip(QUANTILES, np.quantile(values_R, QUANTILES),
          strict=True)}  # fmt: skip


def tie_rate(scores_R: np.ndarray, sizes) -> float:
  """The share of document pairs of one query with equal scores; 0 without pairs."""
  sizes = np.asarray(sizes, np.int64)
  query_R = np.repeat(np.arange(len(sizes)), sizes)
  order = np.lexsort((scores_R, query_R))
  query_R, sorted_R = query_R[order], np.asarray(scores_R)[order]
  # Runs of one query and one score: n of them are n (n - 1) / 2 tied pairs.
  begins = np.flatnonzero(
    np.r_[True, (query_R[1:] != query_R[:-1]) | (sorted_R[1:] != sorted_R[:-1])]
  )
  runs = np.diff(np.r_[begins, len(sorted_R)]) if len(sorted_R) else np.zeros(0, np.int64)
  pairs = (sizes * (sizes - 1) // 2).sum()
  return float((runs * (runs - 1) // 2).sum() / pairs) if pairs else 0.0


def together(kinds: dict[str, dict]) -> dict:
  """Count, mean and standard deviations over all kinds, for `distill.normalize_scores`."""
  pairs = sum(s['pairs'] for s in kinds.values())
  mean = sum(s['pairs'] * s['mean'] for s in kinds.values()) / pairs
  square = sum(s['pairs'] * (s['std'] ** 2 + (s['mean'] - mean) ** 2) for s in kinds.values())
  within = sum(s['pairs'] * s['within'] ** 2 for s in kinds.values())
  return {
    'pairs': pairs,
    'mean': mean,
    'std': float(np.sqrt(square / pairs)),
    'within': float(np.sqrt(within / pairs)),
  }


def refuse_collapsed(which: str, stats: dict, settings) -> None:
  """Raises: UserError if (nearly) all scores are equal, so that a student learns nothing.

  `which` says whose scores they are.
  """
  what = None
  if stats['std'] < settings.min_std:
    what = f'their deviation is {stats["std"]:.3g} (config.score.min_std={settings.min_std:g})'
  elif stats['ties'] > settings.max_tied_share:
    what = (
      f'{stats["ties"]:.0%} of the pairs of one query have the same score '
      f'(config.score.max_tied_share={settings.max_tied_share:g})'
    )
  if what:
    raise UserError(
      f"the teacher's scores of the {which} have collapsed: {what}. Look at the losses of cpt and "
      'sft (a learning rate too high?), with config.score.method at the model and its prompt, or '
      'allow it with that setting, which keeps the scores'
    )
