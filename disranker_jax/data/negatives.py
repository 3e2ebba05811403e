"""Hard negatives: unjudged documents with a high rank in the first stage, used with label 0."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from disranker_jax.data.records import UNJUDGED, BadRows, Document, Group


@dataclasses.dataclass(frozen=True)
class Negatives:
  """Draws negatives for each query.

  `count` documents are drawn from the first-stage ranks `min_rank` to `max_rank`. A higher
  `min_rank` leaves out many relevant documents without a judgement. `filter_false_negatives` takes
  only documents whose teacher score is at least `margin` below that of every document with a
  positive label; a document without a teacher score is not taken.
  """

  count: int
  min_rank: int = 1
  max_rank: int = 100
  filter_false_negatives: bool = False
  margin: float = 0.0
  seed: int = 0

  def __call__(
    self, groups: Iterator[Group], bad_rows: BadRows, scratch: Path | None = None
  ) -> Iterator[Group]:
    """The groups with their judged documents and negatives only."""
    return map(self.of, groups)

  def of(self, group: Group) -> Group:
    """The judged documents and negatives of one query, in their order."""
    limit = self._limit(group)
    eligible = [i for i, doc in enumerate(group.docs) if self._eligible(doc, limit)]
    chosen = set(eligible)
    if len(eligible) > self.count:
      # Seeded by the query, so the draw does not depend on earlier queries.
      seed = hashlib.sha256(f'{self.seed}\0{group.query_id}'.encode()).digest()
      rng = np.random.default_rng(int.from_bytes(seed[:8]))
      chosen = {int(i) for i in rng.choice(eligible, self.count, replace=False)}
    docs = [
      dataclasses.replace(doc, label=max(doc.label, 0), in_pool=True)
      for i, doc in enumerate(group.docs)
      if doc.label != UNJUDGED or i in chosen
    ]
    return Group(group.query_id, group.query, tuple(docs))

  def _limit(self, group: Group) -> float:
    """The highest teacher score that a negative may have."""
    if not self.filter_false_negatives:
      return math.inf
    positives = [doc.teacher for doc in group.docs if doc.label > 0 and not math.isnan(doc.teacher)]
    return min(positives) - self.margin if positives else -math.inf

  def _eligible(self, doc: Document, limit: float) -> bool:
    if doc.label != UNJUDGED or not self.min_rank <= doc.rank <= self.max_rank:
      return False
    return not self.filter_false_negatives or doc.teacher <= limit  # false for NaN (no score)
