"""Holds out queries for the test when training and test data have the same source."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable

from disranker_jax.data.records import Click, Group
from disranker_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Holdout:
  """Selects the records of one side (training or test) by a hash of the query.

  share  fraction of the queries that are held out for the test
  fold   0, 1, ...: selects another fraction of the same size
  by     a regular expression: queries whose ids have the same match are on the same side; '': each
         query is hashed by its text, which clicks have too
  test   whether to keep the side of the test
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
          'config.data.holdout_by: clicks have no ids; leave it empty, or leave cpt out, or make '
          'clicks of labels with config.data.clicks=judgements:'
        )
      key = cluster(record.query_id, self.by)
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    return ((place + self.fold * self.share) % 1 < self.share) == self.test


def check_by(name: str, by: str) -> None:
  """Raises: UserError that names the setting or flag if `by` is not a regular expression."""
  try:
    re.compile(by)
  except re.error as e:
    raise UserError(f'{name}={by}: is not a regular expression: {e}') from None


def cluster(query_id: str, by: str) -> str:
  """The part of a query id that `by` matches, such as the id of a session.

  If `by` is '' or does not match, the query is a cluster of its own.
  """
  match = re.search(by, query_id) if by else None
  return match[0] if match else query_id


def clusters(query_ids: Iterable[str], by: str) -> list[str]:
  """The cluster of each query."""
  return [cluster(query_id, by) for query_id in query_ids]
