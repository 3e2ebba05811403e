"""nDCG inside losses: gains, discounts, and how much nDCG changes when two documents swap."""

import jax.numpy as jnp
import numpy as np

from disranker_jax.losses.common import differences, tie_counts


def discounts(ranks: int, k: int = 0) -> np.ndarray:
  """1 / log2(r + 1) for ranks r = 1, 2, ...; 0 beyond rank k (k = 0: no cut-off)."""
  rank = np.arange(1, ranks + 1)
  return np.where((rank <= k) | (k == 0), 1 / np.log2(rank + 1), 0.0)


def normalised_gains(labels_GN, mask_GN, k: int = 0):
  """(2^y - 1) / ideal DCG@k; 0 for padding, negative grades and queries without a gain."""
  grade_GN = jnp.where(mask_GN, jnp.maximum(labels_GN, 0.0), 0.0)
  # All gains of a query are divided by 2 to its largest grade, for 2^128 overflows.
  top_G1 = jnp.max(grade_GN, 1, keepdims=True)
  gain_GN = jnp.where(mask_GN, jnp.exp2(grade_GN - top_G1) - jnp.exp2(-top_G1), 0.0)
  discount_1N = jnp.asarray(discounts(labels_GN.shape[1], k)[None], gain_GN.dtype)
  ideal_G1 = jnp.sum(jnp.sort(gain_GN, 1, descending=True) * discount_1N, 1, keepdims=True)
  return gain_GN / jnp.where(ideal_G1 > 0, ideal_G1, 1.0)


def tied_discounts(documents: int, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Expected discounts of a block of `m` tied documents below `a` others, as tables [a, m].

  The first table is the mean discount of the block's places, the second the mean difference between
  two of them. Float64 on the host, because they are sums of many discounts that differ by little.
  """
  discount = discounts(documents, k)
  total = np.concatenate([[0.0], np.cumsum(discount)])
  moment = np.concatenate([[0.0], np.cumsum(discount * np.arange(1, documents + 1))])
  a, m = np.ogrid[: documents + 1, : documents + 1]
  end = np.minimum(a + m, documents)
  inside, moment_inside = total[end] - total[a], moment[end] - moment[a]
  apart = 2 * ((m + 1 + 2 * a) * inside - 2 * moment_inside)
  return inside / np.maximum(m, 1), apart / np.maximum(m * (m - 1), 1)


def discount_change(scores_GN, mask_GN, k: int):
  """|discount(r_i) - discount(r_j)| at the ranks of the scores: [G, N, N].

  For tied documents, the mean over all orders in which they could be. Their mean ranks would give
  0, and documents that start with equal scores would never be separated.
  """
  tables = [jnp.asarray(t, scores_GN.dtype) for t in tied_discounts(scores_GN.shape[1], k)]
  counts = tie_counts(scores_GN, mask_GN)
  mean_GN, apart_GN = (table[counts] for table in tables)
  tied_GNN = scores_GN[:, :, None] == scores_GN[:, None, :]
  return jnp.where(tied_GNN, apart_GN[:, :, None], jnp.abs(differences(mean_GN)))
