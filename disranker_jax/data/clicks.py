"""Clicks for who has labels and no log: what judges found relevant, as if it had been clicked."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from disranker_jax.data.records import BadRows, Click, Group
from disranker_jax.progress import say

OF_JUDGEMENTS = 'judgements:'  # as config.data.clicks: the relevant documents of data.judgements


@dataclasses.dataclass(frozen=True)
class Relevant:
  """The documents with a positive label, each a click on it; `limit` of them, 0: all.

  A document without any text says nothing about its query; such are left out and told.
  """

  limit: int = 0

  def __call__(
    self, groups: Iterator[Group], bad_rows: BadRows, scratch: Path | None = None
  ) -> Iterator[Click]:
    return itertools.islice(_relevant(groups), self.limit or None)


def _relevant(groups: Iterator[Group]) -> Iterator[Click]:
  blank = 0
  try:
    for group in groups:
      for doc in group.docs:
        if doc.label > 0 and (doc.title.strip() or doc.summary.strip()):
          yield Click(group.query, doc.title, doc.summary)
        else:
          blank += doc.label > 0
  finally:  # at a limit too
    if blank:
      say(f'prepare clicks: left out {blank:,} relevant documents without any text')
