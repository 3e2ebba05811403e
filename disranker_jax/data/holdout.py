"""Which queries are for the test alone, where training and test share their source."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable

from disranker_jax.data.records import Click, Group
from disranker_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Holdout:
  """Keeps a record for one of the two sides, by a hash of its query.

  share  of the queries that are for the test
  fold   0, 1, ...: another share of the same size
  by     a regular expression: queries whose ids match it alike stay on one side; '' for each by
         its text, which clicks have too
  test   whether the test's side is kept
  """

  share: float
  fold: int
  by: str
  test: bool

  def __call__(self, record: Click | Group) -> bool:
    key = record.query.strip().casefold()
    if self.by:
      if isinstance(record, Click):
        raise UserError(
          'config.data.holdout_by: clicks have no ids; leave it empty, or cpt out, or make clicks '
          'of labels with config.data.clicks=judgements:'
        )
      key = cluster(record.query_id, self.by)
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    return ((place + self.fold * self.share) % 1 < self.share) == self.test


def check_by(name: str, by: str) -> None:
  """UserError that names the setting or flag if `by` is no regular expression."""
  try:
    re.compile(by)
  except re.error as e:
    raise UserError(f'{name}={by}: is no regular expression: {e}') from None


def cluster(query_id: str, by: str) -> str:
  """What a query's id shares with those it belongs to, such as a session's: what `by` matches.

  Where nothing matches, and where `by` is '', the query is by itself.
  """
  found = re.search(by, query_id) if by else None
  return found[0] if found else query_id


def clusters(query_ids: Iterable[str], by: str) -> list[str]:
  """Each query's cluster, in their order."""
  return [cluster(query_id, by) for query_id in query_ids]
