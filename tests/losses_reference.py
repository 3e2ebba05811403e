"""Every loss of one query by loops in float64; the tests' reference, written from the formulas."""

import numpy as np

# Of documents that are all real; None where the query has nothing to say.


def mean(values):
  values = list(values)
  return sum(values) / len(values) if values else None


def pairs(targets):
  """(i, j) with the higher target first."""
  n = range(len(targets))
  return [(i, j) for i in n for j in n if targets[i] > targets[j]]


def softmax(values):
  powers = [np.exp(v - max(values)) for v in values]
  return [p / sum(powers) for p in powers]


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def pairwise_hinge(s, y, margin=0.1):
  return mean(max(0.0, margin - (s[i] - s[j])) for i, j in pairs(y))


def ranknet(s, y):
  return mean(np.log(1 + np.exp(-(s[i] - s[j]))) for i, j in pairs(y))


def gains(y):
  return [2.0**v - 1 if v > 0 else 0.0 for v in y]


def dcg(gain, ranks, k=0):
  return sum(g / np.log2(r + 1) for g, r in zip(gain, ranks, strict=True) if not k or r <= k)


def lambda_loss(s, y, k=0, ranks=None):
  """Documents in turn swap places, and nDCG is computed again."""
  gain = gains(y)
  ranks = [1 + sum(other > mine for other in s) for mine in s] if ranks is None else ranks
  ideal = dcg(sorted(gain, reverse=True), range(1, len(s) + 1), k)
  total = 0.0
  for i, j in pairs(gain):
    swapped = list(ranks)
    swapped[i], swapped[j] = ranks[j], ranks[i]
    change = abs(dcg(gain, ranks, k) - dcg(gain, swapped, k)) / ideal
    total += change * np.log(1 + np.exp(-(s[i] - s[j])))
  return total if pairs(gain) else None


def soft_ranks(s, temperature):
  n = range(len(s))
  return [1 + sum(sigmoid((s[j] - s[i]) / temperature) for j in n if j != i) for i in n]


def approx_ndcg(s, y, temperature=0.1):
  gain = gains(y)
  ideal = dcg(sorted(gain, reverse=True), range(1, len(s) + 1))
  return 1 - dcg(gain, soft_ranks(s, temperature)) / ideal if pairs(gain) else None


def info_nce(s, y):
  if not pairs(y):
    return None
  return mean(-np.log(p) for p, v in zip(softmax(s), y, strict=True) if v == max(y))


def perplexity_nce(s, y, temperature=0.001):
  if not pairs(y):
    return None
  z = [np.exp(min(v, 0)) / temperature for v in s]
  total = max(z) + np.log(sum(np.exp(v - max(z)) for v in z))
  return mean(total - v for v, grade in zip(z, y, strict=True) if grade == max(y))


def softmax_ce(s, y):
  y = [max(v, 0.0) for v in y]
  if not pairs(y):
    return None
  return -sum(v / sum(y) * np.log(p) for v, p in zip(y, softmax(s), strict=True))


def pointwise_ce(s, y, top=1.0):
  p = [min(max(v / top, 0.0), 1.0) for v in y]
  return mean(
    -a * np.log(sigmoid(b)) - (1 - a) * np.log(1 - sigmoid(b)) for a, b in zip(p, s, strict=True)
  )


def point_mse(s, t):
  return mean(2 * (a - b) ** 2 for a, b in zip(s, t, strict=True))


def margin_mse(s, t):
  n = range(len(s))
  return mean(((s[i] - s[j]) - (t[i] - t[j])) ** 2 for i in n for j in range(i))


def hybrid(s, t, beta=0.4):
  return point_mse(s, t) + beta * (margin_mse(s, t) or 0.0) if len(s) else None


def listwise_kl(s, t, student_temperature=1.0, teacher_temperature=1.0):
  if len(s) < 2:
    return None
  p, q = softmax(t / teacher_temperature), softmax(s / student_temperature)
  return student_temperature**2 * sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def tie_ranks(t):
  """The mean of the places that a document's equals take in the sorted list."""
  order = sorted(t, reverse=True)
  return [mean(place for place, other in enumerate(order, 1) if other == v) for v in t]


def adr_mse(s, t, temperature=1.0):
  if len(s) < 2:
    return None
  ranks = zip(tie_ranks(t), soft_ranks(s, temperature), strict=True)
  return mean((r - soft) ** 2 / np.log2(r + 1) for r, soft in ranks)


def distilled_ranknet(s, t, margin=0.3, step=0.1, first_weight=3.0):
  ranks, terms = tie_ranks(t), []
  for i, j in pairs(t):
    weight = first_weight if t[i] == max(t) else 1 / ranks[i]
    terms.append(weight * max(0.0, s[j] - s[i] + margin + (ranks[j] - ranks[i] - 1) * step))
  return mean(x for x in terms if x > 0) or 0.0 if terms else None
