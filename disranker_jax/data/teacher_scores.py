"""Other teachers' scores, joined to queries with documents: distillation without a teacher of ours.

Each address is one teacher: a run, a margin file, rows with scores, shards of an earlier run. One
teacher's scores are taken as they are; of several each is standardised over all that it gave, and
the mean is taken, for they come on scales of their own.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from disranker_jax.data import grouping, sources
from disranker_jax.data.records import BadRows, Document, Group
from disranker_jax.data.spool import Spool
from disranker_jax.errors import UserError
from disranker_jax.progress import say


class Moments:
  """Mean and deviation of numbers that come one by one (Welford's sums)."""

  def __init__(self):
    self.count, self.mean, self._squares = 0, 0.0, 0.0

  def add(self, value: float) -> None:
    self.count += 1
    before = value - self.mean
    self.mean += before / self.count
    self._squares += before * (value - self.mean)

  @property
  def std(self) -> float:
    """Of the numbers themselves, not of a larger population; 0 of none."""
    return math.sqrt(self._squares / self.count) if self.count else 0.0

  def facts(self) -> dict[str, float]:
    return {'pairs': self.count, 'mean': self.mean, 'std': self.std}


class Teachers:
  """Gives documents the score of other teachers; `facts` says afterwards what there was.

  A document that a teacher has not scored gets none; a query without any is left out if `drop`.
  A pair that a teacher scored more than once counts with the mean of its scores.
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
      what = f'gives all pairs one score, {total.mean:g}; use another teacher'
      raise UserError(f'{", ".join(self.addresses)}: {what}')
    self.facts = total.facts() | {
      'within': within.std,
      'teachers': {a: m.facts() for a, m in zip(self.addresses, each, strict=True)},
      'queries_without': dropped,
    }

  def _read(self, by_query: Spool, groups: Iterator[Group], bad_rows: BadRows) -> list[Moments]:
    """All scores and groups, to be sorted by query; the moments of each teacher's scores."""
    each = []
    # Scores first: among equal keys the order is kept, and the group needs them.
    for teacher, address in enumerate(self.addresses):
      each.append(moments := Moments())
      for query_id, doc_id, score in sources.read(address, sources.SCORES, bad_rows=bad_rows):
        by_query.add(query_id, (teacher, doc_id, score))
        moments.add(score)
      if len(self.addresses) > 1 and not moments.std > 0:
        raise UserError(f'{address}: gives one score for all; leave this teacher out')
    for number, group in enumerate(groups):
      docs = [grouping.to_tuple(doc) for doc in group.docs]
      by_query.add(group.query_id, (number, group.query, docs, None))
    return each

  def _join(self, by_query: Spool, by_number: Spool) -> int:
    """Documents with the list of their scores, back in the groups' order; queries without any."""
    dropped = pairs = without = 0
    for query_id, entries in itertools.groupby(by_query, key=lambda pair: pair[0]):
      scores: dict[tuple[str, int], list[float]] = {}
      for _, entry in entries:
        if len(entry) == 3:
          teacher, doc_id, score = entry
          scores.setdefault((doc_id, teacher), []).append(score)
          continue
        number, query, docs, _ = entry
        found = [(fields, self._of_doc(fields[0], scores)) for fields in docs]
        pairs += len(found)
        without += sum(values is None for _, values in found)
        if self._drop and all(values is None for _, values in found):
          dropped += 1
        else:
          by_number.add(number, (query_id, query, found))
    if self._drop and without == pairs:
      what = "no pair has a score of every teacher; check that query_id and doc_id are the data's"
      raise UserError(f'{", ".join(self.addresses)}: {what}')
    if without:
      say(f'teachers: {without:,} of {pairs:,} pairs lack a score, {dropped:,} queries all of them')
    return dropped

  def _of_doc(self, doc_id: str, scores: dict) -> list[float] | None:
    """One score of each teacher, or None if one of them has none."""
    found = [scores.get((doc_id, teacher)) for teacher in range(len(self.addresses))]
    return [math.fsum(s) / len(s) for s in found] if all(found) else None


def _scored(doc: tuple, each: list[Moments]) -> Document:
  """A document with the teachers' one score; NaN if one of them has none."""
  fields, values = doc
  made = Document(*fields)
  if values is None:
    return dataclasses.replace(made, teacher=math.nan)
  score = values[0]
  if len(values) > 1:
    standard = [(v - m.mean) / m.std for v, m in zip(values, each, strict=True)]
    score = math.fsum(standard) / len(standard)
  return dataclasses.replace(made, teacher=score)
