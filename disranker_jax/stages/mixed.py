"""Which generated queries distillation learns, and how often, beside those of a real log."""

from collections.abc import Sequence

import numpy as np

from disranker_jax.data.holdout import place
from disranker_jax.data.records import Group
from disranker_jax.data.scored_groups import ScoredGroups
from disranker_jax.progress import say
from disranker_jax.stages import prepare


def indices(run, kinds: Sequence[str], scored: ScoredGroups) -> tuple[Sequence[int], dict]:
  """(indices of the run's scored queries, one or several times each; facts for the manifest).

  Generated queries whose own document the teacher ranks below `distill.generated_within` are left
  out; of the others each is learned `distill.generated_weight` times.

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
  times, rest = divmod(c.generated_weight, 1)
  part = [i for i in found if place(scored[i][0].query_id) < rest]
  learned = sorted([*found * int(times), *part])
  facts = {'queries': len(own), 'found_by_teacher': len(found), 'learned': len(learned)}
  if len(learned) != len(own):
    say(
      f'distill: {len(found):,} of {len(own):,} generated queries have their own document among '
      f"the teacher's best, and {len(learned):,} are learned"
    )
  return [*range(start), *learned, *range(own.stop, len(scored))], {'generated': facts}


def is_found(scored: tuple[Group, np.ndarray], within: int) -> bool:
  """Whether the teacher ranks a query's own document, which has label 1, so high."""
  group, scores_N = scored
  own = [doc.label for doc in group.docs].index(1)
  return int((scores_N > scores_N[own]).sum()) < within
