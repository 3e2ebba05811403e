"""Hard negatives: documents that the first stage ranks high and nobody judged, as label 0."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from disranker_jax.data.records import UNJUDGED, BadRows, Document, Group


@dataclasses.dataclass(frozen=True)
class Negatives:
  """Which negatives are taken for a query.

  `count` are drawn from first-stage ranks `min_rank` to `max_rank`: leaving out the first few
  leaves out many that are relevant but were never judged. With `filter_false_negatives` a document
  is taken only if the teacher scores it at least `margin` below every document with a positive
  label; a document without a teacher's score is not taken.
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
    """Judged groups with their negatives; documents that are neither are left out."""
    return map(self.of, groups)

  def of(self, group: Group) -> Group:
    """A query's judged documents and its negatives, in their order."""
    limit = self._limit(group)
    eligible = [i for i, doc in enumerate(group.docs) if self._eligible(doc, limit)]
    chosen = set(eligible)
    if len(eligible) > self.count:
      # By the query alone: the same draw whatever comes before it.
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
    """The teacher's score that a negative must stay below."""
    if not self.filter_false_negatives:
      return math.inf
    positives = [doc.teacher for doc in group.docs if doc.label > 0 and not math.isnan(doc.teacher)]
    return min(positives) - self.margin if positives else -math.inf

  def _eligible(self, doc: Document, limit: float) -> bool:
    if doc.label != UNJUDGED or not self.min_rank <= doc.rank <= self.max_rank:
      return False
    return not self.filter_false_negatives or doc.teacher <= limit  # NaN, not scored, is no
