"""Which generated queries distillation learns, and how often, beside those of a real log."""

from collections.abc import Sequence

import numpy as np

from disranker_jax.data.holdout import place
from disranker_jax.data.records import Group
from disranker_jax.data.scored_groups import ScoredGroups
from disranker_jax.progress import amount, say
from disranker_jax.stages import prepare


def indices(run, kinds: Sequence[str], scored: ScoredGroups) -> tuple[Sequence[int], dict]:
  """(indices of the run's scored queries, one or several times each; facts for the manifest).

  Generated queries whose own documents the teacher ranks below `distill.generated_within` are left
  out; of the others `distill.generated_limit` are taken, `distill.generated_weight` times each. The
  queries that validation holds out are among them.

  Args:
    kinds: the kinds of the scored queries, in their order.
  """
  if prepare.GENERATED not in kinds:
    return range(len(scored)), {}
  c, counts = run.config.distill, [len(prepare.records(run, kind)) for kind in kinds]
  at = kinds.index(prepare.GENERATED)
  start = sum(counts[:at])
  own = range(start, start + counts[at])
  found = [i for i in own if not c.generated_within or is_found(scored[i], c.generated_within)]
  limited = limit(found, [place(scored[i][0].query_id) for i in found], c.generated_limit)
  times, rest = divmod(c.generated_weight, 1)
  part = [i for i, placed in limited.items() if placed < rest]
  learned = sorted([*list(limited) * int(times), *part])
  facts = {'queries': len(own), 'found_by_teacher': len(found), 'learned': len(learned)}
  if len(learned) != len(own):
    within = f'; the teacher ranks the own document of {len(found):,} in its best '
    within = f'{within}{c.generated_within:,}' if c.generated_within else ''
    say(
      f'distill: takes {len(learned):,} of '
      f'{amount(len(own), "generated query", "generated queries")}{within}'
    )
  return [*range(start), *learned, *range(own.stop, len(scored))], {'generated': facts}


def limit(found: Sequence[int], places: Sequence[float], most: int) -> dict[int, float]:
  """{index: its place} of the queries with the `most` first places, in order; 0: all.

  The queries of a smaller number are among those of a larger one. The places are stretched to 0..1,
  so that `distill.generated_weight` can choose a part of these, too.
  """
  ranked = sorted(zip(places, found, strict=True))
  if not most or most >= len(ranked):
    if most > len(ranked):
      say(
        f'distill: generated_limit={most:,}: there are '
        f'{amount(len(ranked), "generated query", "generated queries")} to take'
      )
    return dict(zip(found, places, strict=True))
  last = ranked[most][0]
  return {i: placed / last for placed, i in sorted(ranked[:most], key=lambda pair: pair[1])}


def is_found(scored: tuple[Group, np.ndarray], within: int) -> bool:
  """Whether the teacher ranks a query's own document, the best of those of label 1, so high."""
  group, scores_N = scored
  own = max(score for doc, score in zip(group.docs, scores_N, strict=True) if doc.label == 1)
  return int((scores_N > own).sum()) < within
