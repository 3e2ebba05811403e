"""Pointwise: one prompt per document, whose score is a formula of the labels' logits.

Scores are log-odds and not probabilities: the order is the same, and a teacher's large scores are
not squashed together.
"""

import numpy as np

from disranker_jax.rankers.llm.asking import Outcome, Steps, tied_pairs


def difference(logits_C: np.ndarray) -> float:
  """The log-odds of the first of two labels."""
  return float(logits_C[0]) - float(logits_C[1])


def raw(logits_C: np.ndarray) -> float:
  """The only value: the logit of a label, the score of a linear head, or a log-likelihood."""
  return float(logits_C[0])


def expectation(logits_C: np.ndarray) -> float:
  """The mean of the grades 0, 1, 2 ... under the softmax of their labels."""
  values_C = np.asarray(logits_C, np.float64)
  weights_C = np.exp(values_C - values_C.max())
  return float(weights_C @ np.arange(len(values_C)) / weights_C.sum())


FORMULAS = {
  'difference': difference, 'raw': raw, 'head': raw, 'likelihood': raw, 'expectation': expectation,
}  # fmt: skip


def each_alone(n: int, formula: str) -> Steps:
  """Scores every document by itself; n prompts."""
  answers = (yield [(i,) for i in range(n)]) if n else []
  scores = np.array([FORMULAS[formula](logits_C) for logits_C in answers], np.float64)
  return Outcome(scores, tied=tied_pairs(scores))
