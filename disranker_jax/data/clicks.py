"""Clicks for who has labels and no log: what judges found relevant, as if it had been clicked."""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from disranker_jax.data.records import BadRows, Click, Group
from disranker_jax.errors import UserError
from disranker_jax.progress import say

ADDRESS = re.compile(r'judgements:(?:\?least=([1-9][0-9]{0,8}))?')


def least(address: str) -> int | None:
  """The lowest label that is a click, if config.data.clicks is the judgements'; None if it is not.

  'judgements:' takes labels of 1 and better, 'judgements:?least=3' of 3. Raises: UserError.
  """
  if not address.startswith('judgements:'):
    return None
  found = ADDRESS.fullmatch(address)
  if not found:
    raise UserError(f'config.data.clicks={address!r}: write judgements: or judgements:?least=2')
  return int(found[1] or 1)


@dataclasses.dataclass(frozen=True)
class Relevant:
  """The documents with a label of `least` or better, each a click on it; `limit` of them, 0: all.

  A document without any text says nothing about its query; such are left out and told.
  """

  least: int = 1
  limit: int = 0

  def __call__(
    self, groups: Iterator[Group], bad_rows: BadRows, scratch: Path | None = None
  ) -> Iterator[Click]:
    return itertools.islice(self._clicks(groups), self.limit or None)

  def _clicks(self, groups: Iterator[Group]) -> Iterator[Click]:
    blank = judged = clicked = 0
    try:
      for group in groups:
        for doc in group.docs:
          judged += 1
          if doc.label < self.least:
            continue
          if doc.title.strip() or doc.summary.strip():
            clicked += 1
            yield Click(group.query, doc.title, doc.summary)
          else:
            blank += 1
    finally:  # at a limit too
      if blank:
        say(f'prepare clicks: left out {blank:,} relevant documents without any text')
    if not clicked:
      raise UserError(
        f'config.data.clicks: of {judged:,} judged documents none with a text has a label of '
        f'{self.least} or better; lower ?least= or look at the labels of config.data.judgements'
      )
