"""What ranking by prompts cost, and how much the answers can be trusted, without any labels."""

import collections
from collections.abc import Iterable, Mapping

import numpy as np

from disranker_jax.devices import processes

FAULTS = ('wrong_format', 'repetition', 'missing')
COUNTS = (
  'queries', 'documents', 'pairs', 'tied', 'prompts', 'tokens', 'cut', 'compared', 'conflicts',
  'answers', *FAULTS,
)  # fmt: skip
PART = 1 << 20


def added(counted: Iterable[Mapping[str, int]]) -> dict[str, int]:
  """The totals of the counts of queries."""
  total: collections.Counter[str] = collections.Counter()
  for counts in counted:
    total.update(counts)
  return {name: total[name] for name in COUNTS}


def of_all_processes(counted: Iterable[Mapping[str, int]]) -> dict[str, int]:
  """The totals over the queries of every process, in every process."""
  totals = added(counted)
  # Devices add in 32 bits, so a number travels in two parts.
  parts = np.array([divmod(n, PART) for n in totals.values()], np.int32)
  added_up = zip(totals, processes.add_up(parts).tolist(), strict=True)
  return {name: high * PART + low for name, (high, low) in added_up}


def summary(counted: Iterable[Mapping[str, int]]) -> dict[str, float]:
  """Totals, means per query, and rates of the counts of queries.

  conflict_rate  pairs whose two orders disagree: the model goes by places and not by texts
  tie_rate       pairs of documents to which the method gives equal scores
  fault_rate     malformed answers of free decoding, which were repaired
  cut_rate       prompts in which a text was cut
  """
  total = added(counted)
  queries, prompts = max(total['queries'], 1), total['prompts']
  found = {
    'queries': total['queries'],
    'documents': total['documents'],
    'prompts': prompts,
    'tokens': total['tokens'],
    'prompts_per_query': prompts / queries,
    'tokens_per_query': total['tokens'] / queries,
    'tie_rate': total['tied'] / max(total['pairs'], 1),
    'cut_rate': total['cut'] / max(prompts, 1),
  }
  if total['compared']:
    found['conflict_rate'] = total['conflicts'] / total['compared']
  if total['answers']:
    found |= {fault: total[fault] for fault in FAULTS}
    found['fault_rate'] = sum(total[fault] for fault in FAULTS) / total['answers']
  return found


def as_text(costs: Mapping[str, float]) -> str:
  """The costs as one line for a person."""
  prompts, tokens = costs['prompts_per_query'], costs['tokens_per_query']
  parts = [f'{prompts:,.1f} prompts and {tokens:,.0f} tokens per query']
  parts.append(f'{costs["tie_rate"]:.1%} of the pairs tied')
  if 'conflict_rate' in costs:
    parts.append(f'{costs["conflict_rate"]:.1%} of the comparisons are conflicts')
  if 'fault_rate' in costs:
    parts.append(f'{costs["fault_rate"]:.1%} of the answers are malformed')
  if costs['cut_rate']:
    parts.append(f'{costs["cut_rate"]:.1%} of the prompts have a text that was cut')
  return ', '.join(parts)
