"""Whether the measured times of a result table can be trusted."""

from typing import NamedTuple

from disranker_jax.report.facts import Facts

MOST = 1.5  # times by which equal networks may differ


class Uneven(NamedTuple):
  """Two rows with equal networks that took very different times."""

  fast: str
  slow: str


def uneven(facts: Facts) -> Uneven | None:
  """The fastest and the slowest of equal networks if they differ by more than `MOST` times.

  Networks are equal if two stages train the same role's model: they read equally long texts.
  """
  alike: dict[tuple, dict[str, float]] = {}
  for name in facts.table.trained:
    found = facts.results.get(name, {})
    if found.get('ms_per_pair'):
      key = facts.table.rows[name].role, found.get('parameters')
      alike.setdefault(key, {})[name] = found['ms_per_pair']
  for times in alike.values():
    fast, slow = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    if times[slow] > MOST * times[fast]:
      return Uneven(fast, slow)
  return None
