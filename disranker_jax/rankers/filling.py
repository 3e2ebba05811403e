"""Computes what no shard has, and stores what is finished about once a minute.

`store` is for what all processes compute together; with `score_missing` each scores queries of its
own. A restart, on any number of processes and devices, computes the items that no shard holds.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from disranker_jax.data.records import Group
from disranker_jax.data.spaced import spaced
from disranker_jax.devices import processes
from disranker_jax.progress import Progress, say
from disranker_jax.rankers import Ranker, shards
from disranker_jax.rankers.shards import Shards

SAMPLE = 200  # queries that the estimate of the work reads
FIRST = 500  # queries whose scores are looked at before the others are scored
# Batches of a unit, see shards.units, and how full they are. Fewer batches lose less when a run is
# killed. What is over the brim would be a batch of its own, almost empty.
UNIT_BATCHES, UNIT_FILL = 5, 0.93


def missing(label: str, into: Shards) -> list[range]:
  """The items that no shard has, as ranges in order, the same in every process; makes the folder.

  `label` names the work. Raises: UserError if another model made one of the shards.
  """

  def look() -> list[range]:
    into.folder.mkdir(parents=True, exist_ok=True)
    return into.missing()

  return shards.agreed(processes.first_alone(f'{label}: look', look) or [])


def store(
  label: str,
  into: Shards,
  units: Sequence[range],
  found: Iterable[tuple[range, tuple, int]],
  unit: str,
  seconds: float,
) -> None:
  """Stores what all processes compute together; process 0 writes, and all wait for it.

  Args:
    label: names the work, for people.
    units: what is missing, see shards.units.
    found: (unit, item as Shards.write takes it, its examples) of all items of the units, in order.
    unit: what the examples are called.
    seconds: finished units are written so often, each time as one shard.
  """
  first, done = processes.is_first(), into.count - sum(map(len, units))
  writing = shards.Writer(into, seconds) if first else contextlib.nullcontext()
  with writing as writer, Progress(label, into.count, unit, done, of=into.format.items) as progress:
    for of_unit, item, examples in found:
      if first:
        writer.add(of_unit, item)
      done += 1
      progress.update(done, examples)
  processes.barrier(f'{label}: all is stored')


def score_missing(
  label: str,
  groups: Sequence[Group],
  into: Shards,
  scorer: Ranker,
  *,
  shard_seconds: float,
  unit_queries: int = 0,
  look: Callable[[], None] | None = None,
) -> None:
  """Scores the queries that are missing; each of several processes takes its share of them.

  Of many queries the first ones are scored by themselves. Before any other one is scored, `look()`
  may raise a UserError, also where an earlier start has scored the first ones.

  Args:
    label: names the work, for people.
    shard_seconds: finished units are written so often, each time as one shard.
    unit_queries: queries of a unit, see shards.units; 0: as many as fill UNIT_BATCHES batches.
  """
  todo = missing(label, into)
  if not todo:
    return
  look = look if len(groups) > 2 * FIRST else None
  if look and todo[0].start >= FIRST:
    processes.first_alone(f'{label}: look at the first ones', look)
  per_query = measured(groups, scorer.tokens_of)
  size = unit_queries or max(scorer.least_unit, unit_size(per_query.tokens, scorer.positions))
  queries = sum(map(len, todo))
  say(
    f'{label}: about {queries * per_query.pairs:,.0f} pairs, '
    f'{queries * per_query.tokens:,.0f} tokens, of {queries:,} '
    f'{f"of {len(groups):,} " if queries < len(groups) else ""}queries'
  )
  listed = shards.units(todo, size)
  first = [unit for unit in listed if unit.start < FIRST] if look else []
  turns = [own_share(first), own_share(listed[len(first) :])]
  count = sum(len(unit) for own in turns for unit in own)
  begin, done, so_far = len(groups) - queries, 0, scorer.work.so_far
  with Progress(
    label, len(groups), 'pairs', begin, queries * per_query.pairs, so_far, own=count
  ) as progress:
    for number, own in enumerate(turns if first else turns[1:]):
      with shards.Writer(into, shard_seconds) as writer:
        parts = ((unit, (groups[i] for i in unit)) for unit in own)
        for unit, group, scores, *counts in scorer.parts(parts):
          writer.add(unit, (group, scores, *counts))
          done += 1
          progress.update(begin + done, len(scores))
      if first and not number:
        processes.barrier(f'{label}: the first ones are scored')
        processes.first_alone(f'{label}: look at the first ones', look)
  processes.barrier(f'{label}: all is scored')


def own_share(units: Sequence[range]) -> list[range]:
  """The units of this process. Neighbours go to one process, which writes them as one shard."""
  shares = np.array_split(range(len(units)), jax.process_count())
  return [units[i] for i in shares[jax.process_index()]]


class PerQuery(NamedTuple):
  """Mean work of a query."""

  pairs: float
  tokens: float


def measured(groups: Sequence[Group], tokens_of: Callable[[Group], float]) -> PerQuery:
  """The mean of SAMPLE queries, the same ones whenever it is called."""
  sample = [groups[i] for i in spaced(len(groups), SAMPLE)]
  tokens = sum(map(tokens_of, sample))
  return PerQuery(sum(len(g.docs) for g in sample) / len(sample), tokens / len(sample))


def unit_size(tokens: float, positions: int) -> int:
  """Queries of `tokens` tokens that fill UNIT_BATCHES batches, the last one almost."""
  return max(1, int(UNIT_BATCHES * UNIT_FILL * positions / max(tokens, 1)))
