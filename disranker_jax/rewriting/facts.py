"""What is logged of the samples of a query."""

import re
from collections.abc import Sequence

import numpy as np

from disranker_jax.rewriting import objective
from disranker_jax.rewriting.queries import Query
from disranker_jax.rewriting.sampling import Sample

WORD = re.compile(r'\w+')
# Of all samples that were drawn of a query, also of those that are not learned from: mean, standard
# deviation and best of the rewards; whether all are equal; the mean length in tokens, the shares
# that were cut off at max_new and that have the reward of a failure, the share of the words that
# the query has too. The terms of the reward follow.
FACTS = (
  'reward', 'reward_std', 'reward_best', 'equal_groups', 'length', 'cut', 'failures', 'repeated'
)  # fmt: skip


def truncated(drawn: Sequence[Sequence[Sample]]) -> np.ndarray:
  """[G, S]: 1 where a sample was cut off."""
  return np.array([[not sample.ended for sample in group] for group in drawn], np.float32)


def of_queries(
  asked: Sequence[Query], rewrites: Sequence[Sequence[str]], drawn: Sequence[Sequence[Sample]],
  found: dict[str, np.ndarray],
) -> np.ndarray:  # fmt: skip
  """[G, F]: FACTS and the terms of the reward, of all samples that were drawn of a query."""
  rewards_GS = found['rewards_GS']
  lengths_GS = np.array([[len(sample.ids) for sample in group] for group in drawn])
  pairs = zip(asked, rewrites, strict=True)
  repeated_GS = np.array([[common(query.text, text) for text in each] for query, each in pairs])
  means = lengths_GS, truncated(drawn), found['failed_GS'], repeated_GS, *found['parts_FGS']
  columns = [
    rewards_GS.mean(1), rewards_GS.std(1), rewards_GS.max(1),
    np.asarray(objective.equal_groups(rewards_GS)), *(values_GS.mean(1) for values_GS in means),
  ]  # fmt: skip
  return np.stack(columns, axis=1).astype(np.float32)


def common(query: str, rewrite: str) -> float:
  """The share of a rewrite's words that the query has too."""
  words, known = WORD.findall(rewrite.lower()), set(WORD.findall(query.lower()))
  return sum(word in known for word in words) / max(len(words), 1)
