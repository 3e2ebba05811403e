"""Joins the scores of other teachers to groups, for distillation without training a teacher.

Each address is one teacher: a run, a margin file, rows with scores, shards of an earlier run. The
scores of a single teacher are used unchanged. With several, each teacher is standardised over all
its scores, because their scales differ, and a pair gets the mean.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from disranker_jax.data import grouping, sources
from disranker_jax.data.records import LARGEST_LABEL, BadRows, Document, Group
from disranker_jax.data.spool import Spool
from disranker_jax.errors import UserError
from disranker_jax.progress import amount, say

ORDER_ADDRESS = 'teachers:'  # of judgements: the order that other teachers give the candidates


class Moments:
  """Mean and standard deviation of a stream of numbers (Welford's algorithm)."""

  def __init__(self):
    self.count, self.mean, self._squares = 0, 0.0, 0.0

  def add(self, value: float) -> None:
    self.count += 1
    before = value - self.mean
    self.mean += before / self.count
    self._squares += before * (value - self.mean)

  @property
  def std(self) -> float:
    """The population standard deviation; 0 without numbers."""
    return math.sqrt(self._squares / self.count) if self.count else 0.0

  def facts(self) -> dict[str, float]:
    return {'pairs': self.count, 'mean': self.mean, 'std': self.std}


class Teachers:
  """Adds the scores of other teachers to groups; afterwards, `facts` has their statistics.

  A document without a score of every teacher gets none; queries without scores are left out if
  `drop`. If a teacher scores a pair more than once, the mean counts.
  """

  def __init__(self, addresses: Iterable[str], *, drop: bool):
    self.addresses = tuple(addresses)
    self._drop = drop
    self.facts: dict = {}

  def __call__(
    self, groups: Iterator[Group], bad_rows: BadRows, scratch: Path | None = None
  ) -> Iterator[Group]:
    """The groups in their order with `Document.teacher` filled in. Raises: UserError."""
    folder = None if scratch is None else scratch / 'teachers'
    by_query = Spool(None if folder is None else folder / 'by_query')
    by_number = Spool(None if folder is None else folder / 'by_number')
    each = self._read(by_query, groups, bad_rows)
    dropped = self._join(by_query, by_number)
    total, within = Moments(), Moments()
    for _, (query_id, query, docs) in by_number:
      group = Group(query_id, query, tuple(_scored(doc, each) for doc in docs))
      scores = [doc.teacher for doc in group.docs if not math.isnan(doc.teacher)]
      for score in scores:
        total.add(score)
        within.add(score - math.fsum(scores) / len(scores))
      yield group
    if self._drop and not total.std > 0:
      what = f'gives all pairs the same score, {total.mean:g}; use another teacher'
      raise UserError(f'{", ".join(self.addresses)}: {what}')
    self.facts = total.facts() | {
      'within': within.std,
      'teachers': {a: m.facts() for a, m in zip(self.addresses, each, strict=True)},
      'queries_without': dropped,
    }

  def _read(self, by_query: Spool, groups: Iterator[Group], bad_rows: BadRows) -> list[Moments]:
    """Spools all scores and groups by query; returns the moments of each teacher's scores."""
    each = []
    # Scores come first: the spool keeps the order of equal keys, and `_join` needs them first.
    for teacher, address in enumerate(self.addresses):
      each.append(moments := Moments())
      for query_id, doc_id, score in sources.read(address, sources.SCORES, bad_rows=bad_rows):
        by_query.add(query_id, (teacher, doc_id, score))
        moments.add(score)
      if len(self.addresses) > 1 and not moments.std > 0:
        raise UserError(f'{address}: gives all pairs the same score; leave out this teacher')
    for number, group in enumerate(groups):
      docs = [grouping.to_tuple(doc) for doc in group.docs]
      by_query.add(group.query_id, (number, group.query, docs, None))
    return each

  def _join(self, by_query: Spool, by_number: Spool) -> int:
    """Spools documents with their scores in the order of the groups; returns dropped queries."""
    dropped = pairs = without = 0
    for query_id, entries in itertools.groupby(by_query, key=lambda pair: pair[0]):
      scores: dict[tuple[str, int], list[float]] = {}
      for _, entry in entries:
        if len(entry) == 3:
          teacher, doc_id, score = entry
          scores.setdefault((doc_id, teacher), []).append(score)
          continue
        number, query, docs, _ = entry
        scored = [(fields, self._of_doc(fields[0], scores)) for fields in docs]
        pairs += len(scored)
        without += sum(values is None for _, values in scored)
        if self._drop and all(values is None for _, values in scored):
          dropped += 1
        else:
          by_number.add(number, (query_id, query, scored))
    if self._drop and without == pairs:
      what = 'no pair has a score of every teacher; use the query_id and doc_id of the data'
      raise UserError(f'{", ".join(self.addresses)}: {what}')
    if without:
      say(
        f'teachers: no score for {without:,} of {amount(pairs, "pair")}; left out '
        f'{amount(dropped, "query", "queries")}'
      )
    return dropped

  def _of_doc(self, doc_id: str, scores: dict) -> list[float] | None:
    """The score of each teacher, or None if one is missing."""
    each = [scores.get((doc_id, teacher)) for teacher in range(len(self.addresses))]
    return [math.fsum(s) / len(s) for s in each] if all(each) else None


def ordered(
  groups: Iterable[Group], bad_rows: BadRows, scratch: Path | None = None
) -> Iterator[Group]:
  """The groups with the order of the teachers' scores as labels: how many documents are worse.

  Equal scores have equal labels; documents without a score are left out. Raises: UserError for more
  documents than there are labels.
  """
  for group in groups:
    docs = [doc for doc in group.docs if not math.isnan(doc.teacher)]
    if len(docs) > LARGEST_LABEL + 1:
      raise UserError(
        f'config.data.judgements={ORDER_ADDRESS!r}: query_id {group.query_id!r} has {len(docs):,} '
        f'documents with a score, and labels go up to {LARGEST_LABEL}; lower config.data.depth'
      )
    scores = sorted(doc.teacher for doc in docs)
    labelled = (dataclasses.replace(d, label=bisect.bisect_left(scores, d.teacher)) for d in docs)
    yield Group(group.query_id, group.query, tuple(labelled))


def _scored(doc: tuple, each: list[Moments]) -> Document:
  """A document with the combined score of the teachers; NaN if one has none."""
  fields, values = doc
  made = Document(*fields)
  if values is None:
    return dataclasses.replace(made, teacher=math.nan)
  score = values[0]
  if len(values) > 1:
    standard = [(v - m.mean) / m.std for v, m in zip(values, each, strict=True)]
    score = math.fsum(standard) / len(standard)
  return dataclasses.replace(made, teacher=score)
