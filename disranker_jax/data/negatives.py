"""Hard negatives: unjudged documents with a high rank in the first stage, used with label 0."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from disranker_jax.data.records import UNJUDGED, BadRows, Document, Group
from disranker_jax.errors import UserError

# What is noted of all queries.
ADDED = 'unlabeled documents added as hard negatives'
NONE = 'judged queries without a hard negative'
UNLABELED = 'queries without a label left out'


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
    """The judged groups with their judged documents and negatives only.

    Notes how many are added, and how many groups have no label and are left out. Raises: UserError
    if none is added.
    """
    yield from filter(None, (self.drawn(group, bad_rows) for group in groups))
    self.check(bad_rows.notes)

  def drawn(self, group: Group, bad_rows: BadRows) -> Group | None:
    """`of` a query, or None if it has no label; notes that, and how many negatives it gets."""
    judged = len(group.grades)
    if not judged:
      bad_rows.note(UNLABELED)
      return None
    found = self.of(group)
    added = len(found.docs) - judged
    bad_rows.note(ADDED, added)
    bad_rows.note(NONE, not added)
    return found

  def check(self, notes: Mapping[str, int]) -> None:
    """Raises: UserError if the notes of all queries have no negative."""
    if notes.get(ADDED):
      return
    low = ' that the other teachers score low enough' if self.filter_false_negatives else ''
    raise UserError(
      f'hard negatives: no judged query has an unlabeled document of first-stage rank '
      f'{self.min_rank} to {self.max_rank}{low}; the source needs unlabeled documents, rows with '
      'the field "rank" (docs/data.md: hard negatives), or ask for 0 negatives'
    )

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
