"""Derives clicks from relevance labels, for data without a click log."""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from disranker_jax.data.records import BadRows, Click, Group, has_more
from disranker_jax.errors import UserError
from disranker_jax.progress import amount, say

ADDRESS = re.compile(r'judgements:(?:\?least=([1-9][0-9]{0,8}))?')


def least(address: str) -> int | None:
  """The lowest label that counts as a click; None if the clicks do not come from judgements.

  It is 1 for the address 'judgements:' and 3 for 'judgements:?least=3'. Raises: UserError.
  """
  if not address.startswith('judgements:'):
    return None
  match = ADDRESS.fullmatch(address)
  if not match:
    raise UserError(f'config.data.clicks={address!r}: write judgements: or judgements:?least=2')
  return int(match[1] or 1)


@dataclasses.dataclass
class Relevant:
  """Makes a click of each document with a label of at least `least`; keeps `limit`, 0: all.

  Documents without text are left out and counted in a message. `is_cut` as of Prepared.
  """

  least: int = 1
  limit: int = 0
  is_cut: bool = dataclasses.field(default=False, init=False, repr=False)

  def __call__(
    self, groups: Iterator[Group], bad_rows: BadRows, scratch: Path | None = None
  ) -> Iterator[Click]:
    clicks = self._clicks(groups)
    yield from itertools.islice(clicks, self.limit or None)
    self.is_cut = bool(self.limit) and has_more(clicks, bad_rows)

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
    finally:  # also when `limit` ends the iteration
      if blank:
        say(f'prepare clicks: left out {amount(blank, "relevant document")} without any text')
    if not clicked:
      raise UserError(
        f'config.data.clicks: none of the {amount(judged, "judged document")} has text and a label '
        f'of {self.least} or better; lower ?least= or check the labels of config.data.judgements'
      )
